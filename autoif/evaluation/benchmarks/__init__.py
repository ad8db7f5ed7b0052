"""The benchmarks of 07_eval.py, one module each, and what they share.

A benchmark module has
    load(source, args) -> list[dict]   its items, each with `id`, `prompt` and `cluster` (what is resampled together)
    answer(item)                       a conversation that returns the item's answers; `single_turn` for most
    judge(item, answers)               a conversation with the judge, or None where a rule decides; returns `judged`
    score(works, args) -> list[dict]   `{verdict, reason, points}` for each work `{item, sample, answers, judged}`;
                                       points: {metric: [(stratum, cluster, numerator, denominator)]}, see autoif.evaluation.intervals;
                                       "unparsable": True where the answer or the judgement had no readable form

A *conversation* is a generator: it yields a request (`{"messages": [...]}`, with any setting of its own) and is sent
the sample that came back, `{"text", "finish_reason"}`. MT-Bench's second turn and a judge that is asked again are
then straight-line code, while `converse` keeps hundreds of them going at a time.
"""

from collections.abc import Callable, Generator

from autoif.files import UserError

Conversation = Generator[dict, dict, object]

JUDGE_ATTEMPTS = 3
# A judge at temperature 0 would say the same unreadable thing again.
RETRY_TEMPERATURE = 0.5


class NotSetUp(UserError):
    """A benchmark that would be a gap in a rerun too: it has no data, no judge, no answers."""


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def single_turn(item: dict) -> Conversation:
    """One user turn, `item["prompt"]`; returns its answer in a list."""
    return [(yield {"messages": [user(item["prompt"])]})]


def ask_judge(
    messages: list[dict], parse: Callable[[str], object]
) -> Generator[dict, dict, tuple[object, str]]:
    """(verdict, the judge's words); asks JUDGE_ATTEMPTS times, then the verdict is None: left out and counted."""
    for attempt in range(JUDGE_ATTEMPTS):
        request = {"messages": messages, "first": attempt}
        if attempt:
            request["temperature"] = RETRY_TEMPERATURE
        text = (yield request)["text"]
        verdict = parse(text)
        if verdict is not None:
            return verdict, text
    return None, text


def spread(items: list[dict], limit: int | None) -> list[dict]:
    """About `limit` items in whole clusters, evenly over the benchmark: its first ones may all be of one subject."""
    clusters = list(dict.fromkeys(item["cluster"] for item in items))
    if limit is None or limit >= len(items):
        return items
    take = max(1, round(limit * len(clusters) / len(items)))
    chosen = {clusters[i * len(clusters) // take] for i in range(take)}
    return [item for item in items if item["cluster"] in chosen]


def converse(
    client, conversations: list[Conversation | None], settings: list[dict]
) -> list[object]:
    """Run all conversations to their end, a round of requests at a time; None where a request kept failing.

    `settings` holds one dict a conversation, for what its requests do not say themselves. None is no conversation.
    """
    outcomes: list[object] = [None] * len(conversations)
    waiting = [
        (index, conversation, next(conversation))
        for index, conversation in enumerate(conversations)
        if conversation is not None
    ]
    while waiting:
        requests = [{**settings[index], **request} for index, _, request in waiting]
        following = []
        for (index, conversation, _), samples in zip(
            waiting, client.complete(requests), strict=True
        ):
            if not samples:
                continue
            try:
                following.append((index, conversation, conversation.send(samples[0])))
            except StopIteration as finished:
                outcomes[index] = finished.value
        waiting = following
    return outcomes
