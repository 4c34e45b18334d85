#!/usr/bin/env bash
# SPD from pretrained weights against from scratch, on real data. See benchmarks/runs/downstream.toml.
#   benchmarks/downstream.sh --data FOLDER [--workers 2] [--targets LV RV LA hippocampus] [--seeds 0 1 2]
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
export OMP_NUM_THREADS=1
"$python" benchmarks/downstream.py "$@"
"$python" benchmarks/downstream_report.py
