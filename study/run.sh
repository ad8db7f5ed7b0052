#!/usr/bin/env bash
# The study: SmolLM2-135M trained on its own filtered answers, seed by seed, and measured.
#
#   DATA_DIR=<folder> bash study/run.sh 1 2 3    on two cores 4.2 hours, and 2.8 for each further seed
#   STUDY=strong DATA_DIR=<folder> bash study/run.sh 1 2 3   the second study: by arithmetic 3.6 hours, and 2.6 for each
#                          further seed. WEAK=coder-0.5b: another student; SPLIT=2, SPLIT=3: other families are held
#                          out; ARMS="base sft offline": only these of study/strong/arms.sh
#
# DATA_DIR has the benchmarks' own files (without it the hub is asked); with LIMIT=270 only that many prompts of IFEval
# and IFBench are asked, evenly spaced. Everything lands in out/study/seed_N (out/strong/smollm2/seed_N), and what the
# table is made of in $RESULTS: out/study/results (out/strong/results/smollm2). After any interruption the same command
# goes on where it was: completions are stored, training resumes, what is measured is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
source "${VENV:-.venv}/bin/activate"
export STUDY=${STUDY:-self}
# by itself: that it fails ends the run
settings=$(unset OUT && source study/settings.sh && echo "$TABLE $RESULTS ${OUT%/*}")
read -r TABLE RESULTS RUNS <<< "$settings"
data=(${DATA_DIR:+--data-dir "$DATA_DIR"})
unset DATA_DIR  # run_all.sh would measure IFEval with answers of another length

# once FILE COMMAND...: run the command unless the file is there
once() { [ -e "$1" ] || "${@:2}"; }

# measure OUT NAME MODEL BENCHMARK...: answers of at most 512 tokens (256 to sums, 96 to held-out constraints), greedy
measure() {
    local items=$1/07_items/$2 benchmark
    local serve=(env SERVE_LOG="$1/logs" python -m autoif.serving --slots 32 --context 1280 "$3" --)
    local evaluate=(python 07_eval.py --model "$3" --name "$2" --out "$1/07_results.json" "${data[@]}")
    for benchmark in "${@:4}"; do
        case $benchmark in
        perplexity) once "$items/perplexity.jsonl" python study/perplexity.py "$3" --out "$items/perplexity.jsonl" ;;
        greedy) once "${items}_greedy/heldout.jsonl" "${serve[@]}" "${evaluate[@]}" --name "$2_greedy" \
            --benchmarks heldout --heldout "$1/03_instructions.jsonl" --queries study/heldout_queries.txt \
            --queries-per-instruction 8 --temperature 0 --k 1 --max-tokens 96 ;;
        ifeval | ifbench)  # another LIMIT asks for the rest
            grep -qs "\"limit\": ${LIMIT:-null}," "$items/$benchmark.settings.json" ||
                "${serve[@]}" "${evaluate[@]}" --benchmarks "$benchmark" --max-tokens 512 ${LIMIT:+--limit "$LIMIT"} ;;
        mmlu) once "$items/mmlu.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks mmlu --limit 228 ;;
        gsm8k) once "$items/gsm8k.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks gsm8k --limit 60 --max-tokens 256 ;;
        esac
    done
    python study/results.py collect "$1" --results "$RESULTS"
}

self() {  # SEED
    local seed=$1 out=$RUNS/seed_$1 model wanted
    # data, training and held-out constraints: some 40 minutes
    OUT=$out SEED=$seed bash run_all.sh --study
    # once more, with six queries a constraint, and two epochs of DPO on its pairs: some 55 minutes
    SEED=$seed bash study/variants.sh more_queries more_queries_epochs_2
    for model in base:07_base offline:06_offline online:online_2/06_dpo sft:05_sft \
        more_queries:variants/more_queries/06_offline \
        more_queries_epochs_2:variants/more_queries_epochs_2/06_offline; do
        # benchmarks: some 24 minutes a model; in all seeds but the first, for time, some of them. The base model answers
        # greedily the same in every seed.
        wanted="perplexity greedy ifeval mmlu gsm8k ifbench"
        [ "$seed" = 1 ] || case $model in
        base:*) wanted= ;;
        offline:* | more_queries*) wanted="perplexity greedy ifeval" ;;
        online:*) wanted="perplexity greedy ifeval ifbench" ;;
        *) wanted="perplexity greedy" ;;
        esac
        measure "$out" "${model%%:*}" "$out/${model#*:}" $wanted
    done
}
strong() {  # SEED
    local out=$RUNS/seed_$1 model folder wanted part name
    # minutes: data 1, SFT 9, offline DPO 6, an iteration of online DPO 10 (five of them), held-out constraints 2 a model
    # (eight), benchmarks 23, from the second seed on 16
    SEED=$1 bash study/strong/sft.sh "$out"
    SEED=$1 MAIN=$out bash study/variants.sh ${ARMS:-}
    for model in ${ARMS:-base sft offline online_fixed online_moving online_from_offline}; do
        wanted="perplexity greedy ifeval" folder=variants/$model/06_offline
        [ "$1" != 1 ] || wanted+=" ifbench"
        [ -z "${SPLIT:-}" ] || wanted=  # other families are what it is for
        case $model in
        base)  # greedily it answers the same in every seed
            folder=base
            for part in $wanted; do
                name=base/$part && [ "$part" != greedy ] || name=base_greedy/heldout
                ! zcat "$RESULTS"/seed_*.jsonl.gz 2>/dev/null | grep "\"part\": \"$name\"" > /dev/null ||
                    wanted=${wanted/$part/}
            done ;;
        sft) folder=05_sft ;;
        online_*) folder=variants/$model/online_2/06_dpo ;;
        esac
        measure "$out" "$model" "$out/$folder" $wanted
    done
}

for seed in "${@:-1}"; do
    "$STUDY" "$seed"
done
python "$TABLE" table --results "$RESULTS"
