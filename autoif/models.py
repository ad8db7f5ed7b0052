"""A model on disk: fingerprint, tokenizer, chat template, end tokens, and a form to serve it in.

    python -m autoif.models meta-llama/Meta-Llama-3-8B out/base

fills a folder with links to the model and with what it lacks to answer in a chat.
"""

import contextlib
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from autoif.files import UserError, read_json, remove, write_whole
from autoif.flags import cli
from autoif.settings import fingerprint, write_settings

# For base models without a template: plain words and the model's own end token, since new special
# tokens are untrained. A line break, not a blank, stands before the answer: "Assistant: " + "Paris"
# would train a pair of tokens that no text has.
FALLBACK_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
# A base model was never trained on that template: it goes on as the user where its answer ends.
FALLBACK_STOP = ["\nUser:"]

# What a repository on the hub carries besides: the same weights for other programs.
CARRIED = ["original/*", "onnx/*", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]

# What git leaves in place of a large file where Git LFS is not installed.
LFS_POINTER = b"version https://git-lfs"


def beside(model: str, form: str, write) -> Path:
    """The file or folder that `write(path)` makes of `model`: `.NAME.MARK.form` beside it.

    Kept, and made anew when the model's weights change, those of the hub too.
    """
    name = Path(model).name
    place = Path(model).resolve().parent if Path(model).is_dir() else Path.home() / ".cache/autoif"
    mark = fingerprint(str(folder_of(model))).split(":")[-1].replace("/", "_")[:16]
    path = place / f".{name}.{mark}.{form}"
    if path.exists():
        return path

    place.mkdir(parents=True, exist_ok=True)
    partial = place / f".{name}.{mark}.{os.getpid()}.partial"
    with open(place / f".{name}.lock", "w") as turn:
        with contextlib.suppress(OSError):  # a disk without locks: each process makes one
            fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            if not path.exists():
                write(partial)
            if path.exists():  # of another process, whose server may read it
                return path
            copies = rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.{re.escape(form)}"
            for older in place.glob(f".{name}.*.{form}"):
                if re.fullmatch(copies, older.name):
                    remove(older)
            os.replace(partial, path)
        finally:
            remove(partial)
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")])
    print(f"{path}: a copy of {model}, {size / 1e6:,.0f} MB; delete it at will", flush=True)
    return path


def folder_of(model: str) -> Path:
    """The folder of a model: itself, or what the hub has of it, downloaded."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    read_config(model)  # what is no model is said
    return Path(snapshot_download(model, ignore_patterns=CARRIED))


def read_config(model: str):
    """The configuration as it lies with the model; UserError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        kind = "no model" if Path(model).is_dir() else "no folder here, and no model that was found"
        raise UserError(f"{model} is {kind}: {str(error).splitlines()[0]}") from None


def empty_model(config):
    """A model of that configuration; no weight is read or made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameters(config) -> int:
    return empty_model(config).num_parameters()


def refuse_pointers(model: str) -> None:
    """UserError where Git LFS has left pointers in place of a model's files."""
    for path in sorted(Path(model).glob("*.*")):
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{path} is a Git LFS pointer, not the file; run `git lfs pull` in {model}"
                )


def chat_tokenizer(model: str):
    """The tokenizer with a chat template, its own or FALLBACK_TEMPLATE, and an end token."""
    from transformers import AutoTokenizer

    refuse_pointers(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        words = str(error).splitlines()[0]
        if not Path(model).is_dir():
            raise UserError(
                f"there is no folder {model}, and no tokenizer of that name on the hub: {words}"
            ) from None
        raise UserError(f"model {model} has no tokenizer: {words}") from None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {model} has no end token; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def special_tokens(tokenizer) -> set[int]:
    """All tokens marked special: those with a name, and added ones, as Llama 3's <|eot_id|>."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def end_of_turn(tokenizer) -> int:
    """The token that the chat template puts behind an answer, else the tokenizer's own.

    Qwen2's base model ends a text with <|endoftext|>, its template ends an answer with <|im_end|>.
    """
    question, answer = {"role": "user", "content": "So?"}, {"role": "assistant", "content": "Yes"}
    text = tokenizer.apply_chat_template([question, answer], tokenize=False)
    tail = tokenizer(text[text.rindex("Yes") :], add_special_tokens=False)["input_ids"]
    special = special_tokens(tokenizer)
    return next((token for token in reversed(tail) if token in special), tokenizer.eos_token_id)


def stop_strings(model: str) -> list[str]:
    """What a request to `model` stops at besides end tokens: only the fallback template has it."""
    jinja, config = Path(model, "chat_template.jinja"), Path(model, "tokenizer_config.json")
    if jinja.exists():
        template = jinja.read_text(encoding="utf-8")
    elif config.exists():
        template = read_json(config).get("chat_template")
    else:
        return []
    return FALLBACK_STOP if template in (None, FALLBACK_TEMPLATE) else []


def generation_config(end_tokens: list[int]) -> dict:
    """A generation config that changes no sampling: end tokens, nothing of what a base had.

    Without `do_sample` transformers answers greedily, without `top_k` it samples from 50 tokens.
    """
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return {**sampling, "eos_token_id": end_tokens}


def servable(model: str, folder: str | Path) -> str:
    """Fill `folder` with links to `model`, its chat template and end tokens; returns `folder`.

    Base and trained models are served alike: a base model that does not know its template's end
    token would run into every length limit, and lose to the trained one for that alone.
    """
    folder = Path(folder)
    tokenizer = chat_tokenizer(model)
    source = folder_of(model)
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    for name in ("config.json", "generation_config.json"):
        known = read_json(source / name, {}).get("eos_token_id")
        ends.update(known if isinstance(known, list) else [known])

    # what differs is written first: a link in its place would lead to the model's own file
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.chat_template == FALLBACK_TEMPLATE:
        tokenizer.save_pretrained(folder)
    config = json.dumps(generation_config(sorted(ends - {None})), indent=2) + "\n"
    write_whole(folder / "generation_config.json", config)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    return str(folder)


@dataclass(kw_only=True)
class Flags:
    model: Positional[str]  # a directory, or a name on the hub
    folder: Positional[str]  # to fill


def main(args: Flags) -> None:
    print(servable(args.model, args.folder))
    write_settings(args, args.folder)


if __name__ == "__main__":
    cli(main, __doc__)
