"""Lay a gathered run out as one HTML page that needs no network and no server."""

import json
from pathlib import Path

from autoif.report.draw import bars, bins, curve, dots, escape
from autoif.report.gather import MAIN

HERE = Path(__file__).parent
STAGES = {  # stage: (what comes in, what is kept)
    "01_seed_augment": ("lines", "constraints"),
    "02_verifiers": ("constraints", "with functions and cases that agree"),
    "03_backtranslate": ("constraints", "that their functions do not contradict"),
    "04_responses": ("responses", "SFT rows"),
    "06_dpo pairs": ("prompts and constraints", "with a pair"),
}
CURVES = ["loss", "accuracy", "margin"]  # of metrics.jsonl, where a stage logs them

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>AutoIF: {name}</title><style>
{css}</style></head><body>
<header><h1>AutoIF <span>{name}</span></h1><nav>{links}</nav></header>
<main>
{sections}
</main>
<footer>Samples are drawn with seed {seed}: {size} at most of each kind. All counts are of all
rows.</footer>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script></body></html>
"""


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def listed(counts: dict[str, int]) -> str:
    """`train 58, heldout 6`"""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def tags(name: str, texts: list) -> str:
    """`<th>a</th><th>b</th>`"""
    return "".join(f"<{name}>{escape(text)}</{name}>" for text in texts)


def table(header: list, rows: list[list], kind: str = "") -> str:
    """A table whose cells are text; the first column is its rows' names."""
    lines = []
    for row in rows:
        lines.append(f"<tr>{tags('th', row[:1])}{tags('td', row[1:])}</tr>")
    body = f"<thead><tr>{tags('th', header)}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def figure(picture: str, title: str, words: str = "") -> str:
    said = f"<p>{escape(words)}</p>" if words else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}{said}</figure>"


def grid(pictures: list[str]) -> str:
    return f'<div class="grid">{"".join(pictures)}</div>'


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page, "" without parts: its stage has not run."""
    if not any(parts):
        return ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def legend(names: list[str]) -> str:
    items = []
    for place, name in enumerate(names):
        items.append(f'<span><i class="back{place % 8}"></i>{escape(name)}</span>')
    return f'<p class="legend">{"".join(items)}</p>'


# ---- the funnel, and table 5 ----


def step(stage: str, numbers: dict, widest: int) -> str:
    """One stage: a bar of what was kept of what came in, and the reasons of the rest."""
    taken, kept = numbers["in"], numbers["kept"]
    incoming, outgoing = STAGES[stage]
    width = max(100 * taken / max(widest, 1), 4)
    filled = 100 * kept / max(taken, 1)
    reasons = sorted(numbers.get("dropped", {}).items(), key=lambda each: -each[1])
    chips = "".join(f"<li>{escape(reason)} <b>{count:,}</b></li>" for reason, count in reasons)
    return (
        f'<div class="step"><h3>{escape(stage)}</h3><p><b>{kept:,}</b> {outgoing} of {taken:,} '
        f'{incoming}</p><div class="bar" style="width:{width:.1f}%">'
        f'<i style="width:{filled:.1f}%"></i></div><ul class="chips">{chips}</ul></div>'
    )


def funnel(run: dict) -> str:
    parts = []
    for name, stats in run["stats"].items():
        stages = {stage: stats[stage] for stage in STAGES if stage in stats}
        # an iteration of the online loop has a title, the run itself needs none
        if stages and name != MAIN:
            parts.append(f"<h3 class=loop>{escape(name)}</h3>")
        widest = max((numbers["in"] for numbers in stages.values()), default=0)
        for stage, numbers in stages.items():
            parts.append(step(stage, numbers, widest))
    return section("funnel", "From seeds to pairs", *parts, table_5(run))


def table_5(run: dict) -> str:
    """Our counts beside those of the paper's table 5, which stage 04 writes to stats.json."""
    stats = run["stats"][MAIN]
    numbers = stats.get("04_responses", {})
    if "paper_table_5" not in numbers:
        return ""
    pairs = sum(stats.get("06_dpo pairs", {}).get("pairs", {}).values())
    above, scored = 0, 0
    shown = run["responses"].get(MAIN)
    if shown:
        above, scored = shown["above_8"], shown["scored"]
    ours = [f"{numbers['in']:,}", f"{numbers['kept']:,}", f"{pairs:,}" if pairs else "–"]
    ours.append(percent(above / scored) if scored else "not scored")
    columns, rows = numbers["paper_table_5"]["columns"], [["this run", *ours]]
    for supervisor, values in numbers["paper_table_5"].items():
        if supervisor != "columns":
            *counts, part = values
            rows.append([f"paper, {supervisor}", *(f"{n:,}" for n in counts), percent(part)])
    words = (
        "<p class=note>Table 5 of the paper. Share above 8: of the responses that were scored.</p>"
    )
    return table(["", *columns], rows, "beside") + words


# ---- verifiers ----


def counted(found: dict) -> tuple[list[int], list[str]]:
    """The values and labels of a histogram of small whole numbers; the last bar is open at 24."""
    most = max(1, min(24, max(found)))
    labels, values = list(map(str, range(1, most + 1))), [0] * most
    for number, count in found.items():
        if number:
            values[min(number, most) - 1] += count
    if most == 24:
        labels[-1] += "+"
    return values, labels


def histogram(of: str, found: tuple, what: str, title: str, words: str = "") -> str:
    """The figure of how many `of` have how much of `what`; `found` is (values, labels)."""
    values, labels = found
    return figure(bars({of: values}, labels, what), title, words)


def shares(values: list[float]) -> tuple[list[int], list[str]]:
    labels = [f"{tenth * 10} %" for tenth in range(10)]
    return bins(values, 0, 1, 10), labels


def probes(found: dict | None) -> str:
    """What fools the functions, as a table."""
    if found is None:
        return ""
    if "error" in found:
        return f"<p class=note>Probes were not run: {escape(found['error'])}</p>"
    rows = []
    for name, numbers in found["found"].items():
        functions = numbers["functions"] / max(numbers["of_functions"], 1)
        accepted = len(numbers["ids"]) / max(numbers["of_constraints"], 1)
        some = ", ".join(numbers["ids"][:4])
        rows.append([name, percent(functions), percent(accepted), some])
    of = next(iter(found["found"].values()))["of_constraints"]
    return (
        "<h3>Probes for reward hacking</h3><p class=note>Answers that answer nothing: the share of "
        "functions that pass each, and of constraints under which it would be accepted. Some are "
        "fairly earned (an empty answer has no commas); all are what a policy is paid for saying "
        f"nothing. {of:,} of {found['of']:,} constraints were probed.</p>"
        + table(["probe", "functions", "constraints", "such as"], rows)
    )


def verifiers(run: dict) -> str:
    made = run["constraints"]
    if not made or not made["quality"]:
        return ""
    found = made["quality"]
    number, cases = counted(found["functions"]), counted(found["cases"])
    pictures = [
        histogram("constraints", number, "functions", "Functions a constraint"),
        histogram("constraints", cases, "cases", "Cases a constraint"),
    ]
    words = "Share of its constraint's kept cases that a kept function gets right."
    accuracy = shares(found["accuracy"])
    pictures.append(histogram("functions", accuracy, "accuracy", "Accuracy", words))
    if found["agreement"]:
        words = "Share of all functions that agree with a kept case."
        agreement = shares(found["agreement"])
        pictures.append(histogram("cases", agreement, "agreement", "Agreement", words))
    facts = table(["", ""], verifier_facts(run, made["count"], found), "facts")
    return section("verifiers", "Verifiers", facts, grid(pictures), probes(made["probes"]))


def verifier_facts(run: dict, constraints: int, found: dict) -> list[list[str]]:
    """(name, number) of the table above the pictures."""
    constant, errors = {}, {}
    for name, count in found["constant"].items():
        if name:
            constant[f"always {name}"] = count
    for name, count in run["stats"][MAIN].get("02_verifiers", {}).items():
        if name.startswith("function error: "):
            errors[name.removeprefix("function error: ")] = count
    facts = [
        ["constraints", f"{constraints:,} ({listed(found['split'])})"],
        ["functions", f"{sum(found['constant'].values()):,}"],
        ["one verdict for every case", listed(constant) or "none"],
    ]
    if found["families"]:
        largest = listed(dict(found["families"].most_common(8)))
        facts.append(["families", f"{len(found['families']):,} ({largest})"])
    if errors:
        facts.append(["errors of functions", listed(errors)])
    return facts


# ---- responses ----


def outcome_bar(rates: list[float]) -> str:
    """How many prompts all, some or none of the responses pass: only mixed ones teach."""
    fail, full = rates.count(0), rates.count(1)
    counts = {"all fail": fail, "mixed": len(rates) - fail - full, "all pass": full}
    parts, total = [], len(rates) or 1
    for place, (name, count) in enumerate(counts.items()):
        words = f"{name} {count:,} ({percent(count / total)})"
        parts.append(
            f'<i class="part{place}" style="flex:{count} 0 0" title="{escape(words)}"></i>'
        )
    return f'<div class="stack">{"".join(parts)}</div><p class=note>{listed(counts)}</p>'


def responses(run: dict) -> str:
    parts = []
    for name, found in run["responses"].items():
        # both sides in the same bins, so that they can be compared
        longest = max(max(lengths, default=0) for lengths in found["lengths"].values()) or 1
        edges = [f"{longest * tenth // 10:,}" for tenth in range(10)]
        groups = {side: bins(found["lengths"][side], 0, longest, 10) for side in found["lengths"]}
        passed = "the share of a prompt's responses that more than half of the functions pass"
        cut = f"{percent(found['truncated'], 1)} of the responses ran into the token limit."
        pictures = [
            histogram("prompts", shares(found["rates"]), "pass rate", "Pass rate a prompt", passed),
            figure(bars(groups, edges, "length"), "Characters a response", cut),
        ]
        parts.append(f"<h3>{escape(name)}</h3>" + outcome_bar(found["rates"]))
        parts.append(grid(pictures) + legend(list(groups)))
    return section("responses", "Responses", *parts)


# ---- training, results ----


def training(run: dict) -> str:
    parts = []
    for name, steps in run["curves"].items():
        pictures = []
        for metric in CURVES:
            points = [(row["step"], row[metric]) for row in steps if metric in row]
            if points:
                last = f"{points[0][1]:.4g} at step {points[0][0]}, {points[-1][1]:.4g} at the end"
                pictures.append(figure(curve(points, f"{name}, {metric}"), metric, last))
        parts.append(f"<h3>{escape(name)}</h3>{grid(pictures)}")
    return section("training", "Training", *parts)


def cell(metric: dict | None) -> str:
    """`44.0 [39.9, 48.2]`, in per cent unless the metric is no share."""
    if metric is None:
        return ""
    scale = metric.get("scale", 100)
    digits = 1 if scale == 100 else 2
    shown = f"{metric['value'] * scale:.{digits}f}"
    if metric.get("low") is None:
        return shown
    return f"{shown} [{metric['low'] * scale:.{digits}f}, {metric['high'] * scale:.{digits}f}]"


def results(run: dict) -> str:
    metrics: dict[str, dict[str, dict]] = {}
    gaps = []
    for row in run["results"]:
        for name, metric in row.get("metrics", {}).items():
            metrics.setdefault(name, {})[row["model"]] = metric
        if "gap" in row:
            gap = f"{row['model']}, {row['benchmark']}: {row['gap']}"
            gaps.append(f"<p class=note>Not run: {escape(gap)}</p>")
    if not metrics and not gaps:
        return ""
    models = list(dict.fromkeys(row["model"] for row in run["results"]))
    pictures = []
    for name, found in metrics.items():
        measured = []
        for model in models:
            if metric := found.get(model):
                measured.append((model, metric["value"], metric.get("low"), metric.get("high")))
        pictures.append(figure(dots(measured, name), name))
    note = "<p class=note>In per cent (ratings and lengths as they are), with 95 % intervals.</p>"
    parts = [note, grid(pictures), by_model("", metrics, models)]
    for group, measured in run["by_kind"].items():
        title = f"<h3>Held-out constraints, by {group}</h3>"
        parts += [title, by_model(group, measured, models)]
    if run["differences"]:
        header = ["models", "benchmark", "metric", "difference", "95 % paired bootstrap"]
        header += ["clusters", "beyond noise"]
        parts += ["<h3>Differences</h3>", table(header, run["differences"], "differences")]
    return section("results", "Results", *parts, *gaps)


def by_model(group: str, found: dict[str, dict[str, dict]], models: list[str]) -> str:
    """A table with a line for each of `group` and a column for each model."""
    rows = []
    for name, measured in found.items():
        rows.append([name, *(cell(measured.get(model)) for model in models)])
    return table([group, *models], rows)


# ---- the head, the samples, the page ----


def tiles(run: dict) -> str:
    """The run in a few large numbers."""
    stats, found = run["stats"][MAIN], {}
    if run["constraints"]:
        found["constraints"] = f"{run['constraints']['count']:,}"
        quality = run["constraints"]["quality"]
        found["functions"] = f"{sum(quality['constant'].values()):,}" if quality else "–"
    if "04_responses" in stats:
        found["responses"] = f"{stats['04_responses']['in']:,}"
        found["SFT rows"] = f"{stats['04_responses']['kept']:,}"
    if "06_dpo pairs" in stats:
        found["pairs"] = f"{sum(stats['06_dpo pairs'].get('pairs', {}).values()):,}"
    for row in run["results"]:
        if row["benchmark"] == "heldout" and "metrics" in row:
            value = next(iter(row["metrics"].values()))["value"]
            found[f"held-out, {row['model']}"] = percent(value, 1)
    items = "".join(f"<div><b>{number}</b>{escape(name)}</div>" for name, number in found.items())
    words = ", ".join(f"{name} {value}" for name, value in run["made with"].items())
    made = f"<p class=note>Made with: {escape(words)}</p>" if words else ""
    return f'<section class="tiles">{items}</section>{made}'


SAMPLES = """
<div class="controls" role="search">
<div class="views"></div>
<input type="search" placeholder="search text, code, ids" aria-label="search">
<select aria-label="outcome"></select><select aria-label="source"></select>
<output></output></div><div class="cards"></div>
<button class="more" hidden>show more</button>"""


def embedded(value: object) -> str:
    """JSON that nothing in it can leave its script tag by, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(run: dict) -> str:
    data = {"constraints": [], "prompts": []}
    if run["constraints"]:
        data["constraints"] = run["constraints"]["shown"]
    for found in run["responses"].values():
        data["prompts"] += found["shown"]
    parts = {
        "funnel": funnel(run),
        "verifiers": verifiers(run),
        "responses": responses(run),
        "training": training(run),
        "results": results(run),
        "samples": section("samples", "Samples", SAMPLES),
    }
    # a stage that has not run yet has neither a section nor a link to it
    there = {name: part for name, part in parts.items() if part}
    return PAGE.format(
        name=escape(run["name"]),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "samples.js").read_text(encoding="utf-8"),
        links="".join(f'<a href="#{name}">{name}</a>' for name in there),
        sections=tiles(run) + "\n".join(there.values()),
        data=embedded(data),
        seed=run["seed"],
        size=f"{run['size']:,}",
    )
