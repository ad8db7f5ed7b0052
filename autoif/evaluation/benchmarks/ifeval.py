"""IFEval (arXiv 2311.07911) with lm-eval's checkers: Pr(S), Pr(L), Ins(S), Ins(L) and a mean.

Strict asks every checker about the answer as it is; loose about eight variants of it (first line,
last line or both taken off, each also without asterisks) and any of them will do. The mean of the
two strict numbers is what the Open LLM Leaderboard prints. Departures from lm-eval's own run, none
of which changes a verdict on a given seed:
 1. Two of the 541 prompts leave a letter to chance and langdetect draws at random: both are seeded.
 2. A checker is built once for strict and loose, so loose is never below strict.
 3. lm-eval's checker modules are loaded by themselves, without its task index (nine seconds).
"""

import contextlib
import csv
import functools
import importlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path

from autoif.evaluation.benchmarks import Settings, punkt
from autoif.files import UserError

SETTINGS = Settings(
    temperature=0.0, max_tokens=1280, columns=("Pr(S)", "Pr(L)", "Ins(S)", "Ins(L)", "mean(S)")
)
PACKAGES = ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval")  # where the checkers are
# What a checker stumbles with over a text such as "...": such a text lacks what it looks for.
STUMBLES = (IndexError, KeyError, ValueError, ZeroDivisionError, AttributeError)
STUMBLES += (RecursionError, csv.Error)


def load(source) -> list[dict]:
    rows = source.rows("ifeval/input_data.jsonl", "google/IFEval", "ifeval_input_data.jsonl")
    return checkable(items(rows, source.used[-1]), checkers(*PACKAGES), source.used[-1])


def from_json(value: object) -> object:
    """The value, also where a table holds it as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def items(rows: list[dict], where: str = "the file") -> list[dict]:
    """Rows of IFEval's form (IFBench has it too) as items; UserError names a row of another."""
    read = []
    for row in rows:
        ids, kwargs = row["instruction_id_list"], []
        try:
            ids = from_json(ids)
            for given in map(from_json, from_json(row["kwargs"])):
                kwargs.append({name: value for name, value in given.items() if value is not None})
        except (ValueError, TypeError, AttributeError):
            kwargs = []  # no list of objects
        count = len(ids) if isinstance(ids, list) else 0
        if count == 0 or count != len(kwargs):
            raise UserError(
                f"{where}: the row with the key {row['key']!r} needs an object of kwargs for each "
                f"of its {count} instructions, and has {str(row['kwargs'])[:80]!r}; fetch the "
                "file again, or leave the row out"
            )
        key = str(row["key"])
        item = {"id": key, "cluster": key, "prompt": row["prompt"]}
        read.append({**item, "instruction_ids": ids, "kwargs": kwargs})
    return read


def checkable(items: list[dict], registry: dict[str, type], where: str) -> list[dict]:
    """The items; UserError names one that no checker fits, before its answer is paid for."""
    for item in items:
        for instruction_id, kwargs in zip(item["instruction_ids"], item["kwargs"]):
            row = f"{where}: the row with the key {item['id']!r}"
            if instruction_id not in registry:
                raise UserError(
                    f"{row} has the unknown instruction {instruction_id!r}; leave the row out"
                )
            with seeded(item["id"]), contextlib.suppress(LookupError):  # of NLTK's data
                try:
                    checker_of(item, instruction_id, kwargs, registry)
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"{row}: {instruction_id} does not take {kwargs} ({error}); "
                        "fetch the file again, or leave the row out"
                    ) from None
    return items


@contextlib.contextmanager
def seeded(seed: str):
    """The checkers draw from the global generator: seeded in the block, and left as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@functools.cache
def checkers(*packages: str) -> dict[str, type]:
    """The checker classes by instruction id, out of the last of `packages`.

    Around them is the import of every dataset library, SciPy and scikit-learn: empty modules, or
    none, stand in for these meanwhile.
    """
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # it draws at random
    punkt.install()
    found = importlib.util.find_spec(packages[0])
    if found is None:
        raise UserError(f"{packages[0]} is not installed; pip install -r requirements.txt")
    folder = Path(found.submodule_search_locations[0])
    standing_in: dict[str, types.ModuleType | None] = {"scipy": None, "sklearn": None}
    for name in packages:
        standing_in[name] = types.ModuleType(name)
        standing_in[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    for name in standing_in.keys() & sys.modules.keys():
        del standing_in[name]
    sys.modules.update(standing_in)
    try:
        return importlib.import_module(f"{packages[-1]}.instructions_registry").INSTRUCTION_DICT
    finally:
        for name in standing_in:
            del sys.modules[name]


def loose_variants(response: str) -> list[str]:
    """The answer; without its first line, its last, both; each also without asterisks."""
    lines = response.split("\n")
    parts = map("\n".join, (lines[1:], lines[:-1], lines[1:-1]))
    variants = [response, *map(str.strip, parts)]
    variants += [text.replace("*", "") for text in variants]
    return list(dict.fromkeys(variants))


def follows(checker, text: str) -> bool:
    """The checker's verdict; an empty text follows nothing."""
    try:
        return bool(text.strip() and checker.check_following(text))
    except STUMBLES:
        return False


def checker_of(item: dict, instruction_id: str, kwargs: dict, registry: dict[str, type]):
    checker = registry[instruction_id](instruction_id)
    checker.build_description(**kwargs)
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=item["prompt"])
    return checker


def check(item: dict, response: str, registry: dict[str, type]) -> tuple[list[bool], list[bool]]:
    """(strict, loose) verdicts of the item's instructions, the same on every run."""
    with seeded(item["id"]):
        strict, loose = [], []
        for instruction_id, kwargs in zip(item["instruction_ids"], item["kwargs"], strict=True):
            checker = checker_of(item, instruction_id, kwargs, registry)
            variants = iter(loose_variants(response))
            verdict = follows(checker, next(variants))  # the first is the answer as it is
            strict.append(verdict)
            loose.append(verdict or any(follows(checker, variant) for variant in variants))
        return strict, loose


def lacking(error: LookupError) -> str:
    """Which of NLTK's data no package carries, in a line."""
    return "NLTK data is missing: " + str(error).strip("*\n ").split("\n")[0]


def score(attempt: dict) -> dict:
    item, text = attempt["item"], attempt["answers"][0]["text"]
    return scored(item, *check(item, text, checkers(*PACKAGES)))


def scored(item: dict, strict: list[bool], loose: list[bool], prefix: str = "") -> dict:
    """The row of an item; `prefix` keeps IFBench's metrics apart from IFEval's."""
    missed = [name for name, verdict in zip(item["instruction_ids"], strict) if not verdict]
    points = {}
    for form, met in (("S", strict), ("L", loose)):
        points[f"{prefix}Pr({form})"] = [("", item["cluster"], all(met), 1)]
        points[f"{prefix}Ins({form})"] = [("", item["cluster"], sum(met), len(met))]
    of_prompt, of_instructions = points[f"{prefix}Pr(S)"][0], points[f"{prefix}Ins(S)"][0]
    mean = [("prompt", *of_prompt[1:]), ("instruction", *of_instructions[1:])]
    row = {"verdict": all(strict), "reason": "misses " + ", ".join(missed) if missed else ""}
    row |= {"instruction_ids": item["instruction_ids"], "strict": strict, "loose": loose}
    return {**row, "points": {**points, f"{prefix}mean(S)": mean}}
