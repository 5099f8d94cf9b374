#!/usr/bin/env bash
# Ablations of CKD in fine-tuning: one relation left out, window, layer map, similarity and criterion, student size
# (arXiv:2109.08359, ablation tables). All students learn from the teacher that run_glue.sh made, in the same data order.
#
#   bash run_ablation.sh                       everything, on CoLA
#   GRID="leave_one_out window" TASKS="mrpc rte" bash run_ablation.sh
#   DRY_RUN=1 bash run_ablation.sh             prints the commands
#
# Finished runs are skipped. All other arguments go on to distill_finetune.py. Sizes are trained from random weights
# where the width differs from the teacher's; compare them with a general student of that size (run_pretrain.sh).
set -euo pipefail
cd "$(dirname "$0")"

TASKS=${TASKS:-cola}
SEEDS=${SEEDS:-1 2 3}
GRID=${GRID:-leave_one_out window layer_map criterion size}
WINDOWS=${WINDOWS:-3 5 11 21 all}
LAYER_MAPS=${LAYER_MAPS:-uniform first last ends}
SIZES=${SIZES:-6/768 4/512 4/312 2/128}           # layers/width; heads: width / 64, or 12 for 312
STUDENT_LAYERS=${STUDENT_LAYERS:-6}
STUDENT=${STUDENT:-bert-base-multilingual-cased}  # what students of the teacher's width are cut from
DATA_DIR=${DATA_DIR:-}
RUNS=${RUNS:-runs}                                # teachers in $RUNS/<task>/teacher/seed1, results in $RUNS/ablation
WEIGHTS=${WEIGHTS:-ckd wr_pair=9 ltr_pair=9 wr_triple=90 ltr_triple=90}
TEMPERATURE=${TEMPERATURE:-3}
DRY_RUN=${DRY_RUN:-}

[ -n "$DRY_RUN" ] || source setup.sh
data=(${DATA_DIR:+--data_dir "$DATA_DIR"})

# one NAME OPTIONS...: a run of every task and seed under the given name, with WEIGHTS unless --terms is among OPTIONS
one() {
    local name=$1 task seed
    shift
    for task in $TASKS; do
        for seed in $SEEDS; do
            local command=(python distill_finetune.py --task "$task" "${data[@]}" --teacher "$RUNS/$task/teacher/seed1"
                --temperature "$TEMPERATURE" --run_name "$name" --seed "$seed"
                --output_dir "$RUNS/ablation/$task/$name/seed$seed" "$@" "${extra[@]}")
            if [ -n "$DRY_RUN" ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}"; fi
        done
    done
}

# without TERM...: WEIGHTS with these terms at 0; a term may not be given twice
without() {
    local word kept=()
    for word in $WEIGHTS; do [[ " $* " == *" ${word%%=*} "* ]] || kept+=("$word"); done
    echo "${kept[@]}" "${@/%/=0}"
}

extra=("$@")
cut=(--student "$STUDENT" --student_layers "$STUDENT_LAYERS")
one ckd "${cut[@]}" --terms $WEIGHTS
for part in $GRID; do
    case $part in
        leave_one_out)
            one no-wr-pair "${cut[@]}" --terms $(without wr_pair)
            one no-wr-triple "${cut[@]}" --terms $(without wr_triple)
            one no-wr "${cut[@]}" --terms $(without wr_pair wr_triple)
            one no-ltr-pair "${cut[@]}" --terms $(without ltr_pair)
            one no-ltr-triple "${cut[@]}" --terms $(without ltr_triple)
            one no-ltr "${cut[@]}" --terms $(without ltr_pair ltr_triple)
            one no-relations "${cut[@]}" --terms kd ;;
        window)
            for window in $WINDOWS; do one "window-$window" "${cut[@]}" --terms $WEIGHTS --window "$window"; done ;;
        layer_map)
            for map in $LAYER_MAPS; do one "map-$map" "${cut[@]}" --terms $WEIGHTS --layer_map "$map"; done
            one map-no-embeddings "${cut[@]}" --terms $WEIGHTS --no_embeddings ;;
        criterion)
            for criterion in mse l1 huber; do
                one "cosine-$criterion" "${cut[@]}" --terms $WEIGHTS --pair_criterion "$criterion"
                one "l2-$criterion" "${cut[@]}" --terms $WEIGHTS --distance l2 --pair_criterion "$criterion"
            done
            for criterion in l1 huber; do
                one "angle-$criterion" "${cut[@]}" --terms $WEIGHTS --triple_criterion "$criterion"
            done ;;
        size)
            for size in $SIZES; do
                layers=${size%/*} width=${size#*/}
                heads=$((width % 64 ? 12 : width / 64))
                one "size-$layers-$width" --student_layers "$layers" --student_hidden "$width" --student_heads "$heads" \
                    --student_intermediate $((4 * width)) --terms $WEIGHTS
            done ;;
        *) echo "run_ablation.sh: error: GRID names $part: use leave_one_out window layer_map criterion size" >&2; exit 2 ;;
    esac
done
[ -n "$DRY_RUN" ] || python report.py "$RUNS/ablation" --output_dir "$RUNS/ablation" --baseline ckd
