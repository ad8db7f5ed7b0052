"""Score a model on the paper's benchmarks (section 4.1) and print the numbers beside the paper's.

    python 07_eval.py --model NAME --base-url URL --data-dir DIR --judge-model JUDGE
    python 07_eval.py --model NAME --base-url URL --benchmarks heldout \\
        --heldout out/03_instructions.jsonl --queries out/04_queries.jsonl

Reads the benchmarks' own data (--data-dir, else the hub), writes 07_results.json (one object a
model and benchmark), 07_results.md and .png beside it, and every item with its answer, verdict and
reason in 07_items/MODEL/BENCHMARK.jsonl. Three phases, generate -> judge -> score: answers and
judgements are kept in the client's stores as they arrive, so a run that was killed asks nothing
twice, and what is in the stores is scored without an endpoint.

How two models differ: `python -m autoif.evaluation.results A B`. Tests in training data (table 4):
`python -m autoif.evaluation.contamination FILE`.

Departures from the paper, and settings that it leaves open (each benchmark's own stand at the head
of its module in autoif/evaluation/benchmarks):
 1. Every cell has a 95 % interval; the paper prints none. Wilson for plain shares, bootstrap over
    clusters of items else.
 2. The paper averages five seeds. --seeds 5 averages five sampled generations of one model, at a
    temperature that the paper does not state (at 0 the five are equal); five seeds of training
    are a loop over 05 and 06, which README shows.
 3. Any judge (--judge-model); the paper's are GPT-4s of 2023. One judge's numbers compare only
    with its own: its name stands in the header, and beside the paper's stand only the owners'.
 4. IFBench and the held-out constraints are ours to add.
"""

import argparse
import gc
import sys
import time
from functools import partial
from pathlib import Path

from autoif import files, llm, models, sandbox
from autoif.evaluation import benchmarks, estimate, responses, results, table
from autoif.evaluation import judge as judges
from autoif.evaluation.benchmarks import NotSetUp, heldout
from autoif.evaluation.benchmarks.choice import by_likelihood
from autoif.evaluation.conversation import converse
from autoif.files import UserError
from autoif.stage import Help, positive_int, run, versions, write_settings, wrote

# The paper's tables 1 and 2, in per cent.
PAPER_COLUMNS = ["Pr(S)", "Pr(L)", "Ins(S)", "Ins(L)", "FB SSR"]
PAPER_COLUMNS += ["C-Eval", "MMLU", "GSM8K", "HumanEval"]
PAPER = {
    "Qwen2-7B base": [37.7, 43.6, 49.4, 53.4, 52.3, 74.4, 64.4, 71.1, 58.1],
    "Qwen2-7B + SFT (Qwen2-72B data)": [40.7, 44.5, 51.3, 55.4, 53.3, 73.9, 64.4, 74.1, 58.3],
    "Qwen2-7B + offline DPO": [41.2, 44.7, 51.4, 56.2, 54.0, 75.1, 64.5, 72.9, 59.5],
    "Qwen2-7B + online DPO": [44.0, 46.6, 55.0, 57.9, 56.6, 76.0, 64.8, 72.3, 58.2],
    "Qwen2-72B-Instruct": [77.1, 80.4, 84.4, 86.9, 62.9, 83.8, 80.8, 87.9, 73.8],
    # self-alignment: each 70B model was its own supervisor
    "Qwen2-72B-Instruct + online DPO": [80.2, 82.3, 86.1, 88.0, 67.5, 84.9, 81.2, 88.2, 75.0],
    "LLaMA3-8B base": [24.6, 26.1, 38.1, 39.7, 11.6, 24.2, 38.8, 4.5, 0.6],
    "LLaMA3-8B + SFT (LLaMA3-70B data)": [28.7, 40.3, 41.4, 52.2, 43.5, 34.5, 45.6, 33.2, 38.2],
    "LLaMA3-8B + offline DPO": [27.9, 41.6, 40.5, 54.1, 49.2, 36.2, 45.3, 31.9, 38.5],
    "LLaMA3-8B + online DPO": [28.8, 43.1, 42.2, 56.0, 49.9, 38.2, 45.1, 32.5, 38.4],
    "LLaMA3-70B-Instruct": [77.8, 83.8, 84.2, 88.8, 60.9, 60.2, 80.5, 92.6, 78.7],
    "LLaMA3-70B-Instruct + online DPO": [80.2, 85.6, 86.7, 90.4, 66.5, 61.6, 80.7, 92.7, 78.7],
    "GPT-4 (published)": [76.9, 79.3, 83.6, 85.4, 77.9, None, None, None, None],
}


def settings_of(name: str, args) -> dict:
    """How a benchmark is run, as the results record it: as its owners do, or as a flag says."""
    owners = benchmarks.settings(name)
    # answers made elsewhere: how they were sampled is not known here
    if args.responses:
        return {"responses": Path(args.responses).name, "samples": args.seeds}
    if owners.multiple_choice and args.mc_mode == "loglik":
        return {"mode": "loglik", "samples": 1}
    settings = {
        "temperature": owners.temperature,
        "top_p": getattr(args, "top_p", 1.0),
        "max_tokens": args.max_tokens or owners.max_tokens,
        "n": 1,
        "seed": args.seed,  # plus the sample's index
        "samples": getattr(args, owners.samples_flag),
    }
    # a word stands for temperatures of single items (MT-Bench): a flag does not flatten these
    if args.temperature is not None and not isinstance(owners.temperature, str):
        settings["temperature"] = args.temperature
    if owners.multiple_choice:
        settings["mode"] = "gen"
    return settings


def works_of(items: list[dict], settings: dict) -> list[dict]:
    """One work for each sample of each item, `{item, sample, asked}`; each phase adds its own.

    `asked` is what all requests of the work say. The sample's index, `first`, makes equal questions
    different ones in the store.
    """
    works = []
    for sample in range(settings["samples"]):
        asked = {"k": 1, "first": sample}
        for setting in ("temperature", "max_tokens"):
            if setting in settings:
                asked[setting] = settings[setting]
        works += [{"item": item, "sample": sample, "asked": asked} for item in items]
    return works


def generate(name: str, works: list[dict], settings: dict, client, args) -> None:
    """Phase 1: add `answers` to each work, one for each turn; None where a request kept failing."""
    if args.responses:
        # one rule for answers on two ways in: thoughts are none
        strip = partial(llm.strip_think, tags=args.think_tags)
        responses.add_answers(args.responses, works, str if args.keep_think else strip)
        return
    if settings.get("mode") == "loglik":
        # named by the weights: what is trained again at the same path is computed again
        weights = models.fingerprint(args.model).split(":")[-1][:16]
        cache = Path(args.out).parent / "completions" / f"07_loglik_{weights}"
        by_likelihood(works, args.model, cache)
        return
    conversations = [benchmarks.conversation(name, work["item"]) for work in works]
    asked = [work["asked"] for work in works]
    for work, answers in zip(works, converse(client, conversations, asked)):
        work["answers"] = answers


def judge(name: str, works: list[dict], client) -> int:
    """Phase 2: add `judged` to each work; returns how many conversations with the judge failed."""
    owners = benchmarks.settings(name)
    if client is None:
        raise NotSetUp(
            f"no judge: give --judge-model (the owners': {owners.judge}) and --judge-base-url; "
            "the answers are stored"
        )
    conversations = []
    for work in works:
        # an answer that a --responses file lacks has failed: no judge is paid to say so
        if any(answer["finish_reason"] == "missing" for answer in work["answers"]):
            conversations.append(None)
        else:
            conversations.append(benchmarks.module(name).judge(work["item"], work["answers"]))
    asked = [{"max_tokens": owners.judge_max_tokens}] * len(works)
    outcomes = converse(client, conversations, asked)
    failed = 0
    for work, conversation, judged in zip(works, conversations, outcomes):
        work["judged"] = judged
        failed += conversation is not None and judged is None
    return failed


def refusals(*clients) -> int:
    return sum(client.counts["refused"] for client in clients if client)


def evaluate(name: str, data: benchmarks.Data, client, judge_client, args) -> bool:
    """Take one benchmark from its items to its object in 07_results.json; whether it is finished.

    Requests that kept failing leave it unfinished, since a rerun asks them again; what a server
    refuses it refuses for good.
    """
    settings, began = settings_of(name, args), time.monotonic()
    refused_before = refusals(client, judge_client)
    client.name = f"07_eval {name}"

    # generate: a request that kept failing leaves its work without answers
    works = works_of(data.items, settings)
    generate(name, works, settings, client, args)
    answered = [work for work in works if work["answers"] is not None]
    if not answered:
        raise UserError("no request was answered; run the same command again")

    # judge: only what was answered; what the judge did not answer is open as well
    unanswered = len(works) - len(answered)
    if benchmarks.settings(name).judge:
        unanswered += judge(name, answered, judge_client)
        settings["judge"] = args.judge_model

    # score: rules, verifiers or the judgements decide each item, and points make the metrics
    rows = benchmarks.module(name).score(answered, args)
    if conditions := getattr(benchmarks.module(name), "conditions", None):
        settings |= conditions(args)

    # write: the items come last, since their file says that the benchmark is finished
    refused = refusals(client, judge_client) - refused_before
    result = {
        "model": args.name,
        "benchmark": name,
        "served": args.model,
        **results.measure(name, answered, rows),
        "unanswered": unanswered,
        "refused": refused,
        "partial": data.partial,
        "settings": settings,
        "data": {"sha256": data.sha256(), "from": data.used},
        "versions": versions(results.LIBRARIES),
        "seconds": round(time.monotonic() - began, 1),
    }
    finished = unanswered <= refused
    results.record(args.out, result, answered, rows, finished)
    return finished


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--out", default="out/07_results.json", help="default: %(default)s")
    parser.add_argument("--name", help="in the table (default: the last part of --model)")
    benchmarks.add_flags(parser)
    judges.add_flags(parser)
    parser.add_argument(
        "--responses",
        metavar="FILE",
        help="score the answers in this JSONL file, {prompt, response}; no endpoint is asked",
    )
    parser.add_argument(
        "--mc-mode",
        choices=["gen", "loglik"],
        default="gen",
        help="C-Eval and MMLU by generation, or by log-likelihood (--model is a checkpoint folder)",
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=1,
        help="sampled generations an item, averaged; at temperature 0 they are equal",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first sample, and of the held-out queries' draw"
    )
    parser.add_argument(
        "--no-paper", action="store_true", help="leave the paper's rows out of the table"
    )
    parser.add_argument(
        "--allow-gaps",
        action="store_true",
        help="exit with 0 although a benchmark has no data, judge or answers",
    )
    heldout.add_flags(parser)
    llm.add_flags(parser, temperature=None, max_tokens=None, k=8, model_required=False)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    if not (args.model or args.responses):
        parser.error("give --model NAME, or --responses FILE with its answers")
    # without a model the file of answers gives the rows their name
    args.model = args.model or Path(args.responses).stem
    args.name = args.name or Path(args.model).name
    return args


def main(argv=None):
    # libraries and language profiles are millions of objects and no garbage: a tenth of the time
    gc.set_threshold(100_000)
    args = parse(argv)
    paper = {} if args.no_paper else PAPER

    # bad input, and an output that cannot be, are named before anything is spent
    files.refuse_unwritable(args.out)
    results.read(args.out)
    if args.responses:
        responses.read(args.responses)
    loaded, gaps = benchmarks.load(args.benchmarks, args)

    # keep_empty: an answer without text has failed, and is not asked for again
    answering = llm.LLM.from_args(args, stage="07_eval", keep_empty=True)
    judging = judges.client(
        args,
        concurrency=args.concurrency,
        timeout=args.timeout,
        max_failed=args.max_failed,
    )
    with answering as client, judging as judge_client:
        # estimate: what it costs is said before it is spent
        if not args.responses:
            plans = {}
            for name, data in loaded.items():
                settings = settings_of(name, args)
                plans[name] = works_of(data.items, settings), settings
            estimate.announce(plans, client, args)
            if args.seeds > 1 and not args.temperature:
                print("note: the --seeds are equal at temperature 0", file=sys.stderr)

        # evaluate: a benchmark that cannot be run is a named gap, and the others go on
        complete = True
        for name in args.benchmarks:
            try:
                if name in gaps:
                    raise gaps[name]
                complete &= evaluate(name, loaded[name], client, judge_client, args)
            except UserError as gap:
                print(f"{name}: left out: {gap}", file=sys.stderr)
                row = {"model": args.name, "benchmark": name, "gap": str(gap)}
                results.replace(args.out, row)
                complete &= args.allow_gaps and isinstance(gap, NotSetUp)
            # after each benchmark: a run of hours shows what it has
            table.write(args.out, results.read(args.out), paper, PAPER_COLUMNS)
    rows = results.read(args.out)
    table.write_bars(args.out, rows)
    print(table.write(args.out, rows, paper, PAPER_COLUMNS))
    if not complete:
        sys.exit(1)
    # beside the items: what this call measured, and that it has finished
    name = args.benchmarks[0] if len(args.benchmarks) == 1 else "benchmarks"
    write_settings(args, results.items_path(args.out, args.name, name))
    wrote(args.out, then=f"python -m autoif.report {Path(args.out).parent}")


if __name__ == "__main__":
    run(main)
