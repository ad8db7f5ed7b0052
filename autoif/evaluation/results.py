"""07_results.json and what is made of it: the Markdown table, per-item files, paired comparisons."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

from autoif import files
from autoif.evaluation import intervals
from autoif.evaluation.benchmarks import NotSetUp
from autoif.files import UserError, write_whole

# Everything else is a share and is shown in per cent.
RATINGS = {"FB CSL", "MT turn 1", "MT turn 2", "MT-Bench"}
LIBRARIES = ["lm_eval", "if-verifiable", "langdetect", "nltk", "numpy", "transformers"]
# The columns of the table and the bars, in order; the other metrics are in the results file.
COLUMNS = [
    "Held-out",
    "by constraint",
    "Pr(S)",
    "Pr(L)",
    "Ins(S)",
    "Ins(L)",
    "mean(S)",
    "FB L1",
    "FB L2",
    "FB L3",
    "FB L4",
    "FB L5",
    "FB SSR",
    "FB HSR",
    "FB CSL",
    "InfoBench",
    "MT turn 1",
    "MT turn 2",
    "MT-Bench",
    "Arena-Hard",
    "C-Eval",
    "MMLU",
    "GSM8K",
    "HumanEval",
    "IFB Pr(L)",
]


def column(name: str) -> tuple[int, str]:
    """Where a metric stands among others."""
    return (COLUMNS.index(name) if name in COLUMNS else len(COLUMNS), name)


def read(path: str | Path) -> list[dict]:
    """The objects of a results file; none when there is no such file yet."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); move it away and run again") from None


def replace(path: str | Path, row: dict) -> None:
    """Put `row` in the place of the same model's same benchmark, or at the end; a gap replaces no measured row."""
    rows = read(path)
    place = next(
        (
            i
            for i, old in enumerate(rows)
            if (old["model"], old["benchmark"]) == (row["model"], row["benchmark"])
        ),
        len(rows),
    )
    if "gap" in row and rows[place:] and "metrics" in rows[place]:
        return
    rows[place : place + 1] = [row]
    write_whole(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def items_path(out: str | Path, model: str, benchmark: str) -> Path:
    folder = Path(out).with_suffix("")
    return (
        folder.with_name(folder.name.replace("results", "items"))
        / model.replace("/", "_")
        / f"{benchmark}.jsonl"
    )


def responses(path: str | Path) -> dict[str, list[list[str]]]:
    """Samples by stripped prompt, in file order; a sample is a list of its turns' answers, one where it is a string."""
    given: dict[str, list] = {}
    for number, row in enumerate(files.read(path, ["prompt", "response"]), 1):
        turns = row["response"] if isinstance(row["response"], list) else [row["response"]]
        if not all(isinstance(text, str) for text in [row["prompt"], *turns]):
            raise UserError(
                f"{path}:{number}: prompt and response must be text (response: {row['response']!r:.60}); an empty "
                'answer is ""'
            )
        given.setdefault(row["prompt"].strip(), []).append(turns)
    return given


def add_answers(path: str | Path, works: list[dict]) -> None:
    """Add to each work its `answers` out of a file. A prompt that the file lacks has failed, as in published scores."""
    given = responses(path)
    if not any(work["item"]["prompt"].strip() in given for work in works):
        raise NotSetUp(
            f"{path} answers none of the {len(works):,} prompts, such as {works[0]['item']['prompt'][:60]!r}"
        )
    for work in works:
        prompt, turns = work["item"]["prompt"], len(work["item"].get("turns", [None]))
        texts, reason = [""] * turns, "missing"
        if samples := given.get(prompt.strip(), [])[work["sample"] :]:
            texts, reason = samples[0], "stop"
        if len(texts) != turns:
            raise UserError(f"{path}: a list of {turns} answers is wanted for {prompt[:60]!r}")
        work["answers"] = [{"text": text, "finish_reason": reason} for text in texts]


def measure(works: list[dict], rows: list[dict]) -> dict:
    """The metrics of scored works with their intervals, and the shares that deserve a second look."""
    points: dict[str, list] = {}
    for row in rows:
        for metric, found in row["points"].items():
            points.setdefault(metric, []).extend(found)
    samples = [sample for work in works for sample in work["answers"]]
    return {
        "metrics": {
            metric: intervals.interval(points[metric]) for metric in sorted(points, key=column)
        },
        "n": len(rows),
        "truncated": sum(sample["finish_reason"] == "length" for sample in samples) / len(samples),
        "empty": sum(not sample["text"].strip() for sample in samples) / len(samples),
        "unparsable": sum(bool(row.get("unparsable")) for row in rows) / len(rows),
        "missing": sum(sample["finish_reason"] == "missing" for sample in samples),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


def show(name: str, metric: dict, mark: str = "") -> str:
    """A cell: value and interval, `44.0 [39.9, 48.2]`, in per cent unless it is a rating."""
    scale, digits = (1, 2) if name in RATINGS else (100, 1)
    value, low, high = (f"{metric[part] * scale:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value}{mark} [{low}, {high}]"


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join(
            "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
            for line in lines
        )
        + "\n"
    )


def write_table(path: str | Path, paper: dict[str, list], paper_columns: list[str]) -> str:
    """Write and return the Markdown beside `path`: our own columns, the paper's with its rows, conditions, gaps."""
    rows = read(path)
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {
        (row["model"], name): show(name, metric, "*" if row["partial"] or row["unanswered"] else "")
        for row in rows
        for name, metric in row.get("metrics", {}).items()
    }
    metrics = [name for name in COLUMNS if any(name == metric for _, metric in cells)]

    def lines(names: list[str], bold: str = "") -> list[list[str]]:
        return [
            [f"{bold}{model}{bold}", *(cells.get((model, name), "") for name in names)]
            for model in models
            if any((model, name) in cells for name in names)
        ]

    parts = ["Shares in per cent, with 95 % intervals; * only a part of the benchmark's items.\n"]
    others = [name for name in metrics if name not in paper_columns]
    if others:
        parts.append(table(["model", *others], lines(others)))
    if any(name in paper_columns for name in metrics):
        published = [
            [model, *("" if value is None else value for value in values)]
            for model, values in paper.items()
        ]
        parts.append("Ours (bold) beside the paper's:\n")
        parts.append(table(["model", *paper_columns], lines(paper_columns, "**") + published))
    parts.append(
        table(
            [
                "model",
                "benchmark",
                "n",
                "unanswered",
                "truncated",
                "empty",
                "unparsable",
                "missing",
                "settings",
            ],
            [
                [
                    row["model"],
                    row["benchmark"],
                    row["n"],
                    f"{row['unanswered']} ({row['refused']} refused)"
                    if row.get("refused")
                    else row["unanswered"],
                    *(f"{row[share]:.1%}" for share in ("truncated", "empty", "unparsable")),
                    row["missing"],
                    ", ".join(f"{key} {value}" for key, value in row["settings"].items()),
                ]
                for row in rows
                if "metrics" in row
            ],
        )
    )
    parts += [
        f"- **{row['model']}, {row['benchmark']}: not run**: {row['gap']}"
        for row in rows
        if "gap" in row
    ]
    made_with = {
        ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        for row in rows
        if "metrics" in row
    }
    parts += [f"- made with {line}" for line in sorted(made_with)]
    text = "\n".join(parts) + "\n"
    write_whole(Path(path).with_suffix(".md"), text)
    return text


def write_bars(path: str | Path) -> None:
    """The table's shares as bars with their intervals, a colour a model, beside `path`; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = read(path)
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {
        (row["model"], name): metric
        for row in rows
        for name, metric in row.get("metrics", {}).items()
    }
    shares = [
        name
        for name in COLUMNS
        if name not in RATINGS and any(name == metric for _, metric in found)
    ]
    if not shares:
        return
    figure = Figure(
        figsize=(max(5, 0.35 * len(shares) * (len(models) + 1)), 4), layout="constrained"
    )
    axes = figure.subplots()
    for place, model in enumerate(models):
        bars = [
            (i + (place - (len(models) - 1) / 2) * 0.8 / len(models), found[model, name])
            for i, name in enumerate(shares)
            if (model, name) in found
        ]
        values = [100 * metric["value"] for _, metric in bars]
        errors = [
            [100 * (metric["value"] - metric["low"]) for _, metric in bars],
            [100 * (metric["high"] - metric["value"]) for _, metric in bars],
        ]
        axes.bar(
            [x for x, _ in bars], values, 0.8 / len(models), yerr=errors, capsize=2, label=model
        )
    axes.set_xticks(range(len(shares)), shares, rotation=45, ha="right")
    axes.set_ylabel("per cent, 95 % interval")
    axes.legend()
    figure.savefig(Path(path).with_suffix(".png"), dpi=120)


def compare(path: str | Path, first: str, second: str) -> str:
    """The paired differences second - first of every metric that both models have, as a table."""
    files = {(row["model"], row["benchmark"]): row for row in read(path) if "metrics" in row}
    shared = [
        benchmark for model, benchmark in files if model == first and (second, benchmark) in files
    ]
    if not shared:
        raise UserError(
            f"{path} has no benchmark of both {first!r} and {second!r} "
            f"(it has {sorted({model for model, _ in files})})"
        )
    lines = []
    for benchmark in shared:
        rows = [files[model, benchmark] for model in (first, second)]
        if (
            rows[0]["data"]["sha256"] != rows[1]["data"]["sha256"]
            or rows[0]["settings"] != rows[1]["settings"]
        ):
            print(
                f"{benchmark}: {first} and {second} differ in items or settings; their shared items are compared",
                file=sys.stderr,
            )
        ours, theirs = (points_of(Path(path).parent / row["items"]) for row in rows)
        for name in sorted(ours.keys() & theirs.keys(), key=column):
            found = intervals.paired(ours[name], theirs[name])
            if found is None:
                print(f"{benchmark}: {name}: the two have no item in common", file=sys.stderr)
                continue
            scale = 1 if name in RATINGS else 100
            beyond = "yes" if found["low"] > 0 or found["high"] < 0 else "no"
            lines.append(
                [
                    benchmark,
                    name,
                    f"{found['difference'] * scale:+.2f}",
                    f"[{found['low'] * scale:+.2f}, {found['high'] * scale:+.2f}]",
                    found["clusters"],
                    beyond,
                ]
            )
    return table(
        [
            "benchmark",
            "metric",
            f"{second} - {first}",
            "95 % paired bootstrap",
            "clusters",
            "beyond noise",
        ],
        lines,
    )


def points_of(path: str | Path) -> dict[str, list]:
    metrics: dict[str, list] = {}
    for row in files.read(path, ["points"], "07_eval.py"):
        for name, points in row["points"].items():
            metrics.setdefault(name, []).extend(points)
    return metrics


def write_contamination(args, found: dict[str, dict], gaps: dict[str, Exception]) -> None:
    """Write 07_contamination.json beside --out and print its table."""
    path = Path(args.out).with_name("07_contamination.json")
    write_whole(
        path,
        json.dumps(
            {
                "file": args.contamination,
                "judge": args.judge_model,
                "benchmarks": found,
                "not checked": {name: str(gap) for name, gap in gaps.items()},
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n",
    )
    columns = ["tests", "training rows", "13-gram", "rephrased", "undecided"]
    print(
        table(
            ["benchmark", *columns],
            [
                [name, *("no judge" if row[column] is None else row[column] for column in columns)]
                for name, row in found.items()
            ],
        )
    )
    for name, gap in gaps.items():
        print(f"{name}: not checked: {gap}", file=sys.stderr)
    print(f"the pairs to look at: {path}")
