"""Conversations with a model or a judge: written as straight-line code, run hundreds at a time.

A *conversation* is a generator. It yields a request and is sent the sample that came back:

    request   {"messages": [...]}, with any setting of its own ("temperature", "first", ...)
    sample    {"text": "...", "finish_reason": "stop"}

What it returns is its outcome. MT-Bench's second turn and a judge that is asked again are then
ordinary code, while `converse` keeps all of them going.
"""

from collections.abc import Callable, Generator

Conversation = Generator[dict, dict, object]

JUDGE_ATTEMPTS = 3
# A judge at temperature 0 would say the same unreadable thing again.
RETRY_TEMPERATURE = 0.5


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def single_turn(item: dict) -> Conversation:
    """Ask one user turn, `item["prompt"]`, and return its answer in a list."""
    sample = yield {"messages": [user(item["prompt"])]}
    return [sample]


def ask_judge(
    messages: list[dict], parse: Callable[[str], object]
) -> Generator[dict, dict, tuple[object, str]]:
    """Return (verdict, the judge's words); None after JUDGE_ATTEMPTS unreadable verdicts."""
    for attempt in range(JUDGE_ATTEMPTS):
        request = {"messages": messages, "first": attempt}
        if attempt > 0:
            request["temperature"] = RETRY_TEMPERATURE
        sample = yield request
        verdict = parse(sample["text"])
        if verdict is not None:
            break
    return verdict, sample["text"]


def converse(
    client, conversations: list[Conversation | None], settings: list[dict]
) -> list[object]:
    """Run all conversations to their end and return their outcomes; None where a request failed.

    A round of requests goes out at a time. `settings` holds one dict a conversation, for what its
    requests do not say themselves. A conversation that is None is none: its outcome is None.
    """
    outcomes: list[object] = [None] * len(conversations)
    waiting = []
    for index, conversation in enumerate(conversations):
        if conversation is not None:
            waiting.append((index, conversation, next(conversation)))
    while waiting:
        requests = [{**settings[index], **request} for index, _, request in waiting]
        following = []
        answers = client.complete(requests)
        for (index, conversation, _), samples in zip(waiting, answers, strict=True):
            if not samples:
                continue
            try:
                following.append((index, conversation, conversation.send(samples[0])))
            except StopIteration as finished:
                outcomes[index] = finished.value
        waiting = following
    return outcomes
