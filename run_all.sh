#!/usr/bin/env bash
# AutoIF from seed constraints to a results table.
#
#   bash run_all.sh --demo      SmolLM2-135M on two CPU cores, no hub, no endpoint: about 15 minutes, 4 GB of memory
#   OPENAI_BASE_URL=... SUPERVISOR=Qwen/Qwen2-72B-Instruct BASE=Qwen/Qwen2-7B QUERIES=ShareGPT.json bash run_all.sh
#                               the paper's setting on one node of 8 x 80 GB GPUs; BASE=$SUPERVISOR is self-alignment
#   bash run_all.sh --check     the plan, and everything that is missing; spends a token
#   bash run_all.sh --env       only make .venv
#
# Settings, from the environment:
#   OUT=out  PROCESSES=<GPUs>  MICRO_BATCH=1  JUDGE=$SUPERVISOR  DATA_DIR=<benchmark files>  SERVE=<see autoif/serving>
#   NLI=<mDeBERTa, or llm>  PRESET=70b  NNODES=1 MASTER_ADDR= MASTER_PORT=29500 (under Slurm: examples/train.sbatch)
#   ONLINE_ITERATIONS=3 ONLINE_K=8: the paper states neither; these are ours
#   SEEDING VERIFYING HOLDING_OUT ASKING PAIRING SFT DPO ONLINE_ASKING HELDOUT EVALUATING: further flags of these steps, as in ASKING="--max-tokens 8192"
#
# A stage whose output exists is kept; delete the file to have it made again. After Ctrl-C, a crash or kill -9 the same
# command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"
MODE=${1:-full}
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

# ---- environment: .venv with the pinned requirements, made once ------------------------------------------------------
VENV=${VENV:-.venv}
wanted=$(cat requirements.txt requirements-demo.txt requirements-test.txt | sha256sum)
if [ "$(cat "$VENV/.requirements" 2>/dev/null)" != "$wanted" ]; then
    for PYTHON in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        command -v "$PYTHON" >/dev/null && "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && break
    done || { echo "run_all.sh: error: no Python 3.11 or newer; install one, or name it in PYTHON" >&2; exit 2; }
    echo "making $VENV with $("$PYTHON" --version); this takes a few minutes, once"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
    echo "$wanted" >"$VENV/.requirements"
fi
[ "$MODE" = --env ] && exit
source "$VENV/bin/activate"

# ---- settings: the demo's departures from the defaults, which are the paper's, each with its reason ------------------
case $MODE in
--demo)
    OUT=${OUT:-out/demo} SUPERVISOR=recorded-supervisor BASE=$OUT/base NLI=llm  # no hub: mDeBERTa cannot be had
    PROCESSES=1 ONLINE_ITERATIONS=1
    export DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1
    export OMP_WAIT_POLICY=passive   # server and client share two cores: a thread that spins takes the other's time
    # one sampling setting a server, small batches of a small cache: two cores are slower with the defaults, made for GPUs
    export SERVE="transformers serve {model} --continuous-batching --host 127.0.0.1 --port {port} --cb-block-size 16 --cb-num-blocks 2048 --cb-max-batch-tokens 128"
    SEEDING=(--seeds demo/seeds.txt --k 3 --count 20)             # three recorded samples, not 100 of 50
    VERIFYING=(--k 4)                                             # four recorded verifiers, not 8
    HOLDING_OUT=(--heldout 0.25)                                  # of 43 constraints a tenth would be too few to measure on
    ASKING=(--queries demo/queries.txt --queries-per-instruction 3 --max-tokens 48 --concurrency 64)  # two cores: short answers
    SCORING=(--no-score)                                          # a 135M model is no judge
    SFT=(--batch 8 --micro-batch 8 --lr 2e-5 --epochs 1 --warmup-steps 2 --max-length 512)  # some 150 rows: batches of 128 would be one step
    PAIRING=(--pairs-per-prompt 2)                                # few prompts have both a good and a bad response
    DPO=(--batch 8 --micro-batch 8 --lr 3e-5 --beta 0.1 --epochs 1 --max-length 512)  # some 20 steps: larger ones, further from the reference
    ONLINE_ASKING=(--queries demo/queries.txt --queries-per-instruction 2 --max-tokens 48 --concurrency 64 --k 8 --seed 1)
    ONLINE_FROM=$OUT/06_offline                                   # one iteration is little: it goes on where offline DPO ended
    HELDOUT=(--queries demo/heldout_queries.txt --queries-per-instruction 8 --k 3 --max-tokens 48)
    ;;
full | --check)
    OUT=${OUT:-out} SUPERVISOR=${SUPERVISOR:-} BASE=${BASE:-} QUERIES=${QUERIES:-}
    NLI=${NLI:-MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7}
    PROCESSES=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')} ONLINE_ITERATIONS=${ONLINE_ITERATIONS:-3}
    SEEDING=(${SEEDING:-}) VERIFYING=(${VERIFYING:-}) HOLDING_OUT=(${HOLDING_OUT:-}) SCORING=() PAIRING=(${PAIRING:-})
    ASKING=(--queries "$QUERIES" ${ASKING:-})
    # a row of 8,192 tokens keeps some 60 GB of a 7B model's activations: they are recomputed instead
    SFT=(--micro-batch "${MICRO_BATCH:-1}" --activation-checkpointing ${SFT:-}) DPO=(--micro-batch "${MICRO_BATCH:-1}" --activation-checkpointing ${DPO:-})
    [ "${PRESET:-}" = 70b ] && SFT+=(--batch 512)                 # section 4.1: 512 for 70B and 72B
    FILTERED=$OUT/04_queries.jsonl                                # stage 04 has looked at every query's language: once is enough
    ONLINE_ASKING=(--queries "$FILTERED" --k "${ONLINE_K:-8}" ${ONLINE_ASKING:-})
    ONLINE_FROM=$OUT/05_sft                                       # the paper's tables: SFT + online DPO
    HELDOUT=(--queries "$FILTERED" ${HELDOUT:-})
    ;;
*)
    sed -n '2,17s/^# \{0,1\}//p' run_all.sh >&2
    exit 2
    ;;
esac

# ---- one run at a time, and a log that says what ran -----------------------------------------------------------------
mkdir -p "$OUT/logs" "$OUT/completions"
exec 9>"$OUT/.lock"
locked=0
flock -E 9 -w 10 9 || locked=$?
[ $locked != 9 ] || { echo "run_all.sh: error: another run is still at work in $OUT; wait for it or end it" >&2; exit 2; }
[ $locked = 0 ] || echo "run_all.sh: warning: $OUT is on a file system without locks; run it only once at a time" >&2
export SERVE_LOG=$OUT/logs
{
    echo "== $(date -u +%FT%TZ) run_all.sh $* at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    env | grep -E '^(OUT|SUPERVISOR|BASE|QUERIES|NLI|PRESET|PROCESSES|MICRO_BATCH|ONLINE_[A-Z]+|SERVE|NNODES)=' || true
    pip list --disable-pip-version-check --format freeze 2>/dev/null | tr '\n' ' '
    echo
} >>"$OUT/logs/run.log"
exec > >(tee -a "$OUT/logs/run.log" 9>&-)
trap 'code=$?; [ $code = 0 ] || echo "run_all.sh: stopped with exit code $code; the same command goes on from here" >&2' EXIT

TORCHRUN=(torchrun --standalone --nproc_per_node "$PROCESSES")
if [ "${NNODES:-1}" -gt 1 ]; then  # every node runs this torchrun: srun starts it there, or you do
    TORCHRUN=(torchrun --nnodes "$NNODES" --nproc_per_node "$PROCESSES" --rdzv_backend c10d
              --rdzv_id "${SLURM_JOB_ID:-autoif}" --rdzv_endpoint "${MASTER_ADDR:?the first node}:${MASTER_PORT:-29500}")
    [ -n "${SLURM_JOB_ID:-}" ] && TORCHRUN=(srun --ntasks-per-node=1 "${TORCHRUN[@]}")
fi

# make FILE COMMAND...: run the command unless the file is there
make() {
    local file=$1 began=$SECONDS
    shift
    if [ -e "$file" ]; then
        echo "-- $file is there: kept"
        return
    fi
    echo "-- $file: $*"
    "$@"
    echo "-- $file: done in $((SECONDS - began)) s"
}
serve() { python -m autoif.serving "$@"; }
# evaluate NAME MODEL: stage 07 for one model, unless its results are there
evaluate() {
    local results=(--model "$2" --name "$1" --out "$OUT/07_results.json")
    # held out: sampled as the policy is; apart from the others, since `transformers serve` has one sampling setting a start
    make "$OUT/07_items/$1/heldout.jsonl" serve "$2" -- python 07_eval.py "${results[@]}" --benchmarks heldout \
        --heldout "$OUT/03_instructions.jsonl" "${HELDOUT[@]}"
    if [ "$MODE" != --demo ]; then
        make "$OUT/07_items/$1/.benchmarks" serve "$2" -- bash -c 'python 07_eval.py "${@:2}" --allow-gaps && touch "$1"' _ \
            "$OUT/07_items/$1/.benchmarks" "${results[@]}" ${DATA_DIR:+--data-dir "$DATA_DIR"} \
            --benchmarks ifeval,followbench,infobench,mtbench,arenahard,ceval,mmlu,gsm8k,humaneval \
            --judge-model "${JUDGE:-$SUPERVISOR}" --judge-base-url "$OPENAI_BASE_URL" ${EVALUATING:-}
    elif [ -n "${DATA_DIR:-}" ]; then
        make "$OUT/07_items/$1/ifeval.jsonl" serve "$2" -- python 07_eval.py "${results[@]}" --data-dir "$DATA_DIR" \
            --benchmarks ifeval --max-tokens 256
    fi
}

# ---- 0. what is missing, before anything is spent --------------------------------------------------------------------
if [ "$MODE" = --demo ]; then
    make "$BASE" python demo/convert.py "$BASE"
    for recorded in demo/completions/*.jsonl; do  # the recorded supervisor: the client asks its store before a server
        [ -e "$OUT/completions/${recorded##*/}" ] || cp "$recorded" "$OUT/completions/"
    done
    echo "supervisor: recorded completions (demo/completions); to ask a live one, run without --demo"
else
    python -m autoif.serving.preflight --supervisor "$SUPERVISOR" --judge "${JUDGE:-$SUPERVISOR}" --base "$BASE" --queries "$QUERIES" --nli "$NLI" --out "$OUT" \
        --processes $((PROCESSES * ${NNODES:-1})) --online-iterations "$ONLINE_ITERATIONS" ${DATA_DIR:+--data-dir "$DATA_DIR"} \
        --sft "${SFT[*]}" --dpo "${DPO[*]}"
    [ "$MODE" = --check ] && exit
fi

# ---- 01-04: constraints, verifiers, responses (sections 3.1 to 3.3) --------------------------------------------------
make "$OUT/01_instructions.jsonl" python 01_seed_augment.py --model "$SUPERVISOR" --out "$OUT/01_instructions.jsonl" "${SEEDING[@]}"
make "$OUT/02_verifiers.jsonl" python 02_verifiers.py --model "$SUPERVISOR" --in "$OUT/01_instructions.jsonl" \
    --out "$OUT/02_verifiers.jsonl" "${VERIFYING[@]}"
make "$OUT/03_instructions.jsonl" python 03_backtranslate.py --model "$SUPERVISOR" --in "$OUT/02_verifiers.jsonl" \
    --out "$OUT/03_instructions.jsonl" --nli "$NLI" "${HOLDING_OUT[@]}"
# the demo's supervisor is a recording, so the model itself answers: self-alignment
answering=()
[ "$MODE" = --demo ] && answering=(serve "$BASE" --) && WRITER=$BASE
make "$OUT/04_sft.jsonl" "${answering[@]}" python 04_responses.py --model "${WRITER:-$SUPERVISOR}" \
    --in "$OUT/03_instructions.jsonl" --out "$OUT/04_responses.jsonl" "${ASKING[@]}" "${SCORING[@]}"

# ---- 05-06: SFT, then DPO offline and online (section 3.4) -----------------------------------------------------------
make "$OUT/05_sft" "${TORCHRUN[@]}" 05_sft.py --in "$OUT/04_sft.jsonl" --model "$BASE" --out "$OUT/05_sft" "${SFT[@]}"
make "$OUT/06_pairs.jsonl" python 06_dpo.py pairs --in "$OUT/03_instructions.jsonl" "$OUT/04_responses.jsonl" --out "$OUT/06_pairs.jsonl" "${PAIRING[@]}"
make "$OUT/06_offline" "${TORCHRUN[@]}" 06_dpo.py train --in "$OUT/06_pairs.jsonl" --model "$OUT/05_sft" --out "$OUT/06_offline" "${DPO[@]}"
policy=$ONLINE_FROM
for iteration in $(seq "$ONLINE_ITERATIONS"); do  # sample from the policy, verify, pair, train; the reference stays the SFT model
    online=$OUT/online_$iteration
    make "$online/04_responses.jsonl" serve "$policy" -- python 04_responses.py --model "$policy" --no-score \
        --in "$OUT/03_instructions.jsonl" --out "$online/04_responses.jsonl" "${ONLINE_ASKING[@]}"
    make "$online/06_pairs.jsonl" python 06_dpo.py pairs --level online --in "$online/04_responses.jsonl" --out "$online/06_pairs.jsonl" "${PAIRING[@]}"
    make "$online/06_dpo" "${TORCHRUN[@]}" 06_dpo.py train --in "$online/06_pairs.jsonl" --model "$policy" --reference "$OUT/05_sft" \
        --out "$online/06_dpo" "${DPO[@]}"
    policy=$online/06_dpo
done

# ---- 07: the table ---------------------------------------------------------------------------------------------------
answerer=$BASE
[ "$MODE" = --demo ] || answerer=$(python -m autoif.models "$BASE" "$OUT/base")  # a base model may lack a chat template
evaluate base "$answerer"
evaluate sft "$OUT/05_sft"
evaluate offline "$OUT/06_offline"
evaluate online "$policy"
[ "$MODE" = --demo ] && [ -z "${DATA_DIR:-}" ] && echo "IFEval left out: set DATA_DIR to a folder with its data (no hub in the demo)"
echo
cat "$OUT/07_results.md"
python 07_eval.py --compare base online --out "$OUT/07_results.json"
echo "everything is in $OUT: rows 01-06, models 05_sft, 06_offline, online_*/06_dpo, 07_results.{json,md,png}, stats.json, logs/"
