"""Lay a gathered run out as one HTML page that needs no network and no server."""

import html
import json
from pathlib import Path

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


def figure(picture: str, title: str, words: str = "") -> str:
    below = f"<p>{escape(words)}</p>" if words else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}{below}</figure>"


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


# ---- histograms ----


def bins(values: list[float], high: float, count: int = 10) -> list[int]:
    """How many values from 0 to `high` fall into each of `count` equal bins."""
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int(value / high * count))] += 1
    return counts


def histogram(groups: dict[str, list[int]], labels: list[str]) -> str:
    """Bars side by side for each label, a colour for each group, which is named where several."""
    most, columns = max(map(max, groups.values())) or 1, []
    for place, label in enumerate(labels):
        bars = ""
        for group, (name, counts) in enumerate(groups.items()):
            words = escape(f"{name}, {label}: {counts[place]:,}")
            tall = 100 * counts[place] / most
            bars += f'<i class="back{group}" style="height:{tall:.1f}%" title="{words}"></i>'
        columns.append(f"<div>{bars}<span>{escape(label)}</span></div>")
    names = ""
    for group, name in enumerate(groups):
        names += f'<span><i class="back{group}"></i>{escape(name)}</span>'
    legend = f'<p class="legend">{names}</p>' if len(groups) > 1 else ""
    return f'<div class="bars">{"".join(columns)}</div>{legend}'


def numbers(counts: dict[int, int], of: str) -> str:
    """The histogram of small whole numbers; the last bar is open at 24."""
    most = max(1, min(24, max(counts)))
    labels, values = list(map(str, range(1, most + 1))), [0] * most
    for number, count in counts.items():
        if number:
            values[min(number, most) - 1] += count
    if most == 24:
        labels[-1] += "+"
    return histogram({of: values}, labels)


def shares(values: list[float], of: str) -> str:
    """The histogram of shares, a bar a tenth."""
    return histogram({of: bins(values, 1)}, [f"{tenth * 10} %" for tenth in range(10)])


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
    if MAIN in run["responses"] and (scored := run["responses"][MAIN]["counts"])["scored"]:
        above = percent(scored["above 8"] / scored["scored"])
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
    figures = [
        figure(numbers(quality["functions"], "constraints"), "Functions a constraint"),
        figure(numbers(quality["cases"], "constraints"), "Cases a constraint"),
    ]
    words = "Share of its constraint's kept cases that a kept function gets right."
    figures.append(figure(shares(quality["accuracy"], "functions"), "Accuracy", words))
    if quality["agreement"]:
        words = "Share of all functions that agree with a kept case."
        figures.append(figure(shares(quality["agreement"], "cases"), "Agreement", words))
    facts = table(["", ""], verifier_facts(run, quality), "facts")
    grid = f'<div class="grid">{"".join(figures)}</div>'
    return section("verifiers", "Verifiers", facts, grid, probes(run["constraints"]["probes"]))


def verifier_facts(run: dict, quality: dict) -> list[list[str]]:
    """(name, number) of the table above the pictures."""
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
        # both sides in the same bins, so that they can be compared
        longest = max(max(each, default=0) for each in lengths.values()) or 1
        edges = [f"{longest * tenth // 10:,}" for tenth in range(10)]
        groups = {side: bins(lengths[side], longest) for side in lengths}
        share = answers["counts"]["truncated"] / max(sum(map(len, lengths.values())), 1)
        cut = f"{percent(share, 1)} of the responses ran into the token limit."
        passed = (
            "the share of a prompt's responses whose accuracy, the share of functions that they "
            f"pass, is above {answers['min_accuracy']:g}"
        )
        rate = figure(shares(rates, "prompts"), "Pass rate a prompt", passed)
        length = figure(histogram(groups, edges), "Characters a response", cut)
        parts.append(f"<h3>{escape(name)}</h3>{note(f'prompts: {listed(mixed)}')}")
        parts.append(f'<div class="grid">{rate}{length}</div>')
    return section("responses", "Responses", *parts)


# ---- training, results ----


def training(run: dict) -> str:
    drawn = {name: image(data, f"{name}, curves") for name, data in run["curves"].items()}
    figures = [figure(picture, name) for name, picture in drawn.items() if picture]
    grid = f'<div class="grid">{"".join(figures)}</div>' if figures else ""
    return section("training", "Training", grid)


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
    data = {"constraints": [], "prompts": []}
    if run["constraints"]:
        data["constraints"] = run["constraints"]["shown"]
    for answers in run["responses"].values():
        data["prompts"] += answers["shown"]
    parts = {
        "funnel": funnel(run),
        "verifiers": verifiers(run),
        "responses": responses(run),
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
