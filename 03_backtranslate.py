"""Turn each kept function back into a constraint; drop what contradicts the original (section 3.2).

Reads `02_verifiers.jsonl`; writes `03_instructions.jsonl`: the constraints without a contradiction, each with its split.

    python 03_backtranslate.py --in out/02_verifiers.jsonl --out out/03_instructions.jsonl

Departures from the paper:
1. A tenth of the constraints is held out (`split`): no later stage trains on them, and stage 07 measures on them.
   The split hangs on the constraint and `--seed` alone, so that it stays when constraints are added.
2. `--nli llm` asks the supervisor instead of mDeBERTa, where no such model can be loaded.
The released code looks at the first three functions of a constraint: `--max-functions 3`.
"""

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from autoif import files, llm
from autoif.files import UserError
from autoif.stage import Funnel, run, through

BACKTRANSLATE_PROMPT = """\
This Python function checks whether an answer obeys a constraint that a user gave with a question:

```python
{code}
```

Write the constraint as the user may have put it: one sentence that tells how to answer and asks for exactly what the
code checks, no more and no less. Reply with that sentence only."""

NLI_PROMPT = """\
Premise: {premise}
Hypothesis: {hypothesis}

Both are constraints on the form of an answer. Take the premise as given: does the hypothesis follow from it
(entailment), is it impossible to obey both (contradiction), or neither (neutral)?
Reply with one word: entailment, neutral or contradiction."""

LABELS = ("entailment", "neutral", "contradiction")


def parse_label(text: str) -> str | None:
    """The last NLI label that a reply names, None when it names none."""
    found = re.findall("|".join(LABELS), text.lower())
    return found[-1] if found else None


def clean(text: str) -> str:
    """A back-translation on one line, without quotes or bold marks around it."""
    text = " ".join(text.split()).strip("*` ")
    return (
        text[1:-1].strip() if re.fullmatch(r'"[^"]*"|“[^“”]*”', text) else text
    )  # not the quotes of a last word


def nli_model(pairs: Iterable[tuple[str, str]], name: str, batch_size: int) -> Iterator[str]:
    """Yield the NLI label of each (premise, hypothesis), from a sequence classifier that is loaded once."""
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
    labels = {index: label.lower() for index, label in model.config.id2label.items()}
    if set(labels.values()) != set(LABELS):
        raise UserError(
            f"--nli {name} has the labels {sorted(labels.values())}; a model with {', '.join(LABELS)} is needed"
        )
    pairs = iter(pairs)
    while batch := list(islice(pairs, batch_size)):
        premises, hypotheses = zip(*batch)
        inputs = tokenizer(
            list(premises), list(hypotheses), truncation=True, padding=True, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            yield from (labels[index] for index in model(**inputs).logits.argmax(-1).tolist())


def nli_supervisor(pairs: Iterable[tuple[str, str]], client: llm.LLM) -> Iterator[str | None]:
    """Yield the label that the supervisor gives each (premise, hypothesis), None where it gives none."""
    prompts = (
        NLI_PROMPT.format(premise=premise, hypothesis=hypothesis) for premise, hypothesis in pairs
    )
    requests = (
        {"messages": [{"role": "user", "content": prompt}], "k": 1, "temperature": 0.0}
        for prompt in prompts
    )
    for samples in client.complete(requests):
        yield parse_label(samples[0]["text"]) if samples else None


def is_heldout(instruction: str, share: float, seed: int) -> bool:
    """True for about `share` of all constraints: the same ones in every run, whatever the others are."""
    digest = hashlib.sha256(f"{seed} {instruction}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def requests(row: dict, max_functions: int | None) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": BACKTRANSLATE_PROMPT.format(code=verifier["code"])}
            ]
        }
        for verifier in row["verifiers"][:max_functions]
    ]


def pairs(row: dict) -> list[tuple[str, str]]:
    """The NLI pairs of a row: the original constraint is the premise, each back-translation a hypothesis (3.2)."""
    return [(row["instruction"], back) for back in row["back_translations"] if back]


def drop_reason(row: dict) -> str | None:
    """Only a contradiction speaks against a constraint; one without all its judgements waits for a rerun."""
    if "contradiction" in row["nli"]:
        return "contradiction"
    if "" in row["back_translations"]:
        return "no back-translation"
    return "no NLI label" if None in row["nli"] else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in", dest="input", default="out/02_verifiers.jsonl")
    parser.add_argument("--out", default="out/03_instructions.jsonl")
    parser.add_argument(
        "--nli",
        default="MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7",
        help="NLI model (name or path), or 'llm' to ask the supervisor",
    )
    parser.add_argument("--nli-batch-size", type=int, default=64)
    parser.add_argument(
        "--max-functions",
        type=int,
        help="back-translate only the first functions of a constraint (default: all)",
    )
    parser.add_argument(
        "--heldout", type=float, default=0.1, help="share of constraints that are never trained on"
    )
    parser.add_argument("--limit", type=int, help="read only the first LIMIT constraints")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    llm.add_flags(parser, temperature=0.0, max_tokens=512, k=1)
    args = parser.parse_args(argv)

    funnel, counts = Funnel("03_backtranslate", args.out), Counter()
    rows = islice(
        files.read(args.input, ["id", "instruction", "verifiers"], "02_verifiers.py"), args.limit
    )
    translated = Path(args.out).with_name(
        f".{Path(args.out).name}.translated"
    )  # between the two passes
    with llm.LLM.from_args(args, stage="03_backtranslate") as client:
        with files.writer(translated) as write:
            for row, answers in through(
                client.complete, rows, lambda row: requests(row, args.max_functions)
            ):
                texts = [
                    [clean(sample["text"]) for sample in samples] or [""] for samples in answers
                ]
                write({**row, "back_translations": [text for each in texts for text in each]})

        if args.nli == "llm":
            nli = partial(nli_supervisor, client=client)
        else:
            nli = partial(nli_model, name=args.nli, batch_size=args.nli_batch_size)
        with files.writer(args.out) as write:
            for row, labels in through(nli, files.read(translated), pairs):
                row["nli"] = labels
                counts.update(str(label) for label in labels)
                reason = drop_reason(row)
                if reason:
                    funnel.drop(reason, row)
                    continue
                row["split"] = (
                    "heldout"
                    if is_heldout(row["instruction"], args.heldout, args.seed)
                    else "train"
                )
                counts[row["split"]] += 1
                write(row)
                funnel.keep()
    translated.unlink()
    funnel.finish(**counts)


if __name__ == "__main__":
    run(main)
