"""How an output was made, as a file beside it says, and what a command would do otherwise.

    out/02_verifiers.jsonl -> out/02_verifiers.settings.json
    {"flags": {"k": 8, ...}, "inputs": {"out/01_instructions.jsonl": "sha256 ..."},
     "versions": {"python": "3.11.7", ...}, "commit": "cbb4964", "date": "2026-11-29"}

`inputs` are all files and checkpoints that flags name.
"""

import functools
import hashlib
import json
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from autoif.files import write_whole

# the files that make a checkpoint what it is
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
SETTINGS = (
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
LIBRARIES = ("openai", "torch", "transformers", "deepspeed", "scikit-learn")
# Flags that cannot change what a stage writes: where it goes, how fast, how much it may cost.
FREE = set(
    "out sft_out folder store command base_url judge_base_url concurrency timeout max_failed "
    "batch_in batch_out price_in price_out workers unsafe_no_sandbox nli_batch_size micro_tokens "
    "zero offload unpinned activation_checkpointing compile ds_config save_every "
    "keep_checkpoints divergence wandb no_paper allow_gaps".split()
)


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """{"python": "3.11.7", "openai": "2.1.0", "torch": "absent", ...}"""
    numbers = {"python": platform.python_version()}
    for library in libraries:
        try:
            numbers[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            numbers[library] = "absent"
    return numbers


def commit() -> str | None:
    """The checkout's commit, None where there is none or no git."""
    checkout = shlex.quote(str(Path(__file__).parent))
    command = f"git -C {checkout} rev-parse --short HEAD 2>/dev/null"  # warnings are no commit
    status, line = subprocess.getstatusoutput(command)
    return None if status else line


def settings_path(out: str | Path) -> Path:
    """The settings file of an output, which may be a folder."""
    out = Path(out)
    name = out.name.removesuffix(".settings.json").removesuffix(".json").removesuffix(".jsonl")
    return out.with_name(f"{name}.settings.json")


def fingerprint(model: str) -> str:
    """`model`, or for a checkpoint directory a hash: retraining at the same path changes it."""
    folder = Path(model)
    weights = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not weights:
        return model
    settings = [folder / name for name in SETTINGS if (folder / name).exists()]
    digest = hashlib.sha256()
    for path in weights + settings:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            # 128 blocks of 4 KB: whole when small, milliseconds when it is 15 GB
            for block in range(128):
                file.seek(max(block * 4096, size * block // 128))
                digest.update(file.read(4096))
    return f"checkpoint:{digest.hexdigest()}"


@functools.cache
def identity(value: object) -> str | None:
    """What lies at a path: a file's SHA-256, a checkpoint's fingerprint; None for all else."""
    if not isinstance(value, str) or not value:
        return None
    if Path(value).is_file():
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    mark = fingerprint(value)
    return None if mark == value else mark


def flags_of(args: Any) -> dict:
    """The values of all flags, as JSON holds them: tuples are lists, paths are texts.

    Of an address without its user and password, which a run from the store alone never refuses.
    """
    flags = {name: value for name, value in vars(args).items() if not callable(value)}
    return json.loads(re.sub(r"(https?://)[^/@\s\"]*@", r"\1", json.dumps(flags, default=str)))


def listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def named_by(args: Any) -> set[str]:
    """The texts in flags that can be what a command reads: paths, names of models."""
    texts = set()
    for name, value in flags_of(args).items():
        if name not in FREE:
            texts.update(each for each in listed(value) if isinstance(each, str))
    return texts


def write_settings(args: Any, out: str | Path) -> None:
    """Write how `out` is made beside it: just before it appears, so that it never lacks them."""
    identity.cache_clear()  # files change while a process runs
    marks = {text: identity(text) for text in sorted(named_by(args))}
    settings = {
        "flags": flags_of(args),
        "inputs": {text: mark for text, mark in marks.items() if mark},
        "versions": versions(LIBRARIES),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    write_whole(settings_path(out), json.dumps(settings, indent=2) + "\n")


def changes(settings: dict, args: Any) -> Iterator[str]:
    """How the flags, and the files that they name, differ from those of a settings file."""
    flags, inputs = settings["flags"], settings["inputs"]
    for name, value in flags_of(args).items():
        # a flag that came with a later version says nothing about an earlier output
        if name in FREE or name not in flags:
            continue
        before = [inputs.get(each, each) for each in listed(flags[name])]
        after = [identity(each) or each for each in listed(value)]
        recorded = inputs.keys() & set(map(str, listed(flags[name])))
        # earlier versions recorded no checkpoints: of one at the same path nothing is known
        if before == after or (flags[name] == value and not recorded):
            continue
        flag = "--in" if name == "input" else f"--{name.replace('_', '-')}"
        if recorded:
            yield f"{flag} {value} is not what it was made of"
        else:
            yield f"{flag} was {flags[name]}, is {value}"
