"""What the benchmarks share: turns, the best of repeats, processes of their own, JSON, comparing.

    python bench/bench_train.py --rows 24 --json new.json
    python bench/compare.py bench/baselines/train-cpu.json new.json

compares the numbers with a baseline; exit code 1 where something lost more than 10 %. A name that
ends in `_gb`, `seconds` or `error` is better when smaller, any other when larger. On another
machine than the baseline's only ratios count, since both their sides ran there; --ratios asks for
that on the same machine, where others use it too.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]  # run from a checkout, uninstalled

from autoif.files import UserError, write_whole  # noqa: E402
from autoif.flags import Share, cli  # noqa: E402

SMALLER_IS_BETTER = ("_gb", "seconds", "error")


@dataclass(kw_only=True)
class Flags:
    """What every benchmark has."""

    json: str | None = None  # write the numbers there, for bench/compare.py


# ---- measure ----


class Time(NamedTuple):
    """Seconds by the clock, and of the CPU in this process and in those that it has seen end."""

    clock: float
    cpu: float


def timed(work: Callable[[], object]) -> Time:
    """How long a call takes; one that measured itself, in another process, returns its Time."""
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    result = work()
    if isinstance(result, Time):
        return result
    return Time(time.perf_counter() - began, sum(os.times()[:4]) - cpu)


def best(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, Time]:
    """The least seconds of each, by clock and CPU, in turns: a machine's speed changes."""
    least = {}
    for _ in range(repeats):
        for name, work in contestants.items():
            found = timed(work)
            least[name] = Time(*map(min, found, least.get(name, found)))
    return least


def race(
    contestants: dict[str, Callable[[], object]], repeats: int, unit: str, amounts: dict[str, int]
) -> tuple[dict[str, float], dict[str, Time]]:
    """(the rate of each and how "ours" relates to it, printed too; the seconds a unit of each)."""
    numbers, per_unit = {}, {}
    for name, time_of in best(contestants, repeats).items():
        per_unit[name] = Time(*(seconds / amounts[name] for seconds in time_of))
    for name, (clock, cpu) in per_unit.items():
        ratio, cpu_ratio = clock / per_unit["ours"].clock, cpu / per_unit["ours"].cpu
        line = f"  {name:13} {1 / clock:9,.0f} {unit}/s | ours is {ratio:5.2f} of it, by CPU"
        print(f"{line} {cpu_ratio:5.2f} | {cpu * 1000:.3f} ms of CPU each")
        numbers[f"{name} {unit}_per_second"] = 1 / clock
        if name != "ours":
            numbers |= {f"ratio to {name}": ratio, f"CPU ratio to {name}": cpu_ratio}
    return numbers, per_unit


def hand_over(numbers: object) -> None:
    """The last line of a process that `alone` has started: what it measured."""
    print(f"RESULT {json.dumps(numbers)}", flush=True)


def alone(script: str, *words: str, python: str = sys.executable, seconds: float | None = None):
    """What `script WORDS` hands over, in a process of its own; UserError with its last words."""
    line = [python, script, *words]
    try:
        done = subprocess.run(
            line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")  # bytes, whatever `text` says
        raise UserError(f"{said[-3000:]}\nout of time") from None
    result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if result is None:
        raise UserError(done.stdout.strip()[-3000:] or f"exit code {done.returncode}, no output")
    return json.loads(result[1])


# ---- write and compare ----


def save(path: str | None, numbers: dict[str, float], machine: str = "", **more: object) -> None:
    """Write a benchmark's numbers as the JSON that is compared here; nothing without a path."""
    if path is None:
        return
    machine = machine or f"{platform.machine()}, {os.cpu_count()} cores"
    record = {"machine": machine, **more, "numbers": numbers}
    write_whole(path, json.dumps(record, indent=2) + "\n")


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


@dataclass(kw_only=True)
class Comparison:
    """The flags of this program."""

    baseline: tyro.conf.Positional[Path]
    new: tyro.conf.Positional[Path]
    tolerance: Share = 0.1  # share that may be lost
    ratios: bool = False  # only ratios can be losses


def main(args: Comparison) -> None:
    baseline, new = (json.loads(path.read_text()) for path in (args.baseline, args.new))
    rows = compare(baseline, new, args.tolerance, args.ratios)
    for name, change, lost in rows:
        print(f"{change:8.2f}x  {name}{'   LOST' if lost else ''}")
    losses = sum(lost for _, _, lost in rows)
    print(f"{losses} of {len(rows)} numbers lost more than {args.tolerance:.0%}")
    if losses:
        sys.exit(1)


if __name__ == "__main__":
    cli(main, __doc__)
