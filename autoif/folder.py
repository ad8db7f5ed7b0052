"""A run's folder, read from outside: the rows that are there, and how the settings say they came.

A part whose stage has not run is empty.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from autoif import files, verifiers
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


def rows(path: Path, *fields: str) -> Iterable[dict]:
    """The rows of a file, none where there is no such file."""
    return files.read(path, fields) if path.is_file() else []


def read_json(path: Path, default: dict | list) -> dict | list:
    """The value of a JSON file, `default` where there is no such file."""
    if not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def flag(path: Path, name: str, default: object) -> object:
    """The value that a flag had when `path` was made; `default` where nothing says so."""
    return read_json(settings_path(path), {}).get("flags", {}).get(name, default)


def min_accuracy(path: Path) -> float:
    """The share of functions above which a response of this 04_responses.jsonl has passed."""
    return flag(path, "min_accuracy", verifiers.MIN_ACCURACY)


def pass_rate(row: dict, min_accuracy: float) -> float | None:
    """The share of a prompt's responses that have passed, as stage 04 noted it where it did."""
    if row.get("pass_rate") is not None:
        return row["pass_rate"]
    return verifiers.pass_rate(row["responses"], min_accuracy)


def made_with(out: Path) -> dict[str, str]:
    """{"supervisor": ..., "base model": ..., "date": ..., "commit": ...} of the settings files."""
    found, dates, commits = {}, set(), {}
    for name, stage, wanted in MADE_WITH:
        for path in out.glob(f"{stage}.settings.json"):
            if value := flag(path, wanted, None):
                local = Path(value).is_absolute() or value.startswith(".")
                found.setdefault(name, Path(value).name if local else value)
    for path in [*out.glob("*.settings.json"), *out.glob("07_items/*/*.settings.json")]:
        settings = read_json(path, {})
        dates.add(settings.get("date"))
        commits[settings.get("commit")] = None
    dates, commits = sorted(dates - {None}), list(filter(None, commits))
    if dates:
        found["date"] = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    if commits:
        found["commit"] = ", ".join(commits)
    return found
