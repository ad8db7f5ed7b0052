"""Forgetting: how well a model still predicts plain text that no stage saw.

    python study/perplexity.py MODEL --out out/study/seed_1/07_items/base/perplexity.jsonl

The text is Python's own language reference, which every installation has (`pydoc_data.topics`).
Writes a row a piece: its negative log-likelihood in nats, over its number of predicted tokens.
"""

import math
import pydoc_data.topics
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, uninstalled
from autoif import files  # noqa: E402
from autoif.flags import Count, cli  # noqa: E402


def pieces(tokenizer, count: int, length: int) -> list[list[int]]:
    """`count` pieces of `length` tokens, evenly over the text."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    tokens = tokenizer.encode(text)
    step = (len(tokens) - length) // count
    return [tokens[at : at + length] for at in range(0, step * count, step)]


@dataclass(kw_only=True)
class Flags:
    model: Positional[str]  # a checkpoint
    out: str
    pieces: Count = 40
    length: Count = 512  # tokens of a piece


def main(args: Flags) -> None:
    files.refuse_unwritable(args.out)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    nats = 0.0
    with files.writer(args.out) as write, torch.inference_mode():
        found = pieces(tokenizer, args.pieces, args.length)
        for number, piece in enumerate(tqdm(found, desc="perplexity", unit=" pieces")):
            tokens = torch.tensor([piece])
            loss = model(input_ids=tokens, labels=tokens).loss.item()  # the mean over its tokens
            nats += loss / args.pieces
            point = ("", f"piece {number}", loss * (args.length - 1), args.length - 1)
            write({"id": f"piece {number}", "sample": 0, "points": {"nats a token": [point]}})
    print(f"{args.model}: {nats:.4f} nats a token, perplexity {math.exp(nats):.2f}")


if __name__ == "__main__":
    cli(main, __doc__)
