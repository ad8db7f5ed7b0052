#!/usr/bin/env bash
# The choice of DPO's settings, on a fifth of the *training* families and on training queries: what
# the study measures is not looked at. Each try is a variant (variants.sh) of a run of its own.
#
#   bash study/tune.sh [NAME...]   some 20 minutes, and 7 a try; into out/study/results/tuning.jsonl.gz
#   STUDY=strong bash study/tune.sh     the second study's, beside it 8 minutes a try
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
source "${VENV:-.venv}/bin/activate"
if [ "${STUDY:-self}" = strong ]; then
    export MAIN=out/strong/${WEAK:-smollm2}/tuning SEED=1 HELDOUT_QUERIES=study/queries.txt DROP=--tuning
    export PAIRS_OF_CASES=80 PAIRS_OF_RESPONSES=112  # of 85 and 115 that are left
    bash study/strong/sft.sh "$MAIN"
    exec bash study/variants.sh base sft ${@:-offline_lr_1e-5 offline offline_lr_2e-5}
fi
export MAIN=out/study/tuning SEED=1 HELDOUT_QUERIES=study/queries.txt
if [ ! -e "$MAIN/03_instructions.jsonl" ]; then
    OUT=$MAIN/whole bash run_all.sh --study --until 03
    python study/results.py tuning "$MAIN/whole/03_instructions.jsonl" "$MAIN/03_instructions.jsonl"
fi
OUT=$MAIN bash run_all.sh --study --until 05
tries="same lr_1e-4 query_level sft_lr_1e-4 online_gap_0.3"
bash study/variants.sh base sft ${@:-$tries}
