"""Read a run's folder into what the page shows; a part whose stage has not run is left out.

Of many rows a sample is kept, drawn with a seed that the page states. All counts are of all rows.
"""

import base64
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from autoif import folder, reward, sandbox, shards
from autoif.evaluation.results import differences
from autoif.files import UserError, read_json
from autoif.folder import rows

PROBED = 500  # constraints, at most, that the probes are run on: seconds, not minutes
CURVES = ["05_sft", "06_offline", "online_*/06_dpo"]  # where run_all.sh trains
MAIN = "stage 04"  # the name of the run's own responses, beside online_1, online_2, ...


def sampled(every: Iterable[dict], size: int, seed: int) -> list[dict]:
    """An even sample; no more than that is held in memory, however many rows there are."""
    rng = random.Random(seed)
    drawn = []
    for number, row in enumerate(every):
        if number < size:
            drawn.append(row)
        elif (place := rng.randrange(number + 1)) < size:
            drawn[place] = row
    return drawn


def paired(out: Path, wanted: set[str]) -> dict[tuple[str, str], str]:
    """{(id, text): "chosen" or "rejected"} of the pairs made of these prompts or constraints."""
    sides = {}
    for row in rows(out / "06_pairs.jsonl"):
        of = row["id"].rsplit("/", 2)[0]
        if of in wanted:
            for side in ("chosen", "rejected"):
                sides[of, row[side][-1]["content"]] = side
    return sides


def picture(path: Path) -> str | None:
    """A PNG as text, None where it was not drawn."""
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


# ---- constraints and their functions ----


def quality(constraints: list[dict]) -> dict:
    """What the kept functions and cases are like, over all constraints."""
    counts = {name: Counter() for name in ("functions", "cases", "constant", "split", "families")}
    accuracy, agreement = [], []
    for row in constraints:
        counts["functions"][len(row["verifiers"])] += 1
        cases = row.get("cases", [])  # functions of one's own may have none
        counts["cases"][len(cases)] += 1
        counts["split"][row.get("split", "not yet split")] += 1
        if "family" in row:
            counts["families"][row["family"]] += 1
        for number, verifier in enumerate(row["verifiers"]):
            if "accuracy" in verifier:
                accuracy.append(verifier["accuracy"])
            said = {case["verdicts"][number] for case in cases if case.get("verdicts")}
            # a single case has a single verdict whatever the function is
            if len(said) == 1 < len(cases):
                counts["constant"][f"always {said.pop()}"] += 1
        agreement += [case["agreement"] for case in cases if "agreement" in case]
    return {**counts, "accuracy": accuracy, "agreement": agreement}


def probed(constraints: list[dict], seed: int, flags: sandbox.Flags) -> dict:
    """What earns a reward without an answer, on at most PROBED constraints."""
    drawn = random.Random(seed).sample(constraints, min(PROBED, len(constraints)))
    try:
        return {"probes": reward.probe(drawn, flags), "of": len(constraints)}
    except UserError as error:  # no sandbox here: the rest of the page does without
        return {"error": str(error)}


def shown_constraint(row: dict, sides: dict) -> dict:
    """A constraint as the page shows it, kept or dropped; `sides` are those of its cases' pairs."""
    names = ("id", "instruction", "source", "family", "split", "reason", "stage")
    shown = {name: row[name] for name in names if name in row}
    shown["functions"], shown["cases"] = [], []
    for verifier in row.get("verifiers", []):
        shown["functions"].append({"code": verifier["code"], "accuracy": verifier.get("accuracy")})
    for case in row.get("cases", []):
        shown["cases"].append({**case, "side": sides.get((row.get("id"), case["input"]))})
    shown["back"] = list(zip(row.get("back_translations", []), row.get("nli", [])))
    return shown


def constraints(out: Path, size: int, seed: int, flags: sandbox.Flags) -> dict | None:
    """Quality, probes and a sample of constraints, of the latest stage that has finished."""
    stages = ["03_instructions", "02_verifiers", "01_instructions"]
    written = [stage for stage in stages if shards.parts(out / f"{stage}.jsonl")]
    if not written or not (kept := list(rows(out / f"{written[0]}.jsonl"))):
        return None
    rng, lost = random.Random(seed), []
    shown = rng.sample(kept, min(size, len(kept)))
    for stage in reversed(stages):
        for row in rows(out / f"{stage}.dropped.jsonl"):
            functions = [{"code": code} for code in row.get("functions", [])]
            lost.append({"verifiers": functions, **row, "stage": stage})
    shown += rng.sample(lost, min(size, len(lost)))
    sides = paired(out, {row["id"] for row in shown if "id" in row})
    shown = [shown_constraint(row, sides) for row in shown]
    about = {
        "count": len(kept),
        "quality": None,
        "probes": None,
        "shown": shown,
    }
    if written[0] != "01_instructions":  # stage 02 has made functions
        about |= {"quality": quality(kept), "probes": probed(kept, seed, flags)}
    return about


# ---- responses ----


def with_outcomes(out: Path, prompts: list[dict]) -> list[dict]:
    """The prompts with what became of each response: kept or why not, chosen or rejected."""
    wanted, kept, dropped = {row["id"] for row in prompts}, set(), defaultdict(list)
    samples = out / "04_sft.jsonl"
    if not shards.parts(samples):  # then elsewhere
        elsewhere = folder.flag(out / "04_responses.jsonl", "sft_out", None) or samples
        samples = Path(shards.run_of(elsewhere))
    for row in rows(samples):
        if row["id"].rpartition(".")[0] in wanted:
            kept.add(row["id"])
    for row in rows(out / "04_responses.dropped.jsonl"):
        if row["id"] in wanted and "text" in row:  # one without a text was never answered
            dropped[row["id"]].append(row["reason"])
    sides, shown = paired(out, wanted), []
    for row in prompts:
        responses, reasons = [], iter(dropped[row["id"]])  # in the order of its responses
        for number, response in enumerate(row["responses"]):
            outcome = "kept"
            if f"{row['id']}.{number}" not in kept:
                outcome = next(reasons, "not accounted for")
            side = sides.get((row["id"], response["text"]))
            responses.append({**response, "outcome": outcome, "side": side})
        shown.append({**row, "responses": responses})
    return shown


def shown_rows(out: Path, size: int, seed: int) -> list[dict]:
    """Random rows of 04_responses.jsonl with what became of each response."""
    fields = ("id", "prompt", "pass_rate", "responses")
    return with_outcomes(out, sampled(rows(out / "04_responses.jsonl", *fields), size, seed))


def responses(out: Path, name: str, size: int, seed: int) -> dict | None:
    """Pass rates, lengths and a sample of prompts of one 04_responses.jsonl."""
    path = out / "04_responses.jsonl"
    if not shards.parts(path):
        return None
    rates, lengths, truncated = [], {"passed": [], "not passed": []}, 0
    min_accuracy = folder.min_accuracy(path)

    def measured() -> Iterable[dict]:
        nonlocal truncated
        for row in rows(path, "id", "prompt", "pass_rate", "responses"):
            row = {**row, "source": name}
            if row["responses"]:
                rates.append(row["pass_rate"])
            for response in row["responses"]:
                side = "passed" if response["accuracy"] > min_accuracy else "not passed"
                lengths[side].append(len(response["text"]))
                truncated += response.get("finish_reason") == "length"
            yield row

    drawn = sampled(measured(), size, seed)
    return {
        "rates": rates,
        "lengths": lengths,
        "truncated": truncated,
        "min_accuracy": min_accuracy,
        "shown": with_outcomes(out, drawn),
    }


# ---- results ----


def answers(out: Path, size: int, seed: int, only: str = "") -> list[dict]:
    """Held-out prompts with the answer of each model, and what changed since the first one's."""
    of_prompt: dict[tuple, list] = defaultdict(list)
    for result in read_json(out / "07_results.json", []):
        if result["benchmark"] == "heldout" and "items" in result:
            for row in rows(out / result["items"]):
                of_prompt[row["id"], row["sample"], row["prompt"]].append((result["model"], row))

    def compared() -> Iterable[dict]:
        for (identity, sample, prompt), attempts in of_prompt.items():
            responses, (_, first), seen = [], attempts[0], set()
            for model, row in attempts:
                changes = []
                if row["verdict"] != first["verdict"]:
                    changes.append("now passes" if row["verdict"] else "no longer passes")
                if first.get("relevant") and not row["relevant"]:
                    changes.append("left its query")
                response = {"model": model, "text": row["answers"][0], "verdicts": row["verdicts"]}
                outcome = "passes" if row["verdict"] else "fails"
                responses.append({**response, "outcome": outcome, "changes": changes})
                seen.update(changes)
            if len(responses) > 1 and (not only or only in seen):
                yield {"id": f"{identity}.{sample}", "prompt": prompt, "responses": responses}

    return sampled(compared(), size, seed)


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
                pair = f"{second} - {model}"
                of_both = differences(out, benchmark, row, measured[second, benchmark])
                lines += [[pair, *line] for line in of_both]
    return lines


def gather(out: Path, size: int, seed: int, flags: sandbox.Flags) -> dict:
    """Everything on the page; see the functions above for what each part holds."""
    about = constraints(out, size, seed, flags)
    answered, stats, curves = {}, {}, {}
    for each in [out, *sorted(out.glob("online_*"))]:
        name = MAIN if each == out else each.name
        stats[name] = folder.stats(each)
        if of_run := responses(each, name, size, seed):
            answered[name] = of_run
    if about is None and not any(stats.values()):
        raise UserError(f"{out} holds no row of a run; give the folder that run_all.sh wrote (OUT)")
    for pattern in CURVES:
        for model in sorted(out.glob(pattern)):
            curves[str(model.relative_to(out))] = picture(model / "curves.png")
    results = read_json(out / "07_results.json", [])
    return {
        "name": out.resolve().name,
        "stats": stats,
        "constraints": about,
        "responses": answered,
        "curves": curves,
        "results": results,
        "bars": picture(out / "07_results.png"),
        "made with": folder.made_with(out),
        "differences": compared(out, results),
        "answers": answers(out, size, seed),
        "size": size,
        "seed": seed,
    }
