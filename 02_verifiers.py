"""Write K verification functions with cases for each constraint; keep those that agree (3.2).

Reads `01_instructions.jsonl`.
Writes `02_verifiers.jsonl`: the constraints that keep at least one function and one case.

    python 02_verifiers.py --model NAME --in out/01_instructions.jsonl --out out/02_verifiers.jsonl

The four criteria, in their order:
(a) a function compiles and defines `evaluate`;
(b) a case is kept when more than half of the functions agree with its expected output;
(c) a function is kept when it is right on more than half of the kept cases;
(d) a constraint is kept when one function and one case remain.

Departures from the paper:
1. K (8, as in the released sample) and the sampling are ours; the paper does not state them.
2. Functions of the same syntax tree (layout, comments) count once, cases once by value.
3. A verdict is pass, fail or error; an error agrees with nothing.
4. Answers are read in any wrapping; `--released-parsing` reads those that the released code reads.
`--no-cross-validation` is the paper's ablation (table 3): of a constraint with a case (stage 06
pairs them) only (a) is left, since what does not compile cannot be called. The released code's
behaviour: `--case-agreement 0 --min-accuracy 0.7999 --min-functions 3 --min-cases 10
--released-parsing --cpu-seconds 5`.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from autoif import files, llm, sandbox, shards, verifiers
from autoif.files import UserError
from autoif.flags import Count, In, NonNegative, Threshold, cli
from autoif.settings import write_settings
from autoif.stage import Funnel, in_order, wrote

VERIFIER_PROMPT = """\
A user may add this constraint to a question:

{instruction}

Write a Python function `evaluate(response)` that returns True when the text `response` obeys the
constraint and False when it does not. It gets the text of the answer only, never the question. It
can read no file, and import these modules only (of nltk, what splits sentences and words):
{modules}.
Then write three test cases: short texts that obey the constraint and short texts that do not.

Answer with one JSON object and nothing else, no explanation and no comments in the code:
{{"func": "<the source code of the function>",
  "cases": [{{"input": "<text>", "output": true or false}}, ...]}}"""


def record(**fields: dict) -> dict:
    """The JSON schema of an object that has just these fields."""
    return dict(type="object", properties=fields, required=[*fields], additionalProperties=False)


# What `--structured-outputs` lets the model write. Off by default: a 1.5B code model then sketched
# functions ("pass"), and of 14 constraints 5 were kept instead of 8.
CASE = record(input={"type": "string"}, output={"type": "boolean"})
ANSWER = record(func={"type": "string"}, cases={"type": "array", "items": CASE})
SCHEMA = {"name": "verifier", "strict": True, "schema": ANSWER}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": SCHEMA}

TRIAL = 20  # constraints after which a supervisor that is not able ends the run


@dataclass(kw_only=True)
class Flags(shards.Flags, llm.Flags, sandbox.Flags):
    input: In = "out/01_instructions.jsonl"
    out: str = "out/02_verifiers.jsonl"
    case_agreement: Threshold = 0.5  # keep a case above this share of functions that agree (3.2)
    min_accuracy: Threshold = 0.5  # keep a function above this share of kept cases (3.2)
    no_cross_validation: bool = False  # keep all that compiles; a case is still needed (ablation)
    min_functions: Count = 1  # functions a constraint needs before filtering (3.2)
    min_cases: Count = 1  # cases a constraint needs before filtering (3.2)
    released_parsing: bool = False  # take only what the released code can read
    structured_outputs: bool = False  # send the answer's JSON schema where the server takes it
    limit: Count | None = None  # read only the first LIMIT constraints
    seed: int = 0  # of the samples
    k: Count = 8  # functions a constraint
    temperature: NonNegative = 1.0  # of the sampling
    max_tokens: Count = 2048  # of one sample

    def __post_init__(self):
        super().__post_init__()
        if self.structured_outputs and self.released_parsing:
            raise UserError("--released-parsing wants a fence, which --structured-outputs forbids")
        if self.no_cross_validation:
            self.case_agreement = self.min_accuracy = -1.0  # which every share is above


def prompt(instruction: str) -> str:
    # it names what the sandbox has: a function with another import falls to criterion (a)
    return VERIFIER_PROMPT.format(instruction=instruction, modules=", ".join(sandbox.MODULES))


def shortage(completions: int, functions: int, cases: int, args: Flags) -> str | None:
    """Why a constraint has too little to cross-validate; None when it has enough."""
    if functions >= args.min_functions and cases >= args.min_cases:
        return None
    # where nothing came nothing is wrong with the constraint: a rerun may keep it
    if not completions:
        return "no completion"
    return "too few functions" if functions < args.min_functions else "too few cases"


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
        if verifiers.compiles(result):
            functions.append((code, result["verdicts"]))
    if not functions:
        return [], [], "no verifier compiles"

    # (b) a case is as good as the functions that agree with it; an error agrees with nothing
    expected = ["pass" if case["output"] else "fail" for case in cases]
    agreement, kept = [], []
    for c, output in enumerate(expected):
        column = [verdicts[c] for _, verdicts in functions]
        agreement.append(column.count(output) / len(column))
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

    # (d) what is left; a case has an `accuracy` as a response has, since stage 06 pairs both by it
    functions = [{"code": code, "accuracy": round(accuracy, 4)} for code, _, accuracy in accurate]
    rows = []
    for c in kept:
        column = [verdicts[c] for _, verdicts, _ in accurate]
        passed = column.count("pass") / len(column)
        shares = {"accuracy": round(passed, 4), "agreement": round(agreement[c], 4)}
        rows.append({**cases[c], **shares, "verdicts": column})
    return functions, rows, None


async def verify(row: dict, client, box, args: Flags) -> tuple[dict, str | None, Counter]:
    """A constraint from the prompt to its functions and cases: (row, drop reason, counts)."""
    # ask: K completions, each a function with its cases
    form = {"response_format": RESPONSE_FORMAT} if args.structured_outputs else {}
    samples, counts = await client.ask(prompt(row["instruction"]), k=args.k, **form), Counter()
    codes, cases = verifiers.parse_samples(samples, counts, args.released_parsing)
    if reason := shortage(len(samples), len(codes), len(cases), args):
        return row, reason, counts

    # execute: every function on the cases of all
    inputs = [case["input"] for case in cases]
    results = await box.run([{"code": code, "inputs": inputs} for code in codes])
    counts.update(f"function error: {each['error']}" for each in results if each["error"])

    # cross-validate: functions and cases that agree with each other stay
    thresholds = args.case_agreement, args.min_accuracy
    functions, kept, reason = cross_validate(results, codes, cases, *thresholds)
    if reason:
        return {**row, "functions": codes, "cases": cases}, reason, counts
    counts.update({"functions kept": len(functions), "cases kept": len(kept)})
    return {**row, "verifiers": functions, "cases": kept}, None, counts


def refuse_unable(funnel: Funnel, counts: Counter) -> None:
    """Say what the first constraints came to; UserError with the cause where nearly all failed."""
    said, cause = verifiers.ability(counts)
    print(f"02_verifiers: of the first {TRIAL} constraints {funnel.kept} are kept; {said}")
    if funnel.kept <= TRIAL / 10:
        funnel.refuse_empty(cause)
        raise UserError(f"{funnel.line()}: {cause}")


async def main(args: Flags) -> None:
    rows = files.read_all(args.input, {"id": str, "instruction": str}, "01_seed_augment.py")
    rows = args.of_shard(rows[: args.limit])
    funnel, counts = Funnel("02_verifiers", args.out), Counter()

    def work(row):
        return verify(row, client, box, args)

    with files.writer(args.out) as write:
        async with llm.Client(args, "02_verifiers") as client, sandbox.Sandbox(args) as box:
            async for row, reason, of_row in in_order(work, rows, client.ahead):
                counts.update(of_row)
                if reason:
                    funnel.drop(reason, row)
                else:
                    write(row)
                    funnel.keep()
                # a constraint without an answer says nothing about the supervisor
                answered = funnel.total() - funnel.dropped["no completion"]
                if answered == TRIAL and reason != "no completion":
                    refuse_unable(funnel, counts)
        funnel.refuse_empty(
            "Is the model able to write Python, and to answer with JSON? See --max-tokens where "
            "completions are truncated"
        )
        write_settings(args, args.out)
    funnel.finish(**counts)
    out = Path(args.out).with_name("03_instructions.jsonl")
    step = f"python 03_backtranslate.py --model {args.model} --in {args.out} --out {out}"
    wrote(args.out, then=args.then(step))


if __name__ == "__main__":
    cli(main, __doc__)
