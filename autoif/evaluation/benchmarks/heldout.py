"""Held-out constraints: the share of responses that pass the verifiers of constraints never trained on.

Stage 03 fixes the split. Each held-out constraint is joined with user queries as in stage 04, and a response passes
as it does there: its accuracy over the constraint's functions is more than 0.5 (section 3.3); an error is no pass.
"Held-out" is clustered by prompt (these constraints, other queries); "by constraint" is the same share with whole
constraints resampled (other constraints of this kind: wider).
"""

import random

from autoif import files, queries, sandbox
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface
from autoif.files import UserError
from autoif.prompt import accuracy, join


def load(source, args) -> list[dict]:
    if not (args.heldout and args.queries):
        raise UserError(
            "the heldout benchmark needs --heldout out/03_instructions.jsonl and --queries FILE"
        )
    rows = [
        row
        for row in files.read(
            args.heldout, ["id", "instruction", "verifiers", "split"], "03_backtranslate.py"
        )
        if row["split"] == "heldout"
    ]
    if not rows:
        raise UserError(
            f"{args.heldout} has no row with split 'heldout'; run 03_backtranslate.py again"
        )
    kept = queries.kept(args.queries, "heldout")
    if not kept:
        raise UserError(f"{args.queries} has no query of the split 'heldout'")
    items = []
    for row in rows:
        # A generator of its own for each constraint: its queries do not change when other constraints come or go.
        rng = random.Random(f"{args.seed}:{row['id']}")
        for number, query in enumerate(
            rng.sample(kept, min(args.queries_per_instruction, len(kept)))
        ):
            items.append(
                {
                    "id": f"{row['id']}-{number}",
                    "cluster": f"{row['id']}-{number}",
                    "constraint": row["id"],
                    "prompt": join(query, row["instruction"]),
                    "codes": [v["code"] for v in row["verifiers"]],
                }
            )
    return items


def score(works: list[dict], args) -> list[dict]:
    """Every function of a constraint sees all the responses to it in one job."""
    by_constraint: dict[str, list[int]] = {}
    for index, work in enumerate(works):
        by_constraint.setdefault(work["item"]["constraint"], []).append(index)
    jobs = [
        {
            "id": constraint,
            "code": code,
            "inputs": [works[i]["answers"][0]["text"] for i in indices],
        }
        for constraint, indices in by_constraint.items()
        for code in works[indices[0]]["item"]["codes"]
    ]
    verdicts: list[list[str]] = [[] for _ in works]
    for result in sandbox.run(jobs, **sandbox.options(args)):
        for index, verdict in zip(by_constraint[result["id"]], result["verdicts"], strict=True):
            verdicts[index].append(verdict)
    scored = []
    for work, of_functions in zip(works, verdicts):
        passed = accuracy(of_functions) > 0.5
        reason = f"{of_functions.count('pass')} of {len(of_functions)} functions pass"
        scored.append(
            {
                "verdict": passed,
                "reason": reason,
                "verdicts": of_functions,
                "points": {
                    "Held-out": [("", work["item"]["cluster"], passed, 1)],
                    "by constraint": [("", work["item"]["constraint"], passed, 1)],
                },
            }
        )
    return scored
