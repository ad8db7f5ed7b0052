#!/usr/bin/env bash
# bash study/strong/sft.sh OUT: the data in OUT/data, in OUT the same without what leaks (data.py), and SFT on them.
set -euo pipefail
cd "$(dirname "$0")/../.."
export STUDY=strong
out=$1
if [ ! -e "$out/04_sft.jsonl" ]; then
    OUT=$out/data bash run_all.sh --study --until 04
    source "${VENV:-.venv}/bin/activate"
    ln -sfn "$(realpath "$out")/data/"{base,0[12]*} "$out"
    cp "$out/data/stats.json" "$out"
    python study/strong/data.py drop "$out/data" "$out" ${SPLIT:+--heldout "study/heldout_$SPLIT.jsonl"} ${DROP:-}
fi
OUT=$out bash run_all.sh --study --until 05
