"""Held-out constraints: the share of answers that pass verifiers never trained on.

Each constraint that stage 03 held out is joined with queries that stage 04 held out, and nothing is
filtered again. A response passes as in stage 04: its accuracy over the constraint's functions is
more than verifiers.MIN_ACCURACY (section 3.3), an error is no pass. What stands in the table:

    Held-out             all constraints; clusters are prompts (these constraints, other queries)
    Held-out length      constraints on the answer's length, which brevity alone obeys
    Held-out other       all the others (autoif.evaluation.kinds has the rule)
    by constraint        as Held-out, whole constraints resampled (other constraints: wider)
    relevance            answers whose own query is the nearest of all (autoif.relevance)
    words, truncated     mean length of an answer, and the share cut off at --max-tokens
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from autoif import queries, relevance, verifiers
from autoif.evaluation import kinds
from autoif.evaluation.benchmarks import Settings
from autoif.files import NotSetUp
from autoif.flags import Count

SETTINGS = Settings(
    temperature=0.8,  # as the online loop samples (section 3.4)
    max_tokens=512,
    columns=(
        *("Held-out", "Held-out length", "Held-out other", "by constraint"),
        *("relevance", "words", "truncated"),
    ),
    ratings=("words",),
    samples_flag="k",
)


@dataclass(kw_only=True)
class Flags:
    heldout: str | None = None  # 03_instructions.jsonl, for the heldout benchmark
    queries: str | None = None  # 04_queries.jsonl, for the heldout benchmark
    queries_per_instruction: Count = 16  # queries joined to each held-out constraint


def read_queries(path: str) -> list[str]:
    """The distinct held-out queries that stage 04 kept; all queries of a file without `split`."""
    kept = list(dict.fromkeys(queries.kept(path, "heldout")))
    if not kept:
        raise NotSetUp(
            f"{path} has no query of split 'heldout'; run 04_responses.py with "
            "--heldout-queries 0.1"
        )
    return kept


def load(heldout: str | None, queries: str | None, joined: int, seed: int) -> Iterator[dict]:
    """Each held-out constraint with `joined` held-out queries, one an item."""
    if not (heldout and queries):
        raise NotSetUp(
            "the heldout benchmark needs --heldout out/03_instructions.jsonl and "
            "--queries out/04_queries.jsonl"
        )
    kept = read_queries(queries)
    for row in verifiers.read(heldout, "heldout"):
        # a generator of its own: a constraint's queries stay when other constraints come or go
        rng = random.Random(f"{seed}:{row['id']}")
        drawn = rng.sample(kept, min(joined, len(kept)))
        for number, query in enumerate(drawn):
            name, instruction = f"{row['id']}-{number}", row["instruction"]
            item = {"id": name, "cluster": name, "constraint": row["id"]}
            item |= {"instruction": instruction, "kind": kinds.kind(instruction), "query": query}
            item["prompt"] = verifiers.join(query, instruction)
            # with other functions it is another test (Data.sha256)
            yield {**item, "codes": [verifier["code"] for verifier in row["verifiers"]]}


def conditions(queries: str) -> dict:
    """What relevance depends on: how nearness is measured, and among how many queries."""
    return {"relevance by": relevance.encoder(), "queries": len(read_queries(queries))}


async def verify(attempts: list[dict], box, functions: dict[str, list[dict]]) -> list[list[str]]:
    """The verdicts on each attempt's answer; a function sees all answers in one job."""
    texts = defaultdict(list)  # under each constraint
    for attempt in attempts:
        texts[attempt["item"]["constraint"]].append(attempt["answers"][0]["text"])
    runs = [verifiers.judge(box, functions[name], its) for name, its in texts.items()]
    verdicts = dict(zip(texts, map(iter, await asyncio.gather(*runs))))
    return [next(verdicts[attempt["item"]["constraint"]]) for attempt in attempts]


async def score(attempts: list[dict], box, heldout: str, queries: str) -> list[dict]:
    """The rows of all attempts; `box` runs the functions."""
    functions = {row["id"]: row["verifiers"] for row in verifiers.read(heldout, "heldout")}
    verdicts = await verify(attempts, box, functions)
    items = list(map(itemgetter("item"), attempts))
    samples = [attempt["answers"][0] for attempt in attempts]
    texts = list(map(itemgetter("text"), samples))
    asked = list(map(itemgetter("query"), items))
    instructions = list(map(itemgetter("instruction"), items))
    on_topic = relevance.relevant(texts, asked, instructions, read_queries(queries))
    rows = []
    for item, sample, relevant, of_answer in zip(items, samples, on_topic, verdicts):
        accuracy = verifiers.accuracy(of_answer, functions[item["constraint"]])
        passed = accuracy > verifiers.MIN_ACCURACY
        numbers = {"Held-out": passed, f"Held-out {item['kind']}": passed, "relevance": relevant}
        numbers["words"] = len(sample["text"].split())
        numbers["truncated"] = sample["finish_reason"] == "length"
        points = {"by constraint": [("", item["constraint"], passed, 1)]}
        for name, number in numbers.items():
            points[name] = [("", item["cluster"], number, 1)]
        row = {"verdict": passed, "verdicts": of_answer, "kind": item["kind"], "points": points}
        reason = f"{of_answer.count('pass')} of {len(of_answer)} functions pass"
        rows.append({**row, "reason": reason, "relevant": relevant})
    return rows
