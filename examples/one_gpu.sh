#!/usr/bin/env bash
# The whole method on one GPU of 24 GB: supervisor, policies and judge stand on it in turns, each served by vLLM.
#
#   QUERIES=ShareGPT_V3.json DATA_DIR=<benchmarks> VLLM=/opt/vllm/bin/vllm bash examples/one_gpu.sh
#
# Settings are run_all.sh's, but for OPENAI_BASE_URL: nobody else is asked. By arithmetic, which the check prints step by
# step for the models that you name:
#   Qwen2.5-7B-Instruct supervises: 15 GB of weights, 1 GB of cache a request of 16,384 tokens, 3 GB beside
#   Qwen2.5-0.5B learns: 17 GB in packs of 4,096 tokens
#   BASE=Qwen/Qwen2.5-1.5B: FLAGS_05=--offload FLAGS_06=--offload, 20 GB, and 31 GB of CPU memory
# After Ctrl-C, a crash or kill -9 the same command goes on where it was. Without a GPU llama.cpp serves.
set -euo pipefail
cd "$(dirname "$0")/.."
export SUPERVISOR=${SUPERVISOR:-Qwen/Qwen2.5-7B-Instruct} BASE=${BASE:-Qwen/Qwen2.5-0.5B} QUERIES=${QUERIES:-}
export NLI=${NLI:-llm} OUT=${OUT:-out/one_gpu} SERVE_LOG=${OUT:-out/one_gpu}/logs
unset OPENAI_BASE_URL
bash run_all.sh --env
source "${VENV:-.venv}/bin/activate"
beside() { python -m autoif.serving ${FLAGS_SERVING:-} "$1" -- "${@:2}"; }  # MODEL COMMAND...

# the supervisor's turn: what is missing for the whole run is told first; then constraints, functions, answers
[ -e "$OUT/04_sft.jsonl" ] ||
    beside "$SUPERVISOR" bash -c 'JUDGE= bash run_all.sh --check && bash run_all.sh --until 04'
# the policies': train, answer for the next pairs, train again, answer the benchmarks; nobody is there to judge
bash run_all.sh
# the judge's (better another model than the supervisor)
beside "${JUDGE:-$SUPERVISOR}" bash run_all.sh
