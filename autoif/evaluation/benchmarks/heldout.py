"""Held-out constraints: the share of answers that pass verifiers never trained on.

Stage 03 holds out whole families of constraints, stage 04 a share of the queries; here each
held-out constraint is joined with held-out queries, and nothing is filtered again. A response
passes as in stage 04: its accuracy over the constraint's functions is more than 0.5 (section 3.3),
an error is no pass. What stands in the table:

    Held-out             all constraints; clusters are prompts (these constraints, other queries)
    Held-out length      constraints on the answer's length, which brevity alone obeys
    Held-out other       all the others (autoif.evaluation.kinds has the rule)
    by constraint        as Held-out, whole constraints resampled (other constraints: wider)
    relevance            answers whose own query is the nearest of all (autoif.relevance)
    words, truncated     mean length of an answer, and the share cut off at --max-tokens
"""

import argparse
import random

from autoif import files, queries, relevance, sandbox, verifiers
from autoif.evaluation import kinds
from autoif.evaluation.benchmarks import NotSetUp, Settings
from autoif.prompt import accuracy, join
from autoif.stage import positive_int

SETTINGS = Settings(
    temperature=0.8,  # as the online loop samples (section 3.4)
    max_tokens=512,
    usual_tokens=200,
    columns=(
        "Held-out",
        "Held-out length",
        "Held-out other",
        "by constraint",
        "relevance",
        "words",
        "truncated",
    ),
    ratings=("words",),
    samples_flag="k",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the heldout benchmark")
    group.add_argument("--heldout", metavar="FILE", help="03_instructions.jsonl")
    group.add_argument("--queries", metavar="FILE", help="04_queries.jsonl")
    group.add_argument(
        "--queries-per-instruction", type=positive_int, default=16, help="default: %(default)s"
    )


def read_constraints(path: str, **options) -> list[dict]:
    """The held-out rows of 03_instructions.jsonl, with functions that the sandbox can call.

    A function that it cannot call (a module is missing here) would fail each answer of each model.
    """
    form = {**verifiers.ROW, "split": {"train", "heldout"}}
    rows = files.read_all(path, form, "03_backtranslate.py")
    heldout = [row for row in rows if row["split"] == "heldout"]
    if not heldout:
        raise NotSetUp(
            f"{path} has no row with split 'heldout'; see --heldout of 03_backtranslate.py"
        )
    verifiers.refuse_broken(heldout, path, **options)
    return heldout


def read_queries(path: str) -> list[str]:
    """The distinct held-out queries that stage 04 kept; all queries of a file without `split`."""
    kept = list(dict.fromkeys(queries.kept(path, "heldout")))
    if not kept:
        raise NotSetUp(
            f"{path} has no query of split 'heldout'; run 04_responses.py with "
            "--heldout-queries 0.1"
        )
    return kept


def load(source, args) -> list[dict]:
    if not (args.heldout and args.queries):
        raise NotSetUp(
            "the heldout benchmark needs --heldout out/03_instructions.jsonl and "
            "--queries out/04_queries.jsonl"
        )
    kept = read_queries(args.queries)
    items = []
    for row in read_constraints(args.heldout, **sandbox.options(args)):
        # A generator of its own: a constraint's queries stay when other constraints come or go.
        rng = random.Random(f"{args.seed}:{row['id']}")
        asked = rng.sample(kept, min(args.queries_per_instruction, len(kept)))
        for number, query in enumerate(asked):
            items.append(
                {
                    "id": f"{row['id']}-{number}",
                    "cluster": f"{row['id']}-{number}",
                    "constraint": row["id"],
                    "instruction": row["instruction"],
                    "kind": kinds.kind(row["instruction"]),
                    "query": query,
                    "prompt": join(query, row["instruction"]),
                    "codes": [verifier["code"] for verifier in row["verifiers"]],
                }
            )
    return items


def conditions(args) -> dict:
    """What relevance depends on: how nearness is measured, and among how many queries."""
    return {"relevance by": relevance.encoder(), "queries": len(read_queries(args.queries))}


def verify(works: list[dict], args) -> list[list[str]]:
    """The verdicts on each work's answer; a function sees all answers in one job."""
    by_constraint: dict[str, list[int]] = {}
    for index, work in enumerate(works):
        by_constraint.setdefault(work["item"]["constraint"], []).append(index)
    jobs = []
    for constraint, indices in by_constraint.items():
        texts = [works[index]["answers"][0]["text"] for index in indices]
        for code in works[indices[0]]["item"]["codes"]:
            jobs.append({"id": constraint, "code": code, "inputs": texts})
    verdicts: list[list[str]] = [[] for _ in works]
    for result in sandbox.run(jobs, **sandbox.options(args)):
        for index, verdict in zip(by_constraint[result["id"]], result["verdicts"], strict=True):
            verdicts[index].append(verdict)
    return verdicts


def score(works: list[dict], args) -> list[dict]:
    items = [work["item"] for work in works]
    samples = [work["answers"][0] for work in works]
    on_topic = relevance.relevant(
        [sample["text"] for sample in samples],
        [item["query"] for item in items],
        [item["instruction"] for item in items],
        read_queries(args.queries),
    )
    rows = []
    for item, sample, answers_it, verdicts in zip(items, samples, on_topic, verify(works, args)):
        passed = accuracy(verdicts) > 0.5
        length = len(sample["text"].split())
        truncated = sample["finish_reason"] == "length"
        rows.append(
            {
                "verdict": passed,
                "reason": f"{verdicts.count('pass')} of {len(verdicts)} functions pass",
                "verdicts": verdicts,
                "kind": item["kind"],
                "relevant": answers_it,
                "points": {
                    "Held-out": [("", item["cluster"], passed, 1)],
                    f"Held-out {item['kind']}": [("", item["cluster"], passed, 1)],
                    "by constraint": [("", item["constraint"], passed, 1)],
                    "relevance": [("", item["cluster"], answers_it, 1)],
                    "words": [("", item["cluster"], length, 1)],
                    "truncated": [("", item["cluster"], truncated, 1)],
                },
            }
        )
    return rows
