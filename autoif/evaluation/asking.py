"""One question, one answer: of a model or of a judge, each with the turns before it."""


class Unanswered(Exception):
    """A request kept failing or was refused: what needs its answer stays open."""


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


async def ask(client, messages: list[dict], **sampling) -> dict:
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
