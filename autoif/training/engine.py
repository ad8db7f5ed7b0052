"""Plumbing of both training stages: start-up, DeepSpeed's engine, chat templates, data order.

It knows no loss: a stage turns its rows into `{"id", "prompt": [ids], "responses": [[ids], ...]}` and keeps its own loop.
"""

import argparse
import hashlib
import json
import math
import os
import random
import socket
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoif.files import UserError
from autoif.models import FALLBACK_TEMPLATE, read_tokenizer
from autoif.stage import Funnel

ROLES = ("system", "user", "assistant")
MODELS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
)  # tests/test_train.py checks these against transformers' own forward pass


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that change speed, memory and bookkeeping; what changes the result stands in the stages."""
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=1,
        metavar="ROWS",
        help="rows a device computes at a time",
    )
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp32"],
        default="bf16",
        help="of weights and activations; master weights are always fp32 (paper: bf16)",
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="recompute layers in the backward pass",
    )
    parser.add_argument(
        "--offload", action="store_true", help="keep optimizer and master weights in CPU memory"
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja template to use instead of the tokenizer's own",
    )
    parser.add_argument(
        "--ds-config",
        metavar="FILE",
        default=Path(__file__).parents[2] / "ds_config.json",
        help="DeepSpeed's settings; the flags fill in batch sizes, precision and offload",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=200,
        metavar="STEPS",
        help="steps between resume points (released code: 200); one more at the end",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep every resume point, not only the latest",
    )
    parser.add_argument(
        "--divergence",
        type=float,
        default=100,
        metavar="X",
        help="stop when the gradient norm is X times its running median, or no number",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    parser.add_argument("--seed", type=int, default=0, help="of the data order")


def start(args) -> tuple[int, int]:
    """Join the process group, alone or under torchrun; returns (rank, world size)."""
    import torch
    import transformers

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:  # started by `python`, not `torchrun`
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import deepspeed

    warnings.filterwarnings(
        "ignore", "`torch.distributed", FutureWarning
    )  # DeepSpeed calls collectives by old names
    deepspeed.utils.logger.setLevel("WARNING")
    transformers.utils.logging.disable_progress_bar()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        deepspeed.ops.__compatible_ops__ = {}  # else DeepSpeed compiles a kernel first, and a bare machine has no compiler
    deepspeed.init_distributed(verbose=False)
    torch.manual_seed(args.seed)
    if rank == 0:
        from autoif.training.packed import flash_attn_varlen_func

        print(
            "attention: "
            + (
                "FlashAttention-2"
                if flash_attn_varlen_func and on_gpu
                else "PyTorch's SDPA, one causal call a segment (no flash-attn, or no GPU)"
            ),
            flush=True,
        )
    return rank, world


def accumulation(batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches a device computes for one optimizer step, so that every step has exactly `batch` rows."""
    if batch < 1 or micro_batch < 1 or batch % (micro_batch * world):
        raise UserError(
            f"--batch {batch} is no multiple of --micro-batch {micro_batch} x {world} processes = "
            f"{micro_batch * world}; choose a micro-batch that divides {batch} / {world} = {batch / world:g}"
        )
    return batch // (micro_batch * world)


def deepspeed_config(args, world: int) -> dict:
    """`ds_config.json` with the batch sizes, precision and offload of the flags filled in."""
    config = json.loads(Path(args.ds_config).read_text())
    config["train_batch_size"] = args.batch
    config["train_micro_batch_size_per_gpu"] = args.micro_batch
    config["gradient_accumulation_steps"] = accumulation(args.batch, args.micro_batch, world)
    config["bf16"] = {"enabled": args.precision == "bf16"}
    if args.offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return config


def load_tokenizer(args):
    """The model's tokenizer, with a chat template (--chat-template, its own, or FALLBACK_TEMPLATE) and an end token."""
    tokenizer = read_tokenizer(args.model)
    if args.chat_template:
        tokenizer.chat_template = Path(args.chat_template).read_text()
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {args.model} has no end token; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_model(path: str, args, config: dict):
    """The causal model at `path` as packed.ResponseLogprobs, its weights partitioned while they are read (ZeRO-3)."""
    import torch
    import transformers
    from transformers.integrations import HfDeepSpeedConfig

    from autoif.training import packed

    try:
        shape = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no model: {str(error).splitlines()[0]}") from None
    if shape.model_type not in MODELS:
        raise UserError(
            f"{path} is a {shape.model_type!r} model; packed training is checked for {', '.join(MODELS)} only"
        )
    window = getattr(shape, "sliding_window", None)
    if window is not None and window < args.max_length:
        raise UserError(
            f"{path} attends to {window} tokens only; packed training needs --max-length {window} or less"
        )
    partition_on_load = HfDeepSpeedConfig(
        config
    )  # transformers holds it weakly: it must live until the model is read
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.bfloat16 if args.precision == "bf16" else torch.float32,
        attn_implementation="packed",
    )
    del partition_on_load
    if args.activation_checkpointing:
        model.gradient_checkpointing_enable(
            {"use_reentrant": True}
        )  # the other form rejects ZeRO-3's emptied weights
    return packed.ResponseLogprobs(model)


def frozen(model, config: dict):
    """DeepSpeed engine that only computes: partitioned weights, no gradients, no optimizer."""
    import deepspeed

    engine = deepspeed.initialize(model=model.requires_grad_(False), config=config)[0]
    engine.eval()
    return engine


def release(engine) -> None:
    """Free a frozen engine's weights; DeepSpeed keeps references to the module, so its tensors are emptied one by one."""
    module = engine.module
    engine.destroy()
    for parameter in module.parameters():
        parameter.ds_tensor.data = parameter.data = parameter.data.new_empty(0)


def trainable(model, args, config: dict, steps: int, warmup: int):
    """DeepSpeed engine with AdamW (no decay for norms and biases, as in transformers' Trainer) and the schedule."""
    import deepspeed
    import torch
    from transformers import get_scheduler

    matrices, vectors = [], []
    for parameter in model.parameters():
        shape = getattr(
            parameter, "ds_shape", parameter.shape
        )  # ZeRO-3 has emptied the parameter itself
        (matrices if len(shape) > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=tuple(args.betas), eps=1e-8, fused=True)
    schedule = get_scheduler(
        args.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    engine = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=config
    )[0]
    engine.train()
    return engine


def encode(tokenizer, prompt: list[dict], responses: list[list[dict]], where: str) -> dict:
    """Token ids of a prompt and its responses through the chat template; each response ends with its end token.

    Prompt and response are tokenized apart, as they are when the model generates. What the template puts behind the end
    token (a line break, mostly) is left out; a template that puts none there gets the tokenizer's.
    """

    def render(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for message in prompt:
        if message.get("role") not in ROLES:
            raise UserError(
                f"{where}: unknown role {message.get('role')!r}; roles are {', '.join(ROLES)}"
            )
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt must end with the user's message, not {prompt[-1:]}")
    asked, special = render(prompt, add_generation_prompt=True), set(tokenizer.all_special_ids)
    row = {"prompt": ids(asked), "responses": []}
    for response in responses:
        if len(response) != 1 or response[0].get("role") != "assistant":
            raise UserError(f"{where}: a response must be one assistant message, not {response}")
        if not isinstance(response[0].get("content"), str) or not response[0]["content"].strip():
            raise UserError(
                f"{where}: empty response {response[0].get('content')!r}; delete the row"
            )
        whole = render(prompt + response)
        if not whole.startswith(asked):
            raise UserError(
                f"{where}: the chat template does not continue its own generation prompt; pass --chat-template"
            )
        tokens = ids(whole[len(asked) :])
        while tokens and special.intersection(tokens) and tokens[-1] not in special:
            tokens.pop()
        row["responses"].append(
            tokens if tokens[-1] in special else tokens + [tokenizer.eos_token_id]
        )
    return row


def length(row: dict) -> int:
    """Longest prompt + response of a row, in tokens."""
    return len(row["prompt"]) + max(map(len, row["responses"]))


def tokens(rows: list[dict]) -> int:
    """Real tokens of rows: each response with its prompt, as libraries that repeat the prompt would count them."""
    return sum(len(row["prompt"]) + len(response) for row in rows for response in row["responses"])


def usable(stage: str, rows: Iterable[dict], tokenizer, args, rank: int) -> list[dict]:
    """Encoded rows that can be trained on; the others are accounted for by rank 0. Nothing is ever cut to fit."""
    special = set(tokenizer.all_special_ids)
    kept, dropped = [], []
    for row in rows:
        if length(row) > args.max_length:
            dropped.append((f"longer than {args.max_length} tokens", row["id"]))
        elif any(special.intersection(response[:-1]) for response in row["responses"]):
            dropped.append(("special token inside a response", row["id"]))
        else:
            kept.append(row)
    if rank == 0:
        funnel = Funnel(stage, f"{args.out}.jsonl")
        for _ in kept:
            funnel.keep()
        for reason, identity in dropped:
            funnel.drop(reason, {"id": identity})
        funnel.finish()
    if not kept:
        raise UserError(f"no row of {args.input} is left to train on")
    return kept


def plan(rows: int, batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Row numbers of every optimizer step: one shuffle an epoch, end to end, cut into batches of exactly `batch`.

    The last batch is filled from one more shuffle, so that no step is smaller than the others.
    """
    steps = math.ceil(rows * epochs / batch)
    order = []
    for epoch in range(math.ceil(steps * batch / rows)):
        order += random.Random(f"{seed}/{epoch}").sample(range(rows), rows)
    return [order[step * batch : (step + 1) * batch] for step in range(steps)]


def micro_batches(
    rows: list[dict], micro_batch: int, rank: int, world: int
) -> Iterator[list[dict]]:
    """This rank's share of a global batch. Rows of like length go together: under ZeRO-3 ranks wait for the slowest."""
    rows = sorted(rows, key=length)
    for at in range(0, len(rows), micro_batch * world):
        yield rows[at + rank : at + micro_batch * world : world]


def sum_over_ranks(numbers) -> list[float]:
    """Sum of each number of a small tensor over all ranks."""
    import torch

    total = numbers.detach().double()
    torch.distributed.all_reduce(total)
    return total.tolist()


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
