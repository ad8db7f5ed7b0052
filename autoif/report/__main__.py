"""One self-contained HTML page of a run's folder, or some of its responses in the terminal.

    python -m autoif.report out                           # out/report.html
    python -m autoif.report out --show 3                  # 3 random rows of out/04_responses.jsonl
    python -m autoif.report out --models 3 --only "no longer passes"    # each model's answers
    python -m autoif.report again --against out           # verdicts that changed; on the page too

`again` is what stage 04 wrote when it looked at the same answers with other functions or
thresholds, for which it asks nothing: the answers are in the store.

    python 04_responses.py --in changed.jsonl --queries out/04_queries.jsonl --model NAME \\
        --no-score --store out/completions/04_responses.jsonl --out again/04_responses.jsonl
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from autoif import folder, sandbox
from autoif.evaluation.table import markdown
from autoif.files import UserError, write_whole
from autoif.flags import Count, cli
from autoif.report import against, gather
from autoif.report.page import page
from autoif.shards import parts


@dataclass(kw_only=True)
class Flags(sandbox.Flags):
    out: Positional[Path]  # the folder of a run, whole, in part or in shards
    to: Path | None = None  # the page (default: report.html in the folder)
    sample: Count = 300  # prompts, and constraints, that the page holds
    seed: int = 0  # of the sample
    against: Path | None = None  # another run on the same answers: which verdicts changed since
    show: Count | None = None  # only print so many random rows of 04_responses.jsonl
    models: Count | None = None  # only print so many held-out prompts with each model's answer
    only: Literal["now passes", "no longer passes", "left its query"] | None = None  # of --models


def print_rows(args: Flags) -> None:
    """Print random rows with what became of each response, and the run's own thresholds."""
    path = responses(args.out)
    kept = f"kept: accuracy above {folder.min_accuracy(path):g}"
    if (score := folder.flag(path, "score", "none")) != "none":
        kept += f", score ({score}) at least {folder.flag(path, 'min_score', 0):g}"
    print(kept)
    for row in gather.shown_rows(args.out, args.show, args.seed):
        print(f"\n{row['id']}, pass rate {row['pass_rate']}\n{row['prompt']}")
        for response in row["responses"]:
            numbers = f"accuracy {response['accuracy']:g}, score {response['score']}"
            print(f"  [{response['outcome']}] {numbers}: {line(response)}")


def print_models(args: Flags) -> None:
    """Print held-out prompts with each model's answer, and what changed since the first one's."""
    shown = gather.answers(args.out, args.models, args.seed, args.only or "")
    if not shown:
        what = f" of which one {args.only}" if args.only else ""
        raise UserError(f"{args.out} has no held-out prompt with answers of two models{what}")
    for row in shown:
        print(f"\n{row['id']}\n{row['prompt']}")
        for response in row["responses"]:
            outcome = ", ".join([response["outcome"], *response["changes"]])
            print(f"  {response['model']} [{outcome}]: {line(response)}")


def responses(run: Path) -> Path:
    """The run's 04_responses.jsonl, which may be in shards."""
    path = run / "04_responses.jsonl"
    if not parts(path):
        raise UserError(f"{path} does not exist; run 04_responses.py first")
    return path


def line(response: dict) -> str:
    return " ".join(response["text"].split())[:200]


def main(args: Flags) -> None:
    if not args.out.is_dir():
        raise UserError(f"{args.out} is no folder; give the folder that run_all.sh wrote (OUT)")
    if sum(map(bool, (args.show, args.models, args.against))) > 1 or args.only and not args.models:
        raise UserError("give one of --show, --models and --against; --only is of --models")
    sys.stdout.reconfigure(errors="backslashreplace")  # models write half a surrogate
    if args.show:
        return print_rows(args)
    if args.models:
        return print_models(args)
    more = {}
    if args.against:
        responses(args.out), responses(args.against)
        shared, lines = against.changed(args.out, args.against)
        more = {"against": (shared, lines), "other": args.against.resolve().name}
        print(f"{shared:,} answers of both; verdicts of {args.against} -> {args.out}:")
        print(markdown(against.HEADER, lines))
    path = args.to or args.out / "report.html"
    run = gather.gather(args.out, args.sample, args.seed, args)
    write_whole(path, page({**run, **more}))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")


if __name__ == "__main__":
    cli(main, __doc__)
