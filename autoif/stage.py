"""The shell around a stage: its rows in order, and the funnel that accounts for them."""

import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from autoif.files import UserError, dump, read_json, refuse_unwritable, whole_file, write_whole
from autoif.shards import FOLDER


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


def bar_interval() -> float:
    """Seconds between two states of a progress bar: a log needs no line every tenth of one."""
    return 0.5 if sys.stderr.isatty() else 30


def wrote(*paths: str | Path, then: str) -> None:
    """A stage's last line: what it wrote, and the command that comes next."""
    print(f"wrote {' and '.join(map(str, paths))}; next: {then}", flush=True)


def accounted(stage: str, left: str, total: int, lost: Counter) -> str:
    """`02_verifiers: 812 in -> 514 kept (no verifier compiles 91, no case agreed 207)`"""
    reasons = [f"{reason} {count:,}" for reason, count in (+lost).most_common()]
    line = f"{stage}: {total:,} in -> {left}"
    return f"{line} ({', '.join(reasons)})" if reasons else line


class Funnel:
    """Accounts for a stage's rows: each is kept, or dropped for a named reason.

    Dropped rows go to `<out>.dropped.jsonl`, the numbers to `stats.json` beside it. Both are
    written by `finish` alone: a run that fails leaves those of an earlier one, as its output.
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
        return accounted(self.stage, f"{self.kept:,} kept", self.total(), self.dropped)

    def refuse_empty(self, cause: str) -> None:
        """UserError when nothing was kept; called before an output is written."""
        if self.kept or re.fullmatch(FOLDER, self.out.parent.name):  # other shards may keep some
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
        path = self.out.parent / "stats.json"
        stats = read_json(path, {})
        if not isinstance(stats, dict):
            raise UserError(f"{path} is no JSON object; mend or delete it")
        return stats
