"""Read a run's folder into what the page shows; a part whose stage has not run is left out.

Of many rows a sample is kept, drawn with a seed that the page states. All counts are of all rows.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoif import files, reward
from autoif.card import public
from autoif.evaluation import intervals
from autoif.evaluation.results import differences
from autoif.files import UserError

PROBED = 500  # constraints, at most, that the probes are run on: seconds, not minutes
MODELS = ["05_sft", "06_offline", "online_*/06_dpo"]  # where run_all.sh trains
MAIN = "stage 04"  # the name of the run's own responses, beside online_1, online_2, ...


def rows_of(path: Path) -> Iterable[dict]:
    """The rows of a file, none where there is no such file."""
    return files.read(path) if path.is_file() else []


def read_json(path: Path, default: object) -> object:
    if not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def draw(drawn: list[dict], number: int, row: dict, size: int, rng: random.Random) -> None:
    """Offer row `number` of many to `drawn`, which after the last one is an even sample of `size`.

    So no more than the sample is held in memory, however many rows there are.
    """
    if number < size:
        drawn.append(row)
    elif (place := rng.randrange(number + 1)) < size:
        drawn[place] = row


def share(count: int, total: int) -> float | None:
    return count / total if total else None


# ---- constraints and their functions ----


def verdict_of(row: dict, function: int) -> str | None:
    """The one verdict that a function gives all cases of its constraint; None where they differ."""
    verdicts = {case["verdicts"][function] for case in row["cases"] if case.get("verdicts")}
    # a single case has a single verdict whatever the function is
    if len(verdicts) != 1 or len(row["cases"]) < 2:
        return None
    return verdicts.pop()


def quality(rows: Iterable[dict]) -> dict:
    """What the kept functions and cases are like, over all constraints."""
    found = {
        "functions": Counter(),
        "cases": Counter(),
        "accuracy": [],
        "agreement": [],
        "constant": Counter(),
        "split": Counter(),
        "families": Counter(),
    }
    for row in rows:
        found["functions"][len(row["verifiers"])] += 1
        found["cases"][len(row["cases"])] += 1
        found["split"][row.get("split", "not yet split")] += 1
        if "family" in row:
            found["families"][row["family"]] += 1
        found["accuracy"] += [verifier["accuracy"] for verifier in row["verifiers"]]
        found["agreement"] += [case["agreement"] for case in row["cases"] if "agreement" in case]
        for function in range(len(row["verifiers"])):
            found["constant"][verdict_of(row, function)] += 1
    return found


def probed(rows: list[dict], seed: int, options: dict) -> dict:
    """What earns a reward without an answer, on at most PROBED constraints."""
    drawn = random.Random(seed).sample(rows, min(PROBED, len(rows)))
    verifiers = reward.Verifiers({row["id"]: row for row in drawn}, "the run", **options)
    try:
        return {"found": reward.probe(verifiers), "of": len(rows)}
    except UserError as error:  # no sandbox here: the rest of the page does without
        return {"error": str(error), "of": len(rows)}
    finally:
        verifiers.close()


def dropped_constraints(out: Path) -> Iterator[dict]:
    for stage in ("01_instructions", "02_verifiers", "03_instructions"):
        for row in rows_of(out / f"{stage}.dropped.jsonl"):
            functions = [{"code": code} for code in row.get("functions", [])]
            yield {"verifiers": functions, "cases": [], **row, "stage": stage}


def shown_constraint(row: dict, sides: dict) -> dict:
    """A constraint as the page shows it, kept or dropped; `sides` are those of its cases' pairs."""
    names = ("id", "instruction", "source", "family", "split", "reason", "stage")
    shown = {name: row[name] for name in names if name in row}
    shown["functions"], shown["cases"] = [], []
    for verifier in row.get("verifiers", []):
        function = {"code": verifier["code"], "accuracy": verifier.get("accuracy")}
        shown["functions"].append(function)
    for case in row.get("cases", []):
        side = sides.get((row.get("id"), case["input"]))
        shown["cases"].append({**case, "side": side})
    labels = row.get("nli", [])
    shown["back"] = list(zip(row.get("back_translations", []), labels))
    return shown


def constraints(out: Path, size: int, seed: int, options: dict) -> dict | None:
    """Quality, probes and a sample of constraints, of the latest stage that has finished."""
    latest_first = ("03_instructions", "02_verifiers", "01_instructions")
    written = [out / f"{name}.jsonl" for name in latest_first]
    path = next(filter(Path.is_file, written), written[-1])
    kept = list(rows_of(path))
    if not kept:
        return None
    rng = random.Random(seed)
    shown = rng.sample(kept, min(size, len(kept)))
    lost = list(dropped_constraints(out))
    lost = rng.sample(lost, min(size, len(lost)))
    sides = paired(out, {row["id"] for row in shown})
    made = {"count": len(kept), "quality": None, "probes": None}
    made["families"] = {row["id"]: row["family"] for row in kept if "family" in row}
    made["shown"] = [shown_constraint(row, sides) for row in shown + lost]
    if path != written[-1]:  # stage 02 has made functions
        made |= {"quality": quality(kept), "probes": probed(kept, seed, options)}
    return made


# ---- responses ----


def outcomes(folder: Path, wanted: set[str]) -> tuple[set[str], dict[str, list]]:
    """(ids of kept responses, drop reasons by prompt in the order of its responses)."""
    kept = set()
    for row in rows_of(folder / "04_sft.jsonl"):
        if row["id"].rpartition(".")[0] in wanted:
            kept.add(row["id"])
    dropped = defaultdict(list)
    for row in rows_of(folder / "04_responses.dropped.jsonl"):
        if row["id"] in wanted and "text" in row:  # one without a text was never answered
            dropped[row["id"]].append(row["reason"])
    return kept, dropped


def paired(folder: Path, wanted: set[str]) -> dict[tuple[str, str], str]:
    """{(prompt's id, text): "chosen" or "rejected"} of the pairs made of these prompts."""
    sides = {}
    for row in rows_of(folder / "06_pairs.jsonl"):
        prompt = row["id"].split("/")[0]
        if prompt in wanted:
            for side in ("chosen", "rejected"):
                sides[prompt, row[side][-1]["content"]] = side
    return sides


def pass_rate(row: dict) -> float:
    """As stage 04 noted it, else the share of responses that more than half the functions pass."""
    if row.get("pass_rate") is not None:
        return row["pass_rate"]
    return sum(each["accuracy"] > 0.5 for each in row["responses"]) / len(row["responses"])


def outcome_of(number: int, row: dict, kept: set[str], dropped: dict[str, list]) -> str:
    if f"{row['id']}.{number}" in kept:
        return "kept"
    reasons = dropped[row["id"]]
    if not reasons:
        return "not accounted for"
    return reasons.pop(0)


def shown_prompt(row: dict, source: str, kept: set, dropped: dict, sides: dict) -> dict:
    """A prompt with its responses as the page shows them."""
    responses = []
    for number, response in enumerate(row["responses"]):
        responses.append(
            {
                **response,
                "outcome": outcome_of(number, row, kept, dropped),
                "side": sides.get((row["id"], response["text"])),
            }
        )
    names = ("id", "instruction_id", "instruction", "query", "prompt")
    shown = {name: row[name] for name in names if name in row}
    rate = pass_rate(row) if responses else None
    return {**shown, "source": source, "pass_rate": rate, "responses": responses}


def responses(folder: Path, name: str, size: int, seed: int) -> dict | None:
    """Pass rates, lengths and a sample of prompts of one 04_responses.jsonl."""
    path = folder / "04_responses.jsonl"
    if not path.is_file():
        return None
    rates, lengths, drawn = [], {"passed": [], "not passed": []}, []
    truncated, scored, above_8 = 0, 0, 0
    rng = random.Random(seed)
    for number, row in enumerate(files.read(path)):
        draw(drawn, number, row, size, rng)
        if row["responses"]:
            rates.append(pass_rate(row))
        for response in row["responses"]:
            side = "passed" if response["accuracy"] > 0.5 else "not passed"
            lengths[side].append(len(response["text"]))
            truncated += response.get("finish_reason") == "length"
            scored += response.get("score") is not None
            above_8 += (response.get("score") or 0) > 8
    wanted = {row["id"] for row in drawn}
    kept, dropped = outcomes(folder, wanted)
    sides = paired(folder, wanted)
    return {
        "rates": rates,
        "lengths": lengths,
        "truncated": share(truncated, sum(map(len, lengths.values()))),
        "scored": scored,
        "above_8": above_8,
        "shown": [shown_prompt(row, name, kept, dropped, sides) for row in drawn],
    }


# ---- training and results ----


def curves(out: Path) -> dict[str, list[dict]]:
    """{model's folder: its metrics.jsonl}, the trained models in their order."""
    found = {}
    for pattern in MODELS:
        for folder in sorted(out.glob(pattern)):
            steps = list(rows_of(folder / "metrics.jsonl"))
            if steps:
                found[str(folder.relative_to(out))] = steps
    return found


def by_kind(out: Path, results: list[dict], families: dict[str, str]) -> dict[str, dict]:
    """{"kind" or "family": {its name: {model: interval}}} of the held-out benchmark's items.

    The kind is what stage 07 wrote beside an item (length or not), the family is stage 03's.
    """
    points = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for result in results:
        if result["benchmark"] != "heldout" or "items" not in result:
            continue
        for row in rows_of(out / result["items"]):
            constraint = re.sub(r"-\d+$", "", row["id"])
            names = {"kind": row.get("kind"), "family": families.get(constraint)}
            for group, name in names.items():
                if name is not None:
                    points[group][name][result["model"]] += row["points"].get("Held-out", [])
    measured = defaultdict(dict)
    for group, found in points.items():
        for name, models in sorted(found.items()):
            measured[group][name] = {}
            for model, each in models.items():
                measured[group][name][model] = intervals.interval(each)
    return measured


def made_with(out: Path) -> dict[str, str]:
    """{"date": ..., "commit": ..., "supervisor": ..., ...} of the settings files beside outputs."""
    found, dates, commits = {}, set(), {}
    # (name, whose settings, flag): what later stages say of the same name is of no account
    wanted = [
        ("supervisor", "01_instructions", "model"),
        ("supervisor", "02_verifiers", "model"),
        ("NLI", "03_instructions", "nli"),
        ("answers", "04_responses", "model"),
        ("base model", "05_sft", "model"),
        ("judge", "07_items/*/benchmarks", "judge_model"),
    ]
    for name, stage, flag in wanted:
        for path in out.glob(f"{stage}.settings.json"):
            value = read_json(path, {})["flags"].get(flag)
            if value:
                found.setdefault(name, public(value))
    for path in [*out.glob("*.settings.json"), *out.glob("07_items/*/*.settings.json")]:
        settings = read_json(path, {})
        dates.add(settings.get("date"))
        commits[settings.get("commit")] = None
    dates, commits = sorted(dates - {None}), [each for each in commits if each]
    if dates:
        found["date"] = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    if commits:
        found["commit"] = ", ".join(commits)
    return found


def compared(out: Path, results: list[dict]) -> list[list]:
    """Lines of the differences to the first model: the pair, and `results.differences`' cells."""
    measured, lines = {}, []
    for row in results:
        if "metrics" in row and (out / row.get("items", "")).is_file():
            measured[row["model"], row["benchmark"]] = row
    models = list(dict.fromkeys(model for model, _ in measured))
    for second in models[1:]:
        for (model, benchmark), row in measured.items():
            if model == models[0] and (second, benchmark) in measured:
                found = differences(out, benchmark, row, measured[second, benchmark])
                lines += [[f"{second} - {models[0]}", *line] for line in found]
    return lines


def gather(out: Path, size: int, seed: int, options: dict) -> dict:
    """Everything on the page; see the functions above for what each part holds."""
    made = constraints(out, size, seed, options)
    asked, stats = {}, {}
    for folder in [out, *sorted(out.glob("online_*"))]:
        name = MAIN if folder == out else folder.name
        stats[name] = read_json(folder / "stats.json", {})
        found = responses(folder, name, size, seed)
        if found:
            asked[name] = found
    if made is None and not any(stats.values()):
        raise UserError(f"{out} holds no row of a run; give the folder that run_all.sh wrote (OUT)")
    results = read_json(out / "07_results.json", [])
    families = made["families"] if made else {}
    return {
        "name": out.resolve().name,
        "stats": stats,
        "constraints": made,
        "responses": asked,
        "curves": curves(out),
        "results": results,
        "made with": made_with(out),
        "differences": compared(out, results),
        "by_kind": by_kind(out, results, families),
        "size": size,
        "seed": seed,
    }
