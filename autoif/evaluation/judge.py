"""One question, one answer: of a model or of a judge, and how a verdict is got out of a judge."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoif import llm

JUDGE_ATTEMPTS = 3
# A judge at temperature 0 would say the same unreadable thing again.
RETRY_TEMPERATURE = 0.5
LIMITS = ("concurrency", "timeout", "max_failed")


class Unanswered(Exception):
    """A request kept failing or was refused: what needs its answer stays open."""


def turn(role: str, text: str) -> dict:
    return {"role": role, "content": text}


system = partial(turn, "system")
user = partial(turn, "user")
assistant = partial(turn, "assistant")


async def ask(client: llm.Client, messages: list[dict], **sampling) -> dict:
    """The answer, {"text": "...", "finish_reason": "stop"}; Unanswered where there is none."""
    samples = await client.ask(messages, k=1, **sampling)
    if not samples:
        raise Unanswered
    return samples[0]


async def stored(client, messages: list[dict], **sampling) -> dict:
    """The answer that is in the store; Unanswered where there is none."""
    if client.lacks(messages, **sampling):
        raise Unanswered
    return await ask(client, messages, **sampling)


@dataclass(kw_only=True)
class Flags:
    judge_model: str | None = None  # judge of the benchmarks that need one, and of rephrasings
    judge_base_url: str | None = llm.variable("OPENAI_BASE_URL")  # the judge's server


@dataclass(kw_only=True)
class Request(llm.Flags):
    """What a judge is asked with, whatever flags the model under test has."""

    k: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024


def client(args: Flags) -> contextlib.AbstractAsyncContextManager:
    """The judge's client for an `async with` block, which gives None where no judge is named."""
    if args.judge_model is None:
        return contextlib.nullcontext()
    # a run that asks a model as well has limits for both
    limits = {name: getattr(args, name) for name in LIMITS if hasattr(args, name)}
    store = str(Path(args.out).parent / "completions" / "07_judge.jsonl")
    request = Request(model=args.judge_model, base_url=args.judge_base_url, store=store, **limits)
    # An empty judgement is one that cannot be read: kept, so that a judge who has nothing to say
    # of an answer (a filter, all tokens thought away) is asked JUDGE_ATTEMPTS times and no more.
    return llm.Client(request, "judge", keep_empty=True)


async def verdict(
    client: llm.Client, messages: list[dict], read: Callable[[str], object], max_tokens: int
) -> tuple[object, str]:
    """(what `read` makes of the judge's words, these words); None where it can read none of them.

    An unreadable judgement is asked for again, as another sample: JUDGE_ATTEMPTS times in all.
    """
    sampling = {"max_tokens": max_tokens}
    for attempt in range(JUDGE_ATTEMPTS):
        judgement = await ask(client, messages, first=attempt, **sampling)
        found = read(judgement["text"])
        if found is not None:
            break
        sampling["temperature"] = RETRY_TEMPERATURE
    return found, judgement["text"]
