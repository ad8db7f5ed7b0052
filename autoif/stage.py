"""The shell around a stage: its rows in order, and the funnel that accounts for them."""

import argparse
import asyncio
import json
import math
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from autoif.files import UserError, dump, refuse_unwritable, whole_file, write_whole
from autoif.settings import settings_path, versions, write_settings  # noqa: F401  users move there


async def in_order(
    work: Callable[[Any], Awaitable], items: Iterable, ahead: int
) -> AsyncIterator[Any]:
    """Yield `await work(item)` of each item, in order; `ahead` of them are under way at a time.

    `items` is read no further than that, so a million rows need no more memory than `ahead`.
    """
    tasks = deque()
    try:
        for item in items:
            tasks.append(asyncio.ensure_future(work(item)))
            if len(tasks) >= ahead:
                yield await tasks.popleft()
        while tasks:
            yield await tasks.popleft()
    finally:  # a stage that stops early, or an error: nothing is left under way
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def wrote(*paths: str | Path, then: str) -> None:
    """A stage's last line: what it wrote, and the command that comes next."""
    print(f"wrote {' and '.join(map(str, paths))}; next: {then}", flush=True)


class Funnel:
    """Accounts for a stage's rows: each is kept, or dropped for a named reason.

    Dropped rows go to `<out>.dropped.jsonl` with their reason, the numbers to `stats.json` beside
    `out`. Both are written by `finish` alone: a run that fails leaves those of an earlier one, as
    it leaves the earlier output.
    """

    def __init__(self, stage: str, out: str | Path):
        self.stage, self.out = stage, Path(out)
        self.kept, self.dropped = 0, Counter()
        refuse_unwritable(self.out.with_suffix(".dropped.jsonl"))
        refuse_unwritable(self.out)
        self._stats()  # a broken one is named before any work
        # without a name: it is gone with the process, however that ends
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.out.parent)

    def keep(self, rows: int = 1) -> None:
        self.kept += rows

    def drop(self, reason: str, row: dict) -> None:
        self.dropped[reason] += 1
        self._rows.write(dump({"reason": reason, **row}) + "\n")

    def total(self) -> int:
        return self.kept + self.dropped.total()

    def line(self) -> str:
        """`02_verifiers: 812 in -> 514 kept (no verifier compiles 91, no case agreed 207)`"""
        reasons = [f"{reason} {count:,}" for reason, count in self.dropped.most_common()]
        counted = f"{self.stage}: {self.total():,} in -> {self.kept:,} kept"
        return f"{counted} ({', '.join(reasons)})" if reasons else counted

    def refuse_empty(self, cause: str) -> None:
        """UserError when nothing was kept; called before an output is written."""
        if self.kept:
            return
        where = ""
        if not self.out.exists():  # the dropped rows of an output that stays belong to that one
            self._write_dropped()
            where = f"; every dropped row is in {self.out.with_suffix('.dropped.jsonl')}"
        raise UserError(f"nothing was kept, nothing is written. {self.line()}. {cause}{where}")

    def finish(self, **numbers) -> None:
        """Print the line, and put `{in, kept, dropped, **numbers}` into `stats.json`."""
        self._write_dropped()
        print(self.line())
        stats = self._stats()
        rows = {"in": self.total(), "kept": self.kept, "dropped": dict(self.dropped.most_common())}
        stats[self.stage] = {**rows, **numbers}
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


# ---- argparse, and the pipe of sync stages: until the last command has moved to autoif.flags ----


def run(main: Callable[[], None]) -> None:
    """Call `main` as a command: UserError ends it with 2, Ctrl-C with 130, without a traceback."""
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


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows a module's docstring as it stands, and the default of each flag that has one."""

    def add_argument(self, action):
        if action.help is None and action.default is not None:  # else nothing is shown of it
            action.help = "default: %(default)s"
        super().add_argument(action)

    def _get_help_string(self, action):
        text = action.help or ""
        # True and False are no values to give, and 0 is one
        silent = isinstance(action.default, bool) or action.default in (None, argparse.SUPPRESS)
        if action.option_strings and not silent and "default" not in text:
            text += " (default: %(default)s)"
        return text.lstrip()


def through(
    process: Callable[[Iterable], Iterator], items: Iterable, expand: Callable[[Any], list]
) -> Iterator[tuple]:
    """Send the parts of every item through `process`; yield (item, results of its parts).

    `process` takes an iterable and yields one result for each element, in order and lazily, as
    `LLM.complete` and `sandbox.run` do, so that only the items under way are in memory.
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


def within(
    kind: type, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """A `type` for argparse: a number of `kind` from `low` (with `above`: above it) to `high`."""
    bounds = f"above {low}" if above else f"at least {low}"
    if high < math.inf:
        bounds += f" and at most {high}"

    def parse(text: str) -> float:
        number = kind(text)
        if not (low <= number <= high and number < math.inf) or (above and number == low):
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return number

    parse.__name__ = kind.__name__  # argparse names it where `text` is no number at all
    return parse


def ratio(text: str) -> float:
    """A number, also as a fraction: 0.5, 1/64."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError:
        return math.nan


# Ranges of flags, checked by the parser: before anything is read, written or spent.
natural = within(int, 0)
positive_int = within(int, 1)
non_negative = within(float, 0)
positive = within(float, 0, above=True)
share = within(ratio, 0, 1)
positive_share = within(ratio, 0, 1, above=True)
