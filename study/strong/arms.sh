# The second study's arms, sourced by study/variants.sh. All have as many pairs of each level, and as many steps.
#
# base sft offline
# online_fixed            two iterations from SFT, the SFT model as reference (the paper's text)
# online_moving           the same, each iteration's start as reference
# online_from_offline     the same as online_fixed, but from the offline model: does it add?
# NAME_responses          no pairs of cases, neither offline nor online
# NAME_alike              pairs of responses whose chosen sides are as long as the rejected ones, in the mean
# NAME_bf16               every training in bf16, and its weights rounded to the nearest at each hand-over
# NAME_lr_X NAME_beta_X NAME_epochs_X NAME_sft-weight_X    with other settings
# These endings can stand behind each other: offline_responses_bf16, online_fixed_alike_lr_1e-5.
#
# no_cross_validation no_score    offline DPO and its SFT (NAME_sft) on what weaker filters keep. The first keeps more
#                         constraints, whose answers are not recorded: LIVE=1. Back-translation all arms are without
# without_end             offline without the sides' end tokens, as Llama 3 (arXiv 2407.21783, 4.1.4) learns pairs
all="base sft offline online_fixed online_moving online_from_offline"

# evaluate NAME MODEL: held-out constraints, and whether the answers fit their queries by shared words
evaluate() {
    heldout "$@"
    local items=$MAIN/07_items/$1
    [ -e "$items/topic.jsonl" ] || python study/strong/measures.py topic "$items/heldout.jsonl" \
        --heldout "$MAIN/03_instructions.jsonl"
}

# pairs OUT RESPONSES CASES_COUNT RESPONSES_COUNT SKIP [FLAGS]: of these responses and of the cases, so many
pairs() {
    [ ! -e "$1/06_pairs.jsonl" ] || return 0
    python 06_dpo.py pairs --in "$from/03_instructions.jsonl" "$2" --sft "$from/04_sft.jsonl" \
        --out "$1/all_pairs.jsonl" $FLAGS_06_PAIRS ${6:-}
    python study/strong/data.py take "$1/all_pairs.jsonl" "$1/06_pairs.jsonl" --seed "$SEED" \
        --instruction "$3" --responses "$4" --skip "$5" $TAKE
}

offline() {  # NAME
    local out=$HERE/$1
    pairs "$out" "$from/04_responses.jsonl" "$cases" "$PAIRS_OF_RESPONSES" 0
    [ -e "$out/06_offline" ] || train 06_dpo.py train --in "$out/06_pairs.jsonl" --model "$from/05_sft" \
        --out "$out/06_offline" --beta "$BETA" $FLAGS_06
    evaluate "$1" "$out/06_offline"
}

online() {  # NAME POLICY fixed|moving
    local policy=$2 reference=$from/05_sft n out
    local first=$HERE/online_fixed/online_1/04_responses.jsonl
    local each=$((cases / ONLINE_ITERATIONS)) fresh=$((PAIRS_OF_RESPONSES / ONLINE_ITERATIONS))
    for n in $(seq "$ONLINE_ITERATIONS"); do
        out=$HERE/$1/online_$n
        [ "$3" = fixed ] || reference=$policy
        if [ "$policy" = "$MAIN/05_sft" ] && [ -e "$first" ] && [ ! -e "$out/04_responses.jsonl" ]; then
            mkdir -p "$out" && ln -s "$(realpath "$first")" "$out"  # the same model's, to the same prompts
        fi
        [ -e "$out/04_responses.jsonl" ] || SERVE_LOG=$MAIN/logs python -m autoif.serving $FLAGS_SERVING "$policy" -- \
            python 04_responses.py --model "$policy" --in "$from/03_instructions.jsonl" --sft "$from/04_sft.jsonl" \
            --out "$out/04_responses.jsonl" --seed "$SEED$n" $FLAGS_04_ONLINE
        pairs "$out" "$out/04_responses.jsonl" "$each" "$fresh" $(((n - 1) * each)) "--level online"
        # what earlier training says of the new pairs, before anything is learned of them
        [ -e "$out/before/metrics.jsonl" ] || python study/strong/measures.py pairs "$policy" \
            --reference "$from/05_sft" --in "$out/06_pairs.jsonl" --out "$out/before" --beta "$BETA"
        [ -e "$out/06_dpo" ] || train 06_dpo.py train --in "$out/06_pairs.jsonl" --model "$policy" \
            --reference "$reference" --out "$out/06_dpo" --beta "$BETA" $FLAGS_06
        policy=$out/06_dpo
        [ "$n" = "$ONLINE_ITERATIONS" ] || [ -L "$out" ] || evaluate "$1_$n" "$policy"
    done
    evaluate "$1" "$policy"
}

variant() {  # NAME
    local from=$MAIN cases=$PAIRS_OF_CASES name=$1 suffix= TAKE= FLAGS_06=$FLAGS_06
    local rounding="--precision bf16 --export-dtype bf16"
    [[ $1 != no_*_bf16* && $1 != base_* ]] || name=  # whose SFT would be in float32
    while [[ $name =~ ^(.+)_((lr|beta|epochs|sft-weight)_([^_]+)|alike|responses|bf16)$ ]]; do
        name=${BASH_REMATCH[1]} suffix=_${BASH_REMATCH[2]}$suffix
        case ${BASH_REMATCH[2]} in
        alike) TAKE+=" --alike" ;;
        responses) cases=0 ;;
        bf16)
            from=$HERE/sft_bf16 FLAGS_06+=" $rounding"
            mkdir -p "$from"
            ln -sfn "$(realpath "$MAIN")/"0[34]*.jsonl "$from"
            [ -e "$from/05_sft" ] || train 05_sft.py --in "$MAIN/04_sft.jsonl" --model "$MAIN/base" \
                --out "$from/05_sft" $FLAGS_05 $rounding ;;
        *) FLAGS_06+=" --${BASH_REMATCH[3]} ${BASH_REMATCH[4]}" ;;
        esac
    done
    case $name:$suffix in
    base:) evaluate base "$MAIN/base" ;;
    sft: | sft:_bf16) evaluate "$1" "$from/05_sft" ;;
    online_fixed:*) online "$1" "$from/05_sft" fixed ;;
    online_moving:*)  # its first iteration is that of online_fixed: both begin at the SFT model
        variant "online_fixed$suffix"
        mkdir -p "$HERE/$1"
        ln -sfn "../online_fixed$suffix/online_1" "$HERE/$1/online_1"
        online "$1" "$from/05_sft" moving ;;
    online_from_offline:*)
        variant "offline$suffix"
        online "$1" "$HERE/offline$suffix/06_offline" fixed ;;
    no_cross_validation:*)
        sft "${name}_sft" --no-cross-validation "" ""
        from=$HERE/${name}_sft && offline "$1" ;;
    no_score:*)
        sft "${name}_sft" "" "" --no-score
        from=$HERE/${name}_sft && offline "$1" ;;
    without_end:*) TAKE+=" --no-end" && offline "$1" ;;
    offline:*) offline "$1" ;;
    *) echo "variants.sh: error: no variant $1" >&2; exit 2 ;;
    esac
}
