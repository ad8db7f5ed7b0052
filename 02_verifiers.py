"""Write K verification functions with test cases for each constraint; keep those that agree (section 3.2).

Reads `01_instructions.jsonl`; writes `02_verifiers.jsonl`: the constraints that keep at least one function and one case.

    python 02_verifiers.py --in out/01_instructions.jsonl --out out/02_verifiers.jsonl

The four criteria, in their order: (a) a function compiles and defines `evaluate`; (b) a case is kept when more than
half of the functions agree with its expected output; (c) a function is kept when it is right on more than half of the
kept cases; (d) a constraint is kept when one function and one case remain.

Departures from the paper:
1. K is not stated there; the default 8 is that of the released sample.
2. Functions that differ only in layout or comments count once (same syntax tree), cases once by value.
3. A verdict is pass, fail or error; an error agrees with nothing.
The released code's behaviour: `--case-agreement 0 --min-accuracy 0.7999 --min-functions 3 --min-cases 10 --released-parsing`.
"""

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

from autoif import files, llm, sandbox
from autoif.stage import Funnel, run, through

VERIFIER_PROMPT = """\
A user may add this constraint to a question:

{instruction}

Write a Python function `evaluate(response)` that returns True when the text `response` obeys the
constraint and False when it does not. It gets the text of the answer only, never the question. It
can read no file, and import these modules only (of nltk, what splits sentences and words):
{modules}.
Then write three test cases: texts that obey the constraint and texts that do not.

Answer with one JSON object and nothing else:
{{"func": "<the source code of the function>", "cases": [{{"input": "<text>", "output": true or false}}, ...]}}"""

FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)


def objects(text: str) -> Iterator[object]:
    """Everything in `text` that may be the asked-for object: what is valid JSON (real newlines in strings allowed) from some
    brace on, what is so without trailing commas, and what json_repair guesses. That comes last: next to a trailing comma it
    takes the backslash out of the \\" in a function's source."""
    from json_repair import repair_json

    decoder = json.JSONDecoder(strict=False)
    spans = [*FENCE.findall(text), text[text.find("{") : text.rfind("}") + 1]]
    without_commas = [re.sub(r",(\s*[\]}])", r"\1", span) for span in spans]
    for span in [text, *without_commas]:
        for brace in re.finditer("{", span):
            try:
                yield decoder.raw_decode(span, brace.start())[0]
            except (json.JSONDecodeError, RecursionError):
                pass  # no object begins here
    yield from (repair_json(span, return_objects=True) for span in spans if "{" in span)


def parse_verifier(text: str) -> tuple[str, list[dict]] | str:
    """(code, cases) out of a completion, or the reason why there are none."""
    for found in objects(text):
        if isinstance(found, dict) and isinstance(found.get("func"), str) and found["func"].strip():
            return found["func"], parse_cases(found.get("cases"))
    return "no function in the JSON" if "{" in text else "no JSON"


def parse_cases(cases: object) -> list[dict]:
    """The well-formed cases as `{input: str, output: bool}`; others are left out."""
    if not isinstance(cases, list):
        return []
    outputs = {"true": True, "1": True, "false": False, "0": False}
    return [
        {"input": case["input"], "output": outputs[str(case["output"]).strip().lower()]}
        for case in cases
        if isinstance(case, dict)
        and isinstance(case.get("input"), str)
        and str(case.get("output")).strip().lower() in outputs
    ]


def parse_released(text: str) -> tuple[str, list[dict]] | str:
    """(code, cases) as the released code reads them: valid JSON in a ```json fence, outputs that are booleans already."""
    fenced = re.search(r"```json(.*?)```", text, re.DOTALL)
    try:
        parsed = json.loads(fenced.group(1)) if fenced else None
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict) or "func" not in parsed:
        return "no JSON"
    return parsed["func"].strip(), [
        case for case in parsed.get("cases", []) if isinstance(case.get("output"), bool)
    ]


def distinct_functions(codes: Iterable[str]) -> list[str]:
    """The first of all functions with the same syntax tree; code that does not parse is compared as text."""
    first = {}
    for code in codes:
        try:
            first.setdefault(ast.dump(ast.parse(code)), code)
        except (
            SyntaxError,
            ValueError,
            RecursionError,
            MemoryError,
        ):  # what ast.parse raises on hostile text
            first.setdefault(code, code)
    return list(first.values())


def distinct_cases(cases: Iterable[dict]) -> list[dict]:
    return list({(case["input"], case["output"]): case for case in cases}.values())


def compiles(result: dict) -> bool:
    """Criterion (a): the function was there to be called, whatever its calls came to."""
    return not (result["error"] or "").startswith(
        ("syntax", "no evaluate", "missing module", "load")
    )


def cross_validate(
    results: list[dict],
    codes: list[str],
    cases: list[dict],
    case_agreement: float,
    min_accuracy: float,
) -> tuple[list[dict], list[dict], str | None]:
    """Criteria (a) to (d) of section 3.2 on the verdicts of every function on every case.

    `results[f]["verdicts"][c]` is the verdict of function f on case c. Returns (verifiers, kept cases, drop reason).
    """
    compiled = [
        (code, result["verdicts"]) for code, result in zip(codes, results) if compiles(result)
    ]
    if not compiled:
        return [], [], "no verifier compiles"
    expected = ["pass" if case["output"] else "fail" for case in cases]
    agreement = [
        sum(verdicts[c] == expected[c] for _, verdicts in compiled) / len(compiled)
        for c in range(len(cases))
    ]
    kept_cases = [c for c in range(len(cases)) if agreement[c] > case_agreement]
    if not kept_cases:
        return [], [], "no case agreed"
    scored = [
        (code, verdicts, sum(verdicts[c] == expected[c] for c in kept_cases) / len(kept_cases))
        for code, verdicts in compiled
    ]
    kept = [
        (code, verdicts, accuracy) for code, verdicts, accuracy in scored if accuracy > min_accuracy
    ]
    if not kept:
        return [], [], "no verifier accurate"
    verifiers = [{"code": code, "accuracy": round(accuracy, 4)} for code, _, accuracy in kept]
    rows = []
    for c in kept_cases:
        verdicts = [verdicts[c] for _, verdicts, _ in kept]
        # `accuracy` is to a case what it is to a response: the share of functions that it passes (stage 06 pairs by it)
        rows.append(
            {
                **cases[c],
                "accuracy": round(verdicts.count("pass") / len(verdicts), 4),
                "agreement": round(agreement[c], 4),
                "verdicts": verdicts,
            }
        )
    return verifiers, rows, None


def shortage(
    completions: int, functions: int, cases: int, min_functions: int, min_cases: int
) -> str | None:
    """Why a constraint has too little to cross-validate; None when it has enough."""
    if functions >= min_functions and cases >= min_cases:
        return None
    if not completions:
        return "no completion"
    return "too few functions" if functions < min_functions else "too few cases"


def weakness(verdicts: list[str], on_empty: str) -> str | None:
    """What makes a compiled function suspicious: one verdict for every case, or an empty answer that passes."""
    if len(verdicts) > 1 and len(set(verdicts)) == 1:
        return f"always {verdicts[0]}"
    return "passes an empty answer" if on_empty == "pass" else None


def request(row: dict, k: int) -> dict:
    return {
        "messages": [
            {
                "role": "user",
                "content": VERIFIER_PROMPT.format(
                    instruction=row["instruction"], modules=", ".join(sandbox.MODULES)
                ),
            }
        ],
        "k": k,
    }


def parse_samples(
    samples: list[dict], counts: Counter, released: bool = False
) -> tuple[list[str], list[dict]]:
    """The distinct functions and cases of a constraint's completions; what is lost on the way goes to `counts`."""
    codes, cases = [], []
    for sample in samples:
        parsed = parse_released(sample["text"]) if released else parse_verifier(sample["text"])
        if isinstance(parsed, str):
            counts[parsed + (", truncated" if sample["finish_reason"] == "length" else "")] += 1
            continue
        codes.append(parsed[0])
        cases += parsed[1]
    functions = list(dict.fromkeys(codes)) if released else distinct_functions(codes)
    distinct = distinct_cases(cases)
    counts.update(
        {
            "completions": len(samples),
            "functions": len(codes),
            "duplicate functions": len(codes) - len(functions),
            "cases": len(cases),
            "duplicate cases": len(cases) - len(distinct),
        }
    )
    return functions, distinct


def jobs(item: tuple[dict, list[str], list[dict], int]) -> list[dict]:
    """One sandbox job a function, on all cases and on the empty answer (the last verdict: a look at quality only)."""
    row, codes, cases, _ = item
    inputs = [case["input"] for case in cases] + [""]
    return [
        {"id": f"{row['id']}.{n}", "code": code, "inputs": inputs} for n, code in enumerate(codes)
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in", dest="input", default="out/01_instructions.jsonl")
    parser.add_argument("--out", default="out/02_verifiers.jsonl")
    parser.add_argument(
        "--case-agreement",
        type=float,
        default=0.5,
        help="keep a case above this share of functions that agree (3.2)",
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.5,
        help="keep a function above this share of kept cases (3.2)",
    )
    parser.add_argument(
        "--min-functions",
        type=int,
        default=1,
        help="functions a constraint needs before filtering (3.2)",
    )
    parser.add_argument(
        "--min-cases", type=int, default=1, help="cases a constraint needs before filtering (3.2)"
    )
    parser.add_argument(
        "--released-parsing",
        action="store_true",
        help="take only what the released code can read, functions distinct as text",
    )
    parser.add_argument(
        "--drop-weak",
        action="store_true",
        help="also drop functions with one verdict for every case, or that pass an empty answer",
    )
    parser.add_argument("--limit", type=int, help="read only the first LIMIT constraints")
    parser.add_argument("--seed", type=int, default=0, help="unused: this stage draws nothing")
    llm.add_flags(parser, temperature=1.0, max_tokens=2048, k=8)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)

    funnel, counts = Funnel("02_verifiers", args.out), Counter()
    rows = islice(files.read(args.input, ["id", "instruction"], "01_seed_augment.py"), args.limit)
    with llm.LLM.from_args(args, stage="02_verifiers") as client, files.writer(args.out) as write:
        asked = through(client.complete, rows, lambda row: [request(row, args.k)])
        parsed = (
            (row, *parse_samples(samples, counts, args.released_parsing), len(samples))
            for row, [samples] in asked
        )
        for (row, codes, cases, completions), results in through(
            partial(sandbox.run, **sandbox.options(args)), parsed, jobs
        ):
            reason = shortage(
                completions, len(codes), len(cases), args.min_functions, args.min_cases
            )
            if reason:
                funnel.drop(reason, row)
                continue
            counts.update(
                f"function error: {result['error']}" for result in results if result["error"]
            )
            weak = [weakness(result["verdicts"][:-1], result["verdicts"][-1]) for result in results]
            counts.update(f"function {flaw}" for flaw in weak if flaw)
            if args.drop_weak:
                strong = [n for n, flaw in enumerate(weak) if not flaw]
                codes, results = [codes[n] for n in strong], [results[n] for n in strong]
            verifiers, kept_cases, reason = cross_validate(
                results, codes, cases, args.case_agreement, args.min_accuracy
            )
            if reason:
                funnel.drop(reason, {**row, "functions": codes, "cases": cases})
                continue
            counts.update({"functions kept": len(verifiers), "cases kept": len(kept_cases)})
            write({**row, "verifiers": verifiers, "cases": kept_cases})
            funnel.keep()
    funnel.finish(**counts)


if __name__ == "__main__":
    run(main)
