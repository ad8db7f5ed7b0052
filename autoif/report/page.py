"""Lay a gathered run out as one HTML page (page.html) that needs no network and no server."""

import math
import statistics
from pathlib import Path

import jinja2

from autoif.evaluation import table
from autoif.report.against import HEADER
from autoif.report.gather import MAIN

STAGES = {  # stage: (what comes in, what is kept)
    "01_seed_augment": ("lines", "constraints"),
    "02_verifiers": ("constraints", "with functions and cases that agree"),
    "03_backtranslate": ("constraints", "that no back-translation contradicts"),
    "04_responses": ("responses", "SFT rows"),
    "06_dpo pairs": ("prompts and constraints", "with a pair"),
}
DIFFERENCES = ["models", "benchmark", "metric", "difference", "95 % paired bootstrap"]
DIFFERENCES += ["clusters", "beyond noise"]


def percent(value: float, digits: int = 0) -> str:
    return f"{value * 100:.{digits}f} %"


def listed(counts: dict[str, int] | list[tuple[str, int]]) -> str:
    """`train 58, heldout 6`"""
    return ", ".join(f"{name} {count:,}" for name, count in dict(counts).items())


def spread(values: list[float]) -> str:
    """The smallest value to the largest in ten steps, as signs, and the median.

    [0.5, 1.0, 1.0] -> "0.5 ▅▁▁▁▁▁▁▁▁█ 1, median 1"
    """
    if not values:
        return "none"
    low, high, counts = min(values), max(values), [0] * 10
    for value in values:
        counts[min(9, int(10 * (value - low) / (high - low or 1)))] += 1
    signs = "".join("▁▂▃▄▅▆▇█"[math.ceil(7 * count / max(counts))] for count in counts)
    return f"{low:,g} {signs} {high:,g}, median {statistics.median(values):,g}"


def table_5(stats: dict) -> tuple[list[str], list[list[str]]] | None:
    """(header, lines) of our counts beside the paper's, which stage 04 writes to stats.json."""
    counts = stats.get("04_responses", {})
    if "paper_table_5" not in counts:
        return None
    pairs = sum(stats.get("06_dpo pairs", {}).get("pairs", {}).values())
    above = "not scored"
    if counts.get("scored"):
        above = percent(counts.get("scored above 8", 0) / counts["scored"])
    ours = [f"{counts['in']:,}", f"{counts['kept']:,}", f"{pairs:,}" if pairs else "–", above]
    rows, paper = [["this run", *ours]], dict(counts["paper_table_5"])
    columns = paper.pop("columns")
    for supervisor, (*numbers, part) in paper.items():
        rows.append([f"paper, {supervisor}", *map("{:,}".format, numbers), percent(part)])
    return columns, rows


def probes(of_probes: dict[str, dict]) -> list[list[str]]:
    """A line of each probe: what fools the functions."""
    rows = []
    for name, counts in of_probes.items():
        functions = counts["functions"] / max(counts["of_functions"], 1)
        accepted = len(counts["ids"]) / max(counts["of_constraints"], 1)
        rows.append([name, percent(functions), percent(accepted), ", ".join(counts["ids"][:4])])
    return rows


def cell(metric: dict | None) -> str:
    """`44.0 [39.9, 48.2]`, in per cent unless the metric is no share."""
    if metric is None:
        return ""
    text = table.shown(metric, metric.get("scale", 100), metric.get("partial", False))
    return text.removesuffix(" [n/a]")


def by_model(measured: dict[str, dict[str, dict]], models: list[str]) -> list[list[str]]:
    """A line for each metric or group with a cell for each model."""
    return [[name, *map(cell, map(of.get, models))] for name, of in measured.items()]


def page(run: dict) -> str:
    constraints, prompts = run["constraints"], []
    for answers in run["responses"].values():
        prompts += answers["shown"]
    shown = constraints["shown"] if constraints else []
    data = {"constraints": shown, "prompts": prompts, "answers": run["answers"]}
    counts, metrics = {}, {}
    for name, stats in run["stats"].items():
        counts[name] = {stage: stats[stage] for stage in STAGES if stage in stats}
    for row in run["results"]:
        for name, metric in row.get("metrics", {}).items():
            of_models = metrics.setdefault(table.titled(name, row), {})
            of_models[row["model"]] = {**metric, "partial": table.partial(row)}
    values = {"run": run, "data": data, "counts": counts, "metrics": metrics, "main": MAIN}
    values |= {"HEADER": HEADER, "DIFFERENCES": DIFFERENCES, "STAGES": STAGES}
    values["models"] = list(dict.fromkeys(row["model"] for row in run["results"]))
    values["table_5"] = table_5(run["stats"][MAIN])
    if constraints and constraints["quality"]:
        values["probes"] = probes(constraints["probes"].get("probes", {}))
    values["errors"] = {}
    for name, count in run["stats"][MAIN].get("02_verifiers", {}).items():
        if name.startswith("function error: "):
            values["errors"][name.removeprefix("function error: ")] = count
    here = Path(__file__).parent
    for name, file in (("css", "page.css"), ("script", "samples.js")):
        values[name] = (here / file).read_text(encoding="utf-8")
    # what models wrote is text on the page: all that a template shows is escaped
    settings = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(here), **settings)
    environment.policies["json.dumps_kwargs"] = {}  # rows keep the order of their fields
    environment.filters |= {"commas": "{:,}".format, "listed": listed, "spread": spread}
    environment.filters |= {"percent": percent, "by_model": by_model}
    return environment.get_template("page.html").render(values).lstrip()
