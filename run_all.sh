#!/usr/bin/env bash
# AutoIF from seed constraints to a results table.
#
#   bash run_all.sh --demo      SmolLM2-135M on two CPU cores; no hub, no endpoint, no GPU
#   bash run_all.sh --study     the same with more of everything: one seed of study/, an hour
#   OPENAI_BASE_URL=... SUPERVISOR=Qwen/Qwen2-72B-Instruct BASE=Qwen/Qwen2-7B QUERIES=ShareGPT.json \
#   bash run_all.sh             the paper's setting on one node of 8 GPUs of 80 GB
#   bash run_all.sh --until 04  the same, no further than this stage: the data need no GPU
#   bash run_all.sh --check     the plan, and everything that is missing; spends a token
#   bash run_all.sh --redo-from 05     delete what stages 05 to 07 made and make it again, after a change of settings
#   bash run_all.sh --env       only make .venv
#
# Settings, from the environment:
#   SUPERVISOR BASE QUERIES     as above; BASE=$SUPERVISOR is self-alignment
#   OUT=out                     where everything goes
#   JUDGE=$SUPERVISOR           of the benchmarks; DATA_DIR=<folder> with their data, else the hub
#   NLI=<mDeBERTa, or llm>      PRESET=70b for the 70B batch
#   VENV=.venv                  the environment; PYTHON=<program> makes it
#   ONLINE_ITERATIONS=3 ONLINE_K=8     the paper states neither; these are ours
#   PROCESSES=<GPUs>  NNODES=1 MASTER_ADDR= MASTER_PORT=29500 (under Slurm: examples/train.sbatch)
#   VLLM=<program>  SERVE=<a server of your own>: see autoif/serving
#   FLAGS_01 .. FLAGS_07, FLAGS_04_ONLINE, FLAGS_06_PAIRS, FLAGS_07_HELDOUT, FLAGS_SERVING: further
#                               flags of single steps, as in FLAGS_04="--max-tokens 8192"
#
# A stage whose output exists is kept; one that was made with other settings or inputs ends the run before anything is
# spent. After Ctrl-C, a crash or kill -9 the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"

usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' run_all.sh; }
fail() { echo "run_all.sh: error: $*" >&2; exit 2; }
MODE=full UNTIL=07 REDO=
while [ $# -gt 0 ]; do
    case $1 in
    --demo | --study | --check | --env) MODE=${1#--} ;;
    --until) UNTIL=${2:-}; [ $# -gt 1 ] && shift ;;
    --until=*) UNTIL=${1#*=} ;;
    --redo-from) REDO=${2:-none}; [ $# -gt 1 ] && shift ;;
    --redo-from=*) REDO=${1#*=} ;;
    -h | --help) usage; exit ;;
    *) usage >&2; fail "unknown argument $1" ;;
    esac
    shift
done
[[ $UNTIL =~ ^0[1-7]$ ]] || fail "--until '$UNTIL': name a stage, 01 to 07"
[[ $REDO =~ ^(0[1-7])?$ ]] || fail "--redo-from '$REDO': name a stage, 01 to 07"
[[ ${PRESET:-70b} = 70b ]] || fail "PRESET=$PRESET: 70b is the only one"
for name in PROCESSES NNODES ONLINE_ITERATIONS ONLINE_K; do
    [[ ${!name:-1} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name=${!name} is no whole number"
    [ "${!name:-1}" != 0 ] || [ $name = ONLINE_ITERATIONS ] || fail "$name=0: at least 1"
done
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1

# ---- environment: .venv with the pinned requirements, made once ----------------------------------
VENV=${VENV:-.venv}
wanted=$(cat requirements.txt requirements-demo.txt requirements-test.txt | sha256sum)
if [ "$(cat "$VENV/.requirements" 2>/dev/null)" != "$wanted" ]; then
    for PYTHON in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        command -v "$PYTHON" >/dev/null && "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && break
    done || fail "no Python 3.11 or newer; install one, or name it in PYTHON"
    echo "making $VENV with $("$PYTHON" --version); this takes a few minutes, once"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
    echo "$wanted" >"$VENV/.requirements"
fi
[ "$MODE" = env ] && exit
source "$VENV/bin/activate"

# ---- settings: the defaults of every stage are the paper's; those of the demo and the study depart in a file each ----
ONLINE_ITERATIONS=${ONLINE_ITERATIONS:-3} SUPERVISOR=${SUPERVISOR:-} BASE=${BASE:-} QUERIES=${QUERIES:-}
RECORDED=
if [ -f "$MODE/settings.sh" ]; then
    source "$MODE/settings.sh"
else
    OUT=${OUT:-out}
    NLI=${NLI:-MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7}
    [ "$UNTIL" \< 05 ] || PROCESSES=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
    [ "${PRESET:-}" = 70b ] && FLAGS_05="--batch 512 ${FLAGS_05:-}" # section 4.1: 512 for 70B and 72B
    FLAGS_04_ONLINE="--k ${ONLINE_K:-8} ${FLAGS_04_ONLINE:-}"
    ONLINE_FROM=$OUT/05_sft                  # the paper's tables: SFT + online DPO
    HELDOUT_QUERIES=$OUT/04_queries.jsonl    # what stage 04 kept, and of these what it held out
    WRITER=$SUPERVISOR
fi

# ---- one run at a time, and a log that says what ran ---------------------------------------------
mkdir -p "$OUT/logs" "$OUT/completions"
exec 9>"$OUT/.lock"
locked=0
flock -E 9 -w 10 9 || locked=$?
[ $locked != 9 ] || fail "another run is still at work in $OUT; wait for it or end it"
[ $locked = 0 ] || echo "run_all.sh: warning: $OUT is on a file system without locks; run it only once at a time" >&2
export SERVE_LOG=$OUT/logs
{
    echo "== $(date -u +%FT%TZ) run_all.sh $MODE until $UNTIL at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    (set -o posix; set) | grep -E '^(OUT|SUPERVISOR|BASE|QUERIES|NLI|PRESET|PROCESSES|ONLINE_[A-Z]+|FLAGS_[0-9A-Z_]+|SERVE|VLLM|NNODES)=' || true
    pip list --disable-pip-version-check --format freeze 2>/dev/null | tr '\n' ' '
    echo
} >>"$OUT/logs/run.log"
exec > >(tee -a "$OUT/logs/run.log" 9>&-)

# torchrun, with the stage's words and exit code at its end
TORCHRUN=(python -m autoif.training --standalone --nproc_per_node "${PROCESSES:-1}")
if [ "${NNODES:-1}" -gt 1 ]; then  # every node runs this torchrun: srun starts it there, or you do
    TORCHRUN=(python -m autoif.training --nnodes "$NNODES" --nproc_per_node "$PROCESSES" --rdzv_backend c10d
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
# served MODEL COMMAND...: run the command beside a server of the model
served() { python -m autoif.serving ${FLAGS_SERVING:-} "$1" -- "${@:2}"; }
# stage NN: what follows is its; fails where it is not wanted
stage() { STAGE=$1 && [ ! "$1" \> "$UNTIL" ]; }
# whether constraints and queries are held out: not with --heldout 0 or --heldout-queries 0
held_out() {
    grep -qs '"split": "heldout"' "$OUT/03_instructions.jsonl" || return
    [ "$HELDOUT_QUERIES" != "$OUT/04_queries.jsonl" ] || grep -qs '"split": "heldout"' "$HELDOUT_QUERIES"
}

# ---- what the run makes, stage by stage ----------------------------------------------------------------
pipeline() {
    # ---- 01: more constraints than one writes by hand (section 3.1); 100 requests
    stage 01
    make "$OUT/01_instructions.jsonl" python 01_seed_augment.py --model "$SUPERVISOR" \
        --out "$OUT/01_instructions.jsonl" ${FLAGS_01:-}

    # ---- 02: functions that check them, and cases that check the functions (3.2); 8 completions a constraint
    stage 02 || return 0
    make "$OUT/02_verifiers.jsonl" python 02_verifiers.py --model "$SUPERVISOR" --in "$OUT/01_instructions.jsonl" \
        --out "$OUT/02_verifiers.jsonl" ${FLAGS_02:-}

    # ---- 03: a function that checks something else is found by saying what it checks (3.2); one completion a function
    stage 03 || return 0
    make "$OUT/03_instructions.jsonl" python 03_backtranslate.py --model "$SUPERVISOR" --in "$OUT/02_verifiers.jsonl" \
        --out "$OUT/03_instructions.jsonl" --nli "$NLI" ${FLAGS_03:-}

    # ---- 04: answers that the functions accept and a judge finds helpful (3.3); most of the tokens: 16 x 8 a constraint
    stage 04 || return 0
    writing=()
    [ "$WRITER" = "$SUPERVISOR" ] || writing=(served "$WRITER")  # a recorded supervisor writes no answers: the model answers itself
    make "$OUT/04_sft.jsonl" "${writing[@]}" python 04_responses.py --model "$WRITER" --queries "$QUERIES" \
        --in "$OUT/03_instructions.jsonl" --out "$OUT/04_responses.jsonl" ${FLAGS_04:-}

    # ---- 05: learn from what passed (section 4)
    stage 05 || return 0
    make "$OUT/05_sft" "${TORCHRUN[@]}" 05_sft.py --in "$OUT/04_sft.jsonl" --model "$BASE" --out "$OUT/05_sft" ${FLAGS_05:-}

    # ---- 06 offline: prefer what passed to what failed, in the data that are there (3.4)
    stage 06 || return 0
    make "$OUT/06_pairs.jsonl" python 06_dpo.py pairs --in "$OUT/03_instructions.jsonl" "$OUT/04_responses.jsonl" \
        --sft "$OUT/04_sft.jsonl" --out "$OUT/06_pairs.jsonl" ${FLAGS_06_PAIRS:-}
    make "$OUT/06_offline" "${TORCHRUN[@]}" 06_dpo.py train --in "$OUT/06_pairs.jsonl" --model "$OUT/05_sft" \
        --out "$OUT/06_offline" ${FLAGS_06:-}

    # ---- 06 online: the policy answers the training prompts itself, each time anew (3.4); the reference stays the SFT model
    policy=$ONLINE_FROM
    for iteration in $(seq "$ONLINE_ITERATIONS"); do
        online=$OUT/online_$iteration
        make "$online/04_responses.jsonl" served "$policy" python 04_responses.py --model "$policy" --no-score \
            --in "$OUT/03_instructions.jsonl" --sft "$OUT/04_sft.jsonl" --out "$online/04_responses.jsonl" \
            --seed "$iteration" ${FLAGS_04_ONLINE:-}
        make "$online/06_pairs.jsonl" python 06_dpo.py pairs --level online --in "$online/04_responses.jsonl" \
            --out "$online/06_pairs.jsonl" ${FLAGS_06_PAIRS:-}
        make "$online/06_dpo" "${TORCHRUN[@]}" 06_dpo.py train --in "$online/06_pairs.jsonl" --model "$policy" \
            --reference "$OUT/05_sft" --out "$online/06_dpo" ${FLAGS_06:-}
        policy=$online/06_dpo
    done

    # ---- 07: the four models on held-out constraints and on the benchmarks (section 4)
    stage 07 || return 0
    # the base model as it is served: with a chat template and that template's end token
    make "$OUT/07_base.settings.json" python -m autoif.models "$BASE" "$OUT/07_base"
    evaluate() { # NAME MODEL; the settings file comes last, when all is measured
        local results=(--model "$2" --name "$1" --out "$OUT/07_results.json")
        ! held_out || make "$OUT/07_items/$1/heldout.settings.json" served "$2" python 07_eval.py "${results[@]}" --benchmarks heldout \
            --heldout "$OUT/03_instructions.jsonl" --queries "$HELDOUT_QUERIES" ${FLAGS_07_HELDOUT:-}
        if [ -z "$RECORDED" ]; then
            make "$OUT/07_items/$1/benchmarks.settings.json" served "$2" python 07_eval.py "${results[@]}" --allow-gaps \
                ${DATA_DIR:+--data-dir "$DATA_DIR"} \
                --benchmarks ifeval,followbench,infobench,mtbench,arenahard,ceval,mmlu,gsm8k,humaneval \
                --judge-model "${JUDGE:-$SUPERVISOR}" --judge-base-url "${OPENAI_BASE_URL:-}" ${FLAGS_07:-}
        elif [ -n "${DATA_DIR:-}" ]; then
            make "$OUT/07_items/$1/ifeval.settings.json" served "$2" python 07_eval.py "${results[@]}" --data-dir "$DATA_DIR" \
                --benchmarks ifeval ${FLAGS_07:-}
        fi
    }
    held_out || echo "-- nothing is held out: that measure is left out"
    evaluate base "$OUT/07_base"
    evaluate sft "$OUT/05_sft"
    evaluate offline "$OUT/06_offline"
    evaluate online "$policy"
    # are the benchmarks' tests in what was trained on? (table 4); one judgement a test
    if [ -z "$RECORDED" ] && { [ -d "${DATA_DIR:-}/ifeval" ] || [ -d "${DATA_DIR:-}/followbench" ]; }; then
        make "$OUT/07_contamination.json" python -m autoif.evaluation.contamination "$OUT/04_sft.jsonl" \
            --benchmarks ifeval,followbench --data-dir "$DATA_DIR" --out "$OUT/07_contamination.json" \
            --judge-model "${JUDGE:-$SUPERVISOR}" --judge-base-url "${OPENAI_BASE_URL:-}"
    fi
}

# ---- the plan, and what is missing or out of date, before anything is spent -------------------------
plan=$OUT/logs/plan
(
    for name in SUPERVISOR WRITER BASE QUERIES; do declare "$name=${!name:-unset}"; done  # the check says so
    make() { echo "$STAGE ${*@Q}"; }
    held_out() { true; }
    STAGE=SERVING make "" python -m autoif.serving.__main__ ${FLAGS_SERVING:-} MODEL -- COMMAND
    pipeline
) >"$plan"
if [ "$RECORDED" ]; then
    make "$BASE" python demo/convert.py "$BASE"
    for stage in 01_seed_augment 02_verifiers 03_backtranslate; do  # the client asks its store before a server
        [ -e "$OUT/completions/$stage.jsonl" ] || cat $(printf "%s/$stage.jsonl " $RECORDED) >"$OUT/completions/$stage.jsonl"
    done
    echo "supervisor: recorded completions ($RECORDED); to ask a live one, run without --$MODE"
else
    python -m autoif.serving.preflight --supervisor "$SUPERVISOR" --judge "${JUDGE:-$SUPERVISOR}" --base "$BASE" \
        --queries "$QUERIES" --nli "$NLI" --data-dir "${DATA_DIR:-}" --out "$OUT" --until "$UNTIL" \
        --processes $((${PROCESSES:-1} * ${NNODES:-1})) --online-iterations "$ONLINE_ITERATIONS" \
        --plan "$plan" ${REDO:+--redo-from "$REDO"}
    [ "$MODE" = check ] && exit
fi
[ -z "$RECORDED$REDO" ] || python -m autoif.chain "$plan" ${REDO:+--redo-from "$REDO"}
again="the same command${REDO:+ without --redo-from} goes on from here"
trap 'code=$?; [ $code = 0 ] || echo "run_all.sh: stopped with exit code $code; $again" >&2' EXIT

pipeline
if [ "$UNTIL" != 07 ]; then
    echo "everything up to stage $UNTIL is in $OUT; without --until the same command goes on"
    exit
fi
echo
if grep -qs '"metrics"' "$OUT/07_results.json"; then
    cat "$OUT/07_results.md"
    python -m autoif.evaluation.results base online --out "$OUT/07_results.json"
fi
[ "$OUT/report.html" -nt "$OUT/07_results.json" ] || python -m autoif.report "$OUT"
echo "everything is in $OUT: rows 01-06, models 05_sft, 06_offline, online_*/06_dpo, 07_results.{json,md,png}, logs/"
echo "look at it: $OUT/report.html"
copies="find $OUT ( -name .*.gguf -o -name .*.bf16 ) -prune"
set -f  # the patterns are find's
[ -z "$($copies)" ] || echo "the models' copies for the servers ($($copies -print0 | du -ch --files0-from=- | tail -1 | cut -f1)) are made" \
    "again when needed; to delete them: find $OUT '(' -name '.*.gguf' -o -name '.*.bf16' ')' -prune -exec rm -r {} +"
