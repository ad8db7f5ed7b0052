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

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from autoif import files, weights
from autoif.files import UserError
from autoif.flags import Count, cli
from autoif.models import chat_tokenizer, read_config
from autoif.training.rows import read_pairs, read_sft


@dataclass(kw_only=True)
class Flags:
    model: Positional[str]  # the trained model, in fp32
    start: Positional[str]  # the model that it was trained from
    rows: str | None = None  # what it was trained on
    micro_tokens: Count = 2048  # tokens that are computed at a time


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
    rounding = {}
    for form in weights.EXPORTS:
        rounding[form] = partial(weights.exported, form=form, generator=generator)
    rounding["q8_0"] = q8_0
    rounding["q8_0 of bf16"] = lambda tensor: q8_0(tensor.bfloat16())
    return rounding


def read_rows(path: str, model: str) -> list[dict]:
    """Rows of stage 05 (one response) or 06 (chosen, rejected) as token ids, as it trained them."""
    read = read_sft if "messages" in next(files.read(path), {}) else read_pairs
    rows = list(read(path, chat_tokenizer(model)))
    for row in rows:
        if "error" in row:
            raise UserError(row["error"])
    return rows


def worth(policy, reference, rows: list[dict], beta: float) -> str:
    """The loss on the rows, and of pairs the margin too; shapes (rows, 1 or 2)."""
    import torch.nn.functional as F

    if policy.shape[1] == 1:
        tokens = sum(len(row["responses"][0]) for row in rows)
        return f"loss {-policy.sum() / tokens:.4f}"
    chosen, rejected = (beta * (policy - reference)).unbind(1)
    loss = -F.logsigmoid(chosen - rejected).mean()
    return f"loss {loss:.4f}, margin {(chosen - rejected).mean():+.4f}"


def main(args: Flags) -> None:
    for model in (args.start, args.model):
        read_config(model)  # what is no model is said
    start, master = weights.stored(args.start), weights.stored(args.model)
    if {tensor.get_dtype() for tensor in master.values()} != {"F32"}:
        raise UserError(
            f"{args.model} is not in fp32: what was rounded away is gone; train with "
            "--export-dtype fp32"
        )

    # not at the top of the file: --help does not wait for torch
    import torch
    from transformers import AutoModelForCausalLM

    from autoif.training.packed import ResponseLogprobs, frozen_logprobs

    # load the start with the rows; its weights are replaced by those of each format
    if args.rows:
        rows = read_rows(args.rows, args.model)
        beta = json.loads(Path(args.model, "settings.json").read_text()).get("beta", 0)
        attention = {"attn_implementation": "packed", "dtype": torch.float32}
        plain = AutoModelForCausalLM.from_pretrained(args.start, **attention)
        parameters, model = dict(plain.named_parameters()), ResponseLogprobs(plain)
        reference = frozen_logprobs(model, rows, args.micro_tokens, "cpu")
        print(f"{'start':16} | {worth(reference, reference, rows, beta)}", flush=True)

    # measure one format after the other: a large model is in memory once
    for form, rounded in formats(torch.Generator().manual_seed(0)).items():
        kept = weights.Kept()
        for name, slices in master.items():
            left = rounded(slices[:])
            kept.add(start[name][:], slices[:], left)
            if args.rows:
                parameters[name].data.copy_(left)
        line = f"{form:16} | {kept.changed / kept.weights:.1%} of the weights changed"
        line += f" | {kept.share:.1%} of the update kept"
        if args.rows:
            policy = frozen_logprobs(model, rows, args.micro_tokens, "cpu")
            line += f" | {worth(policy, reference, rows, beta)}"
        print(line, flush=True)
    print(f"rms of the update: {kept.rms:.2e}")


if __name__ == "__main__":
    cli(main, __doc__)
