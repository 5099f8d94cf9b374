#!/usr/bin/env bash
# DynaBERT with CKD: one student that runs at several widths and depths, with CKD's objective and with DynaBERT's own
# (arXiv:2109.08359 in combination with arXiv:2004.04037): fine-tune a teacher, then the stages of widths and of depths,
# print the tables of scores, sizes and speed of every sub-network.
#
#   bash run_dynabert.sh demo      artificial language, no downloads; 5 min 13 s on one core of an Intel Xeon
#   bash run_dynabert.sh           multilingual BERT on CoLA from the hub; needs a GPU to be comfortable
#   TASKS="cola sst2" SEEDS="1 2 3" OBJECTIVES=ckd bash run_dynabert.sh --mixed_precision bf16
#   LABEL_EPOCHS=1 bash run_dynabert.sh      adds the third stage, all sub-networks on the labels
#   DRY_RUN=1 bash run_dynabert.sh           prints the commands, each after those it needs
#
# Finished runs are skipped, interrupted ones resumed. All other arguments go on to distill_finetune.py and
# distill_dynabert.py; options of distillation, such as --window 11, only to the latter.
# Small-scale check (CoLA and SST-2, 6-layer BERT of 384 units): docs/results.md.
set -euo pipefail
cd "$(dirname "$0")"

TASKS=${TASKS:-cola}                              # any of run_glue.sh's, and squad, squad_v2
SEEDS=${SEEDS:-1}                                 # one run of every objective each
OBJECTIVES=${OBJECTIVES:-ckd dynabert}            # any presets of --terms that compare hidden states or logits
TEACHER=${TEACHER:-google-bert/bert-base-multilingual-cased}  # pre-trained model, fine-tuned here to be the teacher
WIDTHS=${WIDTHS:-1.0 0.75 0.5 0.25}               # shares of heads and neurons
DEPTHS=${DEPTHS:-1.0 0.75 0.5}                    # shares of layers
DATA_DIR=${DATA_DIR:-}                            # folder with the tasks' own files; empty: the hub
RUNS=${RUNS:-runs}                                # results go to $RUNS/<task>/<objective>-<stage>/seed<seed>
TERMS=${TERMS:-}                                  # terms of ckd, e.g. "ckd wr_triple=50"; empty: the task's recipe
TEMPERATURE=${TEMPERATURE:-}                      # of ckd and kd; empty: the task's recipe
TEACHER_EPOCHS=${TEACHER_EPOCHS:-3}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-5e-5}
LEARNING_RATE=${LEARNING_RATE:-2e-5}              # of the stages; the original's
WIDTH_EPOCHS=${WIDTH_EPOCHS:-3}
DEPTH_EPOCHS=${DEPTH_EPOCHS:-3}
LABEL_EPOCHS=${LABEL_EPOCHS:-}                    # empty: no third stage
CACHE_TEACHER=${CACHE_TEACHER:-}                  # 1: its outputs for the training set are computed once, for all runs
LAUNCH=${LAUNCH:-python}                          # "torchrun --nproc_per_node 8": every run on so many GPUs
DRY_RUN=${DRY_RUN:-}                              # 1: print the commands

source scripts/presets.sh
switch CACHE_TEACHER
switch DRY_RUN
check TASKS "$ALL_TASKS squad squad_v2"
check OBJECTIVES "ckd kd dynabert pkd distilbert"
check SEEDS "whole numbers" "[0-9]+"
check WIDTHS "shares up to 1, such as 0.5" "0?\.[0-9]+|1(\.0*)?"
check DEPTHS "shares up to 1, such as 0.5" "0?\.[0-9]+|1(\.0*)?"

stage_options=() demo=
[ "${1:-}" = demo ] && shift && demo=1
check_options "$@"
for word in "$@"; do
    [ "$word" != --do_predict ] || refuse "--do_predict is for run_glue.sh"
done
split_options "$@"
if [ -n "$demo" ]; then
    RUNS=$RUNS/demo TASKS=cola DATA_DIR=cache/synthetic/glue TEACHER=cache/synthetic/bert
    TEACHER_LEARNING_RATE=3e-4 TEACHER_EPOCHS=5 WIDTHS="1.0 0.5" DEPTHS="1.0 0.5"
    LEARNING_RATE=3e-4 WIDTH_EPOCHS=1 DEPTH_EPOCHS=1
    stage_options=(--max_train_samples 8000)
fi
# long TASK: windows of SQuAD's contexts are longer than the texts of GLUE
long() { [[ $1 != squad* ]] || echo "--max_seq_length 384"; }

# stage NAME OPTION...: one stage of the objective, task and seed at hand
stage() {
    run $LAUNCH distill_dynabert.py --task "$task" $(long "$task") ${DATA_DIR:+--data_dir "$DATA_DIR"} \
        --run_name "$objective-$1" --seed "$seed" --output_dir "$RUNS/$task/$objective-$1/seed$seed" \
        --width_mults $WIDTHS "${@:2}" --learning_rate "$LEARNING_RATE" \
        ${stage_options[@]+"${stage_options[@]}"} ${others[@]+"${others[@]}"}
}

commands() {
    local task seed objective distil
    [ -z "$demo" ] || run python synthetic.py --output_dir cache/synthetic
    for task in $TASKS; do train_teacher "$task" $(long "$task") ${others[@]+"${others[@]}"}; done
    for task in $TASKS; do
        for seed in $SEEDS; do
            for objective in $OBJECTIVES; do
                distil=($(method_options "$objective") ${CACHE_TEACHER:+--cache_teacher}
                    ${distilling[@]+"${distilling[@]}"})
                stage width --teacher "$RUNS/$task/teacher/seed1" --num_train_epochs "$WIDTH_EPOCHS" \
                    ${distil[@]+"${distil[@]}"}
                stage depth --teacher "$RUNS/$task/$objective-width/seed$seed" --depth_mults $DEPTHS \
                    --num_train_epochs "$DEPTH_EPOCHS" ${distil[@]+"${distil[@]}"}
                [ -z "$LABEL_EPOCHS" ] || stage labels --student "$RUNS/$task/$objective-depth/seed$seed" \
                    --depth_mults $DEPTHS --num_train_epochs "$LABEL_EPOCHS"
            done
        done
    done
}
start commands "$@"
table=(python report.py)
for task in $TASKS; do table+=("$RUNS/$task"); done
[ -n "$DRY_RUN" ] || "${table[@]}" --output_dir "$RUNS"
