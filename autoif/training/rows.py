"""Rows as token ids, and which of them a device computes together.

A row is `{"id", "prompt": [ids], "responses": [[ids], ...]}`: one response for SFT, two for DPO.
"""

import hashlib
import heapq
import json
import math
import random
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import jinja2

from autoif.files import UserError
from autoif.models import chat_tokenizer
from autoif.stage import Funnel

ROLES = ("system", "user", "assistant")


def load_tokenizer(model: str, chat_template: str | None):
    """The model's tokenizer with an end token and a template: the file's, its own, the fallback."""
    tokenizer = chat_tokenizer(model)
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat-template {chat_template} cannot be read: {error}") from None
    return tokenizer


def check_messages(messages, name: str, where: str) -> None:
    """UserError unless `messages` is a list of {role, content} with known roles and text."""
    if not isinstance(messages, list):
        raise UserError(
            f"{where}: {name} must be a list of messages "
            f'[{{"role": "user", "content": "..."}}], not {str(messages)[:80]!r}'
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(
                f"{where}: {name} has a message without role and text: {str(message)[:80]!r}"
            )
        if message.get("role") not in ROLES:
            raise UserError(
                f"{where}: unknown role {message.get('role')!r}; roles are {', '.join(ROLES)}"
            )


def encode(
    tokenizer,
    prompt: list[dict],
    responses: list[list[dict]],
    where: str,
    truncated: Collection[int] = (),
) -> dict:
    """Token ids of a prompt and its responses through the chat template, with their end tokens.

    Prompt and response are tokenized apart, as they are when the model generates. What the template
    puts behind the end token (a line break, mostly) is left out; a template that puts none there
    gets the tokenizer's. The responses whose numbers are in `truncated` were cut off: no end token
    is theirs.
    """

    def render(messages, **options):
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except jinja2.TemplateError as error:  # its own refusal, or a broken --chat-template
            raise UserError(f"{where}: the chat template says: {error}") from None

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    check_messages(prompt, "the prompt", where)
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt must end with the user's message, not {prompt[-1:]}")
    asked, special = render(prompt, add_generation_prompt=True), set(tokenizer.all_special_ids)
    row = {"prompt": ids(asked), "responses": []}
    for number, response in enumerate(responses):
        check_messages(response, "a response", where)
        if len(response) != 1 or response[0]["role"] != "assistant":
            raise UserError(f"{where}: a response must be one assistant message, not {response}")
        if not response[0]["content"].strip():
            raise UserError(f"{where}: empty response {response[0]['content']!r}; delete the row")
        whole = render(prompt + response)
        if not whole.startswith(asked):
            raise UserError(
                f"{where}: the chat template does not continue its own generation prompt; "
                "pass --chat-template"
            )
        tokens = ids(whole[len(asked) :])
        while special.intersection(tokens) and tokens[-1] not in special:
            tokens.pop()
        ended = tokens[-1] in special
        if number in truncated and ended:
            tokens.pop()
        elif number not in truncated and not ended:
            tokens.append(tokenizer.eos_token_id)
        row["responses"].append(tokens)
    return row


def end_tokens(rows: list[dict], tokenizer) -> set[int]:
    """The tokens that end responses."""
    last = {response[-1] for row in rows for response in row["responses"]}
    return last.intersection(tokenizer.all_special_ids)  # a truncated response ends with a word


def longest(row: dict) -> int:
    """Longest prompt + response of a row, in tokens."""
    return len(row["prompt"]) + max(map(len, row["responses"]))


def packed_tokens(row: dict) -> int:
    """Tokens that a pack spends on a row: its prompt once; a last token predicts nothing."""
    return len(row["prompt"]) + sum(map(len, row["responses"])) - len(row["responses"])


def count_tokens(rows: list[dict]) -> tuple[int, int]:
    """Real tokens of rows: with each prompt once, and with the prompt once for each response."""
    once, repeated = 0, 0
    for row in rows:
        prompt, responses = len(row["prompt"]), sum(map(len, row["responses"]))
        once += prompt + responses
        repeated += prompt * len(row["responses"]) + responses
    return once, repeated


def usable(
    stage: str, rows: Iterable[dict], tokenizer, max_length: int, source: str, out: str, rank: int
) -> list[dict]:
    """Encoded rows that can be trained on; rank 0 accounts for the others. Nothing is cut."""
    special = set(tokenizer.all_special_ids)
    kept, dropped = [], []
    for row in rows:
        if longest(row) > max_length:
            dropped.append((f"longer than {max_length} tokens", row["id"]))
        elif any(special.intersection(response[:-1]) for response in row["responses"]):
            dropped.append(("special token inside a response", row["id"]))
        else:
            kept.append(row)
    if rank == 0:
        funnel = Funnel(stage, f"{out}.jsonl")
        funnel.keep(len(kept))
        for reason, identity in dropped:
            funnel.drop(reason, {"id": identity})
        funnel.finish()
    if not kept:
        raise UserError(f"no row of {source} is left to train on")
    return kept


def batches(rows: int, batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Row numbers of every optimizer step: a shuffle an epoch, end to end, cut into equal batches.

    The last batch is filled from one more shuffle, so that no step is smaller than the others.
    """
    steps = math.ceil(rows * epochs / batch)
    order = []
    for epoch in range(math.ceil(steps * batch / rows)):
        order += random.Random(f"{seed}/{epoch}").sample(range(rows), rows)
    return [order[step * batch : (step + 1) * batch] for step in range(steps)]


def share_out(rows: list[dict], capacity: int, world: int) -> list[list[dict]]:
    """Rows in packs of at most `capacity` tokens, fullest first, a multiple of `world` of them.

    Longest row first, each into the pack that has the least: that balances packs as it fills them,
    and when one overflows there were too few. A row longer than `capacity` has a pack to itself.
    Five rows, capacity 11, two processes:

        rows 7 6 4 3 2  ->  2 packs: 7 3 2 | 6 4     12 > 11: too few
                        ->  4 packs: 7 | 6 | 4 | 3 2
    """
    longest_first = sorted(rows, key=packed_tokens, reverse=True)
    total = sum(min(packed_tokens(row), capacity) for row in rows)
    count = world * math.ceil(total / (capacity * world))
    while True:
        packs = [(0, number, []) for number in range(count)]
        for row in longest_first:
            filled, number, pack = packs[0]
            heapq.heapreplace(packs, (filled + packed_tokens(row), number, [*pack, row]))
        if all(filled <= capacity or len(pack) == 1 for filled, _, pack in packs):
            packs.sort(reverse=True)
            return [pack for _, _, pack in packs]
        count += world


def micro_steps(
    rows: list[dict], capacity: int, rank: int, world: int
) -> Iterator[tuple[list[dict], int, bool]]:
    """This rank's packs of a global batch, as (rows, weight, whether it is the step's last).

    Every rank has the same number, and packs of like size at the same time: under ZeRO-3 the ranks
    gather each layer together. A rank without rows repeats the shortest one with weight 0.
    """
    packs = share_out(rows, capacity, world)
    for at in range(0, len(packs), world):
        mine, last = packs[at + rank], at + world == len(packs)
        if mine:
            yield mine, 1, last
        else:
            yield [min(rows, key=packed_tokens)], 0, last


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
