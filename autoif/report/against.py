"""Which verdicts changed between two runs on the same answers, by constraint and function."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from autoif import folder
from autoif.files import UserError, read_json
from autoif.settings import identity, settings_path
from autoif.shards import parts

HEADER = ["constraint", "function", "verdicts", "answers"]


def codes(out: Path) -> dict[str, list[str]]:
    """{id of a constraint: its functions} of the file that a run read, if it is still the same."""
    responses = out / "04_responses.jsonl"
    path = Path(folder.flag(responses, "input", out / "03_instructions.jsonl"))
    settings = read_json(settings_path((parts(responses) or [responses])[0]), {})
    recorded = settings.get("inputs", {}).get(str(path))
    if not path.is_file() or recorded not in (None, identity(str(path))):
        return {}
    constraints = folder.rows(path, "id", "verifiers")
    return {row["id"]: [each["code"] for each in row["verifiers"]] for row in constraints}


def aligned(before: list, after: list) -> list[tuple[int | None, int | None, str]]:
    """(place before, place after, name) of each function: of equal ones, then of the others.

    ["a", "b", "c"], ["b", "x"] -> [(1, 0, "1"), (0, 1, "2, changed"), (2, None, "3, gone")]
    """
    functions, left, others = [], list(range(len(before))), []
    for new, code in enumerate(after):
        old = next((place for place in left if before[place] == code), None)
        if old is None:
            others.append(new)
        else:
            left.remove(old)
            functions.append((old, new, f"{new + 1}"))
    for old, new in zip_longest(left, others):
        if new is None:
            functions.append((old, new, f"{old + 1}, gone"))
        else:
            functions.append((old, new, f"{new + 1}, {'new' if old is None else 'changed'}"))
    return functions


def differences(was: dict, now: dict, functions: list[tuple], bounds: tuple) -> Iterator[tuple]:
    """Yield (function, what its verdict became) of an answer, and whether it is still accepted."""
    for old, new, name in functions:
        before = "none" if old is None else was["verdicts"][old]
        after = "none" if new is None else now["verdicts"][new]
        if before != after:
            yield name, f"{before} -> {after}"
    before, after = was["accuracy"] > bounds[0], now["accuracy"] > bounds[1]
    if before != after:
        yield "all", "now accepted" if after else "no longer accepted"


def changed(out: Path, other: Path) -> tuple[int, list[list]]:
    """(how many answers both folders have, lines under HEADER of what became of them in `out`).

    ["i00002: Use no commas", "2", "pass -> fail", 3]
    """
    name, fields = "04_responses.jsonl", ("instruction_id", "instruction", "prompt", "responses")
    earlier = {}
    for row in folder.rows(other / name, *fields):
        for response in row["responses"]:
            key = hash((row["prompt"], response["text"]))
            earlier[key] = {"verdicts": response["verdicts"], "accuracy": response["accuracy"]}
    bounds = folder.min_accuracy(other / name), folder.min_accuracy(out / name)
    codes_before, codes_now = codes(other), codes(out)
    functions, counts, shared = {}, defaultdict(Counter), 0
    for row in folder.rows(out / name, *fields):
        constraint = row["instruction_id"]
        for now in row["responses"]:
            was = earlier.get(hash((row["prompt"], now["text"])))
            if was is None:
                continue
            shared += 1
            if constraint not in functions:
                pair = codes_before.get(constraint), codes_now.get(constraint)
                if None in pair:  # not known: they are told by their places
                    pair = range(len(was["verdicts"])), range(len(now["verdicts"]))
                functions[constraint] = aligned(*map(list, pair))
            found = differences(was, now, functions[constraint], bounds)
            counts[f"{constraint}: {row['instruction']}"].update(found)
    if not shared:
        raise UserError(f"{out} and {other} have no answer in common; see --store of stage 04")
    lines = []
    for title, of_title in counts.items():
        for (function, verdicts), count in sorted(of_title.items()):
            lines.append([title, function, verdicts, count])
    return shared, lines
