#!/usr/bin/env bash
# Task-specific distillation on GLUE, words (named entities, chunks), several labels, summaries and your own files:
# fine-tune a teacher, distil students with each method over seeds, print the table of scores, sizes, speed and time
# (arXiv:2109.08359, table of GLUE results for a 6-layer student).
#
#   bash run_glue.sh demo          artificial language, no downloads; 6 min on one core of an Intel Xeon
#   bash run_glue.sh               multilingual BERT on CoLA from the hub; needs a GPU to be comfortable
#   TASKS="cola rte" SEEDS="1 2 3 4 5" bash run_glue.sh --mixed_precision bf16
#   TASKS="wnut17 goemotions" DATA_DIR=my/data bash run_glue.sh
#   TASKS=scitldr DATA_DIR=my/data bash run_glue.sh --max_seq_length 512
#   TASKS=custom DATA_OPTIONS="--dataset_name news --train_file my/train.csv --validation_file my/dev.csv" bash run_glue.sh
#   DRY_RUN=1 bash run_glue.sh     prints the commands, teachers first
#
# Finished runs are skipped, interrupted ones resumed. All other arguments go on to distill_finetune.py; options of
# distillation, such as --window 11, only to students with a teacher.
# Small-scale check (CoLA, 6-layer BERT of 384 units, 3-layer students): docs/results.md.
set -euo pipefail
cd "$(dirname "$0")"

TASKS=${TASKS:-cola}                              # any of: cola sst2 mrpc stsb qqp mnli qnli rte wnli
                                                  # conll2003 wnut17 conll2000 goemotions scitldr
                                                  # cnn_dailymail custom
SEEDS=${SEEDS:-1 2 3}                             # one run of every method each
METHODS=${METHODS:-finetune kd ckd}               # also: pkd tinybert distilbert minilm; finetune: labels only
TEACHER=${TEACHER:-google-bert/bert-base-multilingual-cased}  # pre-trained model, fine-tuned here to be the teacher
STUDENT=${STUDENT:-}                              # a small pre-trained model; empty: cut from TEACHER
STUDENT_LAYERS=${STUDENT_LAYERS:-}                # layers of a cut student; 6 where STUDENT is empty
DATA_DIR=${DATA_DIR:-}                            # folder with the tasks' own files; empty: the hub
DATA_OPTIONS=${DATA_OPTIONS:-}                    # of TASKS=custom: "--dataset_name news --train_file my/train.csv ..."
RUNS=${RUNS:-runs}                                # results go to $RUNS/<task>/<method>/seed<seed>
TERMS=${TERMS:-}                                  # terms of ckd, e.g. "ckd wr_triple=50"; empty: the task's recipe
TEMPERATURE=${TEMPERATURE:-}                      # of ckd and kd; empty: the task's recipe
TEACHER_EPOCHS=${TEACHER_EPOCHS:-3}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-5e-5}
LEARNING_RATE=${LEARNING_RATE:-}                  # of the students; empty: the task's recipe
EPOCHS=${EPOCHS:-}                                # of the students; empty: the task's recipe
RECIPES=${RECIPES:-}                              # options of each method that run_sweep.sh chose; empty: the presets
CACHE_TEACHER=${CACHE_TEACHER:-}                  # 1: its outputs for the training set are computed once, for all runs
LAUNCH=${LAUNCH:-python}                          # "torchrun --nproc_per_node 8": every run on so many GPUs
DRY_RUN=${DRY_RUN:-}                              # 1: print the commands

source scripts/presets.sh
switch CACHE_TEACHER
switch DRY_RUN
check TASKS "$ALL_TASKS custom"
check METHODS "$ALL_METHODS"
check SEEDS "whole numbers" "[0-9]+"

# ${a[@]+"${a[@]}"} below: before bash 4.4 an empty array counts as unset
student_options=() demo=
[ "${1:-}" = demo ] && shift && demo=1
check_options "$@"
split_options "$@"
own_data "$@"
[ -z "$RECIPES" ] || check_recipes $METHODS
if [ -n "$demo" ]; then
    RUNS=$RUNS/demo TASKS=cola
    TEACHER=cache/synthetic/bert DATA_DIR=cache/synthetic/glue STUDENT_LAYERS=${STUDENT_LAYERS:-2}
    TEACHER_LEARNING_RATE=3e-4 TEACHER_EPOCHS=5 LEARNING_RATE=5e-4 EPOCHS=2
    student_options=(--max_train_samples 8000)
fi
[ -n "$STUDENT" ] || STUDENT_LAYERS=${STUDENT_LAYERS:-6}

commands() {
    local task seed method options recipe rates
    [ -z "$demo" ] || run python synthetic.py --output_dir cache/synthetic
    for task in $TASKS; do
        [ "$METHODS" != finetune ] || break
        train_teacher "$task" ${others[@]+"${others[@]}"}
    done
    for task in $TASKS; do
        rates=$(schedule "$task")
        enter "$task"
        for seed in $SEEDS; do
            for method in $METHODS; do
                options=(--run_name "$method" --seed "$seed" --output_dir "$RUNS/$place/$method/seed$seed"
                    --student "${STUDENT:-$TEACHER}" ${STUDENT_LAYERS:+--student_layers "$STUDENT_LAYERS"}
                    $rates)
                if [ -n "$RECIPES" ]; then
                    read -ra recipe <<<"$(recipe_of "$method")"
                    options+=(${recipe[@]+"${recipe[@]}"})
                else
                    options+=($(method_options "$method"))
                fi
                [ "$method" = finetune ] || options+=(--teacher "$RUNS/$place/teacher/seed1"
                    ${CACHE_TEACHER:+--cache_teacher} ${distilling[@]+"${distilling[@]}"})
                run $LAUNCH distill_finetune.py --task "$task" ${data[@]+"${data[@]}"} "${options[@]}" \
                    ${student_options[@]+"${student_options[@]}"} ${others[@]+"${others[@]}"}
            done
        done
    done
}
start commands "$@"
table=(python report.py)  # of the tasks alone: other scripts keep runs of the same names beside them
for task in $TASKS; do enter "$task" && table+=("$RUNS/$place"); done
[ -n "$DRY_RUN" ] || "${table[@]}" --output_dir "$RUNS"
