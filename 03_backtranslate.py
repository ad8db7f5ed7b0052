"""Turn each kept function back into a constraint; drop what contradicts the original (section 3.2).

Reads `02_verifiers.jsonl`.
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

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from autoif import families, files, llm, replies
from autoif.files import UserError
from autoif.stage import Funnel, Help, positive_int, run, share, through, write_settings, wrote
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

# The labels, and the words that a supervisor says for each.
LABELS = {
    "entailment": r"entail\w*",
    "neutral": r"neutral\w*",
    "contradiction": r"contradict\w*",
}


def clean(text: str) -> str:
    """A back-translation on one line, without quotes or bold marks around it."""
    return replies.unquoted(" ".join(text.split()).strip("*` ")).strip()


def nli_model(name: str, batch_size: int) -> Callable[[Iterable[tuple[str, str]]], Iterator[str]]:
    """Load a classifier, once; the function yields its NLI label of each (premise, hypothesis)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name)
    except OSError as error:
        raise UserError(
            f"--nli {name} cannot be loaded ({str(error).splitlines()[0]}); "
            f"give a local path, or --nli llm to ask the supervisor"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    # the order of the labels is the model's own: the released code assumes it
    labels = {index: label.lower() for index, label in model.config.id2label.items()}
    if set(labels.values()) != set(LABELS):
        raise UserError(
            f"--nli {name} has the labels {sorted(labels.values())}; "
            f"a model with {', '.join(LABELS)} is needed"
        )

    # in batches: the released code loads the model again for each pair
    def judge(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
        pairs = iter(pairs)
        while batch := list(islice(pairs, batch_size)):
            premises, hypotheses = zip(*batch)
            inputs = tokenizer(
                list(premises), list(hypotheses), truncation=True, padding=True, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                best = model(**inputs).logits.argmax(-1).tolist()
            yield from (labels[index] for index in best)

    return judge


def nli_requests(pairs: Iterable[tuple[str, str]]) -> Iterator[dict]:
    for premise, hypothesis in pairs:
        content = NLI_PROMPT.format(premise=premise, hypothesis=hypothesis)
        # greedy: a judgement, not a sample
        yield {"messages": [{"role": "user", "content": content}], "k": 1, "temperature": 0.0}


def nli_supervisor(pairs: Iterable[tuple[str, str]], client: llm.LLM) -> Iterator[str | None]:
    """Yield the supervisor's label of each (premise, hypothesis), None where it gives none."""
    for samples in client.complete(nli_requests(pairs)):
        yield replies.label(samples[0]["text"], LABELS) if samples else None


def requests(row: dict, max_functions: int) -> list[dict]:
    found = []
    # the code alone: who sees the constraint too would repeat it
    for verifier in row["verifiers"][:max_functions]:
        content = BACKTRANSLATE_PROMPT.format(code=verifier["code"])
        found.append({"messages": [{"role": "user", "content": content}]})
    return found


def translated(rows: list[dict], client: llm.LLM, max_functions: int) -> Iterator[dict]:
    """Yield each row with `back_translations`, one a function, "" where there is none."""
    expand = partial(requests, max_functions=max_functions)
    for row, answers in through(client.complete, rows, expand):
        texts = []
        for samples in answers:
            # "" keeps the place of an answer that never came: it must not look like a neutral one
            texts += [clean(sample["text"]) for sample in samples] or [""]
        yield {**row, "back_translations": texts}


def pairs(row: dict) -> list[tuple[str, str]]:
    """The NLI pairs of a row: the premise is its constraint, the hypotheses translations (3.2)."""
    # where nothing was said there is nothing to judge: an empty hypothesis would get a label too
    return [(row["instruction"], back) for back in row["back_translations"] if back]


def drop_reason(row: dict) -> str | None:
    """Only a contradiction speaks against a constraint; without all labels it waits for a rerun."""
    if "contradiction" in row["nli"]:
        return "contradiction"
    # what is missing is no verdict: a rerun asks for it again
    if "" in row["back_translations"]:
        return "no back-translation"
    if None in row["nli"]:
        return "no NLI label"
    return None


def split(
    rows: list[dict], heldout_share: float, seed: int, like: set[str] | None = None
) -> list[dict]:
    """The rows with `family` and `split`: whole families are held out.

    {"instruction": "Use at most 9 words", ...} -> + {"family": "# most word", "split": "train"}

    With `like`, instructions that another run holds out, those of their families are held out.
    """
    names = families.families(rows, seed)
    if like is None:
        # by hashes of the names, not by chance: sides hardly change when constraints are added
        heldout = families.heldout(names, heldout_share, seed)
    else:
        heldout = {name for row, name in zip(rows, names) if row["instruction"] in like}
    found = []
    for row, name in zip(rows, names):
        side = "heldout" if name in heldout else "train"
        found.append({**row, "family": name, "split": side})
    return found


def held_out_in(path: str) -> set[str]:
    """The instructions that a 03_instructions.jsonl holds out."""
    form = {"instruction": str, "split": {"train", "heldout"}}
    rows = files.read_all(path, form, "03_backtranslate.py")
    return {row["instruction"] for row in rows if row["split"] == "heldout"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--in", dest="input", default="out/02_verifiers.jsonl")
    parser.add_argument("--out", default="out/03_instructions.jsonl")
    parser.add_argument(
        "--nli",
        default="MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7",
        help="NLI model (name or path), or 'llm' to ask the supervisor",
    )
    parser.add_argument("--nli-batch-size", type=positive_int, default=64)
    parser.add_argument(
        "--max-functions",
        type=positive_int,
        default=3,
        help="functions of a constraint to translate back (released code: 3; default: %(default)s)",
    )
    parser.add_argument(
        "--no-back-translation",
        action="store_true",
        help="ask nothing and drop nothing (the paper's ablation)",
    )
    parser.add_argument(
        "--heldout",
        type=share,
        default=0.1,
        help="share of constraints that are never trained on, in whole families",
    )
    parser.add_argument(
        "--split-of",
        metavar="FILE",
        help="hold out the families that this 03_instructions.jsonl holds out, so that an ablation "
        "is measured where the run beside it is",
    )
    parser.add_argument("--limit", type=positive_int, help="read only the first LIMIT constraints")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the samples")
    llm.add_flags(parser, temperature=0.0, max_tokens=512, k=1, model_required=False)
    args = parser.parse_args(argv)
    if not args.model and not args.no_back_translation:
        parser.error("the following arguments are required: --model")
    return args


def consistent(
    rows: list[dict], args: argparse.Namespace, funnel: Funnel, counts: Counter
) -> list[dict]:
    """The rows that no back-translation contradicts, with their back-translations and labels."""
    kept = []
    # loaded before anything is asked: where it cannot be had nothing has been paid for
    nli = None if args.nli == "llm" else nli_model(args.nli, args.nli_batch_size)
    with llm.LLM.from_args(args, stage="03_backtranslate") as client:
        # ask: what does each function check, told by someone who has not seen the constraint; all
        # of it before the judging, since both may need the one client
        rows = list(translated(rows, client, args.max_functions))

        # judge: does it contradict the constraint?
        nli = nli or partial(nli_supervisor, client=client)
        for row, labels in through(nli, rows, pairs):
            row = {**row, "nli": labels}
            counts.update(label or "no label" for label in labels)
            reason = drop_reason(row)
            if reason:
                funnel.drop(reason, row)
                continue
            kept.append(row)
            funnel.keep()
    return kept


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rows = files.read_all(args.input, ROW, "02_verifiers.py")[: args.limit]
    like = held_out_in(args.split_of) if args.split_of else None
    funnel, counts = Funnel("03_backtranslate", args.out), Counter()

    # keep what its functions do not contradict; in the ablation all of it, with the same fields, so
    # that later stages see no difference
    if args.no_back_translation:
        kept = [{**row, "back_translations": [], "nli": []} for row in rows]
        funnel.keep(len(kept))
    else:
        kept = consistent(rows, args, funnel, counts)
    funnel.refuse_empty("Does the NLI model, or the supervisor that judges, tell the labels apart?")

    # split: families are known only when all constraints are, so this waits for the last one
    names = set()
    with files.writer(args.out) as write:
        for row in split(kept, args.heldout, args.seed, like):
            counts[row["split"]] += 1
            names.add(row["family"])
            write(row)
        write_settings(args, args.out)
    funnel.finish(**counts, families=len(names))
    print(
        f"03_backtranslate: {counts['train']:,} to train on, {counts['heldout']:,} held out, "
        f"of {len(names):,} families"
    )
    if not counts["heldout"]:
        print("03_backtranslate: nothing is held out to measure on (--heldout, or more families)")
    out = Path(args.out).with_name("04_responses.jsonl")
    wrote(
        args.out,
        then=f"python 04_responses.py --model {args.model or 'NAME'} --in {args.out} "
        f"--queries FILE --out {out}",
    )


if __name__ == "__main__":
    run(main)
