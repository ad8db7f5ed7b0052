"""The log of a training run: one line a step, metrics.jsonl, tensorboard, wandb by flag, curves.png; and the stop."""

import json
import math
import resource
import statistics
import time
from pathlib import Path

from autoif.files import UserError, write_whole


class Log:
    """Rank 0 writes; every rank stops when the loss or the gradient norm is no number, or the norm leaves its usual size."""

    def __init__(self, args, total: int, done: int, rank: int):
        self.args, self.total, self.done, self.rank = args, total, done, rank
        self.file = Path(f"{args.out}.state") / "metrics.jsonl"
        # A killed run may have logged steps after its last resume point: they will be done again.
        rows = (
            [json.loads(line) for line in open(self.file) if line.endswith("\n")]
            if self.file.exists()
            else []
        )
        rows = [row for row in rows if row["step"] <= done]
        self.norms = [row["norm"] for row in rows]
        self.begin = self.last = time.monotonic()
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            write_whole(
                self.file, "".join(json.dumps(row) + "\n" for row in rows)
            )  # other ranks may still be reading it
            self.board = SummaryWriter(self.file.parent / "tensorboard", purge_step=done + 1)
            if args.wandb:
                import wandb

                self.wandb = wandb.init(
                    project=args.wandb, name=Path(args.out).name, config=vars(args)
                )

    def step(
        self,
        step: int,
        numbers: dict[str, float],
        lr: float,
        norm: float,
        tokens: int,
        ids: list[str],
    ) -> None:
        """`numbers` has the loss and what else the stage computes; `tokens` are the step's real tokens over all ranks."""
        usual = statistics.median(self.norms[-100:]) if len(self.norms) >= 20 else math.inf
        if (
            not math.isfinite(numbers["loss"])
            or not math.isfinite(norm)
            or norm > self.args.divergence * usual
        ):
            raise UserError(
                f"stopped at step {step}: loss {numbers['loss']:g}, gradient norm {norm:g}, median norm "
                f"{usual:g}; look at the rows of this batch ({', '.join(map(str, ids))}), lower --lr or raise "
                "--divergence; the last resume point is from before this step"
            )
        self.norms.append(norm)
        if self.rank:
            return
        now = time.monotonic()
        left = int((now - self.begin) / (step - self.done) * (self.total - step))
        row = {
            "step": step,
            **numbers,
            "lr": lr,
            "norm": norm,
            "tokens_per_second": tokens / (now - self.last),
            "memory_gb": memory_gb(),
        }
        self.last = now
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            self.board.add_scalar(name, value, step)
        if self.args.wandb:
            self.wandb.log(row, step=step)
        shown = " | ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        print(
            f"step {step}/{self.total} | {shown} | lr {lr:.1e} | norm {norm:.2f} | {row['tokens_per_second']:,.0f} tok/s"
            f" | {row['memory_gb']:.1f} GB | {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
            flush=True,
        )

    def close(self) -> None:
        """Draw the curves and close the writers."""
        if self.rank:
            return
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = [json.loads(line) for line in open(self.file)]
        names = [name for name in rows[0] if name != "step"]
        figure, axes = plt.subplots(
            len(names), 1, sharex=True, figsize=(8, 1.8 * len(names)), layout="constrained"
        )
        for axis, name in zip(axes, names):
            axis.plot([row["step"] for row in rows], [row[name] for row in rows])
            axis.set_ylabel(name.replace("_", "\n"))
        axes[-1].set_xlabel("step")
        figure.savefig(self.file.with_name("curves.png"))
        plt.close(figure)
        self.board.close()
        if self.args.wandb:
            self.wandb.finish()


def memory_gb() -> float:
    """Peak memory of this process in GB: the GPU's where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
