#!/usr/bin/env bash
# Set up (a virtual environment in .venv) and compare the four partitioners with one rank at half speed.
# Without a GPU: two CPU processes, one of them paced. Arguments are further overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
python -m ringexp -m partitioner=even,uneven,lut,formula hetero=mps_50_100 "$@"
