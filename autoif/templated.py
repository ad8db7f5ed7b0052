"""A base model as a chat server can serve it: itself, or, where its tokenizer has no chat template (LLaMA3-8B), a folder of
links to it with the template that training falls back to.

    python -m autoif.templated meta-llama/Meta-Llama-3-8B out/base      prints what to serve
"""
import sys
from pathlib import Path

from autoif.stage import UserError, run
from autoif.train import FALLBACK_TEMPLATE, read_tokenizer


def templated(model: str, folder: str | Path) -> str:
    """`model`, or `folder` with links to its files and a chat template."""
    from huggingface_hub import snapshot_download

    tokenizer = read_tokenizer(model)
    if tokenizer.chat_template is not None:
        return model
    folder, source = Path(folder), Path(model) if Path(model).is_dir() else Path(snapshot_download(model))
    tokenizer.chat_template = FALLBACK_TEMPLATE
    tokenizer.save_pretrained(folder)  # before the links: they lead to the model's own files
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    return str(folder)


def main() -> None:
    if len(sys.argv) != 3:
        raise UserError("usage: python -m autoif.templated MODEL FOLDER")
    print(templated(*sys.argv[1:]))


if __name__ == "__main__":
    run(main)
