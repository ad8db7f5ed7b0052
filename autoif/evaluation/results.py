"""07_results.json: what a run writes into it, and how two of its models differ.

    python -m autoif.evaluation.results base online --out out/07_results.json

prints online - base for every metric that both have, each with the interval of a paired bootstrap:
both models are resampled together, so a gain that two separate intervals hide can be seen.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro

from autoif import files
from autoif.evaluation import benchmarks, intervals, table
from autoif.files import UserError, write_whole
from autoif.flags import cli

# whose versions can change a score
LIBRARIES = ("lm_eval", "if-verifiable", "langdetect", "nltk", "numpy", "scipy", "transformers")


@dataclass(kw_only=True)
class Flags:
    first: tyro.conf.Positional[str]  # a model of the results file
    second: tyro.conf.Positional[str]  # another; its difference from the first is printed
    out: str = "out/07_results.json"


def read(path: str | Path) -> list[dict]:
    """The objects of a results file; none when there is no such file yet."""
    rows = files.read_json(path, [], "mend it, or move it away and run again")
    if not isinstance(rows, list):
        rows = [rows]
    for row in rows:
        if not isinstance(row, dict) or not {"model", "benchmark"} <= row.keys():
            raise UserError(
                f"{path} holds no results of 07_eval.py ({str(row)[:60]!r}); give another --out"
            )
    return rows


def replace(path: str | Path, row: dict) -> None:
    """Put `row` in the place of the same model's same benchmark; a gap replaces no measured row."""
    rows, name = {}, (row["model"], row["benchmark"])
    for old in read(path):
        rows[old["model"], old["benchmark"]] = old
    if "gap" not in row or "metrics" not in rows.get(name, {}):
        rows[name] = row
        write_whole(path, json.dumps([*rows.values()], indent=1, ensure_ascii=False) + "\n")


def items_path(out: str | Path, model: str, benchmark: str) -> Path:
    """out/07_items/MODEL/BENCHMARK.jsonl beside out/07_results.json."""
    folder = Path(out).with_name(Path(out).stem.replace("results", "items"))
    return folder / model.replace("/", "_") / f"{benchmark}.jsonl"


def pooled(rows: Iterable[dict]) -> dict[str, list]:
    """The points of every metric, of all rows together."""
    points: dict[str, list] = {}
    for row in rows:
        for metric, of_metric in row["points"].items():
            points.setdefault(metric, []).extend(of_metric)
    return points


def measure(benchmark: str, attempts: list[dict], rows: list[dict]) -> dict:
    """The metrics of scored attempts with their intervals, and what deserves a second look."""
    points, metrics = pooled(rows), {}
    for metric in table.ordered(benchmark, points):
        scale = table.scale(benchmark, metric)
        measured = intervals.interval(points[metric], share=scale == 100)
        metrics[metric] = {**measured, "scale": scale}
    samples = [sample for attempt in attempts for sample in attempt["answers"]]
    reasons = [sample["finish_reason"] for sample in samples]
    lengths = [len(sample["text"].split()) for sample in samples]
    unparsable = [row for row in rows if row.get("unparsable")]
    return {
        "metrics": metrics,
        "n": len(rows),
        "words": sum(lengths) / len(samples),
        "truncated": reasons.count("length") / len(samples),
        "empty": lengths.count(0) / len(samples),
        "unparsable": len(unparsable) / len(rows),
        "missing": reasons.count("missing"),
    }


def record(out: str | Path, result: dict, attempts: list[dict], rows: list[dict]) -> bool:
    """Write a benchmark's object into the results file, its items beside it; whether it is done.

    Requests that kept failing leave it open, since a rerun asks them again, and its items are named
    BENCHMARK.incomplete.jsonl. What a server refuses it refuses for good.
    """
    done = result["unanswered"] <= result["refused"]
    finished = items_path(out, result["model"], result["benchmark"])
    incomplete = finished.with_suffix(".incomplete.jsonl")
    path = finished if done else incomplete
    replace(out, {**result, "items": os.path.relpath(path, Path(out).parent)})
    with files.writer(path) as write:
        for attempt, row in zip(attempts, rows, strict=True):
            item = attempt["item"]
            head = {"id": item["id"], "sample": attempt["sample"], "prompt": item["prompt"]}
            write({**head, "answers": [sample["text"] for sample in attempt["answers"]], **row})
    if done:
        incomplete.unlink(missing_ok=True)
    return done


def compare(path: str | Path, first: str, second: str) -> str:
    """The paired differences second - first of every metric that both models have, as a table."""
    measured, lines = {}, []
    for row in read(path):
        if "metrics" in row:
            measured[row["model"], row["benchmark"]] = row
    for name in benchmarks.NAMES:
        if (first, name) in measured and (second, name) in measured:
            pair = measured[first, name], measured[second, name]
            lines += differences(Path(path).parent, name, *pair)
    if not lines:
        raise UserError(
            f"{path} has no benchmark of both {first!r} and {second!r} "
            f"(it has {sorted({model for model, _ in measured})})"
        )
    header = ["benchmark", "metric", f"{second} - {first}", "95 % paired bootstrap"]
    return table.markdown([*header, "clusters", "beyond noise"], lines)


def differences(folder: Path, benchmark: str, first: dict, second: dict) -> list[list]:
    """The table's lines of one benchmark; what makes the two hard to compare is said."""
    pair = f"{benchmark}: {first['model']} and {second['model']}"
    same_items = first["data"]["sha256"] == second["data"]["sha256"]
    if not same_items or first["settings"] != second["settings"]:
        print(f"{pair} differ in items or settings; the shared items are compared", file=sys.stderr)
    before = pooled(files.read(folder / first["items"], ["points"], "07_eval.py"))
    after = pooled(files.read(folder / second["items"], ["points"], "07_eval.py"))
    lines = []
    for name in table.ordered(benchmark, before.keys() & after.keys()):
        paired = intervals.paired(before[name], after[name])
        if paired is None:
            print(f"{pair} have no item of {name} in common", file=sys.stderr)
            continue
        scale = table.scale(benchmark, name)
        low, high, interval, beyond = paired["low"], paired["high"], "n/a", "n/a"
        if low is not None:  # of one cluster nothing can be resampled
            interval = f"[{low * scale:+.2f}, {high * scale:+.2f}]"
            beyond = "yes" if low > 0 or high < 0 else "no"
        difference = f"{paired['difference'] * scale:+.2f}"
        lines.append([benchmark, name, difference, interval, paired["clusters"], beyond])
    return lines


def main(args: Flags) -> None:
    print(compare(args.out, args.first, args.second))


if __name__ == "__main__":
    cli(main, __doc__)
