#!/usr/bin/env bash
# Task-agnostic distillation: a general student from a masked language model on plain text, then fine-tuned on GLUE by
# run_glue.sh as STUDENT (arXiv:2109.08359, task-agnostic results).
#
#   bash run_pretrain.sh demo          artificial language, no downloads; 4 min 55 s on one core of an Intel Xeon
#   bash run_pretrain.sh               multilingual BERT on English Wikipedia, then CoLA; needs GPUs
#   LAUNCH="torchrun --nproc_per_node 8" bash run_pretrain.sh --mixed_precision bf16
#   DRY_RUN=1 bash run_pretrain.sh     prints the commands, each after those whose result it reads
#
# Finished runs are skipped, interrupted ones resumed. All other arguments go on to distill_pretrain.py, and the
# precision among them to the fine-tuning too.
set -euo pipefail
cd "$(dirname "$0")"

TEACHER=${TEACHER:-google-bert/bert-base-multilingual-cased}        # masked language model
STUDENT_LAYERS=${STUDENT_LAYERS:-6}                     # copied evenly from the teacher's
CORPUS=${CORPUS:-wikimedia/wikipedia:20231101.en}       # file, folder, glob or hub id
VALIDATION_CORPUS=${VALIDATION_CORPUS-wikimedia/wikipedia:20231101.simple}  # empty: blocks held out of CORPUS
STREAMING=${STREAMING:-}                                # 1: tokenise as it is read, for disks without room for it
TERMS=${TERMS:-ckd}                                     # terms of the pre-training; fine-tuning has its presets
MAX_STEPS=${MAX_STEPS:-100000}                          # optimiser steps
LEARNING_RATE=${LEARNING_RATE:-5e-4}                    # of the pre-training, as TERMS
SEQ_LENGTH=${SEQ_LENGTH:-128}                           # tokens of a block
RUNS=${RUNS:-runs}                                      # the student goes to $RUNS/pretrain/ckd/seed1
TASKS=${TASKS-cola}                                     # tasks it is fine-tuned on; empty: none
SEEDS=${SEEDS:-1 2 3}
LAUNCH=${LAUNCH:-python}                                # of the pre-training; fine-tuning runs in one process
DRY_RUN=${DRY_RUN:-}                                    # 1: print the commands

source scripts/presets.sh
switch STREAMING
switch DRY_RUN
[ -z "$TASKS" ] || check TASKS "$ALL_TASKS"
[ -z "${METHODS:-}" ] || check METHODS "$ALL_METHODS"  # of run_glue.sh
check SEEDS "whole numbers" "[0-9]+"

find_precision "$@"
demo=
[ "${1:-}" = demo ] && shift && demo=1
split_options "$@"
[ -z "$demo" ] || RUNS=$RUNS/demo-pretrain
student=$RUNS/pretrain/ckd/seed1

demo_commands() {
    local text teacher start seed
    run python synthetic.py --output_dir cache/synthetic
    text=(--corpus cache/synthetic/text/train.txt --validation_corpus cache/synthetic/text/valid.txt --seq_length 32
        --logging_steps 100 --eval_steps 500)
    teacher=$RUNS/pretrain/teacher/seed1
    # The teacher: plain MLM pre-training of the four-layer model.
    run $LAUNCH distill_pretrain.py "${text[@]}" --student cache/synthetic/bert --run_name teacher --max_steps 1600 \
        --learning_rate 1e-3 --output_dir "$teacher" ${others[@]+"${others[@]}"}
    # The general student, with all terms.
    run $LAUNCH distill_pretrain.py "${text[@]}" --teacher "$teacher" --student_layers 2 --terms $TERMS --run_name ckd \
        --max_steps 800 --learning_rate 1e-3 --output_dir "$student" ${arguments[@]+"${arguments[@]}"}
    # Three students of the same shape, each fine-tuned on the acceptability task in the same way.
    for seed in $SEEDS; do
        for start in random layers ckd; do
            case $start in
                random) from=(--student "$teacher" --student_layers 2 --student_init random) ;;
                layers) from=(--student "$teacher" --student_layers 2 --student_init uniform) ;;
                ckd) from=(--student "$student") ;;
            esac
            run python distill_finetune.py --task cola --data_dir cache/synthetic/glue "${from[@]}" --seed "$seed" \
                --run_name "from-$start" --max_train_samples 8000 --num_train_epochs 2 --learning_rate 5e-4 \
                --output_dir "$RUNS/cola/from-$start/seed$seed" ${precision[@]+"${precision[@]}"}
        done
    done
}

commands() {
    run $LAUNCH distill_pretrain.py --corpus "$CORPUS" ${VALIDATION_CORPUS:+--validation_corpus "$VALIDATION_CORPUS"} \
        ${STREAMING:+--streaming} --teacher "$TEACHER" --student_layers "$STUDENT_LAYERS" --terms $TERMS --run_name ckd \
        --max_steps "$MAX_STEPS" --learning_rate "$LEARNING_RATE" --seq_length "$SEQ_LENGTH" --eval_steps 5000 \
        --save_steps 1000 --output_dir "$student" ${arguments[@]+"${arguments[@]}"}
    [ -z "$TASKS" ] || glue
}

# glue: run_glue.sh with the student, or, while commands are checked and it is not there yet, with its teacher. What was
# set for the pre-training must not reach the fine-tuning under the same name.
glue() {
    env -u TERMS -u LEARNING_RATE -u STUDENT_LAYERS -u LAUNCH TASKS="$TASKS" SEEDS="$SEEDS" TEACHER="$TEACHER" \
        STUDENT="$([ -n "$checking" ] && echo "$TEACHER" || echo "$student")" RUNS="$RUNS" DRY_RUN="$DRY_RUN" \
        bash run_glue.sh ${precision[@]+"${precision[@]}"} ${checking:+--check_only}
}

arguments=("$@")
if [ -n "$demo" ]; then
    start demo_commands "$@"
    [ -n "$DRY_RUN" ] || python report.py "$RUNS" --output_dir "$RUNS"
else
    start commands "$@"
fi
