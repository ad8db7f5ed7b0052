"""The second study's data: what is held out, what may be trained on beside it, how many pairs.

    python study/strong/data.py heldout out/heldout/03_instructions.jsonl       # -> heldout.jsonl
    python study/strong/data.py leaks out/heldout/03_instructions.jsonl         # list them
    python study/strong/data.py drop OUT/data OUT                               # without them
    python study/strong/data.py take all_pairs.jsonl 06_pairs.jsonl --instruction 48 --responses 96

heldout.jsonl are the constraints that the first study held out, with their functions: stages 01 to
03 of its recordings make the file's input (`OUT=out/heldout bash run_all.sh --study --until 03`).
heldout_2.jsonl and heldout_3.jsonl are 24 each, drawn, of its other 66 families: two more splits. A
constraint has a `kind` there, by what it asks of the answer:

    count    a length, or how often something has to be in it: "Use a colon exactly once"
    forbid   what must not be in it: "Use no digits"
    place    where something stands, or the form of the whole: "End with a question mark"
    insert   what has to be in it, anywhere: "Include an exclamation mark"

A trained constraint *leaks* where the texts that obey it (cases and responses that its own kept
functions accept) pass the functions of a held-out one far more often than ordinary answers
(ordinary.jsonl) and the texts that obey other constraints do, or the other way round: who learns
the one has learned the other, or a part of it. One of the same family is dropped as well. It cannot
be told of what most texts pass anyway, "at most three sentences" of "one sentence": such pairs,
found by reading, are in ../implied.tsv, and a column of the table is without them.
"""

import asyncio
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

STRONG = Path(__file__).resolve().parent
sys.path.insert(0, str(STRONG.parents[1]))  # run from a checkout, uninstalled
from autoif import families, files, sandbox, verifiers  # noqa: E402
from autoif.evaluation import kinds  # noqa: E402
from autoif.evaluation.intervals import wilson  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import Natural, cli  # noqa: E402

HELDOUT = str(STRONG.with_name("heldout.jsonl"))
COUNT = re.compile(r"\b(?:exactly|at most|at least (?!one?\b|once)|twice|times|more|fewer)\b", re.I)
PLACE = re.compile(
    r"(?<!that )\b(?:begin|start|open|end|finish|beginning|ending)s?\b|"
    r"\b(?:first|second|last|every|everything|each|whole|only|middle|above|below|lines?|lists?|"
    r"table|code|object|points|options|parts)\b",
    re.I,
)
# So far above the base rate stands the lower bound (95 %, Wilson) of the share that passes: four of
# four texts (51 %) where a quarter of the others pass. Of the first study's 3,300 pairs five do,
# all by 0.44 or more, no other by more than 0.16, and five the other way round.
LEAK = 0.25


# ---- kinds --------------------------------------------------------------------------------------


def kind(instruction: str) -> str:
    """What a constraint asks for, by its words: count, forbid, place or insert."""
    text = kinds.QUOTED.sub("it", instruction)
    if kinds.kind(instruction) == "length":
        return "count"
    if "not" in families.form(instruction).split():
        return "forbid"
    if PLACE.search(text):
        return "place"
    return "count" if COUNT.search(text) else "insert"


# ---- leaks --------------------------------------------------------------------------------------


async def accepted(box, row: dict, texts: list[str]) -> set[str]:
    """Those of the texts that the functions of the row accept."""
    passed = set()
    verdicts = await verifiers.judge(box, row["verifiers"], texts)
    for text, of_text in zip(texts, verdicts):
        if verifiers.accuracy(of_text, row["verifiers"]) > verifiers.MIN_ACCURACY:
            passed.add(text)
    return passed


async def following(given: list[dict], others: list[dict], responses: list[dict]) -> list[tuple]:
    """(given, other, counts) where texts that obey the one pass the other's functions too often."""
    texts_of = {row["id"]: {case["input"] for case in row["cases"]} for row in given}
    for row in responses:
        if row["instruction_id"] in texts_of:
            texts_of[row["instruction_id"]] |= {answer["text"] for answer in row["responses"]}
    ordinary = {row["text"] for row in files.read(STRONG / "ordinary.jsonl", ["text"])}
    async with sandbox.Sandbox(sandbox.Flags()) as box:
        texts = (sorted(texts_of[row["id"]]) for row in given)
        obeying = await asyncio.gather(*map(partial(accepted, box), given, texts))
        every = sorted(ordinary.union(*obeying))
        passed = await asyncio.gather(*(accepted(box, row, every) for row in others))

    found = []
    for other, passing in zip(others, passed):
        shares = [len(texts & passing) / max(1, len(texts)) for texts in obeying]
        for row, texts, share in zip(given, obeying, shares):
            # cases are short, whatever they obey: what most of them pass follows from none
            elsewhere = (sum(shares) - share) / max(1, len(shares) - 1)
            base = max(len(ordinary & passing) / len(ordinary), elsewhere)
            passes = len(texts & passing)
            if texts and wilson(passes, len(texts))[0] > base + LEAK:
                counts = {"texts": len(texts), "passes": passes, "base": round(base, 3)}
                found.append((row, other, counts))
    return found


async def leaks(trained: list[dict], heldout: list[dict], responses: list[dict]) -> list[dict]:
    """The pairs of a trained and a held-out constraint of which one follows from the other.

    {"id": "i00097", "given": "Begin with a question", "follows": "Ask the reader a question",
     "texts": 4, "passes": 4, "base": 0.025}
    """
    found = []
    for row, other, counts in await following(trained, heldout, responses):
        pair = {"given": row["instruction"], "follows": other["instruction"]}
        found.append({"id": row["id"], **pair, **counts})
    # and what is a part of a held-out one: "first" of "first and then"
    for row, other, counts in await following(heldout, trained, []):
        pair = {"given": row["instruction"], "follows": other["instruction"]}
        found.append({"id": other["id"], **pair, **counts})
    return found


def related(trained: list[dict], heldout: list[dict]) -> set[str]:
    """The ids of the trained constraints that are of a held-out one's family."""
    found = set()
    for row in trained:
        # one by one: a function that checks something else ties other trained ones to the family
        own, *others = families.families([row, *heldout])
        if own in others:
            found.add(row["id"])
    return found


# ---- commands -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Heldout:
    input: Positional[str]  # 03_instructions.jsonl of the first study's recordings
    out: str = HELDOUT
    split: Literal[1, 2, 3] = 1


@dataclass(kw_only=True)
class Leaks:
    input: Positional[str]  # 03_instructions.jsonl
    responses: str | None = None  # 04_responses.jsonl
    heldout: str = HELDOUT


@dataclass(kw_only=True)
class Drop:
    data: Positional[Path]  # what stages 03 and 04 have written
    out: Positional[Path]  # the same without what leaks, and with what is held out
    heldout: str = HELDOUT
    tuning: bool = False  # hold out a fifth of the families that are left instead


@dataclass(kw_only=True)
class Take:
    input: Positional[str]  # 06_pairs.jsonl
    out: Positional[str]  # so many of them
    instruction: Natural  # pairs of cases
    responses: Natural  # pairs of responses
    skip: Natural = 0  # pairs of cases that earlier iterations have taken
    no_end: bool = False  # of either side the end token is not learned
    alike: bool = False  # of pairs of responses chosen sides as long as the rejected, in the mean
    seed: int = 0


def write_heldout(args: Heldout) -> None:
    rows = verifiers.read(args.input, "heldout" if args.split == 1 else "train")
    names = sorted({row["family"] for row in rows})
    if args.split > 1:
        random.Random(0).shuffle(names)
        names = names[24 * args.split - 48 : 24 * args.split - 24]
    with files.writer(args.out) as write:
        for row in rows:
            if row["family"] in names:
                row["split"] = "heldout"
                fields = ("instruction", "family", "split", "verifiers", "cases")
                kept = {name: row[name] for name in fields}
                # not the id of a trained constraint of another run
                write({"id": f"h{row['id']}", "kind": kind(row["instruction"]), **kept})


def print_leaks(args: Leaks) -> None:
    rows = verifiers.read(args.input, "train"), verifiers.read(args.heldout, "heldout")
    responses = list(files.read(args.responses)) if args.responses else []
    found = asyncio.run(leaks(*rows, responses))
    for pair in found:
        print(files.dump(pair))
    print(f"{len({pair['id'] for pair in found})} of {len(rows[0])} trained constraints leak")


def drop(args: Drop) -> None:
    trained = verifiers.read(str(args.data / "03_instructions.jsonl"), "train")
    heldout = verifiers.read(args.heldout, "heldout")
    responses = list(files.read(args.data / "04_responses.jsonl"))
    found = asyncio.run(leaks(trained, heldout, responses))

    # count: each dropped constraint once, with the first reason
    reasons = {name: "of a held-out family" for name in related(trained, heldout)}
    for pair in found:
        reasons.setdefault(pair["id"], f"{pair['follows']!r} follows from {pair['given']!r}")
    kept = [row for row in trained if row["id"] not in reasons]
    with files.writer(args.out / "03_instructions.dropped.jsonl") as write:
        for row in trained:
            if row["id"] in reasons:
                print(f"dropped: {row['instruction']!r}: {reasons[row['id']]}")
                write({**row, "reason": reasons[row["id"]]})
    counts = Counter(kind(row["instruction"]) for row in kept)
    print(f"data: {len(trained)} constraints in -> {len(kept)} kept {dict(counts)}")

    if args.tuning:
        names = families.families(kept)
        chosen = families.heldout(names, 0.2, seed=0)
        heldout = [row for row, name in zip(kept, names) if name in chosen]
        kept = [row for row, name in zip(kept, names) if name not in chosen]
    with files.writer(args.out / "03_instructions.jsonl") as write:
        for split, rows in (("train", kept), ("heldout", heldout)):
            for row in rows:
                write({"kind": kind(row["instruction"]), **row, "split": split})
    # 04_sft.jsonl comes last: then all is there
    names = {row["id"] for row in kept}
    for file in ("04_responses.jsonl", "04_sft.jsonl"):
        with files.writer(args.out / file) as write:
            for row in files.read(args.data / file):
                if row["instruction_id"] in names:
                    write(row)


def alike(rows: list[dict]) -> list[dict]:
    """Without those whose chosen side is shortest beside the rejected one.

    So many are left out that chosen sides have as many words as rejected ones in the mean.
    """

    def longer(row: dict) -> int:
        chosen, rejected = (row[side][-1]["content"].split() for side in ("chosen", "rejected"))
        return len(chosen) - len(rejected)

    rows = sorted(rows, key=longer)
    while sum(map(longer, rows)) < 0:
        rows.pop(0)
    return rows


def take(args: Take) -> None:
    """Write as many pairs of each level as every arm has."""
    rows, rng, made = list(files.read(args.input, ["level"])), random.Random(args.seed), []
    for level, count, skip in (
        ("instruction", args.instruction, args.skip),
        ("responses", args.responses, 0),
    ):
        of_level = []
        for row in rows:
            if (row["level"] == "instruction") == (level == "instruction"):
                of_level.append(row)
        if args.alike and level == "responses":
            of_level = alike(of_level)
        drawn = rng.sample(of_level, len(of_level))[skip : skip + count]
        if len(drawn) < count:
            raise UserError(
                f"{args.input} has {len(of_level)} pairs of level {level}, and {skip + count} are "
                "wanted; every arm has as many as the smallest: lower it in study/strong/"
                "settings.sh, delete the variants and make them again"
            )
        made += drawn
    with files.writer(args.out) as write:
        for row in made:
            write({**row, "truncated": ["chosen", "rejected"]} if args.no_end else row)


COMMANDS = {"heldout": write_heldout, "leaks": print_leaks, "drop": drop, "take": take}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
