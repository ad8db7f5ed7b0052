"""07_results.md and .png: our numbers beside the paper's, the conditions of each, and bars."""

from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from autoif.evaluation import benchmarks
from autoif.files import write_whole

CONDITIONS = ["n", "unanswered", "words", "truncated", "empty", "unparsable", "missing"]

# {(model, column): {metric, measured, scale, shown, published}}
Cells = dict[tuple[str, str], dict]


def scale(benchmark: str, metric: str) -> int:
    """Shares are shown in per cent (100), ratings and lengths as they are (1)."""
    return 1 if metric in benchmarks.settings(benchmark).ratings else 100


def ordered(benchmark: str, metrics: Iterable[str]) -> list[str]:
    """The metrics of a benchmark: the table's columns first, then the others by name."""
    columns = [name for name in benchmarks.settings(benchmark).columns if name in metrics]
    return columns + sorted(set(metrics) - set(columns))


def shown(measured: dict, factor: int, partial: bool = False) -> str:
    """`44.0 [39.9, 48.2]`: value and interval; a star where a part of the items was measured."""
    digits = 1 if factor == 100 else 2
    value = f"{measured['value'] * factor:.{digits}f}{'*' * partial}"
    low, high = measured.get("low"), measured.get("high")
    if low is None:
        return f"{value} [n/a]"
    return f"{value} [{low * factor:.{digits}f}, {high * factor:.{digits}f}]"


def partial(row: dict) -> bool:
    """Whether a row's numbers are of a part of its benchmark's items."""
    missing = row["missing"] if row["settings"].get("judge") else 0  # without a judge it has failed
    return bool(row["partial"] or row["unanswered"] or missing)


def titled(metric: str, row: dict) -> str:
    """A metric's name in a table: judges differ, so a judged one names its own."""
    judge = row["settings"].get("judge")
    return f"{metric} (judge {judge})" if judge else metric


def cells_of(rows: list[dict]) -> Cells:
    """The cells of the table's columns, in their order.

    `published`: whether it can stand beside published figures, as without a judge or with theirs.
    """
    cells = {}
    for benchmark in benchmarks.NAMES:
        owners = benchmarks.settings(benchmark)
        for metric in owners.columns:
            for row in rows:
                if row["benchmark"] == benchmark and metric in row.get("metrics", {}):
                    measured, factor = row["metrics"][metric], scale(benchmark, metric)
                    cell = {"metric": metric, "measured": measured, "scale": factor}
                    cell["shown"] = shown(measured, factor, partial(row))
                    cell["published"] = row["settings"].get("judge") == owners.judge
                    cells[row["model"], titled(metric, row)] = cell
    return cells


def markdown(header: list[str], lines: list[list]) -> str:
    text = ""
    for line in [header, ["---"] * len(header), *lines]:
        cells = [str(cell).replace("|", "\\|") for cell in line]
        text += f"| {' | '.join(cells)} |\n"
    return text


def grid(cells: Cells, columns: list[str], bold: str = "") -> list[list[str]]:
    """A line for each model that has one of the columns; an empty string where it lacks one."""
    lines = []
    for model in dict.fromkeys(model for model, _ in cells):
        line = []
        for column in columns:
            line.append(cells[model, column]["shown"] if (model, column) in cells else "")
        if any(line):
            lines.append([f"{bold}{model}{bold}", *line])
    return lines


def beside_paper(cells: Cells, paper: dict[str, list], paper_columns: list[str]) -> str:
    """Ours above the paper's rows, "" when none of ours can stand there."""
    comparable, names, theirs = {}, {}, []
    for (model, column), cell in cells.items():
        if cell["metric"] in paper_columns and cell["published"]:
            comparable[model, cell["metric"]] = cell
            names[cell["metric"]] = column
    ours = grid(comparable, paper_columns, "**")
    if not ours:
        return ""
    header = [names.get(name, name) for name in paper_columns]
    for model, values in paper.items():
        theirs.append([model, *("" if value is None else value for value in values)])
    return "Ours (bold) beside the paper's:\n\n" + markdown(["model", *header], ours + theirs)


def conditions(rows: list[dict]) -> str:
    """How each number was made: one line a model and benchmark."""
    lines = []
    for row in rows:
        unanswered = str(row["unanswered"])
        if row.get("refused"):
            unanswered += f" ({row['refused']} refused)"
        shares = [f"{row[name]:.1%}" for name in ("truncated", "empty", "unparsable")]
        counted = [row["n"], unanswered, f"{row['words']:.1f}", *shares, row["missing"]]
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        lines.append([row["model"], row["benchmark"], *counted, settings])
    return markdown(["model", "benchmark", *CONDITIONS, "settings"], lines)


def write(
    path: str | Path, rows: list[dict], paper: dict[str, list], paper_columns: list[str]
) -> str:
    """Write and return the Markdown beside `path`; without `paper` all columns are in one table."""
    measured = [row for row in rows if "metrics" in row]
    cells, others = cells_of(rows), {}
    parts = ["Shares in per cent, with 95 % intervals; * only a part of the benchmark's items.\n"]
    for (_, column), cell in cells.items():
        if not (paper and cell["metric"] in paper_columns and cell["published"]):
            others[column] = None
    if others:
        parts.append(markdown(["model", *others], grid(cells, list(others))))
    if paper and (published := beside_paper(cells, paper, paper_columns)):
        parts.append(published)
    if measured:
        parts.append(
            "Words: the mean length of an answer. A gain that comes with shorter answers may be "
            "one in brevity alone.\n"
        )
        parts.append(conditions(measured))
    for row in rows:
        if "gap" in row:
            parts.append(f"- **{row['model']}, {row['benchmark']}: not run**: {row['gap']}")
    made_with = set()
    for row in measured:
        made_with.add(", ".join(f"{name} {version}" for name, version in row["versions"].items()))
    parts += [f"- made with {line}" for line in sorted(made_with)]
    text = "\n".join(parts) + "\n"
    write_whole(Path(path).with_suffix(".md"), text)
    return text


def write_bars(path: str | Path, rows: list[dict]) -> None:
    """The table's shares as bars with their intervals, a colour a model, beside `path`."""
    from matplotlib.figure import Figure

    cells = cells_of(rows)
    shares = [key for key, cell in cells.items() if cell["scale"] == 100]
    if not shares:
        return
    columns = list(dict.fromkeys(map(itemgetter(1), shares)))
    models = list(dict.fromkeys(map(itemgetter("model"), rows)))
    width = max(5, 0.35 * len(columns) * (len(models) + 1))
    figure = Figure(figsize=(width, 4), layout="constrained")
    axes = figure.subplots()
    for model, column in shares:
        # the bars of one column stand side by side and take 0.8 of its width
        place, measured = models.index(model), cells[model, column]["measured"]
        x = columns.index(column) + (place - (len(models) - 1) / 2) * 0.8 / len(models)
        value = 100 * measured["value"]
        axes.bar(x, value, 0.8 / len(models), color=f"C{place}")
        if measured["low"] is not None:
            error = [[value - 100 * measured["low"]], [100 * measured["high"] - value]]
            axes.errorbar(x, value, yerr=error, capsize=2, color="black")
    for place, model in enumerate(models):
        axes.bar(0, 0, color=f"C{place}", label=model)  # for the legend
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_ylabel("per cent, 95 % interval")
    axes.legend()
    figure.savefig(Path(path).with_suffix(".png"), dpi=120)
