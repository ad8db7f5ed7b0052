"""A base model as a chat server can serve it: itself, or, where its tokenizer has no chat template (LLaMA3-8B), a folder of
links to it with the template that training falls back to.

    python -m autoif.models meta-llama/Meta-Llama-3-8B out/base      prints what to serve
"""

import hashlib
import os
import sys
from pathlib import Path

from autoif.files import UserError
from autoif.stage import run

# For base models without a template: plain words and the model's own end token, since new special tokens are untrained.
FALLBACK_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def fingerprint(model: str) -> str:
    """`model`, or for a checkpoint directory a fingerprint of its weights: retraining at the same path changes it."""
    names = ["*.safetensors", "pytorch_model*.bin", "*.gguf"]
    weights = (
        sorted(path for name in names for path in Path(model).glob(name))
        if os.path.isdir(model)
        else []
    )
    if not weights:
        return model
    names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    digest = hashlib.sha256()
    for path in weights + [Path(model) / name for name in names if (Path(model) / name).exists()]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(
            path, "rb"
        ) as file:  # 128 blocks of 4 KB: whole when small, milliseconds when it is 15 GB
            for block in range(128):
                file.seek(max(block * 4096, size * block // 128))
                digest.update(file.read(4096))
    return f"checkpoint:{digest.hexdigest()}"


def read_tokenizer(model: str):
    """The tokenizer as it lies with the model; UserError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model} has no tokenizer: {str(error).splitlines()[0]}") from None


def generation_config(end_tokens: list[int]) -> dict:
    """A generation config that changes no sampling: end tokens, and nothing of what a base model had.

    Without `do_sample` transformers answers greedily, without `top_k` it samples from 50 tokens only.
    """
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "eos_token_id": end_tokens,
    }


def templated(model: str, folder: str | Path) -> str:
    """`model`, or `folder` with links to its files and a chat template."""
    from huggingface_hub import snapshot_download

    tokenizer = read_tokenizer(model)
    if tokenizer.chat_template is not None:
        return model
    folder, source = (
        Path(folder),
        Path(model) if Path(model).is_dir() else Path(snapshot_download(model)),
    )
    tokenizer.chat_template = FALLBACK_TEMPLATE
    tokenizer.save_pretrained(folder)  # before the links: they lead to the model's own files
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    return str(folder)


def main() -> None:
    if len(sys.argv) != 3:
        raise UserError("usage: python -m autoif.models MODEL FOLDER")
    print(templated(*sys.argv[1:]))


if __name__ == "__main__":
    run(main)
