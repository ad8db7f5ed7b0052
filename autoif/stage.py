"""The shell around a stage: named errors, streaming, flags, the funnel that accounts for rows."""

import argparse
import asyncio
import functools
import hashlib
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

from autoif.files import (
    UserError,
    dump,
    fingerprint,
    refuse_unwritable,
    whole_file,
    write_whole,
)


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


LIBRARIES = ("openai", "torch", "transformers", "deepspeed", "scikit-learn")


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """{"python": "3.11.7", "openai": "2.1.0", "torch": "absent", ...}"""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


# Flags that cannot change what a stage writes: where it goes, how fast, how much it may cost.
FREE = set(
    "out sft_out folder store command base_url judge_base_url concurrency timeout max_failed "
    "price_in price_out workers unsafe_no_sandbox nli_batch_size micro_tokens zero offload "
    "activation_checkpointing ds_config save_every keep_checkpoints divergence wandb no_paper "
    "allow_gaps".split()
)


def settings_path(out: str | Path) -> Path:
    """out/02_verifiers.jsonl -> out/02_verifiers.settings.json, of a folder as well."""
    out = Path(out)
    name = out.name.removesuffix(".settings.json").removesuffix(".json").removesuffix(".jsonl")
    return out.with_name(f"{name}.settings.json")


@functools.cache
def identity(path: str) -> str | None:
    """What lies at `path`: a file's SHA-256, a checkpoint's fingerprint; None for neither."""
    if Path(path).is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    mark = fingerprint(path) if path else path
    return None if mark == path else mark


def flags_of(args: argparse.Namespace) -> dict:
    """The values of all flags, as JSON holds them."""
    flags = {name: value for name, value in vars(args).items() if not callable(value)}
    return json.loads(json.dumps(flags, default=str))


def listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def write_settings(args: argparse.Namespace, out: str | Path) -> None:
    """Write how `out` is made beside it: just before it appears, so that it never lacks them.

    {"flags": {"k": 8, ...}, "inputs": {"out/01_instructions.jsonl": "sha256 ..."},
     "versions": ..., "commit": ..., "date": "2026-11-29"}

    `inputs` are all files and checkpoints that flags name.
    """
    identity.cache_clear()  # files change while a process runs
    flags, inputs = flags_of(args), {}
    for name in flags.keys() - FREE:
        for value in listed(flags[name]):
            if isinstance(value, str) and (mark := identity(value)):
                inputs[value] = mark
    settings = {"flags": flags, "inputs": inputs, "versions": versions(LIBRARIES)}
    settings |= {"commit": commit(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    write_whole(settings_path(out), json.dumps(settings, indent=2) + "\n")


def commit() -> str | None:
    """The checkout's commit, None where there is none or no git."""
    line = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


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
        self.total, self.kept, self.dropped = 0, 0, Counter()
        refuse_unwritable(self.out.with_suffix(".dropped.jsonl"))
        refuse_unwritable(self.out)
        self._stats()  # a broken one is named before any work
        # without a name: it is gone with the process, however that ends
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.out.parent)

    def keep(self, rows: int = 1) -> None:
        self.total, self.kept = self.total + rows, self.kept + rows

    def drop(self, reason: str, row: dict) -> None:
        self.total += 1
        self.dropped[reason] += 1
        self._rows.write(dump({"reason": reason, **row}) + "\n")

    def line(self) -> str:
        """`02_verifiers: 812 in -> 514 kept (no verifier compiles 91, no case agreed 207)`"""
        reasons = [f"{reason} {count:,}" for reason, count in self.dropped.most_common()]
        counted = f"{self.stage}: {self.total:,} in -> {self.kept:,} kept"
        return f"{counted} ({', '.join(reasons)})" if reasons else counted

    def refuse_empty(self, cause: str) -> None:
        """UserError when nothing was kept; called before an output is written."""
        if self.kept:
            return
        seen = ""
        if not self.out.exists():  # the dropped rows of an output that stays belong to that one
            self._write_dropped()
            seen = f"; every dropped row is in {self.out.with_suffix('.dropped.jsonl')}"
        raise UserError(f"nothing was kept, nothing is written. {self.line()}. {cause}{seen}")

    def finish(self, **numbers) -> None:
        """Print the line, and put `{in, kept, dropped, **numbers}` into `stats.json`."""
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
