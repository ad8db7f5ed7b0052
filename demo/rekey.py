"""Make the recorded supervisor completions match reworded prompts.

A stage finds a completion by its key, the hash of the very prompt. Every recording says in `for`
what it is about: a sample (01), a constraint (02), a function or a pair of constraints (03). From
that its key is computed anew.

    python demo/rekey.py --check    # only list the recordings that no longer match
    python demo/rekey.py            # rewrite their keys: where they still answer the new prompts
"""

import argparse
import importlib
import random
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parent
sys.path.insert(0, str(DEMO.parent))  # the stages are files of the checkout, not a package

from autoif import files, llm  # noqa: E402

MODEL = "recorded-supervisor"
FLAGS = {
    "01_seed_augment": ["--seeds", str(DEMO / "seeds.txt"), "--k", "4", "--count", "20"],
    "02_verifiers": ["--k", "4"],
    "03_backtranslate": ["--nli", "llm", "--heldout", "0.25", "--seed", "0"],
}


def request(stage, args: argparse.Namespace, record: dict) -> dict:
    """What the stage sends today about the subject of a recording."""
    about = record["for"]
    if stage.__name__ == "01_seed_augment":
        rng = random.Random(args.seed)
        seeds = stage.read_seeds(args.seeds)
        return list(stage.requests(seeds, args.k, args.count, args.shown, rng))[record["index"]]
    if stage.__name__ == "02_verifiers":
        return stage.request({"instruction": about}, args.k)
    if isinstance(about, str):
        return stage.requests({"verifiers": [{"code": about}]}, args.max_functions)[0]
    return next(stage.nli_requests([about]))


def recordings(name: str):
    """Yield every recording of a stage with the key of today's prompt."""
    stage = importlib.import_module(name)
    args = stage.parse(["--model", MODEL, *FLAGS[name]])
    sampling = {flag: getattr(args, flag) for flag in llm.SAMPLING}
    for record in files.read(DEMO / "completions" / f"{name}.jsonl"):
        asked = {**sampling, **request(stage, args, record)}
        asked.pop("k", None)
        asked.pop("first", None)
        yield record, llm.key(MODEL, **asked)


def stale() -> list[str]:
    """The recordings that no longer match, one line each."""
    found = []
    for name in FLAGS:
        for record, key in recordings(name):
            if record["key"] != key:
                found.append(f"{name}, sample {record['index']} of {record['for']!r}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    print("\n".join(stale()) or "every recording matches")
    for name in [] if check else FLAGS:
        with files.writer(DEMO / "completions" / f"{name}.jsonl") as write:
            for record, key in recordings(name):
                write({**record, "key": key})
