"""What a verifier is: read out of a completion, tried, run on texts, averaged.

    {"id": "i00002", "instruction": "Use no commas", "verifiers": [{"code": "def evaluate(..."}]}

    python -m autoif.verifiers FILE       # try the functions of a file, of one's own as well

A constraint may be several in one ("i00002+i00007", made by autoif.several): its functions then say
in `of` which one they check, and a text has to pass each of them.
"""

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import tyro

from autoif import files, replies, sandbox
from autoif.files import NotSetUp, UserError, mismatch
from autoif.flags import cli

# What a row must have before its functions can be run; own verifiers need this and a split.
ROW = {"id": str, "instruction": str, "verifiers": [{"code": str}]}
SPLIT = 'write "split": "train" into each row, or "heldout" to measure on it'
# A response passes where more than this share of the functions says so (section 3.3), unless a flag
# says otherwise.
MIN_ACCURACY = 0.5
# How models write the expected output of a case. The released code compares the text "True" with a
# bool, so that such a case agrees with no function.
OUTPUTS = {"true": True, "1": True, "false": False, "0": False}
PLAIN = "Water the plants before you leave. A friend can do it, too."


def constraints(row: dict) -> int:
    """How many constraints a row has: several where it was made of several."""
    return len({verifier.get("of") for verifier in row["verifiers"]})


def join(query: str, instruction: str) -> str:
    """The user turn: the query, then the constraint on a line of its own (3.3), nothing added."""
    return f"{query.strip()}\n{instruction.strip()}"


def accuracy(verdicts: list[str], verifiers: list[dict]) -> float:
    """Share of functions that say pass (3.3), of several constraints the lowest; errors do not."""
    groups: dict[str | None, list[str]] = {}
    for verdict, verifier in zip(verdicts, verifiers, strict=True):
        groups.setdefault(verifier.get("of"), []).append(verdict)
    shares = [group.count("pass") / len(group) for group in groups.values()]
    return round(min(shares, default=0.0), 4)


def pass_rate(responses: list[dict], min_accuracy: float = MIN_ACCURACY) -> float | None:
    """The share of a prompt's responses that the functions accept; None without a response."""
    if not responses:
        return None
    accepted = sum(response["accuracy"] > min_accuracy for response in responses)
    return round(accepted / len(responses), 4)


def has_scores(rows: Iterable[dict]) -> bool:
    """Whether the run that wrote these rows of 04 scored its responses: one number says so.

    Not to be asked of a single row: a judge may give no number for any response of it.
    """
    for row in rows:
        if any(response.get("score") is not None for response in row.get("responses", [])):
            return True
    return False


# ---- run ----


async def judge(box: sandbox.Sandbox, verifiers: list[dict], texts: list[str]) -> list[list[str]]:
    """What each function says of each text: [["pass", "fail"], ...], a list a text."""
    # one job a function, as it is loaded and locked in once however many texts it sees
    jobs = [{"code": verifier["code"], "inputs": texts} for verifier in verifiers]
    of_function = [result["verdicts"] for result in await box.run(jobs)]
    return list(map(list, zip(*of_function)))


def compiles(result: dict) -> bool:
    """Criterion (a) of section 3.2: the function can be called, whatever comes of its calls."""
    reasons = ("syntax", "no evaluate", "missing module", "load")
    return not (result["error"] or "").startswith(reasons)


async def tried(box: sandbox.Sandbox, rows: list[dict]) -> tuple[list[str], list[str]]:
    """Try each function on an empty and on a plain text: (cannot be called, erred on both).

    'i00002, function 1 (Use no commas): missing module pandas'
    """
    jobs, names = [], []
    for row in rows:
        for number, verifier in enumerate(row["verifiers"], 1):
            jobs.append({"code": verifier["code"], "inputs": ["", PLAIN]})
            names.append(f"{row['id']}, function {number} ({row['instruction']})")
    broken, erring = [], []
    for name, result in zip(names, await box.run(jobs), strict=True):
        line = f"{name}: {result['error']}"
        if not compiles(result):
            broken.append(line)
        elif set(result["verdicts"]) == {"error"}:
            erring.append(f"{line}, on an empty and on a plain text")
    return broken, erring


async def refuse_broken(box: sandbox.Sandbox, rows: list[dict], path: str) -> None:
    """UserError that names the functions of `path` that cannot be called, and their constraints."""
    broken, erring = await tried(box, rows)
    for line in erring[:10]:  # it may want JSON, and err on all that is none
        print(f"warning: {path}: {line}", file=sys.stderr)
    if broken:
        shown = broken[:10]
        if len(broken) > len(shown):
            shown.append(f"and {len(broken) - len(shown)} more")
        lines = "\n  ".join(shown)
        raise UserError(
            f"{path}: these functions cannot be called; mend or delete them:\n  {lines}"
        )


# ---- read: rows of files ----


def read(path: str, split: str, made_by: str = "03_backtranslate.py") -> list[dict]:
    """The constraints of one split of a 03_instructions.jsonl, each checked; at least one."""
    rows = files.read_all(path, {**ROW, "split": {"train", "heldout"}}, made_by)
    rows = [row for row in rows if row["split"] == split]
    if not rows:
        change = {"train": "lower", "heldout": "raise"}[split]
        raise NotSetUp(f"{path} has no row with split {split!r}; {change} --heldout of stage 03")
    return rows


# ---- read: a supervisor's completions ----


def parse(text: str) -> tuple[str, list[dict]] | str:
    """(code, cases) out of a completion, or the reason why there are none."""
    # the first candidate that is an answer: an object in the prose around it has no function
    for answer in replies.objects(text):
        code = replies.source(answer.get("func")) if isinstance(answer, dict) else None
        if code:
            cases = parse_cases(answer)
            break
    else:
        code, cases = replies.script(text), []
    if code is None:
        return "no function in the JSON" if "{" in text else "no JSON"
    if not (replies.parsed(code) and re.search(r"\bdef\s+evaluate\b|\bevaluate\s*=", code)):
        code = replies.script(text) or code  # the object only names or sketches what is beside it
    # the cases may stand beside it, in a block or under a name of their own
    for value in [] if cases else replies.values(text):
        cases += parse_cases(value)
    return code, cases


def parse_cases(cases: object) -> list[dict]:
    """The well-formed cases as {"input": "One. Two.", "output": true}; others are left out."""
    if isinstance(cases, dict):
        cases = cases.get("cases", [cases])
    well_formed = []
    for case in cases if isinstance(cases, list) else []:
        if not isinstance(case, dict) or not isinstance(case.get("input"), str):
            continue
        output = str(case.get("output")).strip().lower()
        # what is neither true nor false would be a case that no function can agree with
        if output in OUTPUTS:
            well_formed.append({"input": case["input"], "output": OUTPUTS[output]})
    return well_formed


def parse_released(text: str) -> tuple[str, list[dict]] | str:
    """(code, cases) as the released code reads them.

    It takes valid JSON in a ```json fence only, and of the cases those with booleans.
    """
    fenced = re.search(r"```json(.*?)```", text, re.DOTALL)
    try:
        answer = fenced and json.loads(fenced.group(1))
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("func"), str):
        return "no JSON"
    cases = []
    given = answer.get("cases")
    for case in given if isinstance(given, list) else []:
        if not mismatch(case, {"input": str, "output": bool}):
            cases.append(case)
    return answer["func"].strip(), cases


def distinct_functions(codes: Iterable[str]) -> list[str]:
    """The first of all functions with the same syntax tree; broken code is compared as text."""
    first = {}
    for code in codes:
        try:
            first.setdefault(ast.dump(ast.parse(code)), code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            first.setdefault(code, code)  # all that ast.parse raises on hostile text
    return list(first.values())


def parse_samples(
    samples: list[dict], counts: Counter, released: bool = False
) -> tuple[list[str], list[dict]]:
    """The distinct functions and cases of a row's completions; `counts` says what is lost."""
    codes, cases = [], []
    for sample in samples:
        parsed = parse_released(sample["text"]) if released else parse(sample["text"])
        if isinstance(parsed, str):
            # cut off: more --max-tokens may help, and no other wording of the prompt will
            if sample["finish_reason"] == "length":
                parsed += ", truncated"
            counts[parsed] += 1
            continue
        codes.append(parsed[0])
        cases += parsed[1]
    # the same function twice would have two votes on each case
    functions = list(dict.fromkeys(codes)) if released else distinct_functions(codes)
    distinct = list({(case["input"], case["output"]): case for case in cases}.values())
    counts["completions"] += len(samples)
    counts["functions"] += len(codes)
    counts["duplicate functions"] += len(codes) - len(functions)
    counts["cases"] += len(cases)
    counts["duplicate cases"] += len(cases) - len(distinct)
    return functions, distinct


def ability(counts: Counter) -> tuple[str, str]:
    """(what a supervisor's completions came to, the likeliest cause where that is too little)."""
    completions, functions = counts["completions"], counts["functions"]
    cut = broken = 0
    for name, number in counts.items():
        cut += number if name.endswith(", truncated") else 0
        uncallable = name.startswith(("function error: syntax", "function error: no evaluate"))
        broken += number if uncallable else 0
    said = f"of {completions} completions {functions} have a function, {broken} of them uncallable"
    if cut > completions / 2:
        cause = "answers are cut off; give more --max-tokens"
    elif functions < completions / 2:
        cause = "answers are not what the prompt asks for: is it a chat model, and able to follow?"
    elif broken > (functions - counts["duplicate functions"]) / 2:
        cause = "the model cannot write Python; ask a larger one, or one that is made for code"
    else:
        cause = "its functions and cases contradict each other; ask a larger model, or raise --k"
    return f"{said}, {cut} are cut", cause


# ---- the command: try the functions of a file ----


@dataclass(kw_only=True)
class Flags(sandbox.Flags):
    file: tyro.conf.Positional[str]  # rows with id, instruction, verifiers[].code


async def main(args: Flags) -> None:
    path = args.file
    rows = files.read_all(path, ROW, "02_verifiers.py, or write the file by hand,")
    async with sandbox.Sandbox(args) as box:
        broken, erring = await tried(box, rows)
    count = sum(len(row["verifiers"]) for row in rows)
    for line in broken + erring:
        print(line)
    # rows with cases are stage 02's, whose split stage 03 makes
    without = [row["id"] for row in rows if "split" not in row and "cases" not in row]
    if without:
        print(f"{len(without)} of {len(rows)} rows have no 'split', first {without[0]}: {SPLIT}")
    if broken or erring:
        bad = len(broken) + len(erring)
        raise UserError(f"{path}: {bad} of {count} functions cannot be used; mend or delete them")
    if without:
        raise UserError(f"{path}: stage 04 needs a 'split' in each row; {SPLIT}")
    print(f"{path}: all {count} functions of {len(rows)} constraints can be called")


if __name__ == "__main__":
    cli(main, __doc__)
