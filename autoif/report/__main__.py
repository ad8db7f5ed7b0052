"""One self-contained HTML page of a run's folder, or some of its responses in the terminal.

python -m autoif.report out              # out/report.html
python -m autoif.report out --show 3     # 3 random rows of out/04_responses.jsonl
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from autoif import folder, report, sandbox
from autoif.files import UserError, absent, write_whole
from autoif.flags import Count, cli


@dataclass(kw_only=True)
class Flags(sandbox.Flags):
    out: Positional[Path]  # the folder of a run, whole or in part
    to: Path | None = None  # the page (default: report.html in the folder)
    sample: Count = 300  # prompts, and constraints, that the page holds
    seed: int = 0  # of the sample
    show: Count | None = None  # only print so many random rows of 04_responses.jsonl


def show(args: Flags) -> None:
    """Print random rows with what became of each response, and the run's own thresholds."""
    path = args.out / "04_responses.jsonl"
    if why := absent(path):
        raise UserError(f"{path} {why}; run 04_responses.py first")
    kept = f"kept: accuracy above {folder.min_accuracy(path):g}"
    if (score := folder.flag(path, "score", "none")) != "none":
        kept += f", score ({score}) at least {folder.flag(path, 'min_score', 0):g}"
    print(kept)
    for row in report.shown_rows(args.out, args.show, args.seed):
        print(f"\n{row['id']}, pass rate {row['pass_rate']}\n{row['prompt']}")
        for response in row["responses"]:
            numbers = f"accuracy {response['accuracy']:g}, score {response['score']}"
            text = " ".join(response["text"].split())[:200]
            print(f"  [{response['outcome']}] {numbers}: {text}")


def main(args: Flags) -> None:
    if not args.out.is_dir():
        raise UserError(f"{args.out} is no folder; give the folder that run_all.sh wrote (OUT)")
    if args.show:
        return show(args)
    path = args.to or args.out / "report.html"
    run = report.gather(args.out, args.sample, args.seed, sandbox.options(args))
    write_whole(path, report.page(run))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")


if __name__ == "__main__":
    cli(main, __doc__)
