"""Make the recorded supervisor completions of demo/ and study/ match reworded prompts.

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
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO, STUDY = ROOT / "demo", ROOT / "study"
sys.path.insert(0, str(ROOT))  # the stages are files of the checkout, not a package

from autoif import files, llm  # noqa: E402

MODEL = "recorded-supervisor"
FLAGS = {
    "01_seed_augment": ["--seeds", str(DEMO / "seeds.txt"), "--k", "4", "--count", "20"],
    "02_verifiers": ["--k", "4"],
    "03_backtranslate": ["--nli", "llm", "--heldout", "0.25", "--seed", "59"],
}


def request(stage, args: argparse.Namespace, record: dict) -> dict:
    """What the stage sends today about the subject of a recording."""
    about = record["for"]
    if stage.__name__ == "01_seed_augment":
        rng = random.Random(args.seed)
        seeds = stage.read_seeds(args.seeds)
        # the study asks for more samples than the demo: it goes on where the demo's end
        samples = record["index"] + 1
        return list(stage.requests(seeds, samples, args.count, args.shown, rng))[-1]
    if stage.__name__ == "02_verifiers":
        return stage.request({"instruction": about}, args.k)
    if isinstance(about, str):
        return stage.requests({"verifiers": [{"code": about}]}, args.max_functions)[0]
    return next(stage.nli_requests([about]))


def recordings(folder: Path, name: str):
    """Yield every recording of a stage in a folder, with the key of today's prompt."""
    stage = importlib.import_module(name)
    args = stage.parse(["--model", MODEL, *FLAGS[name]])
    sampling = {flag: getattr(args, flag) for flag in llm.SAMPLING}
    for record in files.read(folder / "completions" / f"{name}.jsonl"):
        asked = {**sampling, **request(stage, args, record)}
        asked.pop("k", None)
        asked.pop("first", None)
        yield record, llm.key(MODEL, **asked)


def stale(folder: Path) -> list[str]:
    """The recordings of a folder that no longer match, one line each."""
    found = []
    for name in FLAGS:
        for record, key in recordings(folder, name):
            if record["key"] != key:
                found.append(f"{name}, sample {record['index']} of {record['for']!r}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    print("\n".join(stale(DEMO) + stale(STUDY)) or "every recording matches")
    if check:
        sys.exit()
    for folder, name in product((DEMO, STUDY), FLAGS):
        with files.writer(folder / "completions" / f"{name}.jsonl") as write:
            for record, key in recordings(folder, name):
                write({**record, "key": key})
