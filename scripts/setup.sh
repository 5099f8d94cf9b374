# Sourced by every script: makes `python` a Python 3.11 or newer with the packages of requirements.txt. If it is one
# already, nothing happens. Otherwise a line says what is missing, and the packages are installed into .venv.

# print missing and outdated packages on one line; nothing if there are none
ckd_problems() {
    command -v python >/dev/null || { echo "no python"; return; }
    python - <<'PYTHON' 2>/dev/null || echo "python does not run"
import sys
if sys.version_info < (3, 11):
    print("Python %d.%d is older than 3.11" % sys.version_info[:2])
    sys.exit()
import re
from importlib import metadata
wanted = """torch>=2.11 transformers>=5.4 datasets>=4.0 accelerate>=1.2 filelock scikit-learn numpy pandas
    scipy seqeval rouge-score tabulate tensorboard matplotlib pytest pytest-xdist hypothesis ruff"""
wrong = []
for name, _, floor in (word.partition(">=") for word in wanted.split()):
    try:
        there = metadata.version(name)
    except metadata.PackageNotFoundError:
        wrong.append(f"{name} is missing")
        continue
    if floor and [int(n) for n in re.findall(r"\d+", there)[:2]] < [int(n) for n in floor.split(".")]:
        wrong.append(f"{name} {there} is older than {floor}")
print(", ".join(wrong), end="")
PYTHON
}

# print the first command that is Python 3.11 or newer
ckd_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$name"; return; fi
    done
    echo "setup.sh: error: Python 3.11 or newer is needed, and python3 is $(python3 --version 2>&1): install one" >&2
    return 2
}

ckd_wrong=$(ckd_problems)
if [ -n "$ckd_wrong" ]; then
    if [ ! -x .venv/bin/python ]; then
        ckd_found=$(ckd_python) || return 2
        echo "setup.sh: $ckd_wrong: making .venv and installing requirements.txt (once; some minutes)" >&2
        "$ckd_found" -m venv .venv
    fi
    source .venv/bin/activate
    ckd_wrong=$(ckd_problems)
    [ -z "$ckd_wrong" ] || python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    ckd_wrong=$(ckd_problems)
    if [ -n "$ckd_wrong" ]; then
        echo "setup.sh: error: .venv is of no use ($ckd_wrong): delete it and run the same command again" >&2
        return 2
    fi
fi
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
