#!/usr/bin/env bash
# The study's constraints with their verifiers, families and split: stages 01 to 03 on recordings.
#
#   bash study/constraints.sh      some seconds; writes $OUT/03_instructions.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
source study/settings.sh

# a store is a file of lines: the study's recordings go on where the demo's end
mkdir -p "$OUT/completions"
for recorded in study/completions/*.jsonl; do
    cat "demo/completions/${recorded##*/}" "$recorded" >"$OUT/completions/${recorded##*/}"
done

python 01_seed_augment.py --model "$SUPERVISOR" --out "$OUT/01_instructions.jsonl" $FLAGS_01
python 02_verifiers.py --model "$SUPERVISOR" --in "$OUT/01_instructions.jsonl" \
    --out "$OUT/02_verifiers.jsonl" $FLAGS_02
python 03_backtranslate.py --model "$SUPERVISOR" --in "$OUT/02_verifiers.jsonl" \
    --out "$OUT/03_instructions.jsonl" --nli "$NLI" $FLAGS_03
