#!/usr/bin/env bash
# AutoIF from seed constraints to a results table.
#
#   bash run_all.sh --live      Qwen2.5-Coder-1.5B supervises, SmolLM2-135M learns; two CPU cores, no endpoint, no GPU
#   bash run_all.sh --demo      the same with that supervisor's completions replayed; minutes, and nothing is fetched
#   bash run_all.sh --study     one seed of study/, an hour
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
#   VLLM=<program>  VLLM_FLAGS=  SERVE=<a server of your own>: see autoif/serving
#   FLAGS_01 .. FLAGS_07, FLAGS_04_ONLINE, FLAGS_06_PAIRS, FLAGS_07_HELDOUT, FLAGS_SERVING: further flags of single
#                               steps, as in FLAGS_04="--max-tokens 8192"
# --demo, --live and --study take OUT, FLAGS_* and VENV of these; the others are in their settings.sh
#
# A stage whose output exists is kept; one that was made with other settings or inputs ends the run before anything is
# spent. After Ctrl-C, a crash or kill -9 the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"

source autoif/run.sh  # make FILE COMMAND, served MODEL COMMAND, stage NN, held_out; arguments, environment, log, checks

pipeline() {
    stage 01  # more constraints than one writes by hand (section 3.1); 100 requests
    make "$OUT/01_instructions.jsonl" "${SUPERVISED[@]}" python 01_seed_augment.py --model "$SUPERVISOR" \
        --out "$OUT/01_instructions.jsonl" ${FLAGS_01:-}

    stage 02 || return 0  # functions that check them, and cases that check the functions (3.2); 8 completions each
    make "$OUT/02_verifiers.jsonl" "${SUPERVISED[@]}" python 02_verifiers.py --model "$SUPERVISOR" \
        --in "$OUT/01_instructions.jsonl" --out "$OUT/02_verifiers.jsonl" ${FLAGS_02:-}

    stage 03 || return 0  # does a function, said in words, contradict its constraint? (3.2); one completion a function
    make "$OUT/03_instructions.jsonl" "${SUPERVISED[@]}" python 03_backtranslate.py --model "$SUPERVISOR" \
        --in "$OUT/02_verifiers.jsonl" --out "$OUT/03_instructions.jsonl" --nli "$NLI" ${FLAGS_03:-}

    stage 04 || return 0  # answers that functions accept and a judge finds helpful (3.3); most tokens: 16 x 8 each
    make "$OUT/04_sft.jsonl" "${WRITING[@]}" python 04_responses.py --model "$WRITER" --queries "$QUERIES" \
        --in "$OUT/03_instructions.jsonl" --out "$OUT/04_responses.jsonl" ${FLAGS_04:-}

    stage 05 || return 0  # learn from what passed (4)
    make "$OUT/05_sft" "${TRAINING[@]}" 05_sft.py --in "$OUT/04_sft.jsonl" --model "$BASE" \
        --out "$OUT/05_sft" ${FLAGS_05:-}

    stage 06 || return 0  # offline: prefer what passed to what failed, in the data that are there (3.4)
    make "$OUT/06_pairs.jsonl" python 06_dpo.py pairs --in "$OUT/03_instructions.jsonl" "$OUT/04_responses.jsonl" \
        --sft "$OUT/04_sft.jsonl" --out "$OUT/06_pairs.jsonl" ${FLAGS_06_PAIRS:-}
    make "$OUT/06_offline" "${TRAINING[@]}" 06_dpo.py train --in "$OUT/06_pairs.jsonl" --model "$OUT/05_sft" \
        --out "$OUT/06_offline" ${FLAGS_06:-}

    # online: the policy answers the training prompts, each time anew (3.4); the reference stays the SFT model
    policy=$ONLINE_FROM
    for iteration in $(seq "$ONLINE_ITERATIONS"); do
        online=$OUT/online_$iteration
        make "$online/04_responses.jsonl" served "$policy" python 04_responses.py --model "$policy" --score none \
            --in "$OUT/03_instructions.jsonl" --sft "$OUT/04_sft.jsonl" --out "$online/04_responses.jsonl" \
            --seed "$iteration" ${FLAGS_04_ONLINE:-}
        make "$online/06_pairs.jsonl" python 06_dpo.py pairs --level online --in "$online/04_responses.jsonl" \
            --out "$online/06_pairs.jsonl" ${FLAGS_06_PAIRS:-}
        make "$online/06_dpo" "${TRAINING[@]}" 06_dpo.py train --in "$online/06_pairs.jsonl" --model "$policy" \
            --reference "$OUT/05_sft" --out "$online/06_dpo" ${FLAGS_06:-}
        policy=$online/06_dpo
    done

    stage 07 || return 0  # the four models on held-out constraints and on the benchmarks (4)
    # the base model as it is served: with a chat template and that template's end token
    make "$OUT/07_base.settings.json" python -m autoif.models "$BASE" "$OUT/07_base"
    held_out || echo "-- nothing is held out: that measure is left out"
    evaluate base "$OUT/07_base"
    evaluate sft "$OUT/05_sft"
    evaluate offline "$OUT/06_offline"
    evaluate online "$policy"
    # are the benchmarks' tests in what was trained on? (table 4); one judgement a test
    [ -z "$CONTAMINATION" ] || make "$OUT/07_contamination.json" python -m autoif.evaluation.contamination \
        "$OUT/04_sft.jsonl" --benchmarks ifeval,followbench --data-dir "$DATA_DIR" \
        --out "$OUT/07_contamination.json" "${JUDGED[@]}"
}
evaluate() {  # NAME MODEL; a settings file comes last, when all is measured
    local items=$OUT/07_items/$1
    local evaluating=(python 07_eval.py --model "$2" --name "$1" --out "$OUT/07_results.json")
    local busy=(--concurrency $((64 * ${PROCESSES:-1})))  # 64 for each GPU of the server
    ! held_out || make "$items/heldout.settings.json" served "$2" "${evaluating[@]}" "${busy[@]}" --benchmarks heldout \
        --heldout "$OUT/03_instructions.jsonl" --queries "$HELDOUT_QUERIES" ${FLAGS_07_HELDOUT:-}
    evaluating+=("${BENCHMARKS[@]}" ${DATA_DIR:+--data-dir "$DATA_DIR"})
    if [ "$MEASURED" ] && [ "${#JUDGED[@]}" = 0 ]; then
        make "$items/$MEASURED.settings.json" served "$2" "${evaluating[@]}" ${FLAGS_07:-}
    elif [ "$MEASURED" ]; then
        # model and judge may need the same GPU: all answers first, then, without the model, what the judge says
        make "$items/answers.settings.json" served "$2" "${evaluating[@]}" --only answers \
            "${busy[@]}" ${FLAGS_07:-}
        [ -z "${OPENAI_BASE_URL:-}" ] || make "$items/$MEASURED.settings.json" "${evaluating[@]}" --only verdicts \
            "${JUDGED[@]}" ${FLAGS_07:-}
    fi
}

arguments "$@"  # MODE, UNTIL, REDO
environment
[ "$MODE" != env ] || exit 0

# The defaults of every stage are the paper's; those of the demo and the study depart in a file each.
ONLINE_ITERATIONS=${ONLINE_ITERATIONS:-3} SUPERVISOR=${SUPERVISOR:-} BASE=${BASE:-} QUERIES=${QUERIES:-}
RECORDED= SUPERVISED=() WRITING=() STUDENT= PLAN= MEASURED=${DATA_DIR:+ifeval} JUDGED=() CONTAMINATION=
BENCHMARKS=(--benchmarks ifeval)
if [ -f "$MODE/settings.sh" ]; then
    settings "$MODE/settings.sh"
else
    OUT=${OUT:-out} NLI=${NLI:-MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7} WRITER=$SUPERVISOR
    [ "$UNTIL" \< 05 ] || PROCESSES=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
    [ "${PRESET:-}" != 70b ] || FLAGS_05="--batch 512 ${FLAGS_05:-}"  # section 4.1: 512 for 70B and 72B
    FLAGS_04_ONLINE="--k ${ONLINE_K:-8} --concurrency $((64 * ${PROCESSES:-1})) ${FLAGS_04_ONLINE:-}"
    ONLINE_FROM=$OUT/05_sft                  # the paper's tables: SFT + online DPO
    case $BASE in *.gguf | coder-*) STUDENT=$BASE BASE=$OUT/base ;; esac
    HELDOUT_QUERIES=$OUT/04_queries.jsonl    # what stage 04 kept, and of these what it held out
    MEASURED=benchmarks BENCHMARKS=(--allow-gaps)
    BENCHMARKS+=(--benchmarks ifeval,followbench,infobench,mtbench,arenahard,ceval,mmlu,gsm8k,humaneval)
    JUDGED=(--judge-model "${JUDGE:-${SUPERVISOR:-unset}}" --judge-base-url "${OPENAI_BASE_URL:-}")
    if [ "${OPENAI_BASE_URL:-}" ] && [ -d "${DATA_DIR:-}/ifeval" -o -d "${DATA_DIR:-}/followbench" ]; then
        CONTAMINATION=wanted
    fi
fi
# torchrun, with the stage's words and exit code at its end
TRAINING=(python -m autoif.training --standalone --nproc_per_node "${PROCESSES:-1}")
if [ "${NNODES:-1}" -gt 1 ]; then  # every node runs this torchrun: srun starts it there, or you do
    TRAINING=(python -m autoif.training --nnodes "$NNODES" --nproc_per_node "${PROCESSES:-1}" --rdzv_backend c10d
        --rdzv_id "${SLURM_JOB_ID:-autoif}" --rdzv_endpoint "${MASTER_ADDR:?the first node}:${MASTER_PORT:-29500}")
    if [ "${SLURM_JOB_ID:-}" ]; then
        # srun does not take it over by itself
        [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
        TRAINING=(srun --kill-on-bad-exit=1 --ntasks-per-node=1 "${TRAINING[@]}")
    else
        TRAINING=(on_every_node "${TRAINING[@]}" --rdzv_conf join_timeout=86400)
    fi
fi

begin   # one run at a time, and a log that says what ran
check   # what is missing or out of date, before anything is spent
pipeline
finish  # table, differences, page
