"""The log of a training run: a line a step, metrics.jsonl, curves.png; and the stop.

A step's numbers, as they are named in metrics.jsonl and in the curves:

    loss                nats; SFT: mean over the response tokens of the batch; DPO: over its pairs
    chosen, rejected    DPO: mean reward of a side, beta x (log p of policy - log p of reference)
    margin              DPO: mean of chosen - rejected
    accuracy            DPO: share of the pairs whose margin is above 0
    lr                  learning rate of this step
    norm                length of the gradient before it is clipped at 1
    tokens_per_second   prompt and response tokens of the batch, each prompt once, as it is computed
    tokens_per_second_prompt_repeated
                        the same with the prompt once for each response, as other libraries compute
    tflops              model TFLOP/s of one device: arithmetic.step_flops over the step's seconds;
                        what is computed again in the backward pass is not counted
    mfu                 tflops as a share of the device's peak by its data sheet; not on a CPU
    memory_gb           peak memory of rank 0 since the start: its GPU's, on a CPU the process's
"""

import json
import math
import resource
import statistics
import time
from functools import partial
from pathlib import Path

from autoif import files
from autoif.files import UserError
from autoif.training import arithmetic
from autoif.training.ranks import from_first
from autoif.training.rows import count_tokens


class Log:
    """Rank 0 writes; every rank stops when loss or norm is no number, or the norm is too large."""

    def __init__(self, out: str, engine, total: int, done: int, divergence: float, wandb=None):
        import torch.distributed as dist

        self.total, self.done, self.divergence = total, done, divergence
        self.shape = engine.module.model.config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.file, self.wandb = Path(f"{out}.state") / "metrics.jsonl", None
        rows = from_first(partial(logged, self.file, done))
        self.norms = [row["norm"] for row in rows]
        if self.rank == 0:
            with files.writer(self.file) as write:
                for row in rows:
                    write(row)
            dtype = next(engine.module.parameters()).dtype
            self.peak = arithmetic.peak_flops(engine.device, dtype)
            if wandb:
                import wandb as client

                settings = json.loads(self.file.with_name("settings.json").read_text())
                self.wandb = client.init(project=wandb, name=Path(out).name, config=settings)
        self.begin = self.last = time.monotonic()

    def step(
        self, step: int, numbers: dict[str, float], lr: float, norm: float, batch: list[dict]
    ) -> None:
        """`numbers` are the loss and what the stage adds to it, `batch` the rows of all ranks."""
        usual = statistics.median(self.norms[-100:]) if len(self.norms) >= 20 else math.inf
        sound = math.isfinite(numbers["loss"]) and math.isfinite(norm)
        if not sound or norm > self.divergence * usual:
            ids = ", ".join(str(row["id"]) for row in batch)
            raise UserError(
                f"stopped at step {step}: loss {numbers['loss']:g}, gradient norm {norm:g}, median "
                f"norm {usual:g}; look at the rows of this batch ({ids}), lower --lr or raise "
                "--divergence; the last resume point is from before this step"
            )
        self.norms.append(norm)
        if self.rank:
            return
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        left = int((now - self.begin) / (step - self.done) * (self.total - step))
        once, repeated = count_tokens(batch)
        flops = arithmetic.step_flops(self.shape, batch) / seconds / self.world
        row = {
            "step": step,
            **numbers,
            "lr": lr,
            "norm": norm,
            "tokens_per_second": once / seconds,
            "tokens_per_second_prompt_repeated": repeated / seconds,
            "tflops": flops / 1e12,
            "memory_gb": memory_gb(),
        }
        share = ""
        if self.peak:
            row["mfu"] = flops / self.peak
            share = f" | MFU {row['mfu']:.1%}"
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row, step=step)
        shown = " | ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        print(
            f"step {step}/{self.total} | {shown} | lr {lr:.1e} | norm {norm:.2f}"
            f" | {row['tokens_per_second']:,.0f} tok/s"
            f" ({row['tokens_per_second_prompt_repeated']:,.0f} prompt repeated)"
            f" | {row['tflops']:.3g} TFLOP/s{share} | {row['memory_gb']:.1f} GB"
            f" | {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
            flush=True,
        )

    def close(self) -> None:
        """Draw the curves."""
        if self.rank:
            return
        from matplotlib.figure import Figure

        rows = list(files.read(self.file))
        names = [name for name in rows[0] if name != "step"]
        figure = Figure(figsize=(8, 1.8 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), sharex=True)
        steps = [row["step"] for row in rows]
        for axis, name in zip(axes, names):
            # a run that goes on elsewhere may log other numbers
            axis.plot(steps, [row.get(name) for row in rows])
            axis.set_ylabel(name.replace("_", "\n"))
        axes[-1].set_xlabel("step")
        figure.savefig(self.file.with_name("curves.png"))
        if self.wandb:
            self.wandb.finish()


def logged(file: Path, done: int) -> list[dict]:
    """The rows of the first `done` steps.

    A killed run may have logged more after its last resume point: these steps will be done again.
    """
    if not file.exists():
        return []
    # behind the last line's end stands nothing, or a torn line of a step that is done again
    *lines, _torn = file.read_text(encoding="utf-8").split("\n")
    return [row for row in map(json.loads, lines) if row["step"] <= done]


def memory_gb() -> float:
    """Peak memory of this process in GB: the GPU's where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
