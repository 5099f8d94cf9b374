#!/usr/bin/env bash
# Fair weights: every method gets six tries on one task, judged on a tenth of the training set that is held out. The
# best options of every method go to $RUNS/sweep/<task>/recipes.txt, which run_glue.sh takes as RECIPES for any task.
#
#   bash run_sweep.sh                                       CoLA, multilingual BERT from the hub; needs a GPU
#   RUNS=runs/fair RECIPES=runs/fair/sweep/cola/recipes.txt TASKS="sst2 cola mrpc" bash run_glue.sh --held_out 0.1
#                                                           afterwards, with the teachers that held the same out
#   DRY_RUN=1 bash run_sweep.sh                             prints the commands
#
# Finished runs are skipped, interrupted ones resumed; a try that diverges is named and the others go on. All other
# arguments go on to distill_finetune.py.
set -euo pipefail
cd "$(dirname "$0")"

TASK=${TASK:-cola}                                # any one of run_glue.sh, custom too
SEEDS=${SEEDS:-1}                                 # of every try; the mean over them is judged
METHODS=${METHODS:-finetune kd ckd tinybert minilm}  # also: pkd distilbert
HELD_OUT=${HELD_OUT:-0.1}                         # share of the training set that judges; the teacher lacks it too
LEARNING_RATES=${LEARNING_RATES:-5e-5 2e-4}       # each with each of a method's three settings below
FINETUNE_RATES=${FINETUNE_RATES:-2e-5 5e-5 1e-4 2e-4 5e-4 1e-3}  # of fine-tuning, which has no other setting
TEACHER=${TEACHER:-google-bert/bert-base-multilingual-cased}  # these as in run_glue.sh
STUDENT=${STUDENT:-}
STUDENT_LAYERS=${STUDENT_LAYERS:-}
DATA_DIR=${DATA_DIR:-}
DATA_OPTIONS=${DATA_OPTIONS:-}
RUNS=${RUNS:-runs/fair}                           # not where teachers are that held nothing out
TEACHER_EPOCHS=${TEACHER_EPOCHS:-3}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-5e-5}
EPOCHS=${EPOCHS:-}
CACHE_TEACHER=${CACHE_TEACHER:-}
LAUNCH=${LAUNCH:-python}
DRY_RUN=${DRY_RUN:-}

# settings METHOD: three of them, a line each, for a task whose ckd has this temperature and these weights
settings() {
    local t=$temperature other=1
    [ "$t" != 1 ] || other=3
    case $1 in
        finetune) echo ;;
        kd) printf '%s\n' "--terms kd --temperature $other" "--terms kd --temperature $t" \
            "--terms kd --temperature $t --hard_weight 1" ;;
        ckd)  # relations as published, ten times as strong, and at the other temperature, with which the weights change
            echo "--terms ckd"
            echo "--terms ckd wr_pair=$(times 10 "$pair") ltr_pair=$(times 10 "$pair")" \
                "wr_triple=$(times 10 "$triple") ltr_triple=$(times 10 "$triple")"
            echo "--terms ckd --temperature $other" ;;
        pkd) printf -- '--terms pkd pkd=%s\n' 10 100 1000 ;;
        tinybert) printf -- '--terms tinybert --stages hidden_mse attention_mse embedding_mse %s logits\n' 0.25 0.5 0.75 ;;
        distilbert) printf -- '--terms distilbert hidden_cosine=%s\n' 0.1 1 10 ;;
        minilm) printf -- '--terms minilm --stages minilm %s hard\n' 0.25 0.5 0.75 ;;
    esac
}
times() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%g", a * b }'; }

source scripts/presets.sh
switch CACHE_TEACHER
switch DRY_RUN
check TASK "$ALL_TASKS custom"
[[ $TASK != *[[:space:]]* ]] || refuse "TASK names $TASK: use one"
check METHODS "finetune kd ckd pkd tinybert distilbert minilm"
check SEEDS "whole numbers" "[0-9]+"
check HELD_OUT "a share above 0 and below 0.9, as 0.1" "0?\.(0[0-9]*[1-9]|[1-8])[0-9]*"
check LEARNING_RATES "numbers, as 5e-5" "[0-9.]+(e-?[0-9]+)?"
check FINETUNE_RATES "numbers, as 5e-5" "[0-9.]+(e-?[0-9]+)?"
check_options "$@"
for word in "$@"; do
    case ${word%%=*} in
        --learning_rate | --held_out)
            refuse "${word%%=*} would be the same for all tries: set the variables at the top" ;;
    esac
done
split_options "$@"
own_data "$@"
enter "$TASK"
[ ${#distilling[@]} -eq 0 ] || refuse "${distilling[0]} is what the tries differ in: edit settings() in this script"
[ -n "$STUDENT" ] || STUDENT_LAYERS=${STUDENT_LAYERS:-6}
shared=(--held_out "$HELD_OUT" "$@")

read -r temperature pair triple _ epochs < <(ask recipe "$TASK")
folder=$RUNS/sweep/$place failed=

commands() {
    local method number rates lines setting rate options seed status
    [ "$METHODS" = finetune ] || train_teacher "$TASK" "${shared[@]}"
    for method in $METHODS; do
        number=0 rates=$LEARNING_RATES
        [ "$method" != finetune ] || rates=$FINETUNE_RATES
        lines=$(settings "$method")
        while IFS= read -r setting; do
            for rate in $rates; do
                number=$((number + 1))
                options=(--run_name "$method-$number" $setting --learning_rate "$rate"
                    --num_train_epochs "${EPOCHS:-$epochs}")
                [ "$method" = finetune ] ||
                    options+=(--teacher "$RUNS/$place/teacher/seed1" ${CACHE_TEACHER:+--cache_teacher})
                for seed in $SEEDS; do
                    run $LAUNCH distill_finetune.py --task "$TASK" ${data[@]+"${data[@]}"} \
                        --student "${STUDENT:-$TEACHER}" ${STUDENT_LAYERS:+--student_layers "$STUDENT_LAYERS"} \
                        "${options[@]}" --seed "$seed" --output_dir "$folder/$method-$number/seed$seed" \
                        "${shared[@]}" </dev/null || {
                        status=$? # 1: this run cannot go on, as when its loss is not finite; else nothing can
                        [ "$status" -eq 1 ] && [ -z "$checking" ] || exit "$status"
                        failed+=" $method-$number"
                    }
                done
            done
        done <<<"$lines"
    done
}
start commands "$@"
[ -n "$DRY_RUN" ] || python -m reporting.sweep "$folder"
if [ -n "$failed" ]; then
    echo "run_sweep.sh: failed, and left out of the choice:$failed" >&2
    exit 1
fi
