#!/usr/bin/env bash
# From a multilingual encoder to a small one for the languages that are needed: trim its vocabulary, distil it on text of
# these languages, fine-tune on one of them, evaluate on all; one table (docs/languages.md).
#
#   bash run_languages.sh demo         two artificial languages, no downloads; 5 min 40 s of one core of an AMD EPYC
#   bash run_languages.sh              multilingual-e5-small for English and German, SQuAD, needs a GPU
#   TASK=tags TRAIN_FILE=en.conllu DEV_FILE=en-dev.conllu SETS="en=en-test.conllu ko=ko.conllu" bash run_languages.sh
#   DRY_RUN=1 bash run_languages.sh    prints the commands
#
# Finished runs are skipped, interrupted ones resumed. All other arguments go on to distill_pretrain.py, such as
# --freeze_embeddings or --student_heads, and the precision among them to the fine-tuning too.
set -euo pipefail
cd "$(dirname "$0")"

MODEL=${MODEL:-intfloat/multilingual-e5-small}    # the multilingual encoder
CORPUS=${CORPUS:-en=wikimedia/wikipedia:20231101.simple de=wikimedia/wikipedia:20231101.de}  # LANGUAGE=TEXT, no blanks
VALIDATION_CORPUS=${VALIDATION_CORPUS:-}          # in the same form; empty: blocks held out of CORPUS
CHARACTERS=${CHARACTERS:-corpus}                  # words of one character that stay: corpus or all
MIN_COUNT=${MIN_COUNT:-1}                         # times that a word must stand in CORPUS to stay
STUDENT_LAYERS=${STUDENT_LAYERS:-6}
STUDENT_HIDDEN=${STUDENT_HIDDEN:-}                # width of the student; empty: the teacher's
TERMS=${TERMS:-ckd logits=0}                      # of the distilling on text; a masked language model may have logits
MAX_STEPS=${MAX_STEPS:-20000}                     # optimiser steps of it
LEARNING_RATE=${LEARNING_RATE:-5e-4}              # of it
SEQ_LENGTH=${SEQ_LENGTH:-128}                     # tokens of a block
TASK=${TASK:-squad}                               # squad, or tags: a tag for each word, from CoNLL-U or column files
DATA_DIR=${DATA_DIR:-}                            # of squad: folder with train-v1.1.json, dev-v1.1.json; empty: the hub
TRAIN_FILE=${TRAIN_FILE:-}                        # of tags: the file to train on
DEV_FILE=${DEV_FILE:-}                            # of tags: the file that chooses the best model
SETS=${SETS:-}                                    # NAME=FILE of each set to evaluate on, no blanks; empty: the dev set
METHODS=${METHODS:-finetune ckd}                  # how the student is fine-tuned: by labels alone, by its teacher
TASK_EPOCHS=${TASK_EPOCHS:-3}                     # of teacher and students
TASK_RATE=${TASK_RATE:-5e-5}                      # learning rate of teacher and students
SEEDS=${SEEDS:-1}
RUNS=${RUNS:-runs}                                # all of it goes to $RUNS/languages
LAUNCH=${LAUNCH:-python}
DRY_RUN=${DRY_RUN:-}                              # 1: print the commands

source scripts/presets.sh
switch DRY_RUN
check TASK "squad tags"
check METHODS "$ALL_METHODS"
check SEEDS "whole numbers" "[0-9]+"
check CHARACTERS "corpus all"

demo=
[ "${1:-}" = demo ] && shift && demo=1
check_options "$@"
find_precision "$@"
arguments=("$@")
if [ -n "$demo" ]; then
    two=cache/two-languages RUNS=$RUNS/demo
    MODEL=$RUNS/languages/multilingual CORPUS="one=$two/text/train.txt two=$two/second/text/train.txt"
    VALIDATION_CORPUS="one=$two/text/valid.txt two=$two/second/text/valid.txt"
    SETS="one=$two/ud/dev.conllu two=$two/second/ud/dev.conllu"
    TASK=tags TRAIN_FILE=$two/ud/train.conllu DEV_FILE=$two/ud/dev.conllu
    STUDENT_LAYERS=2 MAX_STEPS=400 LEARNING_RATE=1e-3 SEQ_LENGTH=32 TASK_EPOCHS=2 TASK_RATE=3e-4
fi
if [ "$TASK" = tags ]; then
    for name in TRAIN_FILE DEV_FILE; do
        [ -n "$demo" ] || [ -f "${!name}" ] || refuse "$name is '${!name}': TASK=tags needs a file that is there"
    done
    task_options=(--task custom --kind token --dataset_name tags --train_file "$TRAIN_FILE"
        --validation_file "$DEV_FILE")
else
    task_options=(--task squad ${DATA_DIR:+--data_dir "$DATA_DIR"} --max_seq_length 384)
fi
[ -n "$demo" ] || for word in $SETS; do
    [ -f "${word#*=}" ] || refuse "SETS names $word: use NAME=FILE with a file that is there"
done
folder=$RUNS/languages
student=$folder/student

commands() {
    local seed method output models teaching
    [ -z "$demo" ] || multilingual
    trimmed
    run $LAUNCH distill_pretrain.py --teacher "$folder/trimmed" --corpus $CORPUS \
        ${VALIDATION_CORPUS:+--validation_corpus $VALIDATION_CORPUS} --student_layers "$STUDENT_LAYERS" \
        ${STUDENT_HIDDEN:+--student_hidden "$STUDENT_HIDDEN"} --terms $TERMS --max_steps "$MAX_STEPS" \
        --learning_rate "$LEARNING_RATE" --seq_length "$SEQ_LENGTH" --run_name student --output_dir "$student" \
        ${arguments[@]+"${arguments[@]}"}
    run $LAUNCH distill_finetune.py "${task_options[@]}" --student "$folder/trimmed" --run_name teacher \
        --num_train_epochs "$TASK_EPOCHS" --learning_rate "$TASK_RATE" --output_dir "$folder/$TASK/teacher/seed1" \
        ${precision[@]+"${precision[@]}"}
    models=()
    for seed in $SEEDS; do
        for method in $METHODS; do
            teaching=()
            [ "$method" = finetune ] || teaching=(--teacher "$folder/$TASK/teacher/seed1" --terms "$method")
            output=$folder/$TASK/$method/seed$seed
            models+=("$output")
            run $LAUNCH distill_finetune.py "${task_options[@]}" --student "$student" --run_name "$method" \
                --seed "$seed" --num_train_epochs "$TASK_EPOCHS" --learning_rate "$TASK_RATE" \
                --output_dir "$output" ${teaching[@]+"${teaching[@]}"} ${precision[@]+"${precision[@]}"}
        done
    done
    run python evaluate.py "$folder/$TASK/teacher/seed1" ${models[@]+"${models[@]}"} ${SETS:+--sets $SETS} \
        --output_dir "$folder/$TASK/scores"
}

# multilingual: the demo's own encoder, pre-trained on both languages, with words of a third
multilingual() {
    run python synthetic.py --output_dir "$two" --second_language --train_size 16000
    run $LAUNCH distill_pretrain.py --corpus $CORPUS --validation_corpus $VALIDATION_CORPUS \
        --student "$two/bert" --run_name multilingual --max_steps 1600 --learning_rate 1e-3 --seq_length "$SEQ_LENGTH" \
        --output_dir "$MODEL"
}

# trimmed: $folder/trimmed, unless it is there with the words of these texts
trimmed() {
    local word
    if [ -z "$DRY_RUN$checking" ] && [ -d "$folder/trimmed" ]; then
        for word in $CORPUS; do
            grep -qF "\`$word\`" "$folder/trimmed/README.md" ||
                refuse "$folder/trimmed was made without $word: set RUNS to another folder, or delete it"
        done
        return
    fi
    run python trim_vocabulary.py --model "$MODEL" --corpus $CORPUS --characters "$CHARACTERS" \
        --min_count "$MIN_COUNT" --output_dir "$folder/trimmed"
}

start commands "$@"
