"""Rows as token ids, and which of them a device computes together.

A row is `{"id", "prompt": [ids], "responses": [[ids], ...]}`: one response for SFT, two for DPO.
"""

import datetime
import hashlib
import heapq
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jinja2

from autoif import files
from autoif.files import UserError, read_json
from autoif.models import chat_tokenizer, special_tokens
from autoif.stage import Funnel
from autoif.training.ranks import from_first

ROLES = ("system", "user", "assistant", "tool")
SIDES = ("chosen", "rejected")
BAD_ROWS = 10  # that are shown at once


def first_day(out: str) -> str:
    """The day on which the run into `out` was begun, today for a new one: "2026-01-31"."""

    def read() -> str:
        settings = Path(f"{out}.state", "settings.json")
        today = datetime.date.today().isoformat()
        return read_json(settings, {}).get("date", today)

    return from_first(read)


def load_tokenizer(model: str, chat_template: str | None, date: str):
    """The model's tokenizer with an end token and a template: the file's, its own, the fallback.

    A template that prints today's date prints `date`, in a continuation of tomorrow too.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tokenizer = chat_tokenizer(model)
    try:
        if chat_template:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        # transformers compiles a template once and gives it the clock, without a way to set it
        compiled = _compile_jinja_template(tokenizer.get_chat_template())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {chat_template} cannot be read: {error}") from None
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {chat_template or model} says: {error}") from None
    compiled.globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    return tokenizer


# ---- a row as token ids ----------------------------------------------------------------------


def read_messages(messages, name: str, where: str) -> list[dict]:
    """Messages as chat templates want them: role, text, tool calls whose arguments are objects.

    {"role": "user", "content": [{"type": "text", "text": "Hi"}]}  ->  {..., "content": "Hi"}
    """
    if not isinstance(messages, list):
        raise UserError(
            f"{where}: {name} must be a list of messages "
            f'[{{"role": "user", "content": "..."}}], not {str(messages)[:80]!r}'
        )
    return [read_message(message, name, where) for message in messages]


def read_message(message, name: str, where: str) -> dict:
    fields = message if isinstance(message, dict) else {}
    content, calls, role = fields.get("content"), fields.get("tool_calls") or [], fields.get("role")
    if isinstance(content, list):
        if any(files.mismatch(part, {"text": str}) for part in content):
            raise UserError(f"{where}: {name} has a part that is no text: {str(content)[:80]!r}")
        content = "".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise UserError(
            f"{where}: {name} has a message without role and text: {str(message)[:80]!r}"
        )
    if role not in ROLES:
        raise UserError(f"{where}: unknown role {role!r}; roles are {', '.join(ROLES)}")
    if calls:
        fields = {**fields, "tool_calls": [read_call(call, where) for call in calls]}
    return {**fields, "content": content}


def read_call(call, where: str) -> dict:
    """A tool call whose arguments are an object; OpenAI's are one written as a text."""
    try:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
        return {**call, "function": {"name": str(function["name"]), **function}}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: a tool call has no function with name and arguments: {str(call)[:80]!r}"
        ) from None


def refuse_unrendered(messages: list[dict], rendering: str, where: str) -> None:
    """UserError where a chat template leaves out a text or the name of a called tool."""
    for message in messages:
        names = [call["function"]["name"] for call in message.get("tool_calls") or []]
        for text in [message["content"].strip(), *names]:
            # a tool's answer may stand in a JSON string
            escaped = json.dumps(text, ensure_ascii=False)[1:-1]
            if text not in rendering and escaped not in rendering:
                raise UserError(
                    f"{where}: the chat template leaves out what the {message['role']} says, "
                    f"{text[:80]!r}; pass another as --chat-template"
                )


def encode(tokenizer, prompt, responses, where: str, truncated=(), tools=None) -> dict:
    """Token ids of a prompt and its responses through the chat template, with their end tokens.

    Prompt and response are tokenized apart, as they are when the model generates. What the template
    puts behind the end token (a line break, mostly) is left out; a template that puts none there
    gets the tokenizer's. The responses whose numbers are in `truncated` were cut off: no end token
    is theirs.
    """

    def render(messages, **options):
        try:
            return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
        except Exception as error:  # a template is a program: its own refusal, or any error in it
            raise UserError(f"{where}: the chat template says: {error}") from None

    def ids(text):
        try:
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        except TypeError:  # what tokenizers says to half of a surrogate pair
            raise UserError(f"{where}: a text is no Unicode; delete the row") from None

    prompt = read_messages(prompt, "the prompt", where)
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt must end with the user's message, not {prompt[-1:]}")
    question, special = render(prompt, add_generation_prompt=True), special_tokens(tokenizer)
    # of earlier answers the calls alone: templates leave out their thoughts on purpose
    needed = [{**turn, "content": ""} if turn["role"] == "assistant" else turn for turn in prompt]
    refuse_unrendered(needed, question, where)
    row = {"prompt": ids(question), "responses": []}
    for number, response in enumerate(responses):
        response = read_messages(response, "a response", where)
        if len(response) != 1 or response[0]["role"] != "assistant":
            raise UserError(f"{where}: a response must be one assistant message, not {response}")
        if not response[0]["content"].strip():
            raise UserError(f"{where}: empty response {response[0]['content']!r}; delete the row")
        whole = render(prompt + response)
        if not whole.startswith(question):
            raise UserError(
                f"{where}: the chat template does not continue its own generation prompt; "
                "pass --chat-template"
            )
        answer = whole[len(question) :]
        refuse_unrendered(response, answer, where)
        cut = number in truncated
        row["responses"].append(ended(ids(answer), special, cut, tokenizer.eos_token_id))
    return row


def ended(tokens: list[int], special: set[int], truncated: bool, end: int) -> list[int]:
    """A response with its end token and nothing behind it; one that was cut off without it."""
    while special.intersection(tokens) and tokens[-1] not in special:
        tokens.pop()
    if truncated and tokens[-1] in special:
        tokens.pop()
    elif not truncated and tokens[-1] not in special:
        tokens.append(end)
    return tokens


def encode_sample(tokenizer, row: dict, where: str) -> dict:
    """A row with `messages` as token ids: of several turns the last one is the response."""
    messages = read_messages(row["messages"], "messages", where)
    return encode(tokenizer, messages[:-1], [messages[-1:]], where, tools=row.get("tools"))


def encode_pair(tokenizer, row: dict, where: str) -> dict:
    """A row with prompt, chosen and rejected as token ids: two responses, chosen first.

    With `"truncated": ["rejected"]` no end token is put behind that side: none was ever there.
    """
    prompt, *responses = [read_messages(row[name], name, where) for name in ("prompt", *SIDES)]
    # the margin of equal sides is 0 whatever the policy: such a pair teaches nothing
    if row["chosen"] == row["rejected"]:
        raise UserError(f"{where}: chosen and rejected are equal; delete the row")
    truncated = row.get("truncated", [])
    if not isinstance(truncated, list) or not all(side in SIDES for side in truncated):
        raise UserError(f"{where}: truncated must be a list of {SIDES}, not {truncated!r}")
    cut = [SIDES.index(side) for side in truncated]
    return encode(tokenizer, prompt, responses, where, cut, row.get("tools"))


def read_sft(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 04_sft.jsonl as token ids; of a bad one its error: {"id", "error"}."""
    return encoded_rows(path, tokenizer, ["messages"], "04_responses.py", encode_sample)


def read_pairs(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 06_pairs.jsonl as token ids; of a bad one its error: {"id", "error"}."""
    return encoded_rows(path, tokenizer, ["prompt", *SIDES], "06_dpo.py pairs", encode_pair)


def encoded_rows(
    path: str, tokenizer, fields: list[str], made_by: str, encode_row: Callable
) -> Iterator[dict]:
    """The rows of `path`, which have `fields`, through `encode_row(tokenizer, row, where)`.

    `made_by` is the stage that writes such a file, under a name that begins with its number.
    """
    if why := files.absent(path):
        ours = Path(path).name.startswith(made_by[:2])
        raise UserError(f"{path} {why}" + (f"; run {made_by} first" if ours else ""))
    for number, line in files.lines(path):
        where, row = f"{path}:{number}", {}
        if not line.strip():
            continue
        try:
            row = read_object(line, where)
            files.check(row, fields, where, f"; a row needs {', '.join(fields)}, lists of messages")
            encoded = encode_row(tokenizer, row, where)
        except UserError as error:
            encoded = {"error": str(error)}
        # one's own rows may have no id: their line is it
        yield {"id": row.get("id", str(number)), **encoded}


def read_object(line: str, where: str) -> dict:
    """The JSON object in a line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON ({error}): {line[:80]!r}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object: {line[:80]!r}")
    return row


def end_tokens(rows: list[dict], tokenizer) -> set[int]:
    """The tokens that end responses."""
    last = {response[-1] for row in rows for response in row["responses"]}
    return last.intersection(special_tokens(tokenizer))  # a truncated response ends with a word


def usable(stage: str, rows: Iterable[dict], tokenizer, args, rank: int) -> list[dict]:
    """Encoded rows that can be trained on; rank 0 accounts for the others. Nothing is cut.

    UserError that names the bad ones, ten at a time, unless --skip-bad.
    """
    special, inputs = special_tokens(tokenizer), args.input
    inputs = inputs if isinstance(inputs, str) else " ".join(inputs)
    samples, dropped, errors = [], [], []
    for row in rows:
        if "error" in row:
            dropped.append(("bad row", row))
            errors.append(row["error"])
        elif len(row["prompt"]) + max(map(len, row["responses"])) > args.max_length:
            dropped.append((f"longer than {args.max_length} tokens", {"id": row["id"]}))
        elif any(special.intersection(response[:-1]) for response in row["responses"]):
            dropped.append(("special token inside a response", {"id": row["id"]}))
        else:
            samples.append(row)
    if errors and not args.skip_bad:
        count = f"{len(errors)} of {len(samples) + len(dropped)} rows"
        more = [f"and {len(errors) - BAD_ROWS} more"] if len(errors) > BAD_ROWS else []
        advice = "mend or delete them, or pass --skip-bad:"
        raise UserError(
            f"{count} of {inputs} cannot be trained on; "
            + "\n  ".join([advice, *errors[:BAD_ROWS], *more])
        )
    if rank == 0:
        funnel = Funnel(stage, f"{args.out}.jsonl")
        funnel.keep(len(samples))
        for reason, row in dropped:
            funnel.drop(reason, row)
        funnel.finish()
    if not samples:
        raise UserError(f"no row of {inputs} is left to train on")
    return samples


# ---- which rows are computed together --------------------------------------------------------


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
    rows: list[dict], capacity: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[dict], int, bool]]:
    """This rank's packs of a global batch, as (rows, weight, whether it is the step's last).

    Every rank has the same number, and packs of like size at the same time: under ZeRO-3 the ranks
    gather each layer together. A rank without rows repeats the shortest one with weight 0.
    """
    packs = share_out(rows, capacity, world)
    for at in range(0, len(packs), world):
        pack, last = packs[at + rank], at + world == len(packs)
        if pack:
            yield pack, 1, last
        else:
            yield [min(rows, key=packed_tokens)], 0, last


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
