"""What a server's reply holds: how it ended, its text without thoughts, what was billed."""

import functools
import re
from collections.abc import Sequence

# OpenAI's words and those of TGI, Anthropic and Cohere; "unknown" is the store's word for null.
# Any other one is of an answer that was cut off: "length", "MAX_TOKENS", "content_filter", "abort".
FINISHED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "tool_calls"}
FINISHED |= {"unknown"}
BROKEN = {"error", "abort", "insufficient_system_resource"}  # without a text: ask again
LIMITS = {"length", "model_length", "max_tokens"}  # asked again, it would be cut again
# How thoughts are told from the answer behind them, in any case of letters; `--think-tags` adds one
THINK_TAGS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel|>", "<|channel|>final"),  # gpt-oss: all its channels before the last
)
# What these put around the answer behind their thoughts.
ANSWER_TAGS = re.compile(
    r"\A(?:<\|constrain\|>\w+)?<\|(?:message|begin_of_solution|start_response)\|>\s*|"
    r"\s*<\|(?:return|end_of_solution|end_response)\|>\s*\Z",
    re.IGNORECASE,
)


def finish_reason(said: str | None) -> str:
    """ "stop" where the model ended its answer, "length" where anything else did."""
    return "stop" if str(said or "unknown").lower() in FINISHED else "length"


def is_answer(record: dict) -> bool:
    """Whether a sample has a text, or used up its tokens before it had one."""
    return bool((record["text"] or "").strip()) or str(record["finish_reason"]).lower() in LIMITS


def strip_think(text: str, tags: Sequence[str] | None = None) -> str:
    """`text` without the thoughts before its answer; `tags` are (open, close) of one's own.

    Thoughts are closed or run to the end of the text. Where the chat template opens them the text
    has the closing tag alone, at the begin or end of a line. An answer may name the tags.
    """
    thoughts, opening, closing, names = patterns(tuple(tags or ()))
    if match := thoughts.match(text):
        return ANSWER_TAGS.sub("", text[match.end() :])
    lowered = text.lower()
    if not any(name in lowered for name in names):  # ten times as fast as the search
        return text
    match = closing.search(text)
    if match and not opening.search(text, 0, match.start()):
        return text[match.end() :].lstrip()
    return text


@functools.cache
def patterns(tags: tuple[str, ...]) -> tuple[re.Pattern, re.Pattern, re.Pattern, list[str]]:
    """What matches thoughts at a text's begin, an opening tag, a line's closing tag; these tags."""
    pairs = [*THINK_TAGS, tags] if tags else THINK_TAGS
    escaped = [(re.escape(opening), re.escape(closing)) for opening, closing in pairs]
    thoughts = "|".join(rf"(?={opening}).*?(?:{closing}|\Z)" for opening, closing in escaped)
    openings, closings = map("|".join, zip(*escaped))
    form = functools.partial(re.compile, flags=re.DOTALL | re.IGNORECASE)
    return (
        form(rf"(?:\s*(?:{thoughts})\s*)+"),
        form(openings),
        form(rf"\n[ \t]*(?:{closings})|(?:{closings})[ \t]*(?=\n)"),
        [closing.lower() for _, closing in pairs],
    )


def usable(reply) -> bool:
    """Whether it is a ChatCompletion with choices, each a text, parts or (all thinking) neither."""
    # openai hands on a body that is no JSON as str, and checks no field
    choices = getattr(reply, "choices", None)
    for choice in choices or []:
        reason, message = getattr(choice, "finish_reason", None), getattr(choice, "message", None)
        filtered = message is None and "filter" in str(reason)  # so says Gemini
        if not filtered and not isinstance(getattr(message, "content", 0), str | list | None):
            return False
        if reason in BROKEN and not text_of(message):
            return False
    return bool(choices)


def text_of(message) -> str | None:
    """The text of a message; of one in parts (thoughts, text), its text parts."""
    content = getattr(message, "content", None)
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in ("text", "output_text"):
            part = part.get("text")
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def fields(message) -> list[str]:
    """The names of what a message holds besides its text: ["reasoning_content"]."""
    if message is None:
        return []
    names = {*message.model_fields_set, *message.model_extra} - {"role", "content"}
    return [name for name in sorted(names) if getattr(message, name)]


def billed(reply, choices: int) -> tuple[int | None, list[int | None]]:
    """(prompt tokens, completion tokens of each choice); None is what the server did not count.

    They are split, so that the store's sums are what was billed. llama.cpp counts the first of `n`
    samples alone, as what its slot predicted; of others more than eight characters a token tell.
    """
    usage = getattr(reply, "usage", None)
    if usage is None:
        return None, [None] * choices
    total = usage.completion_tokens or 0
    if choices > 1:
        predicted = (getattr(reply, "timings", None) or {}).get("predicted_n")
        texts = [text_of(choice.message) or "" for choice in reply.choices]
        if predicted == total or len("".join(texts)) > 8 * total:
            return usage.prompt_tokens, [total] + [None] * (choices - 1)
    share, rest = divmod(total, choices)
    return usage.prompt_tokens, [share + (place < rest) for place in range(choices)]


def records(reply, key: str, indices: list[int]) -> list[dict]:
    """What the store takes of a reply: a record for each of its choices."""
    choices, found = reply.choices[: len(indices)], []
    prompt_tokens, tokens = billed(reply, len(choices))
    for index, choice, count in zip(indices, choices, tokens):
        record = {
            "key": key,
            "index": index,
            "text": text_of(choice.message),
            "finish_reason": choice.finish_reason or "unknown",
            "prompt_tokens": 0 if found else prompt_tokens,
            "completion_tokens": count,
        }
        found.append(record)
    return found
