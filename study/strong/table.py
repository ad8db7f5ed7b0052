"""The second study's table, by t over seeds and families (effects.py).

    python study/strong/table.py table                 # -> results/smollm2/table.md and bars.png
    python study/strong/table.py compare base offline --seeds 1 2 3 --results study/results
    python study/strong/table.py seeds offline online_fixed --seeds 1 2 3 --difference 2
    python study/strong/table.py texts out/strong/smollm2/seed_1   # all answers, to be read
    python study/strong/table.py readers                           # "on topic", by reading 60

Raw results are as the first study's (study/results.py collects them): a file a seed. `seeds` says
how many of them would find such a difference, by how much the gain differs in those that are there.
"""

import itertools
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

STRONG = Path(__file__).resolve().parent
sys.path.insert(0, str(STRONG.parents[1]))  # run from a checkout, uninstalled
from autoif import files  # noqa: E402
from autoif.evaluation import table  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import Positive, Texts, cli  # noqa: E402
from study import results as raw  # noqa: E402
from study.strong import effects  # noqa: E402

# of study/strong/arms.sh
ARMS = {
    "base": "the student",
    "sft": "+ SFT",
    "offline": "+ SFT + offline DPO",
    "online_fixed_1": "+ SFT + online DPO, the first iteration",
    "online_fixed": "+ SFT + online DPO, the SFT model as reference",
    "online_moving": "+ SFT + online DPO, each iteration's start as reference",
    "online_from_offline": "+ SFT + offline DPO + online DPO",
}
HELDOUT = ["held-out", "not on length", "that, alike in length", "not implied", *raw.KINDS]
TOPIC = ["on topic", "obeyed, on topic", *raw.columns_of("topic"), "words", "cut"]
# the columns of the picture
SHOWN = ["held-out", "not on length", "on topic", "obeyed, on topic", "cut", "IFEval"]


# ---- measure ------------------------------------------------------------------------------------


def clustered(paths: list[Path], models: list[str], column: str) -> tuple[list[str], dict]:
    """Seeds, and {model: what each family (or prompt) adds to its number, shape (S, C)}."""
    splits = {path.parent: [] for path in paths}
    for path in paths:
        splits[path.parent].append(path)
    if len(splits) > 1:
        return over_splits(list(splits.values()), models, column)
    seeds, measured = raw.shared(paths, models, column)
    if not seeds:
        return [], {}
    families_of = {}
    for path in paths:
        families_of |= raw.about_constraints(path, "family")
    sums_of = {}
    for model, seed in itertools.product(measured, seeds):
        sums_of[model, seed] = sums = {}
        for item, totals_M2 in measured[model][seed].items():
            # h00002-3: an answer to the fourth query of a constraint
            cluster = families_of.get(item.split("-")[0], item)
            sums[cluster] = sums.get(cluster, 0) + totals_M2
    clusters = sorted(set.intersection(*map(set, sums_of.values())))
    values = {}
    for model in measured:
        values[model] = np.zeros((len(seeds), len(clusters)))
        for place, seed in enumerate(seeds):
            sums_CM2 = np.array([sums_of[model, seed][cluster] for cluster in clusters])
            values[model][place] = effects.of_clusters(sums_CM2) * raw.COLUMNS[column][2]
    return seeds, values


def over_splits(splits: list[list[Path]], models: list[str], column: str) -> tuple:
    """As clustered, over all splits' families: of each the mean of its seeds, shape (1, C)."""
    seeds, found, values = [], [], {}
    for paths in splits:
        of_split, values_of_split = clustered(paths, models, column)
        seeds += of_split
        found.append(values_of_split)
    for model in models:
        if all(model in each for each in found):
            values[model] = np.concatenate([each[model].mean(axis=0) for each in found])[None]
    return (seeds, values) if models[0] in values else ([], {})


def by_families(paths: list[Path], models: list[str], column: str) -> tuple[list[str], dict]:
    """As results.compared, by t over seeds and families: (value, low, high, families) each."""
    seeds, values = clustered(paths, models, column)
    models_shown = {}
    for model, values_SC in values.items():
        clusters = values_SC.shape[1]
        gain = effects.interval(values_SC - values[models[0]])
        models_shown[model] = ((*effects.interval(values_SC), clusters), (*gain, clusters))
    return seeds, models_shown


def needed(results: Path, models: list[str], seeds: list[str], column: str, gain: float) -> str:
    """How many seeds find so many points between two models, by the seeds that are there."""
    _, values = clustered(raw.measured_in(results, models, seeds), models, column)
    if len(values) < 2:
        raise UserError(f"{results} has no {column} of both {' and '.join(models)} in a seed")
    first, second = (values[model] for model in models)
    if len(first) < 2:
        raise UserError("what seeds differ by shows in two at least; give more --seeds")
    number = effects.seeds_needed(second - first, gain) or "more than 100"
    by = f"{len(first)} seeds and {first.shape[1]} families or prompts"
    found = f"a difference of {gain:g} takes {number} seeds (power {effects.POWER}; by {by})"
    return f"{column}, {models[1]} - {models[0]}: {found}"


# ---- table --------------------------------------------------------------------------------------


def constraints(path: Path) -> str:
    """How many constraints of each kind were trained on and are held out."""
    lines = []
    for split in ("train", "heldout"):
        rows = [row for row in raw.parts_of(path)["constraints"] if row["split"] == split]
        kinds = Counter(row["kind"] for row in rows)
        families = len({row["family"] for row in rows})
        lines.append([split, len(rows), families, *(kinds[kind] for kind in raw.KINDS)])
    return table.markdown(["constraints", "number", "families", *raw.KINDS], lines)


def trainings(paths: list[Path]) -> list[tuple]:
    """(model, iteration, its training, what was measured before) of all DPO that there is."""
    found = [("offline", "", "variants_offline_06_offline", "")]
    for arm in ARMS:
        of_arm = []
        for number in range(1, 10):  # the first of online_moving is online_fixed's
            folder = f"variants_{arm}_online_{number}"
            if any(steps_of(path, f"{folder}_06_dpo") for path in paths):
                of_arm.append((f"{arm}_{number}", number, f"{folder}_06_dpo", f"{folder}_before"))
        if of_arm:  # the last iteration's model is the arm's
            of_arm[-1] = (arm, *of_arm[-1][1:])
        found += of_arm
    return found


def steps_of(path: Path, name: str) -> list[dict]:
    """The steps of a training in a seed's file; [] where there was none."""
    return raw.parts_of(path).get(f"{name}.metrics", [])


def number_of(path: Path) -> str:
    return raw.seed_of(path).removeprefix("seed_")


def mean_of(rows: list[dict], field: str) -> str:
    """Of the rows that have it; nothing is known before the first training: all is 0."""
    values = [row[field] for row in rows if field in row]
    return f"{sum(values) / len(values):.2f}" if any(values) else "-"


def iterations(paths: list[Path]) -> str:
    """What each training by DPO saw and made.

    In the mean of its seeds margin and accuracy on its new pairs before it began, by what earlier
    ones had learned, and of those on the pairs of its own responses; the rewards of the last
    quarter of its steps; the answers of its model.
    """
    rewards = ["margin", "accuracy", "chosen", "rejected"]
    before = [*rewards[:2], "margin of responses", "accuracy of responses"]
    answers, lines = ["held-out", "on topic", "words", "cut"], []
    for model, number, name, earlier in trainings(paths):
        seeds = [path for path in paths if steps_of(path, name)]
        if not seeds:
            continue
        fresh, late = [], []
        for path in seeds:
            fresh += steps_of(path, earlier)
            steps = steps_of(path, name)
            late += steps[-max(1, len(steps) // 4) :]
        line = [model, number, ", ".join(map(number_of, seeds)), len(steps)]
        line += [mean_of(fresh, field) for field in before]
        line += [mean_of(late, field) for field in rewards]
        for column in answers:
            _, measured = by_families(seeds, [model], column)
            line.append(raw.shown(column, measured[model][0] if measured else None))
        lines.append(line)
    named = [f"before: {field}" for field in before]
    header = ["arm", "iteration", "seeds", "steps", *named, *rewards, *answers]
    return table.markdown(header, lines)


def differences(paths: list[Path], arms: list[str], columns: list[str]) -> str:
    """What each arm gains over each before it, on the seeds that both have."""
    lines = []
    for first, second in itertools.combinations(arms, 2):
        cells = []
        for column in columns:
            _, measured = by_families(paths, [first, second], column)
            _, gain = measured.get(second, (None, None))
            cells.append(raw.shown(column, gain, "+"))
        lines.append([f"{second} - {first}", *cells])
    return table.markdown(["difference", *columns], lines)


def agreement(paths: list[Path]) -> str:
    """How the measures of being on topic go together, over all answers of all models."""
    pairs = defaultdict(list)
    for parts in map(raw.parts_of, paths):
        for part in parts:
            model, _, benchmark = part.partition("/")
            for row, answer in zip(parts[part], parts.get(f"{model}/heldout", ())):
                if benchmark == "topic":
                    near = answer["points"]["relevance"][0][2]
                    for name, [point] in row["points"].items():
                        pairs[name].append((near, point[2]))
    lines = []
    for name, values in pairs.items():
        both = np.corrcoef(np.array(values, float).T)[0, 1]
        lines.append(f"On topic by embeddings, and by {name}: r = {both:.2f} ({len(values)}).\n")
    return "".join(lines)


def readers(path: Path) -> str:
    """Each measure of being on topic beside two blind readers of the same answers (read.jsonl)."""
    rows = list(files.read(path, ["query", "answer", "encoder", "TF-IDF", "own query", "readers"]))
    agreed = [row for row in rows if row["readers"][0] == row["readers"][1]]
    lines = [["the other reader", f"{len(agreed)} of {len(rows)}", ""]]
    for name in ("encoder", "TF-IDF", "own query"):
        said = np.array([[row[name], row["readers"][0]] for row in agreed], float).T
        same = int((said[0] == said[1]).sum())
        lines.append([name, f"{same} of {len(agreed)}", f"{np.corrcoef(said)[0, 1]:.2f}"])
    return table.markdown(["on topic by", "as the reader says", "r"], lines)


def measured_arms(paths: list[Path]) -> dict[str, str]:
    """Those of ARMS that all files have."""
    measured = set.intersection(*(set(raw.parts_of(path)) for path in paths))
    return {arm: title for arm, title in ARMS.items() if f"{arm}/heldout" in measured}


def of_seeds(results: Path, paths: list[Path], arms: dict[str, str]) -> list[str]:
    """The tables of the arms that all seeds have, and of the splits."""
    seeds = ", ".join(map(number_of, paths))
    parts = [
        "Shares in per cent with 95 % intervals by t over seeds and clusters, and of how many "
        f"clusters: families of held-out constraints, prompts of benchmarks; seeds: {seeds}.\n"
    ]
    for columns in (
        HELDOUT,
        TOPIC,
        raw.columns_of("greedy"),
        raw.columns_of("ifeval"),
        raw.columns_of("ifbench", "perplexity"),
    ):
        parts.append(raw.table_of(paths, columns, arms, by_families))
    parts.append(differences(paths, list(arms)[1:], [*HELDOUT, *TOPIC]))
    splits = defaultdict(list)
    for path in sorted(results.glob(f"split_*/seed_*{raw.SUFFIX}")):
        splits[path.parent.name.replace("_", " ")].append(path)
    if splits:
        name = "All splits, of each the mean of its seeds, with intervals by families alone"
        splits[name] = [*paths, *itertools.chain(*splits.values())]
    for name, of_split in splits.items():
        everywhere = measured_arms(of_split)
        parts += [
            f"{name.capitalize()}:\n",
            raw.table_of(of_split, [*HELDOUT, *TOPIC], everywhere, by_families),
            differences(of_split, list(everywhere)[1:], [*HELDOUT, *TOPIC]),
        ]
    return [*parts, iterations(paths), constraints(paths[0]), agreement(paths)]


def write(results: Path) -> str:
    """Make table.md and bars.png of the second study; of tries alone (study/tune.sh) the table."""
    paths = sorted(results.glob(f"seed_*{raw.SUFFIX}"))
    # an arm that some seeds lack would narrow all rows to the others: it is among "other arms"
    arms = measured_arms(paths) if paths else {}
    parts = of_seeds(results, paths, arms) if arms else []
    named = dict.fromkeys(paths, arms)
    for name in ("first_run", "tried", "tuning", "tuning_online"):  # no rows above
        named[results / f"{name}{raw.SUFFIX}"] = {model: ARMS[model] for model in ("base", "sft")}
    for path, titles in named.items():
        if rows := raw.variants_of(path, [*HELDOUT, *TOPIC], titles, by_families):
            parts += [f"Other arms of {raw.name_of(path)}:\n", rows]
    if not parts:
        raise UserError(f"{results} has no seed_N{raw.SUFFIX}; STUDY=strong bash study/run.sh")
    text = "\n".join(filter(None, parts))
    files.write_whole(results / "table.md", text)
    if arms:
        raw.draw(paths, results / "bars.png", arms, SHOWN, by_families)
    return text


# ---- commands -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Results:
    results: Path = STRONG / "results" / "smollm2"


@dataclass(kw_only=True)
class Run(Results):
    out: Positional[Path]  # out/strong/smollm2/seed_N


@dataclass(kw_only=True)
class Models(Results):
    models: Positional[Texts]  # as in the tables' lines: base, sft, offline, ...
    seeds: Texts  # that are there, such as 1 2 3


@dataclass(kw_only=True)
class Seeds(Models):
    difference: Positive  # in points
    column: Literal[tuple(raw.COLUMNS)] = "held-out"


@dataclass(kw_only=True)
class Readers:
    path: Path = STRONG / "read.jsonl"  # answers, what the measures say, what two readers say


def print_seeds(args: Seeds) -> None:
    if len(args.models) != 2:
        raise UserError("name two models")
    print(needed(args.results, args.models, args.seeds, args.column, args.difference))


def print_comparison(args: Models) -> None:
    """The table of any models and seeds, of the first study's too."""
    paths = raw.measured_in(args.results, args.models, args.seeds)
    models = {model: model for model in args.models}
    print(raw.table_of(paths, list(raw.COLUMNS), models, by_families))


def print_table(args: Results) -> None:
    print(write(args.results))


def print_readers(args: Readers) -> None:
    print(readers(args.path))


def write_texts(args: Run) -> None:
    """Every answer to a held-out constraint, to be read: a part a model."""
    parts = {}
    for items in args.out.glob("07_items/*/heldout.jsonl"):
        parts[items.parent.name] = rows = []
        for row in files.read(items, ["id", "prompt", "answers", "verdict", "relevant"]):
            about = {name: row[name] for name in ("id", "prompt", "verdict", "relevant")}
            rows.append({**about, "answer": row["answers"][0]})
    raw.write_parts(args.results / f"texts_{args.out.name}{raw.SUFFIX}", parts)


COMMANDS = {
    "table": print_table,
    "compare": print_comparison,
    "seeds": print_seeds,
    "texts": write_texts,
    "readers": print_readers,
}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
