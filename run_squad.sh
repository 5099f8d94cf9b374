#!/usr/bin/env bash
# Task-specific distillation on SQuAD: fine-tune a teacher, distil students with each method over seeds, print the table
# of EM and F1, sizes, speed and time (arXiv:2109.08359, table of SQuAD results).
#
#   bash run_squad.sh demo             artificial language, no downloads; 3 min 35 s on one core of an Intel Xeon
#   bash run_squad.sh                  multilingual BERT on SQuAD 1.1 from the hub; needs a GPU
#   TASK=squad_v2 bash run_squad.sh    SQuAD 2.0
#   DRY_RUN=1 bash run_squad.sh        prints the commands, the teacher first
#
# Finished runs are skipped, interrupted ones resumed. All other arguments go on to distill_finetune.py; options of
# distillation, such as --window 11, only to students with a teacher.
set -euo pipefail
cd "$(dirname "$0")"

TASK=${TASK:-squad}                               # squad or squad_v2
SEEDS=${SEEDS:-1}                                 # one run of every method each
METHODS=${METHODS:-finetune kd ckd}               # also: pkd tinybert distilbert minilm; finetune: labels only
TEACHER=${TEACHER:-google-bert/bert-base-multilingual-cased}  # pre-trained model, fine-tuned here to be the teacher
STUDENT=${STUDENT:-}                              # a small pre-trained model; empty: cut from TEACHER
STUDENT_LAYERS=${STUDENT_LAYERS:-}                # layers of a cut student; 6 where STUDENT is empty
DATA_DIR=${DATA_DIR:-}                            # folder with train-v1.1.json, dev-v1.1.json; empty: the hub
RUNS=${RUNS:-runs}                                # results go to $RUNS/<task>/<method>/seed<seed>
TERMS=${TERMS:-}                                  # terms of ckd, e.g. "ckd wr_triple=50"; empty: the task's recipe
TEMPERATURE=${TEMPERATURE:-}                      # of ckd and kd; empty: the task's recipe
MAX_SEQ_LENGTH=${MAX_SEQ_LENGTH:-384}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-2}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-3e-5}
EPOCHS=${EPOCHS:-}                                # of the students; empty: the task's recipe
LEARNING_RATE=${LEARNING_RATE:-}                  # of the students; empty: the task's recipe
LAUNCH=${LAUNCH:-python}                          # "torchrun --nproc_per_node 8": every run on so many GPUs
DRY_RUN=${DRY_RUN:-}                              # 1: print the commands

source scripts/presets.sh
switch DRY_RUN
check TASK "squad squad_v2"
check METHODS "$ALL_METHODS"
check SEEDS "whole numbers" "[0-9]+"

# ${a[@]+"${a[@]}"} below: before bash 4.4 an empty array counts as unset
demo_options=() student_options=() demo=
[ "${1:-}" = demo ] && shift && demo=1
check_options "$@"
split_options "$@"
if [ -n "$demo" ]; then
    RUNS=$RUNS/demo
    TEACHER=cache/synthetic/bert DATA_DIR=cache/synthetic/squad STUDENT_LAYERS=${STUDENT_LAYERS:-2} MAX_SEQ_LENGTH=48
    # Small batches: from random weights, finding the right sentence takes many steps.
    demo_options=(--max_query_length 12 --doc_stride 16 --per_device_train_batch_size 16)
    TEACHER_LEARNING_RATE=5e-4 TEACHER_EPOCHS=3 LEARNING_RATE=5e-4 EPOCHS=2 TEMPERATURE=3
    student_options=(--max_train_samples 8000)
fi
[ -n "$STUDENT" ] || STUDENT_LAYERS=${STUDENT_LAYERS:-6}
shared=(--max_seq_length "$MAX_SEQ_LENGTH" ${demo_options[@]+"${demo_options[@]}"})

commands() {
    local seed method options rates
    rates=$(schedule "$TASK")
    [ -z "$demo" ] || run python synthetic.py --output_dir cache/synthetic
    train_teacher "$TASK" "${shared[@]}" ${others[@]+"${others[@]}"}
    for seed in $SEEDS; do
        for method in $METHODS; do
            options=(--run_name "$method" --seed "$seed" --output_dir "$RUNS/$TASK/$method/seed$seed"
                --student "${STUDENT:-$TEACHER}" ${STUDENT_LAYERS:+--student_layers "$STUDENT_LAYERS"}
                $rates $(method_options "$method"))
            [ "$method" = finetune ] || options+=(--teacher "$RUNS/$TASK/teacher/seed1"
                ${distilling[@]+"${distilling[@]}"})
            run $LAUNCH distill_finetune.py --task "$TASK" ${DATA_DIR:+--data_dir "$DATA_DIR"} "${shared[@]}" \
                "${options[@]}" ${student_options[@]+"${student_options[@]}"} ${others[@]+"${others[@]}"}
        done
    done
}
start commands "$@"
[ -n "$DRY_RUN" ] || python report.py "$RUNS/$TASK" --output_dir "$RUNS/$TASK"
