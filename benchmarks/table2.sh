#!/usr/bin/env bash
# Table 2 of SPD on real data: train, segment, score, write tables. See benchmarks/runs/table2.toml.
#   benchmarks/table2.sh --data FOLDER [--workers 2] [--targets LV RV LA] [--seeds 0 1 2]
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
export OMP_NUM_THREADS=1
"$python" benchmarks/table2.py "$@"
"$python" benchmarks/table2_report.py
