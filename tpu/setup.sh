#!/usr/bin/env bash
# Installs midjax for TPU into a virtual environment, on a TPU machine: tpu/setup.sh [VENV]
# The machines' own Python is older than midjax wants; uv brings one. `midjax launch` runs this too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
python3 -m pip install --quiet uv
[ -d "$venv" ] || python3 -m uv venv --quiet --python 3.12 "$venv"
python3 -m uv pip install --quiet --python "$venv/bin/python" \
  --constraint constraints.txt '.[tpu,gcs]'
