#!/usr/bin/env bash
# The tests, in the environment that run_all.sh makes. Arguments go to pytest: bash tests/run.sh tests/test_02_verifiers.py
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
export HF_HUB_OFFLINE=1
exec "${VENV:-.venv}/bin/python" -m pytest -q "$@"
