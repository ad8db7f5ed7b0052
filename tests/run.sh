#!/usr/bin/env bash
# The tests, in the environment that run_all.sh makes. Arguments go to pytest: bash tests/run.sh tests/test_02_verifiers.py
#   -m "not slow"          the fast ones (make test)
#   -n 0                   in one process, as a debugger wants it
#   VENV=.venv             the environment
#   AUTOIF_DATA=<folder>   the benchmarks' own data; without it the tests that need them are left out
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" != --help ] || { sed -n '2,6s/^# \{0,1\}//p' tests/run.sh; exit; }
bash run_all.sh --env
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1  # the processes share the cores
exec "${VENV:-.venv}/bin/python" -m pytest -q --durations=15 -n 2 --no-loadscope-reorder "$@"
