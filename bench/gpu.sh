#!/usr/bin/env bash
# What only a card can answer, as steps of at most 8 minutes each, each printing Markdown tables for bench/RESULTS.md.
#
#   bash bench/gpu.sh losses     every term in float32, bf16, fp16 against float64 on the CPU; time and peak memory against
#                                the direct formulation
#   bash bench/gpu.sh step       a step of fine-tuning, kd and ckd: 32 x 128 and CoLA's lengths, eager and compiled
#   bash bench/gpu.sh pretrain   a step of pre-training, 64 x 128; tokens/s of a run from tokenised text, and the hours
#                                that English Wikipedia would take
#   bash bench/gpu.sh epoch      an epoch of CoLA end to end, and the share of time that the device is busy
#   bash bench/gpu.sh survive    resume after SIGKILL, torchrun with one process, the steps that fp16's scaler skips
#   bash bench/gpu.sh quick      the most of them in one call of about 6 minutes: errors of the losses; no preset, stage
#                                or kind reads the device in a step; eager steps of 64 x 128, 32 x 128 and CoLA's
#                                lengths; a profile; 300 steps of pre-training; fp16, a SIGKILL and resume; --compile last
#   bash bench/gpu.sh all        all but quick
#   DEVICE=cpu bash bench/gpu.sh all      tiny shapes: shows that every step runs to its end, measures nothing
#
# Where packages are missing it says which. On a machine without network carry them: pip install --target FOLDER ...,
# then PYTHONPATH=FOLDER bash bench/gpu.sh quick. Without MODEL and GLUE: random weights of multilingual BERT's shape with the artificial language of synthetic.py.
set -uo pipefail
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda}    # cuda or cpu
PRECISION=${PRECISION:-bf16}
MODEL=${MODEL:-}          # a masked language model to measure with, folder or hub id
GLUE=${GLUE:-}            # folder with GLUE's own files
COMPILE=${COMPILE-1}      # empty: without --compile
LIMIT_S=${LIMIT_S:-480}   # seconds of a step

fail() { echo "gpu.sh: error: $1" >&2; exit 2; }
names="losses step pretrain epoch survive"
[[ " $names quick all " == *" ${1:-} "* ]] && [ $# = 1 ] || fail "name one of: $names quick all"
[[ $DEVICE == cuda || $DEVICE == cpu ]] || fail "DEVICE names $DEVICE: use cuda or cpu"

if [ "$1" = all ] || [ -z "${GPU_SH_STEP:-}" ]; then  # each step in a process of its own, within its limit
    steps=$1 failed=0
    [ "$1" != all ] || steps=$names
    for step in $steps; do
        echo "## $step"
        start=$SECONDS
        GPU_SH_STEP=1 timeout --kill-after 10 "$LIMIT_S" bash bench/gpu.sh "$step"
        status=$?
        [ "$status" = 0 ] || failed=1
        case $status in 124 | 137) echo "gpu.sh: $step was ended after $LIMIT_S s" >&2 ;; esac
        printf '\n%s: status %s, %s s\n\n' "$step" "$status" "$((SECONDS - start))"
    done
    exit "$failed"
fi

missing=$(python3 - "$DEVICE" <<'PYTHON'
import importlib.util
import re
from pathlib import Path

needed = "torch transformers datasets accelerate filelock sklearn numpy pandas scipy tabulate tensorboard matplotlib".split()
lines = Path("requirements.txt").read_text().splitlines()
pinned = {re.split("[=#]", line)[0].strip(): line for line in lines if line and not line.startswith("#")}
missing = [name for name in needed if importlib.util.find_spec(name) is None]
print(*(pinned[{"sklearn": "scikit-learn"}.get(name, name)] for name in missing))
PYTHON
)
[ -z "$missing" ] || fail "packages are missing: pip install $missing (or: source scripts/setup.sh)"
if [ "$DEVICE" = cpu ]; then
    export CUDA_VISIBLE_DEVICES=
    COMPILE=
elif ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    fail "torch finds no CUDA device: DEVICE=cpu runs every step on tiny shapes"
fi
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-$([ -z "$MODEL" ] && echo 1 || echo 0)} TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Shapes: teacher's layers and width, examples, steps.
if [ "$DEVICE" = cuda ]; then
    layers=12 width=768 small=(--batch 2 --tokens 64) words=119547 rounds=5 cola=8551 text=20000 steps=600
    length=128 batch=64 kills=2
    if [ "$1" = quick ]; then steps=300 text=10000 kills=1 rounds=3; fi
else
    layers=4 width=64 small=(--batch 2 --tokens 24 --layers 4 --width 32) words=5000 rounds=1 cola=64 text=30 steps=4
    length=32 batch=4 kills=1
fi

# run_quietly COMMAND...: shows its output only where it fails
run_quietly() { "$@" > "$work/log" 2>&1 || { tail -5 "$work/log"; return 1; }; }

# world: the artificial language, and in $model a masked language model of the shape above
world() {
    run_quietly python synthetic.py --output_dir "$work/world" --train_size "$cola" --dev_size 40 --text_size "$text" \
        --squad_train_size 10 --squad_dev_size 10 || return
    glue=${GLUE:-$work/world/glue} model=${MODEL:-$work/model}
    [ -n "$MODEL" ] || python - "$work" "$layers" "$width" "$words" <<'PYTHON'
import sys

import transformers

transformers.utils.logging.disable_progress_bar()
folder, layers, width, words = sys.argv[1], *map(int, sys.argv[2:])
config = transformers.BertConfig(vocab_size=words, num_hidden_layers=layers, hidden_size=width,
                                 num_attention_heads=width // 64, intermediate_size=4 * width)
transformers.BertForMaskedLM(config).save_pretrained(f"{folder}/model")
transformers.AutoTokenizer.from_pretrained(f"{folder}/world/bert").save_pretrained(f"{folder}/model")
PYTHON
}

# field RUN NAME...: a value of its run.json
field() {
    python - "$@" <<'PYTHON'
import json
import sys

value = json.load(open(f"{sys.argv[1]}/run.json"))
for name in sys.argv[2:]:
    value = value[name]
print(value)
PYTHON
}

# gap RUN RUN: largest difference between the weights of two runs
gap() {
    python - "$@" <<'PYTHON'
import sys

from safetensors.torch import load_file

a, b = (load_file(f"{folder}/model.safetensors") for folder in sys.argv[1:])
print(f"{max(float((a[k].float() - b[k].float()).abs().max()) for k in a):.1e}")
PYTHON
}

machine() {
    python - "$DEVICE" <<'PYTHON'
import sys

sys.path.insert(0, "bench")
import timing

print(timing.machine(sys.argv[1]))
PYTHON
}

teacher() {
    run_quietly python distill_finetune.py --task cola --data_dir "$glue" --student "$model" --max_steps 1 \
        --max_eval_samples 32 --run_name teacher --output_dir "$work/teacher"
}

losses() {
    local status=0
    python bench/bench_losses.py --device "$DEVICE" --exact "${small[@]}" || status=1
    echo
    if [ "$DEVICE" = cuda ]; then small=(--batch 32 --tokens 128 --limit_gb 60); fi
    python bench/bench_losses.py --device "$DEVICE" --rounds "$rounds" "${small[@]}" || status=1
    return "$status"
}

step() {
    local common=(--device "$DEVICE" --precision "$PRECISION" --rounds "$rounds" --stages fine-tuning ${COMPILE:+--compile})
    if [ "$DEVICE" = cpu ]; then
        common+=(--layers 4 --width 64 --batch 4 --steps 2)
        echo "--compile is left out on the CPU: compiling takes minutes there"
    fi
    python bench/bench_step.py "${common[@]}" --tokens "$length" && echo &&
        python bench/bench_step.py "${common[@]}" --tokens cola
}

pretrain() {
    local common=(--device "$DEVICE" --precision "$PRECISION" --rounds "$rounds" --layers "$layers" --width "$width")
    python bench/bench_step.py "${common[@]}" --stages pre-training --batch "$batch" --tokens "$length" \
        ${COMPILE:+--compile} || return
    world && run_quietly python distill_pretrain.py --corpus "$work/world/text/train.txt" \
        --validation_corpus "$work/world/text/valid.txt" --teacher "$model" --student_layers "$((layers / 2))" \
        --seq_length "$length" --per_device_train_batch_size "$batch" --max_steps "$steps" --max_eval_samples 16 \
        --mixed_precision "$PRECISION" --output_dir "$work/pretrain" || return
    printf '\n%s\n\n| a run of %s steps from tokenised text | |\n|---|---|\n' "$(machine)" "$steps"
    echo "| tokens/s | $(field "$work/pretrain" accounting tokens_per_s) |"
    echo "| hours for an epoch of English Wikipedia, computed from it" \
        "| $(field "$work/pretrain" accounting hours_for_one_epoch_of_english_wikipedia) |"
    echo "| peak memory, GB | $(field "$work/pretrain" max_mem_gb) |"
}

epoch() {
    world && teacher || return
    python bench/bench_epoch.py --device "$DEVICE" --rounds "$((rounds < 3 ? rounds : 3))" --steps "$((rounds > 1 ? 24 : 2))" \
        --data_dir "$glue" --teacher "$work/teacher" --student_layers "$((layers / 2))" --mixed_precision "$PRECISION" || return
    printf '\n| an epoch end to end, ckd | seconds of training | of the whole run | tokens/s | peak memory, GB |\n|---|---|---|---|---|\n'
    run_quietly python distill_finetune.py --task cola --data_dir "$glue" --teacher "$work/teacher" --student_layers \
        "$((layers / 2))" --num_train_epochs 1 --mixed_precision "$PRECISION" --output_dir "$work/epoch" || return
    echo "| $(field "$work/epoch" steps) steps | $(field "$work/epoch" time train_s) |" \
        "$(field "$work/epoch" time total_s) | $(field "$work/epoch" throughput tokens_per_s) |" \
        "$(field "$work/epoch" max_mem_gb) |"
}

survive() {
    local common status=0 verdict
    printf '%s\n\n| what | outcome |\n|---|---|\n' "$(machine)"
    layers=4 width=64 words=5000 cola=64
    world && teacher || return
    common=(--task cola --data_dir "$glue" --teacher "$work/teacher" --student_layers 2 --max_steps 10 --deterministic)
    run_quietly python distill_finetune.py "${common[@]}" --output_dir "$work/plain" || return
    run_quietly python -m torch.distributed.run --standalone --nproc_per_node 1 distill_finetune.py "${common[@]}" \
        --output_dir "$work/torchrun" || return
    echo "| torchrun with one process against python: largest difference of weights | $(gap "$work/plain" "$work/torchrun") |"
    if [ "$DEVICE" = cpu ]; then
        echo "| steps that fp16's scaler skips | left out: --mixed_precision fp16 needs a CUDA device |"
    else  # a weight so large that gradients overflow in half precision until the scaler has come down
        run_quietly python distill_finetune.py "${common[@]}" --mixed_precision fp16 --terms ckd wr_triple=1e6 \
            --output_dir "$work/fp16" || return
        echo "| of $(field "$work/fp16" steps) steps with a huge loss fp16's scaler skipped, weights finite |" \
            "$(field "$work/fp16" skipped_steps) |"
    fi
    verdict=$(bash bench/torture.sh "$kills" --deterministic | tail -1) || status=1
    echo "| SIGKILL at random moments, resumed, --deterministic | $verdict |"
    return "$status"
}

quick() {
    local status=0 common=(--device "$DEVICE" --precision "$PRECISION" --rounds "$rounds" --layers "$layers" --width "$width")
    local compile=$COMPILE sizes=(--batch "$batch" --tokens "$length")
    COMPILE=  # what compiles comes last: where it is slow, nothing else is lost
    python bench/bench_losses.py --device "$DEVICE" --exact "${small[@]}" || status=1
    python bench/quick.py --device "$DEVICE" --precision "$PRECISION" || status=1
    python bench/bench_step.py "${common[@]}" --stages fine-tuning --batch "$((batch / 2))" --tokens "$length" || status=1
    python bench/bench_step.py "${common[@]}" --stages fine-tuning --batch "$((batch / 2))" --tokens cola --steps 2 || status=1
    pretrain || status=1  # with the eager step of 64 x 128
    survive || status=1
    [ -z "$compile" ] || python bench/bench_step.py "${common[@]}" --stages pre-training "${sizes[@]}" --compile || status=1
    return "$status"
}

"$1"
