"""What is measured beside stage 07: of fresh pairs before they are learned, and of topics.

    python study/strong/measures.py pairs POLICY --reference SFT --in 06_pairs.jsonl --out DIR
    python study/strong/measures.py topic out/strong/smollm2/seed_1/07_items/sft/heldout.jsonl \\
        --heldout study/heldout.jsonl

`pairs` is the first line of an iteration before it begins: by the rewards that the policy has
learned so far (against the SFT model), margin and accuracy on all its new pairs and on those of its
own responses, without the cases, into metrics.jsonl of the folder --out. `topic` writes topic.jsonl
beside the answers to held-out constraints: whether an answer's own query is the nearest by shared
words (TF-IDF), which stage 04 holds answers to.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, uninstalled
from autoif import files, relevance, verifiers  # noqa: E402
from autoif.flags import In, Positive, cli  # noqa: E402
from autoif.training.kept import read_rows  # noqa: E402

MICRO_TOKENS = 4096  # computed at a time


@dataclass(kw_only=True)
class Pairs:
    policy: Positional[str]  # the model that answered, before it learns from its answers
    reference: str  # the model that its rewards are relative to
    input: In  # 06_pairs.jsonl
    out: str  # a folder
    beta: Positive  # of the training


@dataclass(kw_only=True)
class Topic:
    items: Positional[Path]  # heldout.jsonl of 07_items
    heldout: str  # the held-out constraints


def logprobs(model: str, rows: list[dict]):
    """Summed log-probability of each row's responses, in nats, shape (rows, responses)."""
    import torch
    from transformers import AutoModelForCausalLM

    from autoif.training.packed import ResponseLogprobs, frozen_logprobs

    options = {"attn_implementation": "packed", "dtype": torch.float32}
    policy = ResponseLogprobs(AutoModelForCausalLM.from_pretrained(model, **options))
    return frozen_logprobs(policy, rows, MICRO_TOKENS, "cpu")


def pairs(args: Pairs) -> None:
    rows = read_rows(args.input, args.policy)
    policy, reference = (logprobs(model, rows) for model in (args.policy, args.reference))
    chosen, rejected = (args.beta * (policy - reference)).unbind(1)
    numbers = {"margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
    numbers["accuracy"] = (chosen > rejected).float()
    means = {name: float(values.mean()) for name, values in numbers.items()}
    own = [row["level"] != "instruction" for row in files.read(args.input, ["level"])]
    for name in ("margin", "accuracy"):
        means[f"{name} of responses"] = float(numbers[name][own].mean())
    with files.writer(Path(args.out) / "metrics.jsonl") as write:
        write({"step": 0, "pairs": len(rows), **means})
    print(f"{args.policy} on {len(rows)} new pairs: {files.dump(means)}")


def topic(args: Topic) -> None:
    instructions = {}
    for row in files.read(args.heldout, verifiers.ROW):
        instructions[row["id"]] = row["instruction"]
    items, asked, texts, of = [], [], [], []
    for item in files.read(args.items, ["id", "sample", "prompt", "answers"], "07_eval.py"):
        instruction = instructions[item["id"].split("-")[0]]
        items.append(item)
        asked.append(item["prompt"].removesuffix(verifiers.join("", instruction)))
        texts.append(item["answers"][0])
        of.append(instruction)
    near = relevance.relevant(texts, asked, of, sorted(set(asked)), "TF-IDF")
    with files.writer(args.items.with_name("topic.jsonl")) as write:
        for item, nearest in zip(items, near):
            points = {"TF-IDF": [("", item["id"], nearest, 1)]}
            write({"id": item["id"], "sample": item["sample"], "points": points})


COMMANDS = {"pairs": pairs, "topic": topic}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
