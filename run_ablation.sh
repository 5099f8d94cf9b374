#!/usr/bin/env bash
# Ablations of CKD in fine-tuning: one relation left out, window, layer map, similarity and criterion, the order of its
# terms, student size (arXiv:2109.08359, ablation tables), and any option or weight, one at a time around the recipe.
# Students learn from the teacher that run_glue.sh made, in the same data order.
#
#   bash run_ablation.sh                       everything, on CoLA
#   GRID="leave_one_out window" TASKS="mrpc rte" bash run_ablation.sh
#   GRID="temperature=1,2,4 window=3,11 wr_triple=0,10,30" bash run_ablation.sh    and report_temperature.png, ...
#   DRY_RUN=1 bash run_ablation.sh             prints the commands
#
# Finished runs are skipped. All other arguments go on to distill_finetune.py and come last, so they win. In every grid ckd
# is the point of window 21, the uniform layer map, cosine and KL. The students of SIZES all start from random weights:
# compare them with each other, and with a general student of that size (run_pretrain.sh). The recipe's weights of
# relations follow the square of a temperature, so that the objective keeps its proportions; those of WEIGHTS do not.
set -euo pipefail
cd "$(dirname "$0")"

TASKS=${TASKS:-cola}
SEEDS=${SEEDS:-1 2 3}
GRID=${GRID:-leave_one_out window layer_map criterion stages size}  # and option=value,value or term=weight,weight
WINDOWS=${WINDOWS:-3 5 11 all}                    # and 21, which is ckd
LAYER_MAPS=${LAYER_MAPS:-first last ends no-embeddings}  # and uniform, which is ckd
CRITERIA=${CRITERIA:-cosine-mse l2-mse cosine-l1 l2-l1 cosine-huber l2-huber angle-l1 angle-huber}  # of pairs, of angles
SIZES=${SIZES:-6/768 4/512 4/312 2/128}           # layers/width; heads: width / 64, or 12 for 312
STUDENT_LAYERS=${STUDENT_LAYERS:-6}
STUDENT=${STUDENT:-google-bert/bert-base-multilingual-cased}  # what students are cut from
DATA_DIR=${DATA_DIR:-}                            # folder with the tasks' own files; empty: the hub
DATA_OPTIONS=${DATA_OPTIONS:-}                    # of TASKS=custom: "--dataset_name news --train_file my/train.csv ..."
RUNS=${RUNS:-runs}                                # teachers in $RUNS/<task>/teacher/seed1, results in $RUNS/ablation
WEIGHTS=${WEIGHTS:-}                              # "ckd wr_pair=9 ..."; empty: ckd with the task's, as in run_glue.sh
LEARNING_RATE=${LEARNING_RATE:-}                  # empty: the task's recipe
EPOCHS=${EPOCHS:-}                                # empty: the task's recipe
LAUNCH=${LAUNCH:-python}                          # "torchrun --nproc_per_node 8": every run on so many GPUs
DRY_RUN=${DRY_RUN:-}                              # 1: print the commands

source scripts/presets.sh
switch DRY_RUN
check TASKS "$ALL_TASKS custom"
check SEEDS "whole numbers" "[0-9]+"
check GRID "leave_one_out window layer_map criterion stages size, or option=value,value" \
    "leave_one_out|window|layer_map|criterion|stages|size|[a-z_]+=[^,]+(,[^,]+)*"
check WINDOWS "odd numbers or all" "[0-9]*[13579]|all"
check LAYER_MAPS "$ALL_MAPS no-embeddings"
check CRITERIA "cosine-mse cosine-l1 cosine-huber l2-mse l2-l1 l2-huber angle-l1 angle-huber"
check STUDENT_LAYERS "a whole number" "[1-9][0-9]*"
check SIZES "layers/width, as 4/512" "[1-9][0-9]*/[1-9][0-9]*"
for size in $SIZES; do
    width=${size#*/}
    if ((width % 64 && width % 12)); then
        refuse "SIZES names $size: use a width that 64 or 12 divides, for its heads"
    fi
done
own_data "$@"
for part in $GRID; do
    [[ $part == *=* ]] || continue
    check_options "--${part%%=*}"
    for word in "$@"; do
        [ "${word%%=*}" != "--${part%%=*}" ] || refuse "${word%%=*} and GRID both say it: leave one out"
    done
    [[ $part != temperature=* || $WEIGHTS != *=* ]] ||
        echo "run_ablation.sh: weights that WEIGHTS gives stay as they are at every temperature" >&2
done
for task in $TASKS; do
    enter "$task"
    teacher=$RUNS/$place/teacher/seed1
    [ -n "$DRY_RUN" ] || grep -qs '"status": "complete"' "$teacher/run.json" ||
        { [ -f "$teacher/config.json" ] && [ ! -f "$teacher/run.json" ]; } ||
        refuse "$teacher holds no trained teacher: run this first: RUNS=$(printf %q "$RUNS") TASKS=$task" \
            "bash run_glue.sh$([ "$task" != custom ] || echo " with the same data options")"
done
for task in $TASKS; do printf -v "rates_$task" %s "$(schedule "$task")"; done
extra=("$@")

# one NAME "TERM=WEIGHT..." OPTIONS...: a run of every task and seed under the given name, with these weights
one() {
    local name=$1 weights=$2 task seed word rates terms=(--terms)
    shift 2
    for word in ${WEIGHTS:-ckd}; do
        [[ " $weights" == *" ${word%%=*}="* ]] || terms+=("$word")  # a term may not be given twice
    done
    terms+=($weights)
    for task in $TASKS; do
        rates=rates_$task
        enter "$task"
        for seed in $SEEDS; do
            run $LAUNCH distill_finetune.py --task "$task" ${data[@]+"${data[@]}"} \
                --teacher "$RUNS/$place/teacher/seed1" --student "$STUDENT" "${terms[@]}" \
                ${!rates} --run_name "$name" --seed "$seed" \
                --output_dir "$RUNS/ablation/$place/$name/seed$seed" "$@" ${extra[@]+"${extra[@]}"}
        done
    done
}

commands() {
    local cut part window map name size layers width heads value values options weights
    cut=(--student_layers "$STUDENT_LAYERS")
    one ckd "" "${cut[@]}"
    for part in $GRID; do
        case $part in
            leave_one_out)
                one no-wr-pair "wr_pair=0" "${cut[@]}"
                one no-wr-triple "wr_triple=0" "${cut[@]}"
                one no-wr "wr_pair=0 wr_triple=0" "${cut[@]}"
                one no-ltr-pair "ltr_pair=0" "${cut[@]}"
                one no-ltr-triple "ltr_triple=0" "${cut[@]}"
                one no-ltr "ltr_pair=0 ltr_triple=0" "${cut[@]}"
                one no-relations "wr_pair=0 wr_triple=0 ltr_pair=0 ltr_triple=0" "${cut[@]}" ;;
            window)
                for window in $WINDOWS; do one "window-$window" "" "${cut[@]}" --window "$window"; done ;;
            layer_map)
                for map in $LAYER_MAPS; do
                    if [ "$map" != no-embeddings ]; then
                        one "map-$map" "" "${cut[@]}" --layer_map "$map"
                    elif [ "$STUDENT_LAYERS" -ge 3 ]; then  # two layers without the embeddings give no LTR triple
                        one map-no-embeddings "" "${cut[@]}" --no_embeddings
                    fi
                done ;;
            criterion)
                for name in $CRITERIA; do
                    case $name in
                        angle-*) one "$name" "" "${cut[@]}" --triple_criterion "${name#*-}" ;;
                        *) one "$name" "" "${cut[@]}" --distance "${name%-*}" --pair_criterion "${name#*-}" ;;
                    esac
                done ;;
            stages) one relations-first "" "${cut[@]}" --stages wr_pair wr_triple ltr_pair ltr_triple 0.5 logits ;;
            size)
                for size in $SIZES; do
                    layers=${size%/*} width=${size#*/}
                    heads=$((width % 64 ? 12 : width / 64))
                    one "size-$layers-$width" "" --student_init random --student_layers "$layers" --student_hidden "$width" \
                        --student_heads "$heads" --student_intermediate "$((4 * width))"
                done ;;
            *=*)
                name=${part%%=*} values=${part#*=}
                for value in ${values//,/ }; do
                    options=("--$name" "$value") weights=
                    [ "$value" != on ] || options=("--$name")
                    [[ " $ALL_TERMS " != *" $name "* ]] || { options=() weights=$name=$value; }
                    one "$name-${value//[^A-Za-z0-9_.+-]/-}" "$weights" "${cut[@]}" ${options[@]+"${options[@]}"}
                done ;;
        esac
    done
}
start commands "$@"
[ -n "$DRY_RUN" ] || python report.py "$RUNS/ablation" --output_dir "$RUNS/ablation" --baseline ckd
