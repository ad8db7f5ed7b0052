"""Make the study's recorded supervisor completions match reworded prompts.

A stage finds a completion by its key, the hash of the very prompt. Every recording says in `for`
what it is about: a sample (01), a constraint (02), a function or a pair of constraints (03). From
that its key is computed anew.

    python study/rekey.py --check    # only list the recordings that no longer match
    python study/rekey.py            # rewrite their keys: where they still answer the new prompts
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "study"
sys.path.insert(0, str(ROOT))  # the stages are files of the checkout, not a package

from autoif import files, flags, llm, sandbox  # noqa: E402

MODEL = "recorded-supervisor"
FLAGS = {
    "01_seed_augment": ["--seeds", str(STUDY / "seeds.txt"), "--k", "9", "--count", "20"],
    "02_verifiers": ["--k", "4"],
    "03_backtranslate": ["--nli", "llm", "--heldout", "0.25", "--seed", "35"],
}


@dataclass(kw_only=True)
class Flags:
    check: bool = False  # write nothing


def prompt(stage, args, record: dict) -> str:
    """What the stage asks today about the subject of a recording."""
    about = record["for"]
    if stage.__name__ == "01_seed_augment":
        args.k = record["index"] + 1
        return next(islice(stage.prompts(stage.read_seeds(args.seeds), args), args.k - 1, None))
    if stage.__name__ == "02_verifiers":
        modules = ", ".join(sandbox.MODULES)
        return stage.VERIFIER_PROMPT.format(instruction=about, modules=modules)
    if isinstance(about, str):
        return stage.BACKTRANSLATE_PROMPT.format(code=about)
    premise, hypothesis = about
    return stage.NLI_PROMPT.format(premise=premise, hypothesis=hypothesis)


def recordings(name: str) -> Iterator[tuple[dict, str]]:
    """Yield every recording of a stage, with the key of today's prompt."""
    stage = importlib.import_module(name)
    _, args = flags.parse(stage.main, ["--model", MODEL, *FLAGS[name]])
    sampling = {flag: getattr(args, flag) for flag in llm.SAMPLING}
    for record in files.read(STUDY / "completions" / f"{name}.jsonl"):
        messages = [{"role": "user", "content": prompt(stage, args, record)}]
        yield record, llm.key(MODEL, messages, **sampling)


def stale() -> list[str]:
    """The recordings that no longer match, one line each."""
    lines = []
    for name in FLAGS:
        for record, key in recordings(name):
            if record["key"] != key:
                lines.append(f"{name}, sample {record['index']} of {record['for']!r}")
    return lines


def main(args: Flags) -> None:
    print("\n".join(stale()) or "every recording matches")
    for name in [] if args.check else FLAGS:
        with files.writer(STUDY / "completions" / f"{name}.jsonl") as write:
            for record, key in recordings(name):
                write({**record, "key": key})


if __name__ == "__main__":
    flags.cli(main, __doc__)
