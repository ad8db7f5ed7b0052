"""Score a model on the paper's benchmarks (section 4.1) and print the numbers beside the paper's.

    python 07_eval.py --model NAME --base-url URL --benchmarks all --data-dir DIR --out out/07_results.json
    python 07_eval.py --compare base online --out out/07_results.json
    python 07_eval.py --contamination out/04_sft.jsonl --benchmarks ifeval,gsm8k --data-dir DIR --judge-model NAME

Reads the benchmarks' own data (--data-dir, else the hub), writes 07_results.json (one object a model and benchmark),
07_results.md and .png beside it, and every item with its answer, verdict and reason in
07_items/MODEL/BENCHMARK.jsonl. Three phases, generate -> judge -> score: answers and judgements are kept in the
client's stores as they arrive, so a run that was killed asks nothing twice, and what is in the stores is scored
without an endpoint.

Departures from the paper, and settings that it leaves open (each benchmark's own are in autoif/evaluation/benchmarks):
 1. Every cell has a 95 % interval; the paper prints none. Wilson for plain shares, bootstrap over clusters of items
    else.
 2. One run by default; the paper averages five seeds (--seeds 5), at a temperature that it does not state.
 3. Any judge (--judge-model); the paper's are GPT-4s of 2023. A judge's numbers compare only with that judge's
    numbers.
 4. IFBench and the held-out constraints are ours to add.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import os
import sys
import time
from pathlib import Path

from autoif import files, llm, models, sandbox
from autoif.evaluation import contamination, results
from autoif.evaluation.benchmarks import NotSetUp, converse, spread
from autoif.evaluation.benchmarks.source import Source
from autoif.files import UserError
from autoif.stage import run

# Generation as the owners do it: temperature, longest answer (`max_tokens`), and `usual`, the tokens of an ordinary
# answer, for the estimate. Where there is a judge: the owners' own, its longest judgement, calls for an item.
BENCHMARKS = {
    "ifeval": {"temperature": 0.0, "max_tokens": 1280, "usual": 400},
    "followbench": {
        "temperature": 0.0,
        "max_tokens": 2048,
        "usual": 250,
        "judge": ("gpt-4-0613", 1024, 0.57),
    },
    "infobench": {
        "temperature": 0.0,
        "max_tokens": 1024,
        "usual": 300,
        "judge": ("gpt-4-0314", 512, 4.5),
    },
    "mtbench": {
        "temperature": "by category",
        "max_tokens": 1024,
        "usual": 350,
        "judge": ("gpt-4", 2048, 2),
    },
    "arenahard": {
        "temperature": 0.0,
        "max_tokens": 4096,
        "usual": 600,
        "judge": ("gpt-4-1106-preview", 4096, 2),
    },
    "ceval": {"temperature": 0.0, "max_tokens": 512, "usual": 30},
    "mmlu": {"temperature": 0.0, "max_tokens": 512, "usual": 30},
    "gsm8k": {"temperature": 0.0, "max_tokens": 1024, "usual": 200},
    "humaneval": {"temperature": 0.0, "max_tokens": 1024, "usual": 200},
    "ifbench": {"temperature": 0.0, "max_tokens": 2048, "usual": 400},
    "heldout": {"temperature": 0.8, "max_tokens": 512, "usual": 200},
}
MULTIPLE_CHOICE = ("ceval", "mmlu")

# The paper's tables 1 and 2, in per cent.
PAPER_COLUMNS = [
    "Pr(S)",
    "Pr(L)",
    "Ins(S)",
    "Ins(L)",
    "FB SSR",
    "C-Eval",
    "MMLU",
    "GSM8K",
    "HumanEval",
]
PAPER = {
    "Qwen2-7B base": [37.7, 43.6, 49.4, 53.4, 52.3, 74.4, 64.4, 71.1, 58.1],
    "Qwen2-7B + SFT (Qwen2-72B data)": [40.7, 44.5, 51.3, 55.4, 53.3, 73.9, 64.4, 74.1, 58.3],
    "Qwen2-7B + offline DPO": [41.2, 44.7, 51.4, 56.2, 54.0, 75.1, 64.5, 72.9, 59.5],
    "Qwen2-7B + online DPO": [44.0, 46.6, 55.0, 57.9, 56.6, 76.0, 64.8, 72.3, 58.2],
    "Qwen2-72B-Instruct": [77.1, 80.4, 84.4, 86.9, 62.9, 83.8, 80.8, 87.9, 73.8],
    "Qwen2-72B-Instruct + online DPO, self-aligned": [
        80.2,
        82.3,
        86.1,
        88.0,
        67.5,
        84.9,
        81.2,
        88.2,
        75.0,
    ],
    "LLaMA3-8B base": [24.6, 26.1, 38.1, 39.7, 11.6, 24.2, 38.8, 4.5, 0.6],
    "LLaMA3-8B + SFT (LLaMA3-70B data)": [28.7, 40.3, 41.4, 52.2, 43.5, 34.5, 45.6, 33.2, 38.2],
    "LLaMA3-8B + offline DPO": [27.9, 41.6, 40.5, 54.1, 49.2, 36.2, 45.3, 31.9, 38.5],
    "LLaMA3-8B + online DPO": [28.8, 43.1, 42.2, 56.0, 49.9, 38.2, 45.1, 32.5, 38.4],
    "LLaMA3-70B-Instruct": [77.8, 83.8, 84.2, 88.8, 60.9, 60.2, 80.5, 92.6, 78.7],
    "LLaMA3-70B-Instruct + online DPO, self-aligned": [
        80.2,
        85.6,
        86.7,
        90.4,
        66.5,
        61.6,
        80.7,
        92.7,
        78.7,
    ],
    "GPT-4 (published)": [76.9, 79.3, 83.6, 85.4, 77.9, None, None, None, None],
}


def module(name: str):
    return importlib.import_module(f"autoif.evaluation.benchmarks.{name}")


def settings_of(name: str, args) -> dict:
    """How `name` is run: the owners' settings unless a flag overrides them."""
    if args.responses:
        return {"responses": Path(args.responses).name, "samples": args.seeds}
    if name in MULTIPLE_CHOICE and args.mc_mode == "loglik":
        return {"mode": "loglik", "samples": 1}
    owners = BENCHMARKS[name]
    settings = {
        key: owners[key]
        if getattr(args, key) is None or isinstance(owners[key], str)
        else getattr(args, key)
        for key in ("temperature", "max_tokens")
    }
    if name == "heldout":
        return settings | {"samples": args.k}
    if args.seeds > 1:
        settings["seed"] = args.seed
    return settings | {"samples": args.seeds} | ({"mode": "gen"} if name in MULTIPLE_CHOICE else {})


def requests_of(work: dict, settings: dict) -> dict:
    """What a work's requests have in common; the sample's index makes equal questions different ones in the store."""
    asked = {key: settings[key] for key in ("temperature", "max_tokens", "seed") if key in settings}
    return {**asked, "k": 1, "first": work["sample"]}


def generate(name: str, works: list[dict], settings: dict, client, args) -> None:
    """Phase 1: add `answers` to each work, the samples of its turns; None where a request kept failing."""
    if args.responses:
        results.add_answers(args.responses, works)
    elif settings.get("mode") == "loglik":
        from autoif.evaluation.benchmarks.choice import by_likelihood

        cache = (
            Path(args.out).parent
            / "completions"
            / f"07_loglik_{models.fingerprint(args.model).split(':')[-1][:16]}"
        )
        by_likelihood(works, args.model, cache)
    else:
        answers = converse(
            client,
            [module(name).answer(work["item"]) for work in works],
            [requests_of(work, settings) for work in works],
        )
        for work, found in zip(works, answers):
            work["answers"] = found


def judge(name: str, works: list[dict], client) -> int:
    """Phase 2: add `judged` to each work, what its conversation with the judge found; how many requests kept failing."""
    owners_judge, longest, _ = BENCHMARKS[name]["judge"]
    if client is None:
        raise NotSetUp(
            f"no judge: give --judge-model (the owners': {owners_judge}) and --judge-base-url; "
            "the answers are stored"
        )
    conversations = [
        None
        if any(answer["finish_reason"] == "missing" for answer in work["answers"])
        else module(name).judge(work["item"], work["answers"])
        for work in works
    ]
    for work, judged in zip(
        works, converse(client, conversations, [{"max_tokens": longest}] * len(works))
    ):
        work["judged"] = judged
    return sum(
        conversation is not None and work["judged"] is None
        for work, conversation in zip(works, conversations)
    )


def refusals(*clients) -> int:
    return sum(client.counts["refused"] for client in clients if client)


def evaluate(
    name: str, items: list[dict], used: list[str], partial: bool, client, judge_client, args
) -> bool:
    """One benchmark, from its items to its object in 07_results.json; its per-item file, written last, says it is done
    (named .incomplete when requests failed that a rerun asks again; those that the server refuses are for good)."""
    settings, started, refused = (
        settings_of(name, args),
        time.monotonic(),
        refusals(client, judge_client),
    )
    client.name = f"07_eval {name}"
    works = [
        {"item": item, "sample": sample} for sample in range(settings["samples"]) for item in items
    ]
    generate(name, works, settings, client, args)
    answered = [work for work in works if work["answers"] is not None]
    if not answered:
        raise UserError("no request was answered; run the same command again")
    unjudged = 0
    if "judge" in BENCHMARKS[name]:
        unjudged = judge(name, answered, judge_client)
        settings["judge"] = args.judge_model
    rows = module(name).score(answered, args)
    unanswered, refused = (
        len(works) - len(answered) + unjudged,
        refusals(client, judge_client) - refused,
    )
    done, incomplete = (
        results.items_path(args.out, args.name, name + kind) for kind in ("", ".incomplete")
    )
    path = incomplete if unanswered > refused else done
    data = hashlib.sha256(
        "\n".join(map(files.dump, items)).encode("utf-8", "surrogatepass")
    ).hexdigest()
    result = {
        "model": args.name,
        "benchmark": name,
        "served": args.model,
        **results.measure(answered, rows),
        "unanswered": unanswered,
        "refused": refused,
        "partial": partial,
        "settings": settings,
        "data": {"sha256": data, "from": used},
        "items": os.path.relpath(path, Path(args.out).parent),
        "versions": results.versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    results.replace(args.out, result)
    results.write_table(args.out, PAPER, PAPER_COLUMNS)
    with files.writer(path) as write:
        for work, row in zip(answered, rows, strict=True):
            write(
                {
                    "id": work["item"]["id"],
                    "sample": work["sample"],
                    "prompt": work["item"]["prompt"],
                    "answers": [sample["text"] for sample in work["answers"]],
                    **row,
                }
            )
    if path == done:
        incomplete.unlink(missing_ok=True)
    return path == done


def load(
    names: list[str], args
) -> tuple[dict[str, tuple[list[dict], list[str], bool]], dict[str, UserError]]:
    """({benchmark: (items, where they are from, whether these are a part)}, {benchmark: why it has none})."""
    loaded, gaps = {}, {}
    for name in names:
        source = Source(args.data_dir)
        try:
            every = module(name).load(source, args)
            items = spread(every, args.limit)
            loaded[name] = items, source.used, len(items) < len(every)
        except UserError as gap:
            gaps[name] = gap
    return loaded, gaps


def estimate(loaded: dict[str, tuple], client, args) -> None:
    """Say, before anything is spent, what is: requests, tokens, US$, and the time by the speed of one real request."""
    total, first = {"requests": 0, "prompt": 0, "completion": 0, "judge": 0}, None
    for name, (items, *_) in loaded.items():
        settings = settings_of(name, args)
        if settings.get("mode") == "loglik":
            continue
        lacking = 0
        for sample in range(settings["samples"]):
            for item in items:
                request = {
                    **requests_of({"sample": sample}, settings),
                    **next(module(name).answer(item)),
                }
                if client.lacks(request):
                    lacking, first = lacking + 1, first or request
                    total["prompt"] += (
                        sum(len(turn["content"]) for turn in request["messages"]) // 4
                    )
        _, _, calls = BENCHMARKS[name].get("judge", (None, None, 0))
        judged = round(len(items) * settings["samples"] * calls)
        total["requests"], total["judge"] = total["requests"] + lacking, total["judge"] + judged
        total["completion"] += lacking * min(settings["max_tokens"], BENCHMARKS[name]["usual"])
        print(
            f"{name}: {len(items):,} items x {settings['samples']}, {lacking:,} requests to send"
            + (f", about {judged:,} judgements" if judged else ""),
            file=sys.stderr,
        )
    cost = ""
    if args.price_in is not None and args.price_out is not None:
        dollars = (total["prompt"] * args.price_in + total["completion"] * args.price_out) / 1e6
        cost = f", about US$ {dollars:.2f} without the judge"
    line = (
        f"in all {total['requests']:,} requests, about {total['prompt']:,} + {total['completion']:,} tokens{cost}, "
        f"and {total['judge']:,} judgements"
    )
    if first:
        started, before = time.monotonic(), client.counts["completion_tokens"]
        try:
            next(client.complete([first]), None)
        except UserError as error:  # what is stored can be scored all the same
            return print(f"{line}; no time: {error}", file=sys.stderr, flush=True)
        pace = (time.monotonic() - started) / max(1, client.counts["completion_tokens"] - before)
        low, high = (total["completion"] * pace / 60 / size for size in (args.concurrency, 1))
        line += (
            f"; the first took {time.monotonic() - started:.1f} s: {low:,.0f} min if the server keeps that pace "
            f"{args.concurrency} at a time, {high:,.0f} min if one at a time"
        )
    print(line, file=sys.stderr, flush=True)


def parse(argv):
    alone = argparse.ArgumentParser(add_help=False)
    alone.add_argument("--out", default="out/07_results.json")
    alone.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="paired differences B - A of two models in --out",
    )
    alone.add_argument(
        "--contamination",
        metavar="FILE",
        help="look for the benchmarks' tests in this training file",
    )
    alone.add_argument(
        "--benchmarks", default="all", help=f"all, or some of {','.join(BENCHMARKS)}"
    )
    alone.add_argument(
        "--data-dir", help="folder with the benchmarks' data; what it lacks is asked from the hub"
    )
    alone.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only N items of each benchmark, spread evenly over it; marked as partial",
    )
    alone.add_argument(
        "--mc-mode",
        choices=["gen", "loglik"],
        default="gen",
        help="C-Eval and MMLU by generation, or by log-likelihood (a checkpoint folder as --model)",
    )
    alone.add_argument(
        "--judge-model",
        help="judge of FollowBench, InfoBench, MT-Bench, Arena-Hard and rephrasings",
    )
    alone.add_argument(
        "--judge-base-url",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="default: $OPENAI_BASE_URL",
    )
    alone.add_argument(
        "--responses",
        metavar="FILE",
        help="score the answers in this JSONL file, {prompt, response}; no endpoint is asked",
    )
    args, _ = alone.parse_known_args(argv)
    if args.compare or args.contamination:  # these need no model
        return alone.parse_args(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[alone]
    )
    parser.add_argument(
        "--name", help="the model's name in the table (default: the last part of --model)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each benchmark, averaged (the paper: 5)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the held-out queries, and the first of --seeds"
    )
    parser.add_argument(
        "--heldout", metavar="FILE", help="03_instructions.jsonl, for the heldout benchmark"
    )
    parser.add_argument("--queries", metavar="FILE", help="user queries, for the heldout benchmark")
    parser.add_argument("--queries-per-instruction", type=int, default=16)
    parser.add_argument(
        "--allow-gaps",
        action="store_true",
        help="exit with 0 although a benchmark has no data, judge or answers",
    )
    llm.add_flags(parser, temperature=None, max_tokens=None, k=8, model_required=not args.responses)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    args.model = args.model or Path(args.responses).stem
    args.name = args.name or Path(args.model).name
    return args


def main(argv=None):
    gc.set_threshold(
        100_000
    )  # libraries and language profiles are millions of objects and no garbage: a tenth of the time
    args = parse(argv)
    if args.compare:
        return print(results.compare(args.out, *args.compare))
    names = list(BENCHMARKS) if args.benchmarks == "all" else args.benchmarks.split(",")
    if args.contamination:
        names = [name for name in names if name != "heldout"]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise UserError(f"--benchmarks {','.join(unknown)}: choose from {','.join(BENCHMARKS)}")
    shared = {
        name: getattr(args, name)
        for name in ("concurrency", "timeout", "max_failed")
        if hasattr(args, name)
    }
    judging = (
        contextlib.nullcontext()
        if args.judge_model is None
        else llm.LLM(
            args.judge_model,
            args.judge_base_url,
            Path(args.out).parent / "completions" / "07_judge.jsonl",
            temperature=0.0,
            max_tokens=1024,
            name="judge",
            keep_empty=True,
            **shared,
        )
    )  # an empty judgement is asked again
    loaded, gaps = load(names, args)
    complete = True
    with judging as judge_client:
        if args.contamination:
            return results.write_contamination(
                args,
                {
                    name: contamination.check(name, items, args.contamination, judge_client)
                    for name, (items, *_) in loaded.items()
                },
                gaps,
            )
        with llm.LLM.from_args(
            args, stage="07_eval", keep_empty=True
        ) as client:  # an empty answer is a failed one
            if not args.responses:
                estimate(loaded, client, args)
                if args.seeds > 1 and not args.temperature:
                    print(
                        f"note: {args.seeds} seeds at temperature 0 give {args.seeds} equal answers; set --temperature",
                        file=sys.stderr,
                    )
            for name in names:
                try:
                    if name in gaps:
                        raise gaps[name]
                    complete &= evaluate(name, *loaded[name], client, judge_client, args)
                except UserError as gap:
                    print(f"{name}: left out: {gap}", file=sys.stderr)
                    results.replace(
                        args.out, {"model": args.name, "benchmark": name, "gap": str(gap)}
                    )
                    complete &= args.allow_gaps and (name in gaps or isinstance(gap, NotSetUp))
    results.write_bars(args.out)
    print(results.write_table(args.out, PAPER, PAPER_COLUMNS))
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
