"""What a run will cost, said before anything is spent: requests, tokens, US$, and hours."""

import sys
import time

from autoif.evaluation import benchmarks
from autoif.files import UserError

CHARACTERS_PER_TOKEN = 4


def missing(name: str, works: list[dict], settings: dict, client) -> list[dict]:
    """The first request of each work that the store lacks; by log-likelihood nothing is asked."""
    if settings.get("mode") == "loglik":
        return []
    found = []
    for work in works:
        request = {**work["asked"], **next(benchmarks.conversation(name, work["item"]))}
        if client.lacks(request):
            found.append(request)
    return found


def announce(plans: dict[str, tuple[list[dict], dict]], client, args) -> None:
    """Print what the store lacks, and how long it takes by the speed of one real request.

    `plans` are the works and settings of each benchmark.
    """
    lacking, prompt_tokens, completion_tokens, judgements = [], 0, 0, 0
    for name, (works, settings) in plans.items():
        owners, samples = benchmarks.settings(name), settings["samples"]
        requests = missing(name, works, settings, client)
        judged = round(len(works) * owners.judge_calls)
        line = f"{name}: {len(works) // samples:,} items x {samples}"
        line += f", {len(requests):,} requests to send"
        if judged:
            line += f", about {judged:,} judgements"
        print(line, file=sys.stderr)
        for request in requests:
            for turn in request["messages"]:
                prompt_tokens += len(turn["content"]) // CHARACTERS_PER_TOKEN
        # an ordinary answer, not the longest: the limit is far above it
        usual = min(settings.get("max_tokens", 0), owners.usual_tokens)
        completion_tokens += len(requests) * usual
        judgements += judged
        lacking += requests
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
