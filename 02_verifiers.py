"""Write K verification functions with cases for each constraint; keep those that agree (3.2).

Reads `01_instructions.jsonl`.
Writes `02_verifiers.jsonl`: the constraints that keep at least one function and one case.

    python 02_verifiers.py --model NAME --in out/01_instructions.jsonl --out out/02_verifiers.jsonl
    python 02_verifiers.py --check own_verifiers.jsonl      # only try the functions of a file

The four criteria, in their order:
(a) a function compiles and defines `evaluate`;
(b) a case is kept when more than half of the functions agree with its expected output;
(c) a function is kept when it is right on more than half of the kept cases;
(d) a constraint is kept when one function and one case remain.

Departures from the paper:
1. K is not stated there; the default 8 is that of the released sample.
2. Functions that differ only in layout or comments count once (same syntax tree), cases once by
   value.
3. A verdict is pass, fail or error; an error agrees with nothing.
4. Sampling (temperature 1, at most 2,048 tokens) is ours; the paper does not state it.
5. Answers are read in any wrapping; `--released-parsing` reads those that the released code reads.
`--no-cross-validation` is the paper's ablation (table 3): only (a) is left, since what does not
compile cannot be called. The released code's behaviour: `--case-agreement 0 --min-accuracy 0.7999
--min-functions 3 --min-cases 10 --released-parsing --cpu-seconds 5`.
"""

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from autoif import files, llm, replies, reward, sandbox
from autoif.files import UserError
from autoif.stage import Funnel, Help, positive_int, run, share, through, write_settings, wrote
from autoif.verifiers import ROW, SPLIT, compiles, tried

VERIFIER_PROMPT = """\
A user may add this constraint to a question:

{instruction}

Write a Python function `evaluate(response)` that returns True when the text `response` obeys the
constraint and False when it does not. It gets the text of the answer only, never the question. It
can read no file, and import these modules only (of nltk, what splits sentences and words):
{modules}.
Then write three test cases: texts that obey the constraint and texts that do not.

Answer with one JSON object and nothing else:
{{"func": "<the source code of the function>",
  "cases": [{{"input": "<text>", "output": true or false}}, ...]}}"""

# What `--structured-outputs` lets the model write. Off by default: of 56 completions of a 1.5B code
# model 41 were usable with it, 39 without, in 0.4 of the text; but it sketched functions ("pass"),
# and of 14 constraints 5 were kept instead of 8.
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "verifier",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "func": {"type": "string"},
                "cases": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"input": {"type": "string"}, "output": {"type": "boolean"}},
                        "required": ["input", "output"],
                        "additionalProperties": False,
                    },
                },
            },
            "required": ["func", "cases"],
            "additionalProperties": False,
        },
    },
}

# Of the five probes of autoif.reward, answers that say nothing, so many pass a weak constraint.
WEAK = 4
ON_EMPTY = "passes an empty answer"

# How models write the expected output of a case. The released code compares the text "True" with a
# bool, so that such a case agrees with no function.
OUTPUTS = {"true": True, "1": True, "false": False, "0": False}


def parse_verifier(text: str) -> tuple[str, list[dict]] | str:
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
    if not isinstance(cases, list):
        return []
    found = []
    for case in cases:
        if not isinstance(case, dict) or not isinstance(case.get("input"), str):
            continue
        output = str(case.get("output")).strip().lower()
        # what is neither true nor false would be a case that no function can agree with
        if output in OUTPUTS:
            found.append({"input": case["input"], "output": OUTPUTS[output]})
    return found


def parse_released(text: str) -> tuple[str, list[dict]] | str:
    """(code, cases) as the released code reads them.

    It takes valid JSON in a ```json fence only, and of the cases those with booleans.
    """
    fenced = re.search(r"```json(.*?)```", text, re.DOTALL)
    try:
        parsed = fenced and json.loads(fenced.group(1))
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("func"), str):
        return "no JSON"
    cases = []
    for case in parsed.get("cases") or []:
        if isinstance(case, dict) and isinstance(case.get("output"), bool):
            cases.append(case)
    return parsed["func"].strip(), cases


def distinct_functions(codes: Iterable[str]) -> list[str]:
    """The first of all functions with the same syntax tree; broken code is compared as text."""
    first = {}
    for code in codes:
        try:
            first.setdefault(ast.dump(ast.parse(code)), code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            first.setdefault(code, code)  # all that ast.parse raises on hostile text
    return list(first.values())


def distinct_cases(cases: Iterable[dict]) -> list[dict]:
    return list({(case["input"], case["output"]): case for case in cases}.values())


def cross_validate(
    results: list[dict],
    codes: list[str],
    cases: list[dict],
    case_agreement: float,
    min_accuracy: float,
) -> tuple[list[dict], list[dict], str | None]:
    """Criteria (a) to (d) of section 3.2 on the verdicts of every function on every case.

    `results[f]["verdicts"][c]` is the verdict of function f on case c.
    Returns (verifiers, kept cases, drop reason).
    """
    # (a) only what can be called has a say
    functions = []
    for code, result in zip(codes, results):
        if compiles(result):
            functions.append((code, result["verdicts"]))
    if not functions:
        return [], [], "no verifier compiles"

    # (b) a case is as good as the functions that agree with it; an error agrees with nothing
    expected = ["pass" if case["output"] else "fail" for case in cases]
    agreement, kept = [], []
    for c, wanted in enumerate(expected):
        said = [verdicts[c] for _, verdicts in functions]
        agreement.append(said.count(wanted) / len(said))
        if agreement[c] > case_agreement:
            kept.append(c)
    if not kept:
        return [], [], "no case agreed"

    # (c) a function is as good as its verdicts on these cases
    accurate = []
    for code, verdicts in functions:
        accuracy = sum(verdicts[c] == expected[c] for c in kept) / len(kept)
        if accuracy > min_accuracy:
            accurate.append((code, verdicts, accuracy))
    if not accurate:
        return [], [], "no verifier accurate"

    # (d) what is left; `accuracy` is to a case what it is to a response, the share of functions
    # that it passes, since stage 06 pairs both by it
    verifiers = [{"code": code, "accuracy": round(accuracy, 4)} for code, _, accuracy in accurate]
    rows = []
    for c in kept:
        verdicts = [verdicts[c] for _, verdicts, _ in accurate]
        passed = verdicts.count("pass") / len(verdicts)
        found = {"accuracy": round(passed, 4), "agreement": round(agreement[c], 4)}
        rows.append({**cases[c], **found, "verdicts": verdicts})
    return verifiers, rows, None


def shortage(
    completions: int, functions: int, cases: int, min_functions: int, min_cases: int
) -> str | None:
    """Why a constraint has too little to cross-validate; None when it has enough."""
    if functions >= min_functions and cases >= min_cases:
        return None
    # where nothing came nothing is wrong with the constraint: a rerun may keep it
    if not completions:
        return "no completion"
    if functions < min_functions:
        return "too few functions"
    return "too few cases"


def weakness(verdicts: list[str], on_empty: str) -> str | None:
    """What is suspicious in a function: one verdict for every case, or an empty answer passes."""
    if len(verdicts) > 1 and len(set(verdicts)) == 1:
        return f"always {verdicts[0]}"
    if on_empty == "pass":
        return ON_EMPTY
    return None


def too_weak(verifiers: list[dict], codes: list[str], results: list[dict]) -> str | None:
    """Why a constraint pays for answers that say nothing, None when it does not.

    The probes are the last inputs in `results`. One passes when more than half of the kept
    functions say so, as a response does in stage 04.
    """
    if not codes:
        return "only constant functions"
    kept = {verifier["code"] for verifier in verifiers}
    said = [result["verdicts"] for code, result in zip(codes, results) if code in kept]
    passed = 0
    for probe in range(-len(reward.probes("")), 0):
        passes = [verdicts[probe] for verdicts in said].count("pass")
        passed += 2 * passes > len(said)
    return "fooled by probes" if passed >= WEAK else None


def request(row: dict, k: int, structured: bool = False) -> dict:
    # the prompt names what the sandbox has: a function with another import falls to criterion (a)
    modules = ", ".join(sandbox.MODULES)
    content = VERIFIER_PROMPT.format(instruction=row["instruction"], modules=modules)
    form = {"response_format": RESPONSE_FORMAT} if structured else {}
    return {"messages": [{"role": "user", "content": content}], "k": k, **form}


def parse_samples(
    samples: list[dict], counts: Counter, released: bool = False
) -> tuple[list[str], list[dict]]:
    """The distinct functions and cases of a row's completions; `counts` says what is lost."""
    parse = parse_released if released else parse_verifier
    codes, cases = [], []
    for sample in samples:
        parsed = parse(sample["text"])
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
    distinct = distinct_cases(cases)
    counts["completions"] += len(samples)
    counts["functions"] += len(codes)
    counts["duplicate functions"] += len(codes) - len(functions)
    counts["cases"] += len(cases)
    counts["duplicate cases"] += len(cases) - len(distinct)
    return functions, distinct


def with_functions(
    asked: Iterable[tuple], counts: Counter, released: bool
) -> Iterator[tuple[dict, list[str], list[dict], int]]:
    """Yield (row, functions, cases, number of completions) for each row and its completions."""
    for row, [samples] in asked:
        functions, cases = parse_samples(samples, counts, released)
        yield row, functions, cases, len(samples)


def jobs(item: tuple[dict, list[str], list[dict], int], probe: bool) -> list[dict]:
    """One sandbox job a function, on all cases and, for a look at its quality, an empty answer.

    With `probe` also on the probes, behind all else: a case is judged as without them.
    """
    row, codes, cases, _ = item
    inputs = [case["input"] for case in cases] + [""]
    if probe:
        inputs += reward.probes(row["instruction"]).values()
    found = []
    for number, code in enumerate(codes):
        found.append({"id": f"{row['id']}.{number}", "code": code, "inputs": inputs})
    return found


def check(path: str, **options) -> None:
    """Try the functions of a file, say which cannot be called or err at every call: `--check`."""
    rows = files.read_all(path, ROW, "02_verifiers.py, or write the file by hand,")
    broken, erring = tried(rows, **options)
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--in", dest="input", default="out/01_instructions.jsonl")
    parser.add_argument("--out", default="out/02_verifiers.jsonl")
    parser.add_argument(
        "--check",
        metavar="FILE",
        help="only try the functions of FILE (rows with id, instruction, verifiers[].code) and end",
    )
    parser.add_argument(
        "--case-agreement",
        type=share,
        default=0.5,
        help="keep a case above this share of functions that agree (3.2)",
    )
    parser.add_argument(
        "--min-accuracy",
        type=share,
        default=0.5,
        help="keep a function above this share of kept cases (3.2)",
    )
    parser.add_argument(
        "--no-cross-validation",
        action="store_true",
        help="keep every function that compiles and every case (the paper's ablation)",
    )
    parser.add_argument(
        "--min-functions",
        type=positive_int,
        default=1,
        help="functions a constraint needs before filtering (3.2)",
    )
    parser.add_argument(
        "--min-cases",
        type=positive_int,
        default=1,
        help="cases a constraint needs before filtering (3.2)",
    )
    parser.add_argument(
        "--released-parsing",
        action="store_true",
        help="take only what the released code can read, functions distinct as text",
    )
    parser.add_argument(
        "--structured-outputs",
        action="store_true",
        help="send the answer's JSON schema (response_format) where the server takes it",
    )
    parser.add_argument(
        "--drop-weak",
        action="store_true",
        help="also drop functions with one verdict for every case, and constraints under which "
        f"{WEAK} of 5 texts pass that answer nothing (python -m autoif.reward --probe lists them)",
    )
    parser.add_argument("--limit", type=positive_int, help="read only the first LIMIT constraints")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    llm.add_flags(parser, temperature=1.0, max_tokens=2048, k=8, model_required=False)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    if not args.model and not args.check:
        parser.error("the following arguments are required: --model")
    if args.structured_outputs and args.released_parsing:
        parser.error("--released-parsing wants a fence, which --structured-outputs forbids")
    if args.no_cross_validation:
        args.case_agreement = args.min_accuracy = -1.0  # which every share is above
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.check:
        return check(args.check, **sandbox.options(args))
    fields = {"id": str, "instruction": str}
    rows = files.read_all(args.input, fields, "01_seed_augment.py")[: args.limit]
    funnel, counts = Funnel("02_verifiers", args.out), Counter()
    judge = partial(sandbox.run, **sandbox.options(args))
    with llm.LLM.from_args(args, stage="02_verifiers") as client, files.writer(args.out) as write:
        # ask: K completions a constraint, each a function with its cases
        asked = through(
            client.complete, rows, lambda row: [request(row, args.k, args.structured_outputs)]
        )
        written = with_functions(asked, counts, args.released_parsing)
        expand = partial(jobs, probe=args.drop_weak)

        # execute: every function on the cases of all, as completions arrive
        for (row, codes, cases, completions), results in through(judge, written, expand):
            reason = shortage(
                completions, len(codes), len(cases), args.min_functions, args.min_cases
            )
            if reason:
                funnel.drop(reason, row)
                continue

            # look at quality: what crashes, and what says the same whatever it is shown
            varied = []
            for code, result in zip(codes, results):
                verdicts = result["verdicts"]
                flaw = weakness(verdicts[: len(cases)], verdicts[len(cases)])
                if result["error"]:
                    counts[f"function error: {result['error']}"] += 1
                if flaw:
                    counts[f"function {flaw}"] += 1
                # an empty answer may be right, as under "use no commas": all probes together tell
                if flaw in (None, ON_EMPTY):
                    varied.append((code, result))
            if args.drop_weak:
                codes, results = zip(*varied) if varied else ([], [])

            # cross-validate: functions and cases that agree with each other stay
            verifiers, kept_cases, reason = cross_validate(
                results, codes, cases, args.case_agreement, args.min_accuracy
            )
            if args.drop_weak:
                reason = too_weak(verifiers, codes, results) or reason
            if reason:
                funnel.drop(reason, {**row, "functions": codes, "cases": cases})
                continue

            # keep: with the accuracies, by which stage 06 makes pairs out of cases
            counts["functions kept"] += len(verifiers)
            counts["cases kept"] += len(kept_cases)
            write({**row, "verifiers": verifiers, "cases": kept_cases})
            funnel.keep()
        funnel.refuse_empty("Is the model able to write Python, and to answer with JSON?")
        write_settings(args, args.out)
    funnel.finish(**counts)
    out = Path(args.out).with_name("03_instructions.jsonl")
    wrote(
        args.out,
        then=f"python 03_backtranslate.py --model {args.model} --in {args.out} --out {out}",
    )


if __name__ == "__main__":
    run(main)
