"""Compare a benchmark's JSON with its baseline; exit code 1 where something lost more than 10 %.

    python bench/bench_train.py --rows 24 --json new.json
    python bench/compare.py bench/baselines/train-cpu.json new.json

A name that ends in `_gb`, `seconds` or `error` is better when smaller, any other when larger. On
another machine than the baseline's only ratios count, since both their sides ran there; --ratios
asks for that on the same machine, where others use it too.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

SMALLER_IS_BETTER = ("_gb", "seconds", "error")


def save(path: str, numbers: dict[str, float]) -> None:
    """Write a benchmark's numbers as the JSON that is compared here."""
    record = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "numbers": numbers}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=2) + "\n")


def compare(
    baseline: dict, new: dict, tolerance: float, ratios: bool = False
) -> list[tuple[str, float, bool]]:
    """(name, new / baseline, whether that is a loss) of every number of the baseline."""
    same_machine = baseline["machine"] == new["machine"] and not ratios
    rows = []
    for name, before in baseline["numbers"].items():
        if not before or name not in new["numbers"]:
            rows.append((name, 0.0, name not in new["numbers"]))
            continue
        change = new["numbers"][name] / before
        better = 1 / change if name.endswith(SMALLER_IS_BETTER) and change else change
        counts = same_machine or "ratio" in name
        rows.append((name, change, counts and better < 1 - tolerance))
    return rows


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="share that may be lost")
    parser.add_argument("--ratios", action="store_true", help="only ratios can be losses")
    args = parser.parse_args(argv)
    baseline, new = (json.loads(path.read_text()) for path in (args.baseline, args.new))
    rows = compare(baseline, new, args.tolerance, args.ratios)
    for name, change, lost in rows:
        print(f"{change:8.2f}x  {name}{'   LOST' if lost else ''}")
    losses = sum(lost for _, _, lost in rows)
    print(f"{losses} of {len(rows)} numbers lost more than {args.tolerance:.0%}")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
