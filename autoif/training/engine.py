"""DeepSpeed's engine for both training stages: start-up, flags, the model, the optimizer.

It knows no loss: a stage keeps its rows, its loss and its loop, and trains a `Policy`.
"""

import argparse
import json
import os
import shutil
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

from autoif import gpu, weights
from autoif.files import UserError
from autoif.flags import Count, within
from autoif.models import read_config
from autoif.stage import wrote
from autoif.training import arithmetic
from autoif.training.checkpoints import Checkpoints
from autoif.training.log import Log
from autoif.training.ranks import from_first
from autoif.training.rows import packed_tokens

# tests/test_train.py checks these against transformers' own forward pass
MODELS = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # of --precision, by their names in torch
SCHEDULES = ("linear", "cosine", "constant_with_warmup")  # by their names in transformers
Schedule = Literal[SCHEDULES]
Betas = within(float, 0, 0.999999, count=2)
Recompute = Literal["auto", "on", "off"]


@dataclass(kw_only=True)
class Flags:
    """Flags of speed, memory and bookkeeping; what changes the result stands in the stages."""

    micro_tokens: Count = 16384  # tokens a device computes at a time at most; a longer row is alone
    precision: Literal["bf16", "fp32"] = "bf16"  # of weights and activations (paper: bf16)
    export_dtype: Literal[weights.EXPORTS] = "fp32"  # bf16: half the disk, small updates are lost
    # share out optimizer (1), gradients (2), weights too (3, the paper's); auto: as memory asks
    zero: Literal["auto", 1, 2, 3] = "auto"
    # recompute layers; auto: as many as memory asks, after packs were halved
    activation_checkpointing: Recompute = "auto"
    offload: bool = False  # keep optimizer and master weights in CPU memory
    unpinned: bool = False  # of --offload, where the machine refuses to pin so much: slower
    # fuse norms, rotary, SwiGLU and log-probabilities by torch.compile, for speed on a GPU, where
    # it is not measured yet; needs a C++ compiler
    compile: bool = False
    chat_template: str | None = None  # Jinja file to use instead of the tokenizer's own template
    skip_bad: bool = False  # leave out and count rows that cannot be trained on (else an error)
    ds_config: str = str(Path(__file__).parents[2] / "ds_config.json")  # DeepSpeed's settings
    save_every: Count = 200  # steps between resume points (released code: 200); one at the end
    keep_checkpoints: bool = False  # keep every resume point, not only the latest
    divergence: within(float, 1) = 100.0  # stop when the gradient norm is X times its median
    wandb: str | None = None  # also log to this Weights & Biases project
    seed: int = 0  # of the data order


class Policy:
    """A model in training: engine, resume points and log.

    `args` are a stage's flags: those above, and lr, schedule, betas and weight_decay.
    """

    def __init__(self, args, rows: list[dict], checkpoints: Checkpoints, steps: int, warmup: int):
        self.args, self.rows, self.checkpoints, self.steps = args, rows, checkpoints, steps
        layout = laid_out(args, rows, checkpoints)
        self.micro_tokens = layout.tokens
        config = deepspeed_config(
            args.ds_config, layout.zero, args.precision, args.offload, args.unpinned
        )
        model = load_model(args.model, config, args.precision, rows)
        recompute(model, layout.recomputed)
        if args.compile:
            fuse(model)
        names = ("lr", "betas", "weight_decay", "schedule")
        settings = {name: getattr(args, name) for name in names}
        self.engine = trainable(model, config, steps=steps, warmup=warmup, **settings)
        restore_masters(self.engine, args.model)
        self.done = checkpoints.restore(self.engine)
        self.log = Log(args.out, self.engine, steps, self.done, args.divergence, args.wandb)

    def steps_left(self) -> range:
        return range(self.done + 1, self.steps + 1)

    def __call__(self, rows: list[dict]):
        """Summed log-probability of each response of a pack's rows, in nats, shape (R,)."""
        from autoif.training.packed import pack

        return self.engine(**pack(rows, self.engine.device))

    def tensor(self, values: list):
        """Numbers of a pack's rows on the device, in float32."""
        import torch

        from autoif.training.packed import placed

        return placed(values, self.engine.device, torch.float32)

    def backward(self, loss, last: bool) -> None:
        """Add up the gradient of a pack's share of the loss; with `last` the optimizer steps."""
        self.lr = self.engine.get_lr()[0]  # of this step: the optimizer's moves the schedule on
        # a step has as many packs as its tokens need: DeepSpeed is told which is the last
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over ranks; ours is a sum
        self.engine.backward(loss * self.checkpoints.world, scale_wrt_gas=False)
        self.engine.step()

    def finish_step(self, step: int, numbers: dict[str, float], batch: list[dict]) -> None:
        """Log a step of all ranks, and keep a resume point where one is due."""
        self.log.step(step, numbers, self.lr, float(self.engine.get_global_grad_norm()), batch)
        # the last one too: a run killed while it exports does not train again
        if step % self.args.save_every == 0 or step == self.steps:
            self.checkpoints.save(self.engine, step)

    def export(self, tokenizer, then: str) -> None:
        """Write the trained model with its log to --out, and say which command comes `then`."""
        self.log.close()
        args = self.args
        self.checkpoints.export(self.engine, tokenizer, self.rows, args.model, args.export_dtype)
        if self.checkpoints.rank == 0:
            wrote(args.out, then=then)


def start(seed: int, precision: str) -> tuple[int, int]:
    """Join the process group, alone or under torchrun; returns (rank, world size)."""
    # read when DeepSpeed is imported: 70B are written in more than its 10 minutes
    os.environ.setdefault("DEEPSPEED_TIMEOUT", "180")
    # else what --offload pins is rounded up to powers of two, half as much again
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "pinned_max_round_threshold_mb:64"
    import torch
    import transformers

    on_gpu = bool(gpu.memory())
    if not on_gpu:
        # both read their own, and must see the same
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    if "RANK" not in os.environ:  # started by `python`, not `torchrun`
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        # any free port: nobody else will join
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import deepspeed

    # DeepSpeed calls collectives by old names
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    deepspeed.utils.logger.setLevel("WARNING")
    transformers.utils.logging.disable_progress_bar()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # else DeepSpeed compiles a kernel first, and a bare machine has no compiler
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(verbose=False)
    torch.manual_seed(seed)
    if rank == 0:
        from autoif.training.packed import kernel

        form = getattr(torch, DTYPES[precision])
        print(f"attention: {kernel('cuda' if on_gpu else 'cpu', form)[1]}", flush=True)
    return rank, world


def deepspeed_config(
    path: str | Path, zero: int, precision: str, offload: bool, unpinned: bool = False
) -> dict:
    """DeepSpeed's settings from `path` with those of the flags filled in."""
    try:
        config = json.loads(Path(path).read_text())
        config["zero_optimization"]["stage"] = zero
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--ds-config {path} is no DeepSpeed configuration: {error!r}") from None
    # at ZeRO-1 a bf16 gradient would stay beside its sum in fp32
    config["bf16"] = {"enabled": precision == "bf16", "immediate_grad_update": True}
    if offload:
        where = {"device": "cpu", "pin_memory": not unpinned}
        config["zero_optimization"]["offload_optimizer"] = where
    return config


def check_shape(path: str, max_length: int) -> None:
    """UserError where the model at `path` is not whole, or packed training does not fit it."""
    shape = read_config(path)
    if shape.model_type not in MODELS:
        raise UserError(
            f"{path} is a {shape.model_type!r} model; packed training is checked for "
            f"{', '.join(MODELS)} only"
        )
    window = getattr(shape, "sliding_window", None)
    if window is not None and window < max_length:
        raise UserError(
            f"{path} attends to {window} tokens only; packed training needs --max-length {window} "
            "or less"
        )
    if shape.attention_dropout:
        raise UserError(
            f"{path} has attention_dropout {shape.attention_dropout}, which packed training lacks; "
            "set it to 0 in config.json"
        )
    weights.check_whole(path)


def check_ids(path: str, rows: list[dict]) -> None:
    """UserError where a row has a token beyond the embedding of the model at `path`."""
    tokens = read_config(path).vocab_size
    for row in rows:
        largest = max(map(max, [row["prompt"], *row["responses"]]))
        if largest >= tokens:
            raise UserError(
                f"row {row['id']} has the token {largest}, and {path} has an embedding of {tokens} "
                "tokens; give it the tokenizer that it was trained with, or resize its embedding"
            )


def load_model(path: str, config: dict, precision: str, rows: list[dict]):
    """The model at `path` as packed.ResponseLogprobs; ZeRO-3 partitions it while it is read."""
    import transformers
    from transformers.integrations import HfDeepSpeedConfig

    from autoif.training.packed import ATTENTION

    check_ids(path, rows)
    # transformers holds it weakly: it must live until the model is read
    partition_on_load = HfDeepSpeedConfig(config)
    try:
        options = {"attn_implementation": ATTENTION, "output_loading_info": True}
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[precision], **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, UnpicklingError) as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path} cannot be loaded: {words}; are its files whole, and is there memory for it?"
        ) from None
    del partition_on_load
    weights.refuse_missing(path, sorted(loaded["missing_keys"]))
    return packed_model(model)


def packed_model(model):
    """A causal model as packed.ResponseLogprobs, whose layers ZeRO-3 gathers in one piece each."""
    import deepspeed

    from autoif.training.packed import ResponseLogprobs

    model = ResponseLogprobs(model)
    deepspeed.utils.set_z3_leaf_modules(model, [type(model.layers[0])])
    return model


def laid_out(args, rows: list[dict], checkpoints: Checkpoints) -> arithmetic.Layout:
    """How the run lies on its devices; a stage of ZeRO binds its continuation."""
    shape, settings = read_config(args.model), checkpoints.settings
    flags = argparse.Namespace(**{**vars(args), "zero": settings["zero"]})
    longest, gpus = max(map(packed_tokens, rows)), gpu.memory()
    # processes of this machine share its memory
    host = gpu.host() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = min(gpus, default=host)
    # the first decides for all: nodes may differ
    layout = from_first(lambda: arithmetic.layout(shape, flags, longest, checkpoints.world, device))
    if gpus:
        arithmetic.refuse_too_large(args.model, layout, host)
    settings["zero"] = layout.zero
    if checkpoints.rank == 0:
        print(f"by arithmetic: {layout}", flush=True)
    return layout


def recompute(model, layers: int) -> None:
    """Compute the first `layers` again in the backward pass, when the others' are free again."""
    if layers:
        # the other form rejects ZeRO-3's emptied weights
        model.model.gradient_checkpointing_enable({"use_reentrant": True})
    for layer in model.layers[layers:]:
        layer.gradient_checkpointing = False


def fuse(model) -> None:
    """packed.fuse; UserError on a machine that cannot compile."""
    from autoif.training import packed

    header = Path(sysconfig.get_path("include"), "Python.h")
    if not shutil.which(os.environ.get("CXX", "g++")) or not header.exists():
        raise UserError(
            "--compile needs a C++ compiler and Python's headers (g++, python3-dev); install them, "
            "or leave it out"
        )
    packed.fuse(model)


def room_for_warmup(steps: int, warmup: int, lr: float) -> int:
    """Steps of warm-up; where they leave no step at the full rate, it is said.

    Step n has n / warmup of the rate, the first one 0: a run of a single step would train nothing.
    """
    import torch.distributed as dist

    if warmup < steps:
        return warmup
    words = f"there is one step: it is taken at the full learning rate, {lr:.1e}, unwarmed"
    if steps > 1:
        reached = lr * (steps - 1) / warmup
        words = f"{steps} steps end before {warmup} of warm-up do: the learning rate reaches "
        words += f"{reached:.1e}, not {lr:.1e}"
    if dist.get_rank() == 0:
        print(f"warning: {words}; a smaller --batch, or more rows, make more steps", flush=True)
    return warmup if steps > 1 else 0


def trainable(model, config: dict, steps: int, warmup: int, lr, betas, weight_decay, schedule):
    """DeepSpeed engine with the schedule and AdamW, which decays neither norms nor biases."""
    import deepspeed
    import torch
    from transformers import get_scheduler

    matrices, vectors = [], []
    for parameter in model.parameters():
        # ZeRO-3 has emptied the parameter itself
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (matrices if len(shape) > 1 else vectors).append(parameter)
    decayed = {"params": matrices, "weight_decay": weight_decay}
    groups = [decayed, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=1e-8, fused=True)
    scheduler = get_scheduler(schedule, optimizer, room_for_warmup(steps, warmup, lr), steps)
    engine = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config
    )[0]
    engine.train()
    return engine


def restore_masters(engine, model: str) -> None:
    """Give the fp32 master weights what `model` has in float32: they were made of its bf16 copy."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    tensors = weights.stored(model)
    if not tensors and engine.bfloat16_enabled() and torch.distributed.get_rank() == 0:
        print(f"warning: {model} has no safetensors; what it has in float32 is rounded", flush=True)
    for name, parameter in engine.module.model.named_parameters():
        if name not in tensors or tensors[name].get_dtype() != "F32":
            continue
        value = tensors[name][:]
        if engine.zero_optimization_stage() < 3:
            safe_set_full_fp32_param(parameter, value)
            continue
        # ZeRO-3 cuts a tensor into equal parts, one for each rank; zeros fill the last
        size = parameter.ds_tensor.numel()
        part = value.flatten()[torch.distributed.get_rank() * size :][:size]
        padded = torch.nn.functional.pad(part, (0, size - len(part)))
        safe_set_local_fp32_param(parameter, padded)


def sum_over_ranks(*numbers) -> list[float]:
    """Sum of each number of small tensors, end to end, over all ranks."""
    import torch

    total = torch.cat([tensor.detach().double().flatten() for tensor in numbers])
    torch.distributed.all_reduce(total)
    return total.tolist()
