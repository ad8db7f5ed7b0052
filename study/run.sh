#!/usr/bin/env bash
# The study: SmolLM2-135M trained on its own filtered answers, seed by seed, and measured.
#
#   DATA_DIR=<folder> bash study/run.sh 1 2 3    some 3 hours a seed on two cores; any seeds
#
# DATA_DIR has the benchmarks' own files (without it the hub is asked). Everything lands in
# out/study/seed_N, and what the table is made of in study/results. After any interruption the same
# command goes on where it was: completions are stored, training resumes, what is measured is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
bash run_all.sh --env
source .venv/bin/activate
data=(${DATA_DIR:+--data-dir "$DATA_DIR"})
unset DATA_DIR  # run_all.sh would measure IFEval with answers of another length

# once FILE COMMAND...: run the command unless the file is there
once() { [ -e "$1" ] || "${@:2}"; }

# benchmarks OUT NAME MODEL: answers of at most 512 tokens (256 to sums, 96 to held-out constraints), greedy; perplexity
benchmarks() {
    local items=$1/07_items/$2
    local serve=(env SERVE_LOG="$1/logs" python -m autoif.serving --slots 32 --context 1280 "$3" --)
    local evaluate=(python 07_eval.py --model "$3" --name "$2" --out "$1/07_results.json" "${data[@]}")
    once "$items/perplexity.jsonl" python study/perplexity.py "$3" --out "$items/perplexity.jsonl"
    once "${items}_greedy/heldout.jsonl" "${serve[@]}" "${evaluate[@]}" --name "$2_greedy" --benchmarks heldout \
        --heldout "$1/03_instructions.jsonl" --queries study/heldout_queries.txt --queries-per-instruction 8 \
        --temperature 0 --k 1 --max-tokens 96
    once "$items/ifeval.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks ifeval --max-tokens 512
    once "$items/mmlu.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks mmlu --limit 228
    once "$items/gsm8k.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks gsm8k --limit 60 --max-tokens 256
    once "$items/ifbench.jsonl" "${serve[@]}" "${evaluate[@]}" --benchmarks ifbench --max-tokens 512
}

for seed in "${@:-1}"; do
    out=out/study/seed_$seed
    # data, training and held-out constraints: some 50 minutes
    OUT=$out SEED=$seed bash run_all.sh --study
    python study/results.py collect "$out"
    # benchmarks: some 40 minutes a model
    for model in base:07_base online:online_2/06_dpo offline:06_offline sft:05_sft; do
        # two of four models in all seeds but the first: for time
        [ "$seed" = 1 ] || [[ $model =~ ^(base|online): ]] || continue
        benchmarks "$out" "${model%%:*}" "$out/${model#*:}"
        python study/results.py collect "$out"
    done
done
python study/results.py table
