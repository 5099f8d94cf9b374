#!/usr/bin/env bash
# Kill a run with SIGKILL at random moments, start it again with the same command until it ends, and compare its weights
# with those of a run that was never interrupted: bit for bit, on a CPU in one process.
#
#   bash bench/torture.sh [N [OPTION...]]     N kills in all (default 20), shared between fine-tuning and pre-training;
#                                             on CUDA with --deterministic
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${GPU_SH_STEP:-}" ] || source scripts/setup.sh  # gpu.sh has looked what is there; the tools of the tests are not needed

kills=${1:-20}
shift $(($# > 0))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CI=true
python synthetic.py --output_dir "$work/world" --train_size 2000 --text_size 200 > /dev/null
python distill_finetune.py --task cola --data_dir "$work/world/glue" --student "$work/world/bert" --max_steps 5 \
    --run_name teacher --output_dir "$work/teacher" > /dev/null 2>&1

finetune=(python distill_finetune.py --task cola --data_dir "$work/world/glue" --teacher "$work/teacher"
    --student_layers 2 --terms ckd --max_train_samples 600 --num_train_epochs 2 --per_device_train_batch_size 8
    --gradient_accumulation_steps 2 --eval_steps 7 --save_steps 5 "$@")
pretrain=(python distill_pretrain.py --corpus "$work/world/text/train.txt" --validation_corpus
    "$work/world/text/valid.txt" --teacher "$work/world/bert" --student_layers 2 --terms ckd --seq_length 32
    --max_steps 60 --max_eval_samples 16 --per_device_train_batch_size 8 --eval_steps 7 --save_steps 5 "$@")

failed=0 done_kills=0
for script in finetune pretrain; do
    declare -n command=$script
    start=$SECONDS
    "${command[@]}" --output_dir "$work/$script-whole" > /dev/null 2>&1
    whole=$((SECONDS - start))
    quota=$(((kills + 1) / 2))
    [ "$script" = finetune ] || quota=$((kills - done_kills))
    round=0 in_script=0
    while [ "$in_script" -lt "$quota" ]; do
        round=$((round + 1))
        folder=$work/$script-$round
        while true; do
            "${command[@]}" --output_dir "$folder" > "$work/log" 2>&1 &
            pid=$!
            if [ "$in_script" -lt "$quota" ]; then
                # Somewhere between the imports and a little after the end of a whole run.
                sleep "$(python -c "import random; print(random.uniform(0.2, 1.1) * $whole)")"
                if kill -KILL "$pid" 2> /dev/null; then
                    wait "$pid" 2> /dev/null || true
                    in_script=$((in_script + 1)) done_kills=$((done_kills + 1))
                    continue
                fi
            fi
            wait "$pid" && break
            echo "torture.sh: the run failed by itself:" && tail -3 "$work/log" && exit 1
        done
        if python - "$work/$script-whole" "$folder" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

for name in ("model.safetensors", *(str(p.relative_to(sys.argv[1])) for p in Path(sys.argv[1]).glob("checkpoints/*/model.safetensors"))):
    a, b = (load_file(Path(folder) / name) for folder in sys.argv[1:])
    if set(a) != set(b) or not all(torch.equal(a[k], b[k]) for k in a):
        sys.exit(1)
PYTHON
        then verdict=equal; else verdict=DIFFERENT failed=1; fi
        echo "$script, round $round, $in_script kills so far: weights $verdict"
    done
done
echo "$done_kills kills, $([ "$failed" = 0 ] && echo "all weights equal bit for bit" || echo "some weights differ")"
exit "$failed"
