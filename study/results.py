"""The study's raw results, and the table and picture that are made of them.

    python study/results.py collect out/study/seed_1      # what a run measured -> study/results
    python study/results.py table                         # study/results -> table.md, bars.png
    python study/results.py compare MODEL... --seeds N... # gains over the first model named
    python study/results.py cost out/study/seed_1         # tokens, minutes of data and training

results/seed_N.jsonl.gz holds what is needed to make every number again, and no texts. A line is a
part of it, {"part": "base/heldout", "rows": [...]}: the verdicts of each item as points; and
07_results with settings and versions, constraints with family and kind, stats (the funnel of the
data), seconds, and the metrics of each training ("05_sft.metrics").

Intervals are of a bootstrap that draws seeds and items: an item (a prompt) is drawn for all models
and seeds at once. Of one seed they say nothing about others, of three little: "by seed" shows each.
The second study's are made otherwise (strong/table.py).
"""

import functools
import gzip
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, uninstalled
from tyro.conf import Positional  # noqa: E402

from autoif import families, files  # noqa: E402
from autoif.evaluation import intervals, table  # noqa: E402
from autoif.evaluation.kinds import kind  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import Texts, cli  # noqa: E402
from autoif.models import chat_tokenizer  # noqa: E402
from autoif.training.rows import count_tokens, encode  # noqa: E402

STUDY = Path(__file__).resolve().parent
RESAMPLES = 2000
SUFFIX = ".jsonl.gz"  # of a results file

MODELS = {
    "base": "SmolLM2-135M-Instruct",
    "sft": "+ SFT",
    "offline": "+ SFT + offline DPO",
    "online": "+ SFT + online DPO, 2 iterations",
    "more_queries": "+ SFT + offline DPO, 6 queries a constraint",
    "more_queries_epochs_2": "+ SFT + offline DPO, 6 queries a constraint, 2 epochs",
}
# results that are not of one seed and the study's settings
RUNS = {
    "first_run": "seed 1, first run",
    "float32": "seed 2 in float32",
    "tuning": "the tuning run",
}
IFEVAL = ["Pr(S)", "Pr(L)", "Ins(S)", "Ins(L)"]
KINDS = ["insert", "forbid", "count", "place"]  # of constraints (strong/data.py)
# what each type of IFEval's asks for; "place" are all others
IFEVAL_KINDS = {
    "keywords:forbidden_words": "forbid",
    "punctuation:no_comma": "forbid",
    "keywords:existence": "insert",
    "detectable_content:number_placeholders": "insert",
    "detectable_content:postscript": "insert",
    "detectable_format:number_highlighted_sections": "insert",
    "detectable_format:title": "insert",
    "keywords:frequency": "count",
    "keywords:letter_frequency": "count",
    "change_case:capital_word_frequency": "count",
    "detectable_format:number_bullet_lists": "count",
    "length_constraints:number_paragraphs": "count",
    "length_constraints:number_sentences": "count",
    "length_constraints:number_words": "count",
}
# bounds between the lengths of answers, in words: about a fifth of the base model's in each
LENGTHS = (10, 20, 35, 55)
# column: the benchmark, the metrics whose mean it is, and what its number is multiplied with
COLUMNS = {
    "held-out": ("heldout", ["Held-out"], 100),
    "on length": ("heldout", ["Held-out length"], 100),
    "not on length": ("heldout", ["Held-out other"], 100),
    "that, alike in length": ("heldout", ["alike in length"], 100),
    "not in IFEval": ("heldout", ["not in IFEval"], 100),
    "not implied": ("heldout", ["not implied"], 100),
    "on topic": ("heldout", ["relevance"], 100),
    "obeyed, on topic": ("heldout", ["obeyed, on topic"], 100),
    **{name: ("heldout", [name], 100) for name in KINDS},
    "words": ("heldout", ["words"], 1),
    "cut": ("heldout", ["truncated"], 100),
    "greedy: held-out": ("greedy", ["Held-out"], 100),
    "greedy: not on length": ("greedy", ["Held-out other"], 100),
    "greedy: obeyed, on topic": ("greedy", ["obeyed, on topic"], 100),
    "IFEval": ("ifeval", IFEVAL, 100),
    **{f"IFEval {name}": ("ifeval", [name], 100) for name in IFEVAL},
    **{f"IFEval: {name}": ("ifeval", [name], 100) for name in KINDS},
    "IFBench": ("ifbench", ["IFB Pr(L)"], 100),
    "MMLU": ("mmlu", ["MMLU"], 100),
    "GSM8K": ("gsm8k", ["GSM8K"], 100),
    "nats a token": ("perplexity", ["nats a token"], 1),
    "on topic by TF-IDF": ("topic", ["TF-IDF"], 100),
}
# the columns of the picture, and of each seed by itself
SHOWN = [
    "held-out",
    "on length",
    "not on length",
    "on topic",
    "obeyed, on topic",
    "greedy: obeyed, on topic",
    "IFEval",
]


# ---- tuning split -------------------------------------------------------------------------------


def tuning(path: Path, out: Path) -> None:
    """Hold out a fifth of the constraints that train, in whole families; those held out go."""
    rows = [row for row in files.read(path, ["family", "split"]) if row["split"] == "train"]
    chosen = families.heldout([row["family"] for row in rows], 0.2, seed=0)
    with files.writer(out) as write:
        for row in rows:
            write({**row, "split": "heldout" if row["family"] in chosen else "train"})


# ---- results files ------------------------------------------------------------------------------


def seed_of(path: Path) -> str:
    """results/seed_1.jsonl.gz -> seed_1"""
    return path.name.removesuffix(SUFFIX)


@functools.cache  # every column of a model asks for them
def parts_of(path: Path) -> dict[str, list]:
    """{part: its rows} of a results file; none where there is no such file."""
    if not path.exists():
        return {}
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return {record["part"]: record["rows"] for record in map(json.loads, lines)}


def write_parts(path: Path, parts: dict[str, list]) -> None:
    """Write a results file; no time in its header: the same results are the same bytes."""
    lines = [files.dump({"part": name, "rows": parts[name]}) + "\n" for name in sorted(parts)]
    with files.whole_file(path, "wb") as file:
        file.write(gzip.compress("".join(lines).encode(), mtime=0))
    parts_of.cache_clear()
    points_of.cache_clear()


def collect(out: Path, path: Path) -> None:
    """Take what the table needs of a run, without texts; its parts replace those of before."""
    before, measured = parts_of(path), json.loads((out / "07_results.json").read_text())
    again = [(each["model"], each["benchmark"]) for each in measured]
    for each in before.get("07_results", []):  # of a part that was measured once and stays
        if (each["model"], each["benchmark"]) not in again:
            measured.append(each)
    parts = {
        "07_results": measured,
        "stats": [json.loads((out / "stats.json").read_text())],
        "seconds": [seconds_of(out)],
        "constraints": [],
    }
    for metrics in out.glob("**/metrics.jsonl"):
        name = "_".join(metrics.relative_to(out).parts[:-1])
        # of a training that did not end, or beside a copy for a server
        if not name.endswith(".state") and "/." not in str(metrics.relative_to(out.parent)):
            parts[f"{name}.metrics"] = list(files.read(metrics))
    for row in files.read(out / "03_instructions.jsonl"):
        about = {name: row[name] for name in ("id", "instruction", "family", "split")}
        # the second study's say what they ask for (data.py), the first's whether it is a length
        parts["constraints"].append({**about, "kind": row.get("kind", kind(row["instruction"]))})
    for items in out.glob("07_items/*/*.jsonl"):
        if items.name.endswith(".incomplete.jsonl"):
            continue
        parts[f"{items.parent.name}/{items.stem}"] = rows = []
        for row in files.read(items, ["id", "points"], "07_eval.py"):
            asked = row.get("instruction_ids", [])
            if items.stem == "ifeval" and len(asked) == 1:
                row["points"][IFEVAL_KINDS.get(asked[0], "place")] = row["points"]["Pr(S)"]
            rows.append({name: row.get(name, 0) for name in ("id", "sample", "points")})
    write_parts(path, before | parts)


def seconds_of(out: Path) -> Counter:
    """{what a run made: seconds}; what was made twice has taken both times."""
    seconds = Counter()
    log = (out / "logs" / "run.log").read_text()
    for path, time in re.findall(r"^-- (\S+): done in (\d+) s$", log, re.M):
        seconds[path.partition(f"{out.name}/")[2]] += int(time)
    return seconds


def cost(out: Path) -> str:
    """What a run's data and training took; tokens by the base model's tokenizer and template."""
    tokenizer = chat_tokenizer(str(out / "base"))
    texts, rows = [], []
    for row in files.read(out / "04_sft.jsonl"):
        rows.append(encode(tokenizer, row["messages"][:-1], [row["messages"][-1:]], row["id"]))
    for stage in (out, *sorted(out.glob("online_*"))):
        for row in files.read(stage / "04_responses.jsonl"):
            texts += [response["text"] for response in row["responses"]]
        for row in files.read(stage / "06_pairs.jsonl"):
            sides = [row["chosen"], row["rejected"]]
            rows.append(encode(tokenizer, row["prompt"], sides, row["id"]))
    sampled = sum(map(len, tokenizer(texts)["input_ids"]))
    trained, _ = count_tokens(rows)
    seconds = sum(time for name, time in seconds_of(out).items() if not name.startswith("07_"))
    return f"{sampled} tokens sampled, {trained} trained on, {seconds // 60} minutes"


# ---- measure ------------------------------------------------------------------------------------


def not_in_ifeval(path: Path) -> set[str]:
    """The ids of a seed's constraints whose families IFEval does not test."""
    marked = set()
    for line in (STUDY / "ifeval_families.tsv").read_text().splitlines()[1:]:
        marked.add(line.split("\t")[0])
    rows = parts_of(path).get("constraints", [])
    return {row["id"] for row in rows if row["family"] not in marked}


def not_implied(path: Path) -> set[str]:
    """The ids of a seed's held-out constraints that no trained one implies, or is a part of.

    By reading (implied.tsv): what a training says of them, strong/data.py cannot tell from chance.
    """
    rows = parts_of(path).get("constraints", [])
    trained = {row["instruction"] for row in rows if row["split"] == "train"}
    implied = set()
    for line in (STUDY / "implied.tsv").read_text().splitlines()[1:]:
        given, other = line.split("\t")
        if given in trained:
            implied.add(other)
    return {row["id"] for row in rows if row["instruction"] not in implied}


def about_constraints(path: Path, field: str) -> dict[str, str]:
    """{id: family or kind} of a seed's constraints."""
    return {row["id"]: row[field] for row in parts_of(path).get("constraints", [])}


def answers_of(path: Path, model: str, benchmark: str) -> list[dict]:
    """The points of each answer of a seed's model, {metric: points}; [] where not measured."""
    part = f"{model}_greedy/heldout" if benchmark == "greedy" else f"{model}/{benchmark}"
    # greedily the base model answers the same whatever the seed: it is measured in one
    sampled = benchmark in ("heldout", "topic")
    if model == "base" and not sampled and path.name.startswith("seed_"):
        of_seeds = sorted(path.parent.glob(f"seed_*{SUFFIX}"))
        path = next((each for each in of_seeds if part in parts_of(each)), path)
    return [row["points"] for row in parts_of(path).get(part, [])]


@functools.cache  # every column of a model asks for them
def points_of(path: Path, model: str, benchmark: str) -> dict[str, list]:
    """{metric: points} of a seed's model; empty where it was not measured."""
    metrics = defaultdict(list)
    for row in answers_of(path, model, benchmark):
        for metric, points in row.items():
            metrics[metric] += points
        # an answer that obeys and answers something else has not done what was asked
        if "relevance" in row:
            [(stratum, item, passed, one)], [(*_, answers, _)] = row["Held-out"], row["relevance"]
            metrics["obeyed, on topic"].append((stratum, item, passed and answers, one))
    if benchmark == "heldout":
        kinds = about_constraints(path, "kind")
        subsets = {"not in IFEval": not_in_ifeval(path), "not implied": not_implied(path)}
        for point in metrics["Held-out"]:
            constraint = point[1].split("-")[0]
            for name, ids in subsets.items():
                if constraint in ids:
                    metrics[name].append(point)
            metrics[kinds.get(constraint)].append(point)
        metrics["alike in length"] = alike_in_length(path, model)
    return metrics


def not_on_length(path: Path, model: str) -> tuple[list[dict], np.ndarray]:
    """The answers where the constraint does not ask for a length, and the bin of the length."""
    rows = [row for row in answers_of(path, model, "heldout") if "Held-out other" in row]
    return rows, np.digitize([row["words"][0][2] for row in rows], LENGTHS)


def alike_in_length(path: Path, model: str) -> list[tuple]:
    """The points of "not on length", weighted to the lengths of the base model's answers.

    Each of LENGTHS' bins counts as much as it does there: what is left of a gain is not made by
    writing shorter or longer answers.
    """
    (rows, bins), (_, base_bins) = not_on_length(path, model), not_on_length(path, "base")
    if not rows:
        return []
    shares, base_shares = (
        np.bincount(each, minlength=len(LENGTHS) + 1) / len(each) for each in (bins, base_bins)
    )
    points = []
    for row, weight in zip(rows, base_shares[bins] / shares[bins]):
        for stratum, item, passed, _ in row["Held-out other"]:
            points.append((stratum, item, weight * passed, weight))
    return points


def totals(paths: list[Path], model: str, column: str) -> dict[str, dict[str, np.ndarray]]:
    """{seed: {item: (above, below) of each metric of the column, shape (metrics, 2)}}."""
    benchmark, metrics, _ = COLUMNS[column]
    of_seeds = {}
    for path in paths:
        points = points_of(path, model, benchmark)
        if not all(points[metric] for metric in metrics):
            continue
        items = defaultdict(lambda: np.zeros((len(metrics), 2)))
        for place, metric in enumerate(metrics):
            for _, item, above, below in points[metric]:
                items[item][place] += (above, below)
        of_seeds[seed_of(path)] = items
    return of_seeds


def shared(paths: list[Path], models: list[str], column: str) -> tuple[list[str], dict]:
    """The seeds that all measured models have, and their totals; nothing without the first."""
    measured = {model: totals(paths, model, column) for model in models}
    measured = {model: seeds for model, seeds in measured.items() if seeds}
    if models[0] not in measured:
        return [], {}
    return sorted(set.intersection(*(set(each) for each in measured.values()))), measured


def compared(paths: list[Path], models: list[str], column: str) -> tuple[list[str], dict]:
    """Seeds, and {model: (its number, its gain over the first model)}: (value, low, high) each.

    Models are compared on the seeds and items that all of them have, drawn for all at once. A model
    that was not measured is left out; without the first there is nothing.
    """
    seeds, measured = shared(paths, models, column)
    if not seeds:
        return [], {}
    values_M, drawn_RM = resampled(list(measured.values()), seeds)

    def interval(value: float, drawn_R: np.ndarray) -> tuple[float, ...]:
        bounds = (value, *intervals.middle(drawn_R))
        return tuple(float(each) * COLUMNS[column][2] for each in bounds)

    models_shown = {}
    for model, value, drawn_R in zip(measured, values_M, drawn_RM.T):
        gain = interval(value - values_M[0], drawn_R - drawn_RM[:, 0])
        models_shown[model] = (interval(value, drawn_R), gain)
    return seeds, models_shown


def resampled(totals_of: list[dict], seeds: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The column of each model, shape (models,), and on RESAMPLES draws, shape (R, models)."""
    items = sorted(set.intersection(*(set(each[seed]) for each in totals_of for seed in seeds)))
    sums = []
    for of_model in totals_of:
        for seed in seeds:
            sums.append([of_model[seed][item] for item in items])
    # shape (models, seeds, items, metrics, 2)
    sums = np.array(sums).reshape(len(totals_of), len(seeds), len(items), -1, 2)

    rng = np.random.default_rng(0)
    even_S, even_I = np.full(len(seeds), 1 / len(seeds)), np.full(len(items), 1 / len(items))
    seeds_RS = rng.multinomial(len(seeds), even_S, size=RESAMPLES)
    items_RI = rng.multinomial(len(items), even_I, size=RESAMPLES)

    def shares(drawn: np.ndarray) -> np.ndarray:
        return (drawn[..., 0] / drawn[..., 1]).mean(axis=-1)

    drawn = np.einsum("rs,ri,msixt->rmxt", seeds_RS, items_RI, sums, optimize=True)
    return shares(sums.sum(axis=(1, 2))), shares(drawn)


# ---- table and picture --------------------------------------------------------------------------


def shown(column: str, interval: tuple[float, ...] | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    digits = 3 if column == "nats a token" else 1
    value, low, high = (f"{each:{sign}.{digits}f}" for each in interval[:3])
    # of so many families or prompts, where it is by them
    return f"{value} [{low}, {high}]" + "".join(f" of {each}" for each in interval[3:])


def headed(column: str, seeds: list[str], paths: list[Path]) -> str:
    """The column's name, with the seeds that all of its models have where these are not all."""
    if len(seeds) == len(paths):
        return column
    return f"{column} ({', '.join(seeds)})".replace("_", " ")


def columns_of(*benchmarks: str) -> list[str]:
    return [name for name, (benchmark, *_) in COLUMNS.items() if benchmark in benchmarks]


def name_of(path: Path) -> str:
    """`seed 1`, or what a run is that is not of one seed."""
    name = seed_of(path)
    return RUNS.get(name, name.replace("_", " "))


def table_of(
    paths: list[Path], columns: list[str], models: dict[str, str], compared=compared
) -> str:
    """The models' numbers, and under them what each gains over the first; "" without any."""
    header, numbers, gains = ["", "model"], defaultdict(list), defaultdict(list)
    for column in columns:
        seeds, measured = compared(paths, list(models), column)
        if not measured:
            continue
        header.append(headed(column, seeds, paths))
        for model in models:
            number, gain = measured.get(model, (None, None))
            numbers[model].append(shown(column, number))
            gains[model].append(shown(column, gain, "+"))
    lines = []
    for number, (model, title) in enumerate(models.items(), 1):
        lines.append([number, title, *numbers[model]])
    first, *others = models
    for number, model in enumerate(others, 2):
        lines.append([f"{number} - 1", f"{model} - {first}", *gains[model]])
    return table.markdown(header, lines) if header[2:] else ""


def variants_of(path: Path, columns: list[str], known=MODELS, compared=compared) -> str:
    """The table of a seed's variants, in the columns that any of them has; "" without variants."""
    others = []
    for part in parts_of(path):
        model, _, benchmark = part.partition("/")
        if benchmark == "heldout" and model not in known and not model.endswith("_greedy"):
            others.append(model)
    models = {name: known.get(name, name) for name in ("base", "sft", *sorted(others))}
    had = []
    for column in columns:
        if any(totals([path], name, column) for name in others):
            had.append(column)
    return table_of([path], had, models, compared)


def by_seed(paths: list[Path], first: Path) -> str:
    """What each trained model gains over the base model, in each seed by itself and in all."""
    columns = [*SHOWN, "IFBench", "words"]
    runs = {"all seeds": paths, **{name_of(each): [each] for each in (*paths, first)}}
    lines = []
    for model in list(MODELS)[1:]:
        for name, those in runs.items():
            line = [f"{model} - base", name]
            for column in columns:
                seeds, measured = compared(those, ["base", model], column)
                whole = len(seeds) == len(those) and model in measured
                line.append(shown(column, measured[model][1] if whole else None, "+"))
            lines.append(line)
    return table.markdown(["by seed", "run", *columns], lines)


def funnel(paths: list[Path]) -> str:
    """What became of the data, beside the paper's table 5."""
    lines = []
    for path in paths:
        [stats] = parts_of(path)["stats"]
        if "06_dpo pairs" not in stats:  # a run that went no further than SFT
            continue
        responses, pairs = stats["04_responses"], stats["06_dpo pairs"]["pairs"]
        counted = [responses["in"], responses["kept"], sum(pairs.values())]
        rate = f"{responses['kept'] / responses['in']:.0%}"
        above = f"{responses['share above 8']:.0%} on topic"  # stage 04's --score topic
        lines.append([name_of(path), *counted, rate, above])
    paper = dict(stats["04_responses"]["paper_table_5"])
    del paper["columns"]
    for name, (raw, sft, dpo, above) in paper.items():
        lines.append([f"paper, {name}", raw, sft, dpo, f"{sft / raw:.0%}", f"{above:.0%}"])
    header = ["supervisor", "raw samples", "SFT rows", "DPO pairs", "SFT of raw", "share above 8"]
    return table.markdown(header, lines)


def draw(paths: list[Path], path: Path, models=MODELS, columns=SHOWN, compared=compared) -> None:
    """Bars of each column's models, and under them what each gains over the base model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    bars, gains = figure.subplots(2, sharex=True, height_ratios=[3, 2])
    for place, title in enumerate(models.values()):
        bars.bar(0, 0, color=f"C{place}", label=title)  # for the legend
    names, width = [], 0.8 / len(models)
    for column in columns:
        seeds, measured = compared(paths, list(models), column)
        if not measured:
            continue
        x = len(names)
        names.append(re.sub("(?<=[,:]) | (?=[(])", "\n", headed(column, seeds, paths)))
        for place, model in enumerate(models):
            if model not in measured:
                continue
            left, color = x + (place - (len(models) - 1) / 2) * width, f"C{place}"
            (value, low, high, *_), (gain, least, most, *_) = measured[model]
            bars.bar(left, value, width, color=color)
            bars.errorbar(left, value, [[value - low], [high - value]], capsize=2, color="k")
            if model != "base":
                bounds = [[gain - least], [most - gain]]
                gains.errorbar(left, gain, bounds, fmt="o", capsize=2, c=color)
    gains.axhline(0, color="k", linewidth=0.8)
    gains.set_xticks(range(len(names)), names)
    bars.set_ylabel("per cent, 95 % interval")
    gains.set_ylabel("points over base")
    bars.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def measured_in(results: Path, models: list[str], seeds: list[str]) -> list[Path]:
    """The files of the seeds; UserError where one lacks held-out answers of a model."""
    paths = [results / f"seed_{seed}{SUFFIX}" for seed in seeds]
    for path, model in itertools.product(paths, models):
        if not answers_of(path, model, "heldout"):
            measured = ", ".join(part for part in sorted(parts_of(path)) if "/" in part)
            raise UserError(f"{path} has no held-out answers of {model}, but {measured or 'none'}")
    return paths


def compare(results: Path, models: list[str], seeds: list[str]) -> str:
    """The table of any models and seeds: what each gains over the first model named."""
    paths = measured_in(results, models, seeds)
    return table_of(paths, list(COLUMNS), {name: MODELS.get(name, name) for name in models})


def write(results: Path) -> str:
    """Make table.md and bars.png of all results; of tries alone (study/tune.sh) their table."""
    paths = sorted(results.glob(f"seed_*{SUFFIX}"))
    first, no_score, float32, tuned = (
        results / f"{name}{SUFFIX}" for name in ("first_run", "no_score", "float32", "tuning")
    )
    if not paths and not parts_of(tuned):
        raise UserError(f"{results} has no seed_N{SUFFIX}; run study/run.sh first")
    if not paths:  # study/tune.sh alone
        return variants_of(tuned, columns_of("heldout"))
    seeds = ", ".join(seed_of(path).removeprefix("seed_") for path in paths)
    parts = [f"Shares in per cent with 95 % intervals over seeds and items; seeds: {seeds}.\n"]
    heldout = columns_of("heldout")
    for columns in (
        heldout,
        columns_of("greedy", "ifeval"),
        columns_of("ifbench", "mmlu", "gsm8k", "perplexity"),
    ):
        parts.append(table_of(paths, columns, MODELS))
    parts += [by_seed(paths, first), funnel(paths)]
    parts.append("Seed 1 without the score that holds answers to their query (`--no-score`):\n")
    greedy = ["greedy: held-out", "greedy: obeyed, on topic"]
    fewer = [*heldout, *greedy, "IFEval", "nats a token"]
    parts.append(table_of([no_score], fewer, MODELS))
    parts.append("Seed 2 with float32 passes, and float32 weights handed on:\n")
    parts.append(table_of([float32], fewer, MODELS))
    for path in (*paths, first, float32, tuned):
        if rows := variants_of(path, fewer):
            parts += [f"Variants of {name_of(path)}:\n", rows]
    text = "\n".join(parts)
    files.write_whole(results / "table.md", text)
    draw(paths, results / "bars.png")
    return text


# ---- commands -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Results:
    results: Path = STUDY / "results"


@dataclass(kw_only=True)
class Run(Results):
    out: Positional[Path]  # out/study/seed_N


@dataclass(kw_only=True)
class Split:
    input: Positional[Path]  # 03_instructions.jsonl
    out: Positional[Path]  # the same with some training families held out instead


@dataclass(kw_only=True)
class Models(Results):
    models: Positional[Texts]  # as in table.md's lines: base, sft, offline, ...
    seeds: Texts  # such as 1 2 3


def collect_run(args: Run) -> None:
    collect(args.out, args.results / f"{args.out.name}{SUFFIX}")


def split(args: Split) -> None:
    tuning(args.input, args.out)


def print_table(args: Results) -> None:
    print(write(args.results))


def print_comparison(args: Models) -> None:
    print(compare(args.results, args.models, args.seeds))


def print_cost(args: Run) -> None:
    print(cost(args.out))


COMMANDS = {
    "collect": collect_run,
    "tuning": split,
    "table": print_table,
    "compare": print_comparison,
    "cost": print_cost,
}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
