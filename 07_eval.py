"""Score a model on the paper's benchmarks (section 4.1) and print the numbers beside the paper's.

    python 07_eval.py --model NAME --base-url URL --data-dir DIR --judge-model JUDGE
    python 07_eval.py --model NAME --base-url URL --benchmarks heldout \\
        --heldout out/03_instructions.jsonl --queries out/04_queries.jsonl

Reads the benchmarks' own data (--data-dir, else the hub), writes 07_results.json (one object a
model and benchmark), 07_results.md and .png beside it, and every item with its answer, verdict and
reason in 07_items/MODEL/BENCHMARK.jsonl. Answers and judgements are kept in the clients' stores as
they arrive, so a run that was killed asks nothing twice, and what is in the stores is scored
without an endpoint.

How two models differ: `python -m autoif.evaluation.results A B`. Tests in training data (table 4):
`python -m autoif.evaluation.contamination FILE`.

Departures from the paper, and settings that it leaves open (each benchmark's own stand at the head
of its module in autoif/evaluation/benchmarks):
 1. Every cell has a 95 % interval; the paper prints none. Wilson for plain shares, bootstrap over
    clusters of items else.
 2. The paper averages five seeds. --seeds 5 averages five sampled generations of one model, at a
    temperature that the paper does not state (at 0 the five are equal); five seeds of training
    are a loop over 05 and 06 (autoif/evaluation/README.md).
 3. Any judge (--judge-model); the paper's are GPT-4s of 2023. One judge's numbers compare only
    with its own: its name stands in the header, and beside the paper's stand only the owners'.
 4. IFBench and the held-out constraints are ours to add.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from autoif import files, llm, sandbox, verifiers
from autoif.evaluation import benchmarks, judge, responses, results, table
from autoif.evaluation.benchmarks import followbench, heldout, humaneval
from autoif.evaluation.judge import Unanswered, ask, stored, user
from autoif.files import NotSetUp, UserError
from autoif.flags import Count, NonNegative, cli
from autoif.settings import settings_path, versions, write_settings
from autoif.stage import accounted, in_order, wrote

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


@dataclass(kw_only=True)
class Flags(benchmarks.Flags, judge.Flags, heldout.Flags, llm.Flags, sandbox.Flags):
    out: str = "out/07_results.json"
    name: str | None = None  # in the table (default: the last part of --model)
    responses: str | None = None  # score this JSONL's answers, {prompt, response}; none are asked
    model: str | None = None  # name the server knows, or the checkpoint directory it serves
    seeds: Count = 1  # sampled generations an item, averaged; at temperature 0 they are equal
    k: Count = 8  # the same of the held-out constraints, which are sampled at 0.8
    seed: int = 0  # of the first sample, and of the held-out queries' draw
    temperature: NonNegative | None = None  # (default: what each benchmark's owners take)
    max_tokens: Count | None = None  # of one sample (default: what each benchmark's owners take)
    # answers: ask for them and judge nothing; verdicts: ask no model again, judge and score what is
    # stored. So a model and its judge can stand on one GPU in turns
    only: Literal["answers", "verdicts"] | None = None
    no_paper: bool = False  # leave the paper's rows out of the table
    allow_gaps: bool = False  # exit with 0 although a benchmark has no data, judge or answers

    def __post_init__(self):
        super().__post_init__()
        if not (self.model or self.responses):
            raise UserError("give --model NAME, or --responses FILE with its answers")
        if self.batch_out and len(self.benchmarks) > 1:
            raise UserError("--batch-out holds one benchmark's requests; name one in --benchmarks")
        # without a model the file of answers gives the rows their name
        self.name = self.name or (
            Path(self.model).name if self.model else Path(self.responses).stem
        )
        self.model = self.model or self.responses


async def answer(attempt: dict, name: str, client, asking: Callable) -> dict:
    """An attempt with its `answers`, one a turn; `open` where a request for them failed."""
    say, benchmark = partial(asking, client, **attempt["sampling"]), benchmarks.module(name)
    try:
        # one turn, or as the benchmark has it; a --responses file has answered already
        if hasattr(benchmark, "answer") and "answers" not in attempt:
            attempt["answers"] = await benchmark.answer(attempt["item"], say)
        elif "answers" not in attempt:
            attempt["answers"] = [await say([user(attempt["item"]["prompt"])])]
    except Unanswered:
        attempt["open"] = True
    return attempt


async def judged(attempt: dict, name: str, judging) -> dict:
    """An attempt with the `judgement` of its answers; `open` where a request for it failed."""
    try:
        if not attempt["open"] and not responses.missing(attempt):
            work = benchmarks.module(name).judge(attempt["item"], attempt["answers"], judging)
            attempt["judgement"] = await work
    except Unanswered:
        attempt["open"] = True
    return attempt


async def attempt_all(name: str, items: list[dict], settings: dict, args: Flags) -> tuple:
    """(attempts, refused requests): every sample of every item, answered and judged."""
    attempts = benchmarks.attempts(name, items, settings)
    if args.responses:
        # one rule for answers on two ways in: thoughts are none
        strip = partial(llm.strip_think, tags=args.think_tags)
        responses.add_answers(args.responses, attempts, str if args.keep_think else strip)

    # keep_empty: an answer without text has failed, and is not asked for again
    answering = llm.Client(args, "07_eval", keep_empty=True)
    answering.name = f"07_eval {name}"
    async with answering as client:
        # what is stored costs nothing; a second turn depends on the first
        if not args.responses:
            lacking = sum(client.lacks(a["item"]["prompt"], **a["sampling"]) for a in attempts)
            line = f"{name}: {len(items):,} items x {settings['samples']}"
            print(f"{line}, {lacking:,} requests to send", file=sys.stderr, flush=True)
        asking = stored if args.only == "verdicts" else ask
        work = partial(answer, name=name, client=client, asking=asking)
        attempts = [attempt async for attempt in in_order(work, attempts, client.ahead)]
    refused = client.counts["refused"]
    # what is not stored was refused in the model's turn, if that has come to its end
    turn = settings_path(results.items_path(args.out, args.name, "answers"))
    if args.only == "verdicts" and turn.exists():
        refused = sum(attempt["open"] for attempt in attempts)

    # judge: once all answers are stored, since a judge that is gone must not cost them
    if benchmarks.settings(name).judge and args.judge_model and args.only != "answers":
        async with judge.client(args) as judging:
            work = partial(judged, name=name, judging=judging)
            attempts = [attempt async for attempt in in_order(work, attempts, judging.ahead)]
        refused += judging.counts["refused"]
    return attempts, refused


async def score(name: str, attempts: list[dict], args: Flags) -> list[dict]:
    """The row of each attempt: rules, functions or a judgement decide, points make the metrics."""
    if name == "heldout":
        async with sandbox.Sandbox(args) as box:
            return await heldout.score(attempts, box, args.heldout, args.queries)
    if name == "humaneval":
        async with sandbox.Sandbox(humaneval.limits(args.workers, args.unsafe_no_sandbox)) as box:
            return await humaneval.score(attempts, box)
    rows, judges = [], benchmarks.settings(name).judge
    for attempt in attempts:
        if judges and responses.missing(attempt):  # no judge is paid for it; the cell has a star
            rows.append(benchmarks.undecided("--responses has no answer"))
        else:
            rows.append(benchmarks.module(name).score(attempt))
    if name == "followbench":
        followbench.add_levels(attempts, rows)
    return rows


async def evaluate(name: str, data: benchmarks.Data, args: Flags) -> bool:
    """Take one benchmark from its items to its object in 07_results.json; whether it is done."""
    began, owners = time.monotonic(), benchmarks.settings(name)
    settings = benchmarks.conditions(name, args)

    # ask and judge: an attempt of which a request failed is left open, the others are measured
    attempts, refused = await attempt_all(name, data.items, settings, args)
    unanswered = sum(attempt["open"] for attempt in attempts)
    answered = [attempt for attempt in attempts if "answers" in attempt]
    if not answered:
        raise UserError("no request was answered; run the same command again")
    if args.only == "answers":
        return unanswered <= refused
    if owners.judge and not args.judge_model:
        raise NotSetUp(
            f"no judge: give --judge-model (the owners': {owners.judge}) and --judge-base-url; "
            "the answers are stored"
        )

    # score: what the row says of its conditions is what the scores depend on
    rows = await score(name, answered, args)
    if owners.judge:
        settings["judge"] = args.judge_model
    if name == "heldout":
        settings |= heldout.conditions(args.queries)

    # write: the items come last, since their file says that the benchmark is finished
    result = {"model": args.name, "benchmark": name, "served": args.model}
    result |= results.measure(name, answered, rows)
    undecided = sum(not row["points"] for row in rows)
    # a judge's count as missing; a checker's (no NLTK data) make it a part
    part = data.partial or bool(undecided and not owners.judge)
    result |= {"unanswered": unanswered, "refused": refused, "partial": part}
    result |= {"settings": settings, "data": {"sha256": data.sha256(), "from": data.used}}
    result["versions"] = versions(results.LIBRARIES)
    result["seconds"] = round(time.monotonic() - began, 1)
    lost = Counter({"not answered": len(attempts) - len(answered), "undecided": undecided})
    scored = f"{len(attempts) - lost.total():,} scored"
    print(accounted(f"07_eval {name}", scored, len(attempts), lost))
    return results.record(args.out, result, answered, rows)


async def main(args: Flags) -> None:
    # libraries and language profiles are millions of objects and no garbage: a tenth of the time
    gc.set_threshold(100_000)
    paper = {} if args.no_paper else PAPER

    # check: bad input, and an output that cannot be, are named before anything is spent
    files.refuse_unwritable(args.out)
    for row in results.read(args.out):
        other, model = row.get("served", args.model), Path(args.model)
        # online_1/06_dpo and online_2/06_dpo: without --name both are called 06_dpo
        default = args.name in (model.name, model.stem) and row["model"] == args.name
        if default and Path(other).resolve() != model.resolve():
            raise UserError(
                f"{args.out} has results of {other} under the name {args.name!r}; give "
                f"{args.model} another --name, or another --out"
            )
    if args.responses:
        responses.read(args.responses)
    loaded, gaps = benchmarks.load(args.benchmarks, args)
    if "heldout" in loaded:  # what cannot be called here would fail each answer of each model
        async with sandbox.Sandbox(args) as box:
            rows = verifiers.read(args.heldout, "heldout")
            await verifiers.refuse_broken(box, rows, args.heldout)
    if args.seeds > 1 and not (args.temperature or args.responses):
        print("note: the --seeds are equal at temperature 0", file=sys.stderr)

    # evaluate: a benchmark that cannot be run is a named gap, and the others go on
    complete = True
    for name in args.benchmarks:
        try:
            if name in gaps:
                raise gaps[name]
            complete &= await evaluate(name, loaded[name], args)
        except UserError as gap:
            print(f"{name}: left out: {gap}", file=sys.stderr)
            results.replace(args.out, {"model": args.name, "benchmark": name, "gap": str(gap)})
            complete &= args.allow_gaps and isinstance(gap, NotSetUp)
        # after each benchmark: a run of hours shows what it has
        table.write(args.out, results.read(args.out), paper, PAPER_COLUMNS)

    # nothing is scored yet; the file says that the model's turn is over
    if args.only == "answers" and complete:
        write_settings(args, results.items_path(args.out, args.name, "answers"))
        return

    # show: the table beside the paper's, and its bars
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
    cli(main, __doc__)
