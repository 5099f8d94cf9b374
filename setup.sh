# Sourced by every script here: makes `python` one that has the packages of requirements.txt.
# Where they are importable it does nothing; else it makes .venv beside this file and installs them into it.
ckd_packages_found() {
    python - <<'PYTHON' 2>/dev/null
import importlib.util, sys
names = """torch transformers datasets accelerate sklearn numpy pandas scipy seqeval tabulate tensorboard
    matplotlib pytest xdist hypothesis ruff"""
sys.exit(any(importlib.util.find_spec(name) is None for name in names.split()))
PYTHON
}

if ! ckd_packages_found; then
    if [ ! -x .venv/bin/python ]; then
        echo "setup.sh: making .venv and installing requirements.txt (once; some minutes)" >&2
        python3 -m venv .venv
    fi
    source .venv/bin/activate
    ckd_packages_found || python -m pip install --quiet --disable-pip-version-check -r requirements.txt
fi
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
