"""Lay a gathered run out as one HTML page that needs no network and no server."""

import html
import json
import math
import statistics
from pathlib import Path

from autoif.report.against import HEADER
from autoif.report.gather import MAIN

HERE = Path(__file__).parent
STAGES = {  # stage: (what comes in, what is kept)
    "01_seed_augment": ("lines", "constraints"),
    "02_verifiers": ("constraints", "with functions and cases that agree"),
    "03_backtranslate": ("constraints", "that their functions do not contradict"),
    "04_responses": ("responses", "SFT rows"),
    "06_dpo pairs": ("prompts and constraints", "with a pair"),
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>AutoIF: {name}</title><style>
{css}</style></head><body>
<header><h1>AutoIF <span>{name}</span></h1><nav>{links}</nav></header>
<main>
{made}
{sections}
</main>
<footer>Samples are drawn with seed {seed}: {size} at most of each kind. All counts are of all
rows.</footer>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script></body></html>
"""


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def percent(value: float, digits: int = 0) -> str:
    return f"{value * 100:.{digits}f} %"


def listed(counts: dict[str, int]) -> str:
    """`train 58, heldout 6`"""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def note(words: str) -> str:
    return f"<p class=note>{escape(words)}</p>"


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


def image(data: str | None, title: str) -> str:
    """A PNG of the run in the page itself; "" where it was not drawn."""
    if data is None:
        return ""
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page, "" without parts: its stage has not run."""
    if not any(parts):
        return ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


# ---- distributions ----


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


# ---- the funnel, and table 5 ----


def step(stage: str, counts: dict, widest: int) -> str:
    """One stage: a bar of what was kept of what came in, and the reasons of the rest."""
    taken, kept = counts["in"], counts["kept"]
    incoming, outgoing = STAGES[stage]
    width = max(100 * taken / max(widest, 1), 4)
    filled = 100 * kept / max(taken, 1)
    reasons = sorted(counts.get("dropped", {}).items(), key=lambda reason: -reason[1])
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
        widest = max((counts["in"] for counts in stages.values()), default=0)
        for stage, counts in stages.items():
            parts.append(step(stage, counts, widest))
    return section("funnel", "From seeds to pairs", *parts, table_5(run))


def table_5(run: dict) -> str:
    """Our counts beside those of the paper's table 5, which stage 04 writes to stats.json."""
    stats = run["stats"][MAIN]
    counts = stats.get("04_responses", {})
    if "paper_table_5" not in counts:
        return ""
    pairs = sum(stats.get("06_dpo pairs", {}).get("pairs", {}).values())
    above = "not scored"
    if counts.get("scored"):
        above = percent(counts.get("scored above 8", 0) / counts["scored"])
    ours = [f"{counts['in']:,}", f"{counts['kept']:,}", f"{pairs:,}" if pairs else "–", above]
    columns, rows = counts["paper_table_5"]["columns"], [["this run", *ours]]
    for supervisor, values in counts["paper_table_5"].items():
        if supervisor != "columns":
            *numbers, part = values
            rows.append([f"paper, {supervisor}", *(f"{n:,}" for n in numbers), percent(part)])
    words = "Table 5 of the paper. Share above 8: of the responses that were scored."
    return table(["", *columns], rows, "beside") + note(words)


# ---- verifiers ----


def probes(probed: dict) -> str:
    """What fools the functions, as a table."""
    if "error" in probed:
        return note(f"Probes were not run: {probed['error']}")
    rows = []
    for name, counts in probed["probes"].items():
        functions = counts["functions"] / max(counts["of_functions"], 1)
        accepted = len(counts["ids"]) / max(counts["of_constraints"], 1)
        rows.append([name, percent(functions), percent(accepted), ", ".join(counts["ids"][:4])])
    of = next(iter(probed["probes"].values()))["of_constraints"]
    words = (
        "Answers that answer nothing: the share of functions that pass each, and of constraints "
        "under which it would be accepted. Some are fairly earned (an empty answer has no commas); "
        f"all are what a policy is paid for saying nothing. {of:,} of {probed['of']:,} constraints "
        "were probed."
    )
    header = ["probe", "functions", "constraints", "such as"]
    return f"<h3>Probes for reward hacking</h3>{note(words)}{table(header, rows)}"


def verifiers(run: dict) -> str:
    if not run["constraints"] or not (quality := run["constraints"]["quality"]):
        return ""
    facts = table(["", ""], verifier_facts(run, quality), "facts")
    return section("verifiers", "Verifiers", facts, probes(run["constraints"]["probes"]))


def verifier_facts(run: dict, quality: dict) -> list[list[str]]:
    """(name, number) of each line of the table."""
    constant, errors = {}, {}
    for name, count in quality["constant"].items():
        if name:
            constant[f"always {name}"] = count
    for name, count in run["stats"][MAIN].get("02_verifiers", {}).items():
        if name.startswith("function error: "):
            errors[name.removeprefix("function error: ")] = count
    facts = [
        ["constraints", f"{run['constraints']['count']:,} ({listed(quality['split'])})"],
        ["functions", f"{quality['constant'].total():,}"],
        ["functions a constraint", spread(list(quality["functions"].elements()))],
        ["cases a constraint", spread(list(quality["cases"].elements()))],
        ["share of kept cases that a kept function gets right", spread(quality["accuracy"])],
        ["share of all functions that agree with a kept case", spread(quality["agreement"])],
        ["one verdict for every case", listed(constant) or "none"],
    ]
    if families := quality["families"]:
        largest = listed(dict(families.most_common(8)))
        facts.append(["families", f"{len(families):,} ({largest})"])
    if errors:
        facts.append(["errors of functions", listed(errors)])
    return facts


# ---- responses ----


def responses(run: dict) -> str:
    parts = []
    for name, answers in run["responses"].items():
        # how many prompts all, some or none of the responses pass: only mixed ones teach
        rates, lengths = answers["rates"], answers["lengths"]
        fail, full = rates.count(0), rates.count(1)
        mixed = {"all fail": fail, "mixed": len(rates) - fail - full, "all pass": full}
        share = answers["truncated"] / max(sum(map(len, lengths.values())), 1)
        facts = [["prompts", listed(mixed)], ["pass rate of a prompt", spread(rates)]]
        for side, of_side in lengths.items():
            facts.append([f"characters of a response that has {side}", spread(of_side)])
        facts.append(["responses that ran into the token limit", percent(share, 1)])
        passed = f"A response has passed above an accuracy of {answers['min_accuracy']:g}, the "
        words = f"{passed}share of functions that it passes."
        parts.append(f"<h3>{escape(name)}</h3>{table(['', ''], facts, 'facts')}{note(words)}")
    return section("responses", "Responses", *parts)


def against(run: dict) -> str:
    """What became of the verdicts of another run on the same answers."""
    if "against" not in run:
        return ""
    shared, lines = run["against"]
    words = f"Of {shared:,} answers that {run['other']} has as well: verdicts there -> here."
    shown = table(HEADER, lines) if lines else note("No verdict changed.")
    return section("against", "Looked at again", note(words), shown)


# ---- training, results ----


def training(run: dict) -> str:
    parts = []
    for name, data in run["curves"].items():
        if drawn := image(data, f"{name}, curves"):
            parts.append(f"<figure><figcaption>{escape(name)}</figcaption>{drawn}</figure>")
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


def by_model(group: str, measured: dict[str, dict[str, dict]], models: list[str]) -> str:
    """A table with a line for each of `group` and a column for each model."""
    rows = []
    for name, of_models in measured.items():
        rows.append([name, *(cell(of_models.get(model)) for model in models)])
    return table([group, *models], rows)


def results(run: dict) -> str:
    metrics: dict[str, dict[str, dict]] = {}
    gaps = []
    for row in run["results"]:
        for name, metric in row.get("metrics", {}).items():
            metrics.setdefault(name, {})[row["model"]] = metric
        if "gap" in row:
            gaps.append(note(f"Not run: {row['model']}, {row['benchmark']}: {row['gap']}"))
    if not metrics:
        return section("results", "Results", *gaps)
    models = list(dict.fromkeys(row["model"] for row in run["results"]))
    parts = [note("In per cent (ratings and lengths as they are), with 95 % intervals.")]
    parts += [image(run["bars"], "results"), by_model("", metrics, models)]
    for group, measured in run["by group"].items():
        title = f"<h3>Held-out constraints, by {group}</h3>"
        parts += [title, by_model(group, measured, models)]
    if run["differences"]:
        header = ["models", "benchmark", "metric", "difference", "95 % paired bootstrap"]
        header += ["clusters", "beyond noise"]
        parts += ["<h3>Differences</h3>", table(header, run["differences"], "differences")]
    return section("results", "Results", *parts, *gaps)


# ---- the samples, the page ----


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
    data = {"constraints": [], "prompts": [], "answers": run["answers"]}
    if run["constraints"]:
        data["constraints"] = run["constraints"]["shown"]
    for answers in run["responses"].values():
        data["prompts"] += answers["shown"]
    parts = {
        "funnel": funnel(run),
        "verifiers": verifiers(run),
        "responses": responses(run),
        "against": against(run),
        "training": training(run),
        "results": results(run),
        "samples": section("samples", "Samples", SAMPLES),
    }
    made_with = ", ".join(f"{name} {value}" for name, value in run["made with"].items())
    # a stage that has not run yet has neither a section nor a link to it
    there = {name: part for name, part in parts.items() if part}
    return PAGE.format(
        name=escape(run["name"]),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "samples.js").read_text(encoding="utf-8"),
        links="".join(f'<a href="#{name}">{name}</a>' for name in there),
        made=note(f"Made with: {made_with}") if made_with else "",
        sections="\n".join(there.values()),
        data=embedded(data),
        seed=run["seed"],
        size=f"{run['size']:,}",
    )
