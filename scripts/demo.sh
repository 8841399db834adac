#!/usr/bin/env bash
# Set up a virtual environment in .venv, and compare four partitioners with one of two ranks at 50 %.
# Without a GPU the ranks are two CPU processes, one of them paced. Arguments are further overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
python -m ringexp -m partitioner=even,uneven,lut,formula hetero=mps_50_100 "$@"
