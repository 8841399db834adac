#!/usr/bin/env bash
# Set up (a virtual environment in .venv) and run the tests. Arguments go to pytest: scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
exec python -m pytest "$@"
