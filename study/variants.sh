#!/usr/bin/env bash
# The paper's ablations and ours, each beside the main run of seed 1, on its held-out constraints.
#
#   bash study/variants.sh             all; after study/run.sh 1; some 80 minutes on two cores
#   bash study/variants.sh NAME...     some of them
#
# no_cross_validation no_back_translation no_checks   table 3, without the quality score, which a
#                     model of 135M parameters cannot give: SFT on what the weaker filters keep
# accuracy_0.8 accuracy_1.0                           how many functions must accept a response: SFT
# pairs_1_64 pairs_1_16 pairs_1_4                     the scaling of pairs: offline DPO
# instruction_level query_level                       pairs of cases, pairs of responses: offline DPO
# reject_truncated alike_in_length                    ours: cut answers rejected; sides of one length
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
source .venv/bin/activate
MAIN=out/study/seed_1 HERE=out/study/variants
SEED=1 OUT=$MAIN
source study/settings.sh
[ -d "$MAIN/06_offline" ] || { echo "variants.sh: error: no $MAIN/06_offline; run study/run.sh 1" >&2; exit 2; }

# evaluate NAME MODEL: on the main run's held-out constraints, whatever this variant kept
evaluate() {
    [ -e "$MAIN/07_items/$1/heldout.jsonl" ] || SERVE_LOG=$MAIN/logs python -m autoif.serving $FLAGS_SERVING "$2" -- \
        python 07_eval.py --model "$2" --name "$1" --out "$MAIN/07_results.json" --benchmarks heldout \
        --heldout "$MAIN/03_instructions.jsonl" --queries "$HELDOUT_QUERIES" $FLAGS_07_HELDOUT
}

# sft NAME FLAGS_02 FLAGS_03 FLAGS_04: data and SFT once more; what the main run asked is not asked again
sft() {
    local out=$HERE/$1
    mkdir -p "$out/completions"
    [ -e "$out/base" ] || cp -r "$MAIN/base" "$out/base"
    cp -n "$MAIN/completions/"0[1-4]*.jsonl "$out/completions/" || true
    OUT=$out MORE_02=$2 MORE_03="$3 --split-of $MAIN/03_instructions.jsonl" MORE_04=$4 \
        bash run_all.sh --study --until 05
    evaluate "$1" "$out/05_sft"
}

# dpo NAME PAIRS...: other pairs, the main run's SFT model
dpo() {
    local out=$HERE/$1
    mkdir -p "$out"
    [ -e "$out/06_pairs.jsonl" ] || python 06_dpo.py pairs --sft "$MAIN/04_sft.jsonl" --out "$out/06_pairs.jsonl" \
        $FLAGS_06_PAIRS "${@:2}"
    [ -e "$out/06_offline" ] || torchrun --standalone --nproc_per_node 1 06_dpo.py train --in "$out/06_pairs.jsonl" \
        --model "$MAIN/05_sft" --out "$out/06_offline" $FLAGS_06
    evaluate "$1" "$out/06_offline"
}

cases=$MAIN/03_instructions.jsonl responses=$MAIN/04_responses.jsonl
variant() {
    case $1 in
    no_cross_validation) sft "$1" --no-cross-validation "" "" ;;
    no_back_translation) sft "$1" "" --no-back-translation "" ;;
    no_checks) sft "$1" --no-cross-validation --no-back-translation "" ;;
    accuracy_0.8) sft "$1" "" "" "--min-accuracy 0.8" ;;
    accuracy_1.0) sft "$1" "" "" "--min-accuracy 0.999" ;;
    pairs_1_*) dpo "$1" --in "$cases" "$responses" --fraction "1/${1##*_}" ;;
    instruction_level) dpo "$1" --in "$cases" ;;
    query_level) dpo "$1" --in "$responses" ;;
    reject_truncated) dpo "$1" --in "$cases" "$responses" --reject-truncated ;;
    alike_in_length) dpo "$1" --in "$cases" "$responses" --max-length-gap 0.3 ;;
    *) echo "variants.sh: error: no variant $1" >&2; exit 2 ;;
    esac
}

all="no_cross_validation no_back_translation no_checks accuracy_0.8 accuracy_1.0 pairs_1_64 pairs_1_16 pairs_1_4
     instruction_level query_level reject_truncated alike_in_length"
for name in ${@:-$all}; do
    echo "== $name"
    variant "$name"
    python study/results.py collect "$MAIN"
done
python study/results.py table
