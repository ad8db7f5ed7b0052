#!/usr/bin/env bash
# The paper's ablations and ours, each beside the main run of a seed, on its held-out constraints.
#
#   bash study/variants.sh             all; after study/run.sh 1; two hours on two cores
#   SEED=2 bash study/variants.sh NAME...     some of them, beside seed 2
#   STUDY=strong bash study/variants.sh       the second study's (study/strong/arms.sh)
#
# no_cross_validation no_back_translation no_checks   table 3, without the quality score, which a
#                     model of 135M parameters cannot give: SFT on what the weaker filters keep
# accuracy_0.8 accuracy_1.0                           how many functions must accept a response: SFT
# pairs_1_64 pairs_1_16 pairs_1_4                     the scaling of pairs: offline DPO
# instruction_level query_level                       pairs of cases, pairs of responses: offline DPO
# reject_truncated alike_in_length                    ours: cut answers rejected; sides of one length
# more_queries        six queries a constraint, not three: SFT (more_queries_sft) and offline DPO;
#                     more_queries_epochs_X: more epochs of DPO on its pairs; study/run.sh makes it and that with X=2
# same lr_X beta_X epochs_X sft-weight_X sft_lr_X online_gap_X   single settings, of DPO or SFT: same are the study's
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
source "${VENV:-.venv}/bin/activate"
source autoif/run.sh  # settings, replay
export SEED=${SEED:-1} STUDY=${STUDY:-self}
OUT=${MAIN:-}
settings study/settings.sh
MAIN=$OUT HERE=$OUT/variants
[ -d "$MAIN/05_sft" ] || { echo "variants.sh: error: no $MAIN/05_sft; run study/run.sh $SEED" >&2; exit 2; }

# train STAGE FLAGS...: torchrun, with the stage's own words and exit code at its end
train() { python -m autoif.training --standalone --nproc_per_node 1 "$@"; }

# heldout NAME MODEL: on the main run's held-out constraints, whatever this variant kept
heldout() {
    [ -e "$MAIN/07_items/$1/heldout.jsonl" ] || SERVE_LOG=$MAIN/logs python -m autoif.serving $FLAGS_SERVING "$2" -- \
        python 07_eval.py --model "$2" --name "$1" --out "$MAIN/07_results.json" --benchmarks heldout \
        --heldout "$MAIN/03_instructions.jsonl" --queries "$HELDOUT_QUERIES" $FLAGS_07_HELDOUT
}
evaluate() { heldout "$@"; }

# sft NAME FLAGS_02 FLAGS_03 FLAGS_04: data and SFT once more; what the main run asked is not asked again
sft() {
    local out=$HERE/$1 data=$HERE/$1 more="--split-of $MAIN/03_instructions.jsonl" whole=$MAIN
    local make=(bash run_all.sh --study --until 05)
    [ "$STUDY" = self ] || data=$out/data more= whole=$MAIN/data make=(bash study/strong/sft.sh "$out")
    mkdir -p "$data/completions"
    [ -e "$data/base" ] || ln -s "$(realpath "$MAIN/base")" "$data/base"
    replay "$whole/completions" "$data/completions"
    OUT=$out FLAGS_02="${GIVEN_FLAGS_02:-} $2" FLAGS_03="${GIVEN_FLAGS_03:-} $3 $more" FLAGS_04="${GIVEN_FLAGS_04:-} $4" \
        "${make[@]}"
    evaluate "$1" "$out/05_sft"
}

# more_sft NAME FLAGS: the main run's rows, trained otherwise
more_sft() {
    [ -e "$HERE/$1" ] || train 05_sft.py --in "$MAIN/04_sft.jsonl" \
        --model "$MAIN/base" --out "$HERE/$1" $FLAGS_05 $2
    evaluate "$1" "$HERE/$1"
}

# dpo NAME FILES FLAGS_PAIRS FLAGS_TRAIN: other pairs or another loss, from the SFT model in $from
dpo() {
    local out=$HERE/$1
    mkdir -p "$out"
    [ -e "$out/06_pairs.jsonl" ] || python 06_dpo.py pairs --in $2 --sft "$from/04_sft.jsonl" \
        --out "$out/06_pairs.jsonl" $FLAGS_06_PAIRS ${3:-}
    [ -e "$out/06_offline" ] || train 06_dpo.py train --in "$out/06_pairs.jsonl" \
        --model "$from/05_sft" --out "$out/06_offline" $FLAGS_06 ${4:-}
    evaluate "$1" "$out/06_offline"
}

# online NAME FLAGS_PAIRS: the online loop once more, on other pairs; its first responses are the SFT model's, the same
online() {
    local out=$HERE/$1 file
    mkdir -p "$out/online_1"
    for file in base $(cd "$MAIN" && ls -d 0[1-6]*) online_1/04_responses.jsonl; do
        [ ! -e "$MAIN/$file" ] || ln -sfn "$PWD/$MAIN/$file" "$out/$file"
    done
    rm -f "$out/06_pairs.settings.json"  # the offline pairs stay the main run's, though their flags are others here
    OUT=$out FLAGS_06_PAIRS="${GIVEN_FLAGS_06_PAIRS:-} $2" bash run_all.sh --study --until 06
    evaluate "$1" "$out/online_$ONLINE_ITERATIONS/06_dpo"
}

cases=$MAIN/03_instructions.jsonl responses=$MAIN/04_responses.jsonl
both="$cases $responses"
variant() {
    local from=$MAIN epochs=
    case $1 in
    no_cross_validation) sft "$1" --no-cross-validation "" "" ;;
    no_back_translation) sft "$1" "" --no-back-translation "" ;;
    no_checks) sft "$1" --no-cross-validation --no-back-translation "" ;;
    accuracy_0.8) sft "$1" "" "" "--min-accuracy 0.8" ;;
    accuracy_1.0) sft "$1" "" "" "--min-accuracy 0.999" ;;
    pairs_1_*) dpo "$1" "$both" "--fraction 1/${1##*_}" ;;
    instruction_level) dpo "$1" "$cases" ;;
    query_level) dpo "$1" "$responses" ;;
    reject_truncated) dpo "$1" "$both" --reject-truncated ;;
    alike_in_length) dpo "$1" "$both" "--max-length-gap 0.3" ;;
    more_queries | more_queries_epochs_*)
        sft more_queries_sft "" "" "--queries-per-instruction 6"
        from=$HERE/more_queries_sft
        [ "$1" = more_queries ] || epochs="--epochs ${1##*_}"
        dpo "$1" "$from/03_instructions.jsonl $from/04_responses.jsonl" "" "$epochs" ;;
    same) dpo "$1" "$both" ;;
    lr_*) dpo "$1" "$both" "" "--lr ${1##*_}" ;;
    beta_*) dpo "$1" "$both" "" "--beta ${1##*_}" ;;
    epochs_*) dpo "$1" "$both" "" "--epochs ${1##*_}" ;;
    sft-weight_*) dpo "$1" "$both" "" "--sft-weight ${1##*_}" ;;
    online_gap_*) online "$1" "--max-length-gap ${1##*_}" ;;
    sft_lr_*) more_sft "$1" "--lr ${1##*_}" ;;
    base) evaluate "$1" "$MAIN/base" ;;
    sft) evaluate "$1" "$MAIN/05_sft" ;;
    *) echo "variants.sh: error: no variant $1" >&2; exit 2 ;;
    esac
}

all="no_cross_validation no_back_translation no_checks accuracy_0.8 accuracy_1.0 pairs_1_64 pairs_1_16 pairs_1_4
     instruction_level query_level reject_truncated alike_in_length"
[ "$STUDY" = self ] || source "study/$STUDY/arms.sh"
for name in ${@:-$all}; do
    echo "== $name"
    variant "$name"
    python study/results.py collect "$MAIN" --results "$RESULTS"
done
python "$TABLE" table --results "$RESULTS"
