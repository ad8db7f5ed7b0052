"""How right are the functions? Precision and recall against readers' labels, filter by filter.

    python live/precision.py functions out/live    # all that compile, of every constraint
    python -m autoif.serving coder-1.5b -- python 04_responses.py --model coder-1.5b --no-score \\
        --in out/live/precision/03_instructions.jsonl --queries demo/queries.txt --bare-prompt \\
        --queries-per-instruction 1 --k 4 --heldout-queries 0 --max-tokens 96 \\
        --store out/live/completions/04_responses.jsonl --out out/live/precision/04_responses.jsonl
    python live/precision.py table out/live

Readers are language models larger than the supervisor. `labels.jsonl` says whether an answer obeys
its constraint, by two who saw no function and agree; `nli.jsonl` what a constraint says of a
back-translation of one of its functions (by `03_backtranslate.py --max-functions 2 --max-tokens
64`), since this supervisor is no judge of that:

    {"instruction": "Use no digits", "response": "Two and two are four.", "obeys": true}
    {"instruction": "Use no digits", "back_translation": "Use a number.", "label": "contradiction"}
"""

import dataclasses
import importlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the stages are files of the checkout, not a package

from autoif import files, flags, llm, sandbox, verifiers  # noqa: E402
from autoif.evaluation.intervals import interval  # noqa: E402
from autoif.settings import settings_path  # noqa: E402

LIVE = ROOT / "live"
FILTERS = ("none: all that compile", "cross-validation", "and back-translation, NLI by a reader")


@dataclass(kw_only=True)
class Flags:
    out: Positional[str]  # folder of a run
    labels: str = str(LIVE / "labels.jsonl")  # whether answers obey
    nli: str = str(LIVE / "nli.jsonl")  # whether back-translations contradict


def passed_by(args: Flags) -> dict[str, list[int]]:
    """The last of `FILTERS` that each function of a constraint passed, by the constraint's id."""
    passed, contradicted = {}, set()
    for row in files.read(args.nli):
        if row["label"] == "contradiction":
            contradicted.add(row["instruction"])
    for row in files.read(Path(args.out) / "02_verifiers.jsonl"):
        for verifier in row["verifiers"]:
            passed[row["id"], verifier["code"]] = 1 if row["instruction"] in contradicted else 2
    of_constraint = {}
    for row in files.read(Path(args.out) / "precision" / "03_instructions.jsonl"):
        codes = [verifier["code"] for verifier in row["verifiers"]]
        of_constraint[row["id"]] = [passed.get((row["id"], code), 0) for code in codes]
    return of_constraint


async def functions(args: Flags) -> None:
    """Write every constraint with every function that compiles; the store has what was answered."""
    stage, out = importlib.import_module("02_verifiers"), Path(args.out)
    recorded = files.read_json(settings_path(out / "02_verifiers.jsonl"))
    if not recorded:
        raise files.UserError(f"{out} has no run of stage 02; bash run_all.sh --live makes one")
    said = recorded["flags"]
    names = {field.name for field in dataclasses.fields(stage.Flags)}
    said = {name: value for name, value in said.items() if name in names}
    # without a server: the store has what was answered
    request = stage.Flags(**said | {"out": str(out / "02_verifiers.jsonl"), "base_url": None})
    target = out / "precision" / "03_instructions.jsonl"
    target.parent.mkdir(exist_ok=True)
    with files.writer(target) as write:
        async with llm.Client(request, "02_verifiers") as client, sandbox.Sandbox(request) as box:
            for row in files.read(out / "01_instructions.jsonl"):
                samples = await client.ask(stage.prompt(row["instruction"]), k=request.k)
                codes, _ = verifiers.parse_samples(samples, Counter())
                results = await box.run([{"code": code, "inputs": [""]} for code in codes])
                judges = []
                for code, result in zip(codes, results):
                    if verifiers.compiles(result):
                        judges.append({"code": code})
                if judges:
                    write({**row, "verifiers": judges, "split": "train"})


def points(args: Flags, at_least: int, of: str, vote: bool) -> list[tuple]:
    """The points of `interval`: of what passes the share that obeys (precision), or the reverse."""
    labels, out = {}, Path(args.out)
    for label in files.read(args.labels):
        labels[label["instruction"], label["response"]] = label["obeys"]
    judges = passed_by(args)
    made = []
    for row in files.read(out / "precision" / "04_responses.jsonl"):
        for response in row["responses"]:
            obeys = labels.get((row["instruction"], response["text"]))
            if obeys is None:
                raise files.UserError(
                    f"{args.labels} has no label of {response['text']!r}, an answer to "
                    f"{row['instruction']!r}; let readers label all answers, and add theirs"
                )
            chosen = zip(response["verdicts"], judges[row["instruction_id"]])
            passes = [verdict == "pass" for verdict, passed in chosen if passed >= at_least]
            if vote and passes:
                passes = [sum(passes) / len(passes) > verifiers.MIN_ACCURACY]
            for said in passes:
                given, then = (said, obeys) if of == "precision" else (obeys, said)
                if given:
                    made.append(("", row["instruction_id"], float(then), 1.0))
    return made


def cell(args: Flags, number: int, of: str, vote: bool) -> str:
    made = points(args, number, of, vote)
    share = interval(made)
    low, high = share["low"], share["high"]
    return f"{share['value']:.2f} [{low:.2f}, {high:.2f}] of {len(made)}"


def table(args: Flags) -> None:
    """Print precision and recall of single functions and of their vote, after each filter."""
    judges = passed_by(args)
    print("| filter | functions | precision | recall | vote: precision | vote: recall |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, name in enumerate(FILTERS):
        count = sum(passed >= number for of_one in judges.values() for passed in of_one)
        cells = []
        for vote in (False, True):
            cells += [cell(args, number, of, vote) for of in ("precision", "recall")]
        print(f"| {name} | {count} | {' | '.join(cells)} |")


COMMANDS = {"functions": functions, "table": table}

if __name__ == "__main__":
    flags.cli(COMMANDS, __doc__)
