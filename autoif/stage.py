"""The shell around a stage: named errors with exit code 2, streaming, the funnel that accounts for every row."""

import argparse
import json
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from autoif.files import UserError, dump, write_whole


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

    Dropped rows go to `<out>.dropped.jsonl` with their reason; the numbers go to `stats.json` beside `out`.
    """

    def __init__(self, stage: str, out: str | Path):
        self.stage, self.out = stage, Path(out)
        self.total, self.kept, self.dropped = 0, 0, Counter()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.out.with_suffix(".dropped.jsonl"), "w", encoding="utf-8")

    def keep(self) -> None:
        self.total, self.kept = self.total + 1, self.kept + 1

    def drop(self, reason: str, row: dict) -> None:
        self.total += 1
        self.dropped[reason] += 1
        self._file.write(dump({"reason": reason, **row}) + "\n")

    def finish(self, **numbers) -> None:
        """Print the funnel line and add `{in, kept, dropped, **numbers}` to `stats.json` under the stage's name."""
        self._file.close()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.most_common())
        print(
            f"{self.stage}: {self.total:,} in -> {self.kept:,} kept"
            + (f" ({reasons})" if reasons else "")
        )
        path = self.out.parent / "stats.json"
        stats = json.loads(path.read_text()) if path.exists() else {}
        stats[self.stage] = {
            "in": self.total,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            **numbers,
        }
        write_whole(path, json.dumps(stats, indent=2) + "\n")


# What a flag may be, for argparse's `type=`: a value out of range ends the parser, before any work.


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"\+?\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
