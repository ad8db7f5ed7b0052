"""What a run will cost, said before anything is spent: requests, tokens, US$, and hours."""

import sys
import time
from dataclasses import dataclass

from autoif.evaluation import benchmarks
from autoif.files import UserError

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Plan:
    """What one benchmark asks: the first request of each item and sample."""

    name: str
    items: int
    samples: int
    requests: list[dict]
    tokens: int  # of an ordinary answer
    judgements: int


def plan(name: str, works: list[dict], settings: dict) -> Plan:
    """What a benchmark's works are going to ask; by log-likelihood they ask nothing."""
    owners = benchmarks.settings(name)
    requests = []
    if settings.get("mode") != "loglik":
        for work in works:
            first_request = next(benchmarks.conversation(name, work["item"]))
            requests.append({**work["asked"], **first_request})
    samples = settings["samples"]
    return Plan(
        name,
        items=len(works) // samples,
        samples=samples,
        requests=requests,
        tokens=min(settings.get("max_tokens", 0), owners.usual_tokens),
        judgements=round(len(works) * owners.judge_calls),
    )


def announce(plans: list[Plan], client, args) -> None:
    """Print what the store lacks, and how long it takes by the speed of one real request."""
    lacking, prompt_tokens, completion_tokens, judgements = [], 0, 0, 0
    for plan in plans:
        missing = [request for request in plan.requests if client.lacks(request)]
        for request in missing:
            for turn in request["messages"]:
                prompt_tokens += len(turn["content"]) // CHARACTERS_PER_TOKEN
        completion_tokens += len(missing) * plan.tokens
        judgements += plan.judgements
        lacking += missing
        line = f"{plan.name}: {plan.items:,} items x {plan.samples}"
        line += f", {len(missing):,} requests to send"
        if plan.judgements:
            line += f", about {plan.judgements:,} judgements"
        print(line, file=sys.stderr)
    line = (
        f"in all {len(lacking):,} requests, about {prompt_tokens:,} + {completion_tokens:,} tokens"
    )
    if args.price_in is not None and args.price_out is not None:
        dollars = (prompt_tokens * args.price_in + completion_tokens * args.price_out) / 1e6
        line += f", about US$ {dollars:.2f} without the judge"
    line += f", and {judgements:,} judgements"
    if lacking:
        line += f"; {duration(lacking[0], completion_tokens, client, args.concurrency)}"
    print(line, file=sys.stderr, flush=True)


def duration(request: dict, tokens: int, client, concurrency: int) -> str:
    """How long `tokens` take, by the speed of the first request."""
    began, before = time.monotonic(), client.counts["completion_tokens"]
    try:
        next(client.complete([request]), None)
    except UserError as error:  # what is stored can be scored all the same
        return f"no time: {error}"
    seconds = time.monotonic() - began
    made = max(1, client.counts["completion_tokens"] - before)
    slow = tokens * seconds / made / 60
    return (
        f"the first took {seconds:.1f} s: {slow / concurrency:,.0f} min if the server keeps that "
        f"pace {concurrency} at a time, {slow:,.0f} min if one at a time"
    )
