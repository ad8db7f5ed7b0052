"""What each format of a trained model's weights keeps of what training learned.

    python -m autoif.training.kept out/06_offline out/05_sft --rows out/06_pairs.jsonl

MODEL is the trained model as --export-dtype fp32 writes it, START the one that it was trained from.
Says, of each format, how many weights differ from the start's, and the share of the update that is
left along its own direction; with --rows also what they are worth on its own rows, all computed in
float32: the loss a token in nats, or of pairs the loss and margin of DPO with START as reference.

    fp32             the master weights
    bf16             rounded to nearest: what vLLM makes of float32 weights by itself
    bf16-stochastic  what `autoif.serving` gives to vLLM
    q8_0             what it gives to llama.cpp, made of the fp32 weights
    q8_0 of bf16     the same, made of an export in bf16
"""

import argparse
import json
from pathlib import Path

from autoif import files, weights
from autoif.files import UserError
from autoif.stage import Help, positive_int, run

SIDES = ("chosen", "rejected")


def q8_0(tensor):
    """The tensor as the converter hands it to llama.cpp: 8-bit integers with a scale for each 32.

    Vectors stay float32, matrices whose rows are no multiple of 32 become float16.
    """
    import torch
    from gguf import GGMLQuantizationType, quants

    if tensor.ndim < 2:
        return tensor
    if tensor.shape[-1] % 32:
        return tensor.half()
    form = GGMLQuantizationType.Q8_0
    packed = quants.quantize(tensor.float().numpy(), form)
    return torch.from_numpy(quants.dequantize(packed, form))


def formats(generator) -> dict:
    """Each format's name and the function that rounds a float32 tensor to it."""
    made = {}
    for name in weights.EXPORTS:
        made[name] = lambda tensor, name=name: weights.exported(tensor, name, generator)
    made["q8_0"] = q8_0
    made["q8_0 of bf16"] = lambda tensor: q8_0(tensor.bfloat16())
    return made


def encoded(path: str, tokenizer) -> list[dict]:
    """Rows of stage 05 (one response) or 06 (chosen, rejected) as token ids."""
    from autoif.training.rows import encode

    rows = []
    for number, row in files.numbered(path):
        where = f"{path}:{number}"
        if "messages" in row:
            prompt, responses, cut = row["messages"][:-1], [row["messages"][-1:]], []
        else:
            prompt, responses = row["prompt"], [row["chosen"], row["rejected"]]
            cut = [SIDES.index(side) for side in row.get("truncated", [])]
        rows.append(encode(tokenizer, prompt, responses, where, cut))
    return rows


def logprobs(model, rows: list[dict], micro_tokens: int):
    """Summed log-probabilities of the rows' responses in nats, shape (rows, 1 or 2)."""
    import torch

    from autoif.training.packed import pack
    from autoif.training.rows import share_out

    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    table = torch.zeros(len(rows), len(rows[0]["responses"]))
    for part in share_out(numbered, micro_tokens, 1):
        with torch.inference_mode():
            sums = model(**pack(part)).view(len(part), -1)
        table[[row["number"] for row in part]] = sums
    return table


def worth(policy, reference, rows: list[dict], beta: float) -> str:
    """The loss on the rows, and of pairs the margin too."""
    import torch.nn.functional as F

    if policy.shape[1] == 1:
        tokens = sum(len(row["responses"][0]) for row in rows)
        return f"loss {-policy.sum() / tokens:.4f}"
    chosen, rejected = (beta * (policy - reference)).unbind(1)
    loss = -F.logsigmoid(chosen - rejected).mean()
    return f"loss {loss:.4f}, margin {(chosen - rejected).mean():+.4f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.training.kept", description=__doc__, formatter_class=Help
    )
    parser.add_argument("model", help="the trained model, in fp32")
    parser.add_argument("start", help="the model that it was trained from")
    parser.add_argument("--rows", metavar="FILE", help="what it was trained on")
    parser.add_argument("--micro-tokens", type=positive_int, default=2048, metavar="N")
    args = parser.parse_args(argv)

    import torch

    start, master = weights.stored(args.start), weights.stored(args.model)
    if {tensor.get_dtype() for tensor in master.values()} != {"F32"}:
        raise UserError(
            f"{args.model} is not in fp32: what was rounded away is gone; train with "
            "--export-dtype fp32"
        )

    model, rows = None, []
    if args.rows:
        from transformers import AutoModelForCausalLM

        from autoif.models import chat_tokenizer
        from autoif.training.packed import ResponseLogprobs

        rows = encoded(args.rows, chat_tokenizer(args.model))
        beta = json.loads((Path(args.model) / "settings.json").read_text()).get("beta", 0)
        plain = AutoModelForCausalLM.from_pretrained(
            args.start, dtype=torch.float32, attn_implementation="packed"
        )
        names = dict(plain.named_parameters())
        model = ResponseLogprobs(plain)
        reference = logprobs(model, rows, args.micro_tokens)
        print(f"{'start':16} | {worth(reference, reference, rows, beta)}", flush=True)

    # one format after the other: a large model is in memory once
    for form, rounded in formats(torch.Generator().manual_seed(0)).items():
        kept = weights.Kept()
        for name, slices in master.items():
            tensor = slices[:]
            left = rounded(tensor)
            kept.add(start[name][:], tensor, left)
            if model:
                names[name].data.copy_(left)
        line = f"{form:16} | {kept.changed / kept.weights:.1%} of the weights changed"
        line += f" | {kept.share:.1%} of the update kept"
        if model:
            policy = logprobs(model, rows, args.micro_tokens)
            line += f" | {worth(policy, reference, rows, beta)}"
        print(line, flush=True)
    print(f"rms of the update: {kept.rms:.2e}")


if __name__ == "__main__":
    run(main)
