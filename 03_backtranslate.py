"""Turn each kept function back into a constraint; drop what contradicts the original (section 3.2).

Reads `02_verifiers.jsonl`, or what all shards of this stage wrote: then only the split is left.
Writes `03_instructions.jsonl`: the constraints without a contradiction, with family and split.

    python 03_backtranslate.py --model NAME --in out/02_verifiers.jsonl

Departures from the paper:
1. The first three functions of a constraint are looked at, as in the released code, not all eight
   (`--max-functions`): each one more is one more chance of a false contradiction, and the paper's
   loss of about 15 % is that of three.
2. A tenth of the constraints is held out (`split`), in whole families (`autoif/families.py`): no
   later stage trains on them or on their siblings in other numbers and words, and stage 07 measures
   on them. `--heldout 0` trains on all, as the paper does.
3. `--nli llm` asks the supervisor instead of mDeBERTa, where no such model can be loaded.
4. Sampling (greedy, at most 512 tokens) is ours; the paper does not state it.
`--no-back-translation` is the paper's ablation (table 3): nothing is asked, nothing dropped, all is
split.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from autoif import families, files, llm, nli, replies, shards
from autoif.files import UserError
from autoif.flags import Count, Ins, NonNegative, Share, cli
from autoif.settings import write_settings
from autoif.stage import Funnel, in_order, wrote
from autoif.verifiers import ROW

BACKTRANSLATE_PROMPT = """\
This Python function checks whether an answer obeys a constraint that a user gave with a question:

```python
{code}
```

Write the constraint as the user may have put it: one sentence that tells how to answer and asks for
exactly what the code checks, no more and no less. Reply with that sentence only."""

NLI_PROMPT = """\
Premise: {premise}
Hypothesis: {hypothesis}

Both are constraints on the form of an answer. Take the premise as given: does the hypothesis follow
from it (entailment), is it impossible to obey both (contradiction), or neither (neutral)?
Reply with one word: entailment, neutral or contradiction."""

MDEBERTA = "MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7"  # the paper's
# The words that a supervisor says for each label.
WORDS = {
    "entailment": r"entail\w*",
    "neutral": r"neutral\w*",
    "contradiction": r"contradict\w*",
}


@dataclass(kw_only=True)
class Flags(shards.Flags, llm.Flags):
    input: Ins = field(default_factory=lambda: ["out/02_verifiers.jsonl"])  # or files of shards
    out: str = "out/03_instructions.jsonl"  # those without a contradiction, with their split
    model: str | None = None  # the supervisor, as the server knows it
    nli: str = MDEBERTA  # NLI model (name or path), or 'llm' to ask the supervisor
    nli_batch_size: Count = 64  # pairs that the NLI model judges at a time
    max_functions: Count = 3  # functions of a constraint to translate back (released code: 3)
    no_back_translation: bool = False  # ask nothing and drop nothing (the paper's ablation)
    heldout: Share = 0.1  # share of constraints never trained on, in whole families
    split_of: str | None = None  # 03_instructions.jsonl of another run: hold out the same families
    limit: Count | None = None  # read only the first LIMIT constraints
    seed: int = 0  # of the split and of the samples
    k: Count = 1  # back-translations a function
    temperature: NonNegative = 0.0  # of the sampling; 0 is greedy
    max_tokens: Count = 512  # of one sample

    def __post_init__(self):
        super().__post_init__()
        if not (self.model or self.no_back_translation):
            raise UserError("the following arguments are required: --model")


async def translate(client: llm.Client, row: dict) -> dict:
    """The row with `back_translations`, one a function, "" where there is none."""
    requests, texts = [], []
    for verifier in row["verifiers"][: client.args.max_functions]:
        # the code alone: who sees the constraint too would repeat it
        prompt = BACKTRANSLATE_PROMPT.format(code=verifier["code"])
        requests.append(client.ask(prompt, k=client.args.k))
    for samples in await asyncio.gather(*requests):
        # "" keeps the place of an answer that never came: it must not look like a neutral one
        texts += [clean(sample["text"]) for sample in samples] or [""]
    return {**row, "back_translations": texts}


def clean(text: str) -> str:
    """A back-translation on one line, without quotes or bold marks around it."""
    return replies.unquoted(" ".join(text.split()).strip("*` ")).strip()


def pairs_of(row: dict) -> list[tuple[str, str]]:
    """The NLI pairs of a row: the premise is its constraint, the hypotheses translations (3.2)."""
    # where nothing was said there is nothing to judge: an empty hypothesis would get a label too
    return [(row["instruction"], text) for text in row["back_translations"] if text]


async def nli_supervisor(client: llm.Client, pair: tuple[str, str]) -> str | None:
    """The supervisor's NLI label of a (premise, hypothesis) pair, None where it gives none."""
    prompt = NLI_PROMPT.format(premise=pair[0], hypothesis=pair[1])
    # greedy: a judgement, not a sample
    samples = await client.ask(prompt, k=1, temperature=0.0)
    return replies.label(samples[0]["text"], WORDS) if samples else None


async def ask(work: Callable, items: list, prompts: int, args: Flags) -> list:
    """`await work(client, item)` of all items, in order; an item has up to so many prompts."""
    async with llm.Client(args, "03_backtranslate") as client:
        ahead = max(1, client.ahead // prompts)
        return [result async for result in in_order(partial(work, client), items, ahead)]


def back_translated(rows: list[dict], args: Flags) -> list[dict]:
    """The rows with `back_translations`, and with `nli`, a label for each that is not empty."""
    if all("nli" in row for row in rows):  # shards have asked and judged
        return rows
    # loaded before anything is asked: where it cannot be had nothing has been paid for
    judge = None if args.nli == "llm" else nli.load(args.nli, args.nli_batch_size)

    # ask: what does each function check, told by someone who has not seen the constraint
    rows = asyncio.run(ask(translate, rows, args.max_functions, args))

    # judge: does it contradict the constraint? All pairs together, whatever row they are of
    pairs = [pair for row in rows for pair in pairs_of(row)]
    labels = judge(pairs) if judge else asyncio.run(ask(nli_supervisor, pairs, 1, args))
    label_of = dict(zip(pairs, labels))
    for row in rows:
        row["nli"] = [label_of[pair] for pair in pairs_of(row)]
    return rows


def drop_reason(row: dict) -> str | None:
    """Only a contradiction speaks against a constraint; without all labels it waits for a rerun."""
    if "contradiction" in row["nli"]:
        return "contradiction"
    # what is missing is no verdict: a rerun asks again for what was not answered
    if "" in row["back_translations"]:
        return "no back-translation"
    if None in row["nli"]:
        return "no NLI label"
    return None


def held_out_in(path: str) -> set[str]:
    """The instructions that a 03_instructions.jsonl holds out."""
    form = {"instruction": str, "split": {"train", "heldout"}}
    rows = files.read_all(path, form, "03_backtranslate.py")
    return {row["instruction"] for row in rows if row["split"] == "heldout"}


def split(rows: list[dict], args: Flags) -> list[dict]:
    """The rows with `family` and `split`, whole families on one side."""
    names, with_split = families.families(rows, args.seed), []
    if args.split_of:
        like = held_out_in(args.split_of)
        heldout = {name for row, name in zip(rows, names) if row["instruction"] in like}
    else:
        # by hashes of the names, not by chance: sides hardly change when constraints are added
        heldout = families.heldout(names, args.heldout, args.seed)
    for row, name in zip(rows, names):
        side = "heldout" if name in heldout else "train"
        with_split.append({**row, "family": name, "split": side})
    return with_split


def main(args: Flags) -> None:
    rows = args.of_shard(files.read_all(args.input, ROW, "02_verifiers.py")[: args.limit])
    if args.split_of:
        held_out_in(args.split_of)  # a bad file is named before anything is asked
    funnel, counts = Funnel("03_backtranslate", args.out), Counter()

    # keep what its functions do not contradict; in the ablation all of it, with the same fields, so
    # that later stages see no difference
    if args.no_back_translation:
        rows = [{**row, "back_translations": [], "nli": []} for row in rows]
    else:
        rows = back_translated(rows, args)
    kept = []
    for row in rows:
        counts.update(label or "no label" for label in row["nli"])
        if reason := drop_reason(row):
            funnel.drop(reason, row)
            continue
        kept.append(row)
        funnel.keep()
    doubt = (
        "Does the judge tell the labels apart? A small supervisor does not (live/README.md): --nli "
        "with a classifier, or --no-back-translation"
    )
    funnel.refuse_empty(doubt)
    if 2 * counts["contradiction"] > counts.total():
        print(f"03_backtranslate: warning: most labels are contradictions. {doubt}")

    # split: families are known only when all constraints are, so this waits for the last one, and
    # of shards for the run that reads what all have kept
    if not args.shard:
        kept = split(kept, args)
    with files.writer(args.out) as write:
        for row in kept:
            write(row)
        write_settings(args, args.out)
    out = Path(args.out).with_name("04_responses.jsonl")
    step = f"python 04_responses.py --model {args.model or 'NAME'} --in {args.out} --queries FILE "
    if args.shard:
        funnel.finish(**counts)
        own = " --no-back-translation" if args.no_back_translation else f" --model {args.model}"
        step = f"python 03_backtranslate.py{own} --in {args.out} "
        return wrote(args.out, then=args.then(f"{step}--out {args.out}"))
    counts.update(row["split"] for row in kept)
    names = {row["family"] for row in kept}
    funnel.finish(**counts, families=len(names))
    print(
        f"03_backtranslate: {counts['train']:,} to train on, {counts['heldout']:,} held out, "
        f"of {len(names):,} families"
    )
    if not counts["heldout"]:
        print("03_backtranslate: nothing is held out to measure on (--heldout, or more families)")
    wrote(args.out, then=f"{step}--out {out}")


if __name__ == "__main__":
    cli(main, __doc__)
