# To be sourced: make .venv with ringexp and its development tools, once, and activate it.
# PYTHON names the interpreter to use (3.10 to 3.12; default python3).
if [ ! -f .venv/.ringexp-ready ] || [ pyproject.toml -nt .venv/.ringexp-ready ]; then
  ${PYTHON:-python3} -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' || {
    echo "ringexp needs Python 3.10 to 3.12 (found $(${PYTHON:-python3} -V)); set PYTHON=python3.12" >&2
    exit 1
  }
  echo "setting up .venv (some minutes the first time)"
  ${PYTHON:-python3} -m venv .venv
  # A CPU build of torch serves a machine without a GPU; it is far smaller. Any torch in range is kept.
  .venv/bin/python -c 'import torch' 2>/dev/null || {
    [ -e /dev/nvidia0 ] || .venv/bin/python -m pip install -q 'torch==2.13.0' || true
  }
  .venv/bin/python -m pip install -q -e '.[dev]'
  touch .venv/.ringexp-ready
fi
source .venv/bin/activate
