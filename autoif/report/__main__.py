"""The command: one self-contained HTML page of a run's folder; see autoif/report/__init__.py."""

import argparse
from pathlib import Path

from autoif import report, sandbox
from autoif.files import UserError, write_whole
from autoif.stage import run as run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m autoif.report", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder of a run, whole or in part")
    parser.add_argument("--to", type=Path, help="the page (default: report.html in the folder)")
    parser.add_argument(
        "--sample", type=int, default=300, help="prompts, and constraints, that the page holds"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    if not args.out.is_dir():
        raise UserError(f"{args.out} is no folder; give the folder that run_all.sh wrote (OUT)")
    path = args.to or args.out / "report.html"
    run = report.gather(args.out, args.sample, args.seed, sandbox.options(args))
    write_whole(path, report.page(run))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")


if __name__ == "__main__":
    run_command(main)
