"""A run's folder, read from outside: the rows that are there, and how the settings say they came.

A part whose stage has not run is empty.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from autoif import files, shards, verifiers
from autoif.files import read_json
from autoif.settings import settings_path

# (name, whose settings file, flag): what later stages say of the same name is of no account
MADE_WITH = [
    ("supervisor", "01_instructions", "model"),
    ("supervisor", "02_verifiers", "model"),
    ("NLI", "03_instructions", "nli"),
    ("answers", "04_responses", "model"),
    ("base model", "05_sft", "model"),
    ("judge", "07_items/*/benchmarks", "judge_model"),
]


def rows(path: Path, *fields: str) -> Iterator[dict]:
    """The rows of a file, or of those of its shards; none where there is no such file."""
    for part in shards.parts(path):
        yield from files.read(part, fields)


def flag(path: Path, name: str, default: object) -> object:
    """The value that a flag had when `path` was made; `default` where nothing says so."""
    [path, *_] = shards.parts(path) or [path]
    return read_json(settings_path(path), {}).get("flags", {}).get(name, default)


def min_accuracy(path: Path) -> float:
    """The share of functions above which a response of this 04_responses.jsonl has passed."""
    return flag(path, "min_accuracy", verifiers.MIN_ACCURACY)


def add(total: dict, counts: dict) -> None:
    """Add the numbers of `counts` to those of `total`; what is no number stays as it is."""
    for name, value in counts.items():
        if isinstance(value, dict) and name != "queries_dropped":
            add(total.setdefault(name, {}), value)
        elif isinstance(value, int) and not name.startswith("queries"):  # which each shard reads
            total[name] = total.get(name, 0) + value
        else:
            total[name] = value


def stats(out: Path) -> dict[str, dict]:
    """The numbers of each stage, of shards their sum."""
    of_shards: dict[str, dict] = {}
    for shard in shards.folders(out):
        add(of_shards, read_json(shard / "stats.json", {}))
    found = read_json(out / "stats.json", {})
    for stage, counts in of_shards.items():
        # what is there whole counts, as for `shards.parts`; but of stage 03 a last run has read
        # what all shards kept: the split is its, the losses are theirs
        if stage not in found or stage.startswith("03"):
            found[stage] = found.get(stage, {}) | counts
    return found


def made_with(out: Path) -> dict[str, str]:
    """{"supervisor": ..., "base model": ..., "date": ..., "commit": ...} of the settings files."""
    found, dates, commits = {}, set(), {}
    places = [out, *shards.folders(out)]
    for name, stage, wanted in MADE_WITH:
        paths = chain.from_iterable(place.glob(f"{stage}.settings.json") for place in places)
        for path in paths:
            if value := flag(path, wanted, None):
                local = Path(value).is_absolute() or value.startswith(".")
                found.setdefault(name, Path(value).name if local else value)
    for place in (*places, *out.glob("07_items/*")):
        for path in place.glob("*.settings.json"):
            settings = read_json(path, {})
            dates.add(settings.get("date"))
            commits[settings.get("commit")] = None
    dates, commits = sorted(dates - {None}), list(filter(None, commits))
    if dates:
        found["date"] = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    if commits:
        found["commit"] = ", ".join(commits)
    return found
