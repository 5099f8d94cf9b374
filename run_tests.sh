#!/usr/bin/env bash
# Lint and tests on the CPU, no downloads, a process for each core. Arguments go on to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/setup.sh
ruff check .
ruff format --check --quiet .
# One thread for each: more would fight for the cores, and change the order of sums.
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
python -m pytest -q -n "$cores" --dist worksteal tests "$@"
