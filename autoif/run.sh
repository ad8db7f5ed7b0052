# What run_all.sh stands on: arguments, environment, one run at a time, the log, the plan. Sourced, from the checkout.

fail() { echo "run_all.sh: error: $*" >&2; exit 2; }
usage() { sed -n '2,/^[^#]/s/^# \?//p' run_all.sh; }

# ---- what a stage is made by ----
make() {  # FILE COMMAND...: run the command unless the file is there
    [ ! -e "$1" ] || { echo "-- $1 is there: kept" && return; }
    local began=$SECONDS
    echo "-- $1: ${*:2}"
    "${@:2}"
    echo "-- $1: done in $((SECONDS - began)) s"
}
served() { python -m autoif.serving ${FLAGS_SERVING:-} "$1" -- "${@:2}"; }  # MODEL COMMAND...: beside a server of it
on_every_node() {  # COMMAND...: run it here, and say what to run on the others
    printf '%s\n' "-- on each of the $((NNODES - 1)) other nodes, now:" \
        "cd ${PWD@Q} && source ${VENV@Q}/bin/activate && ${*@Q}"
    "$@"
}
stage() { STAGE=$1 && [ ! "$1" \> "$UNTIL" ]; }  # NN: what follows is its; fails where it is not wanted
settings() {  # FILE: source it; FLAGS_* of the environment come after its own
    local name
    for name in "${!FLAGS_@}"; do declare -g "GIVEN_$name=${!name}"; done
    source "$1"
    for name in "${!GIVEN_@}"; do declare -g "${name#GIVEN_}+= ${!name}"; done
}
replay() {  # FROM TO: stored completions are asked before a server is; those that are there stay
    local file
    for file in "$1"/*.jsonl; do
        file=${file##*/}
        [ -e "$2/$file" ] || { cp "$1/$file" "$2/.$file" && mv "$2/.$file" "$2/$file"; }
    done
}
held_out() {  # whether constraints and queries are: not with --heldout 0 or --heldout-queries 0
    grep -qs '"split": "heldout"' "$OUT/03_instructions.jsonl" || return
    [ "$HELDOUT_QUERIES" != "$OUT/04_queries.jsonl" ] || grep -qs '"split": "heldout"' "$HELDOUT_QUERIES"
}

# ---- what is wanted ----
arguments() {  # ARGUMENT...: sets MODE, UNTIL, REDO
    MODE=full UNTIL=07 REDO=
    while [ $# -gt 0 ]; do
        case $1 in
        --demo | --live | --study | --check | --env)
            [ "$MODE" = full ] || fail "--$MODE and $1: give one of them"
            MODE=${1#--} ;;
        --until=* | --redo-from=*) set -- - "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --until | --redo-from)
            [[ ${2:-} =~ ^0[1-7]$ ]] || fail "$1 '${2:-}': name a stage, 01 to 07"
            if [ "$1" = --until ]; then UNTIL=$2; else REDO=$2; fi
            shift ;;
        -h | --help) usage; exit ;;
        *) usage >&2; fail "unknown argument $1" ;;
        esac
        shift
    done
    [[ ${PRESET:-70b} = 70b ]] || fail "PRESET=$PRESET: 70b is the only one"
    local name
    for name in PROCESSES NNODES ONLINE_ITERATIONS ONLINE_K; do
        [[ ${!name:-1} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name=${!name} is no whole number"
        [[ ${!name:-1} != 0 || $name = ONLINE_ITERATIONS ]] || fail "$name=0: at least 1"
    done
}

environment() {  # .venv with the pinned requirements, made once, and entered
    VENV=${VENV:-.venv}
    local wanted
    wanted=$(cat requirements.txt requirements-demo.txt requirements-test.txt | sha256sum)
    if [ "$(cat "$VENV/.requirements" 2>/dev/null)" != "$wanted" ]; then
        for PYTHON in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
            command -v "$PYTHON" >/dev/null && "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && break
        done || fail "no Python 3.11 or newer; install one, or name it in PYTHON"
        echo "making $VENV with $("$PYTHON" --version); this takes a few minutes, once"
        "$PYTHON" -m venv "$VENV"
        "$VENV/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
        "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
        echo "$wanted" >"$VENV/.requirements"
    fi
    source "$VENV/bin/activate"
    export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
    export PYTHONUNBUFFERED=1  # through `tee` a warning would come when its stage is over
}

# ---- before and after ----
begin() {  # one run at a time, and a log that says what ran
    mkdir -p "$OUT/logs" "$OUT/completions"
    exec 9>"$OUT/.lock"
    flock -E 9 -w 10 9 || case $? in
    9) fail "another run is still at work in $OUT; wait for it or end it" ;;
    *) echo "run_all.sh: warning: $OUT is on a file system without locks; run it only once at a time" >&2 ;;
    esac
    find "$OUT" -name ".*.partial" -mmin +1440 -prune -exec rm -r {} +  # what kill -9 left, of a day ago
    export SERVE_LOG=$OUT/logs
    local commit names
    names='OUT|SUPERVISOR|BASE|QUERIES|NLI|PRESET|PROCESSES|ONLINE_[A-Z]+|FLAGS_[0-9A-Z_]+|SERVE|VLLM(_FLAGS)?|NNODES'
    commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    {
        echo "== $(date -u +%FT%TZ) run_all.sh $MODE until $UNTIL at commit $commit"
        (set -o posix; set) | grep -E "^($names)=" || true
        pip list --disable-pip-version-check --format freeze 2>/dev/null | tr '\n' ' '
        echo
    } >>"$OUT/logs/run.log"
    exec > >(tee -ia "$OUT/logs/run.log" 9>&-)
}

check() {  # what is missing or out of date, before anything is spent
    local plan=$OUT/logs/plan store redo=(${REDO:+--redo-from "$REDO"}) again
    # before the plan is written, which names it in full mode
    [[ $PLAN || ${OPENAI_BASE_URL:-} != *@* ]] || fail 'OPENAI_BASE_URL has a password, which goes into $OPENAI_API_KEY'
    (
        local name
        for name in SUPERVISOR WRITER BASE QUERIES; do declare "$name=${!name:-unset}"; done  # the check says so
        make() { echo "$STAGE ${*@Q}"; }
        held_out() { true; }
        STAGE=SERVING make "" python -m autoif.serving.__main__ ${FLAGS_SERVING:-} MODEL -- COMMAND
        pipeline
    ) >"$plan"
    if [ "$STUDENT" ]; then
        local learns=$OUT/logs/student
        [ ! -e "$BASE" ] || [ "$(cat "$learns" 2>/dev/null || echo "$STUDENT")" = "$STUDENT" ] ||
            fail "$BASE is $(cat "$learns"), not $STUDENT; give another OUT"
        echo "$STUDENT" >"$learns"
        make "$BASE" python -m autoif.serving.convert "$STUDENT" "$BASE"
    fi
    if [ "$PLAN" ]; then
        echo "$PLAN"
        [ -z "$RECORDED" ] || replay "$RECORDED" "$OUT/completions"
    else
        python -m autoif.serving.preflight --supervisor "$SUPERVISOR" --judge "${JUDGE:-$SUPERVISOR}" --base "$BASE" \
            --queries "$QUERIES" --nli "$NLI" --data-dir "${DATA_DIR:-}" --out "$OUT" --until "$UNTIL" \
            --processes $((${PROCESSES:-1} * ${NNODES:-1})) --online-iterations "$ONLINE_ITERATIONS" \
            --plan "$plan" "${redo[@]}"
        [ "$MODE" != check ] || exit 0
    fi
    [ -z "$PLAN$REDO" ] || python -m autoif.chain "$plan" "${redo[@]}"
    again="the same command${REDO:+ without --redo-from} goes on from here"
    trap 'code=$?; [ $code = 0 ] || echo "run_all.sh: stopped with exit code $code; '"$again"'" >&2' EXIT
}

finish() {  # table, differences, page
    if [ "$UNTIL" != 07 ]; then
        echo "everything up to stage $UNTIL is in $OUT; without --until the same command goes on"
        return
    fi
    echo
    if [ "${#JUDGED[@]}" -gt 0 ] && [ -z "${OPENAI_BASE_URL:-}" ]; then
        echo "nothing is judged yet: with OPENAI_BASE_URL, the judge's, the same command goes on"
    fi
    if grep -qs '"metrics"' "$OUT/07_results.json"; then
        cat "$OUT/07_results.md"
        python -m autoif.evaluation.results base online --out "$OUT/07_results.json"
    fi
    [ "$OUT/report.html" -nt "$OUT/07_results.json" ] || python -m autoif.report "$OUT"
    echo "everything is in $OUT: rows 01-06, models 05_sft, 06_offline, online_*/06_dpo," \
        "07_results.{json,md,png}, logs/"
    echo "look at it: $OUT/report.html"
    local copies=(find "$OUT" "(" -name ".*.gguf" -o -name ".*.bf16" ")" -prune) bytes
    if [ "$("${copies[@]}")" ]; then
        bytes=$("${copies[@]}" -print0 | du -ch --files0-from=- | tail -1 | cut -f1)
        echo "the models' copies for the servers ($bytes) are made again when needed; to delete them:" \
            "find $(printf %q "$OUT") '(' -name '.*.gguf' -o -name '.*.bf16' ')' -prune -exec rm -r {} +"
    fi
}
