"""The shell around a stage: named errors with exit code 2, streaming, the funnel that accounts for every row."""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from autoif.files import UserError, dump, refuse_unwritable, whole_file, write_whole


def run(main: Callable[[], None]) -> None:
    """Call `main` as a command: UserError ends it with exit code 2, Ctrl-C with 130, both without a traceback."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; what was finished is kept, run the same command to go on",
            file=sys.stderr,
        )
        sys.exit(130)


def through(
    process: Callable[[Iterable], Iterator], items: Iterable, expand: Callable[[Any], list]
) -> Iterator[tuple]:
    """Send the parts of every item through a streaming `process`; yield (item, results of its parts) in order.

    `process` takes an iterable and yields one result for each element, in order and lazily, as `LLM.complete` and
    `sandbox.run` do, so that only the items under way are in memory.
    """
    waiting = deque()

    def feed():
        for item in items:
            parts = expand(item)
            waiting.append((item, len(parts)))
            yield from parts

    results = []
    for result in process(feed()):
        while waiting[0][1] == 0:
            yield waiting.popleft()[0], []
        results.append(result)
        if len(results) == waiting[0][1]:
            yield waiting.popleft()[0], results
            results = []
    yield from ((item, []) for item, _ in waiting)


class Funnel:
    """Accounts for a stage's rows: each is kept or dropped for a named reason, and the two add up to the input.

    Dropped rows go to `<out>.dropped.jsonl` with their reason; the numbers go to `stats.json` beside `out`. Both are
    written by `finish` alone: a run that fails leaves those of an earlier one, as it leaves the earlier output.
    """

    def __init__(self, stage: str, out: str | Path):
        self.stage, self.out = stage, Path(out)
        self.total, self.kept, self.dropped = 0, 0, Counter()
        refuse_unwritable(self.out.with_suffix(".dropped.jsonl"))
        self._stats()  # a broken one is named before any work
        # without a name: it is gone with the process, however that ends
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.out.parent)

    def keep(self) -> None:
        self.total, self.kept = self.total + 1, self.kept + 1

    def drop(self, reason: str, row: dict) -> None:
        self.total += 1
        self.dropped[reason] += 1
        self._rows.write(dump({"reason": reason, **row}) + "\n")

    def line(self) -> str:
        """`02_verifiers: 812 in -> 514 kept (no verifier compiles 91, no case agreed 34, accuracy 173)`"""
        reasons = [f"{reason} {count:,}" for reason, count in self.dropped.most_common()]
        counted = f"{self.stage}: {self.total:,} in -> {self.kept:,} kept"
        return f"{counted} ({', '.join(reasons)})" if reasons else counted

    def refuse_empty(self, cause: str) -> None:
        """UserError when nothing was kept: called before the output is written, so that none passes for success."""
        if self.kept:
            return
        seen = ""
        if not self.out.exists():  # the dropped rows of an output that stays belong to that one
            self._write_dropped()
            seen = f"; every dropped row is in {self.out.with_suffix('.dropped.jsonl')}"
        raise UserError(f"nothing was kept, nothing is written. {self.line()}. {cause}{seen}")

    def finish(self, **numbers) -> None:
        """Print the funnel line and add `{in, kept, dropped, **numbers}` to `stats.json` under the stage's name."""
        self._write_dropped()
        print(self.line())
        stats = self._stats()
        stats[self.stage] = {
            "in": self.total,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            **numbers,
        }
        write_whole(self.out.parent / "stats.json", json.dumps(stats, indent=2) + "\n")

    def _write_dropped(self) -> None:
        self._rows.seek(0)
        with whole_file(self.out.with_suffix(".dropped.jsonl")) as file:
            shutil.copyfileobj(self._rows, file)

    def _stats(self) -> dict:
        """What `stats.json` holds so far."""
        path = self.out.parent / "stats.json"
        try:
            stats = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); mend or delete it") from None
        if not isinstance(stats, dict):
            raise UserError(f"{path} is no JSON object; mend or delete it")
        return stats


# What a flag may be, for argparse's `type=`: a value out of range ends the parser, before any work.


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"\+?\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1, also as a fraction: 0.5, 1/64."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text!r}")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value
