#!/usr/bin/env bash
# Lint and tests on the CPU, no downloads, under 5 minutes on two cores. Arguments go on to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
ruff check .
python -m pytest -q tests "$@"
