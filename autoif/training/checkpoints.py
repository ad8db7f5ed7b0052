"""What a training run leaves on disk: resume points, and at the end an ordinary checkpoint."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

from autoif import weights
from autoif.files import UserError, write_whole
from autoif.models import generation_config
from autoif.settings import fingerprint, write_settings
from autoif.training.ranks import from_first
from autoif.training.rows import digest, end_tokens

# Flags that may change between a killed run and its continuation: the result does not hang on them.
FREE = set(
    "input out command model reference micro_tokens activation_checkpointing unpinned compile "
    "ds_config chat_template skip_bad export_dtype save_every keep_checkpoints divergence "
    "wandb".split()
)

# How safetensors and torch.save say that the disk is full.
FULL_DISK = ("No space left on device", "enforce fail at inline_container.cc")


def binding(flags: dict, rows: list[dict], world: int) -> dict:
    """What a continuation must have in common with the run that it continues."""
    settings = {name: value for name, value in flags.items() if name not in FREE}
    for name in ("model", "reference"):
        if flags.get(name):
            settings[name] = fingerprint(flags[name])
    # as a file gives them back: (0.9, 0.95) is [0.9, 0.95]
    return json.loads(json.dumps({**settings, "data": digest(rows), "processes": world}))


class Checkpoints:
    """Resume points `<out>.state/step-N`, valid for the settings and data they were made with.

    `date` is the day that the chat template prints.
    """

    def __init__(self, args, rows: list[dict], date: str, rank: int, world: int):
        self.out, self.state = Path(args.out), Path(f"{args.out}.state")
        self.rank, self.world, self.keep = rank, world, args.keep_checkpoints
        self.file = self.state / "settings.json"
        self.settings = {**binding(vars(args), rows, world), "date": date}
        self.done, before = from_first(self._begun)
        before, changed = before or self.settings, []
        if self.settings.get("zero") == "auto":
            self.settings["zero"] = before["zero"]  # a resume point is of one stage
        # without --reference it is the model: a run that began with another is no such run
        for name, value in {"reference": None, **self.settings}.items():
            # the day changes nothing but the rows, whose hash is among the settings
            if name != "date" and before.get(name) != value:
                changed.append(f"{name} was {before.get(name)}, is {value}")
        if changed:
            raise UserError(
                f"{self.state} was begun with other settings ({'; '.join(changed)}); "
                "go back to those, or delete it to begin again"
            )
        if rank == 0:
            self._lock()
            write_settings(args, args.out)

    def _begun(self) -> tuple[int, dict | None]:
        """(the steps of the last resume point, the settings that bind its continuation)"""
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise UserError(f"{self.out} exists; delete it to train again")
        done = max(self._steps(), default=0)
        # settings without a resume point bind nobody: that run had nothing to lose
        return done, json.loads(self.file.read_text()) if done and self.file.exists() else None

    def _lock(self) -> None:
        """Become the one training into `out`, until this process ends, however it does."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.locked = open(self.state / "lock", "w")
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another training is at work on {self.out}; wait for it, end it, or give another "
                "--out"
            ) from None
        except OSError as error:  # Lustre without -o flock
            print(f"warning: {self.state} cannot be locked ({error.strerror})", flush=True)

    def _steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.state.glob("step-*"))

    def restore(self, engine) -> int:
        """Load the latest resume point, if any: weights, optimizer, schedule, random state.

        Returns the number of steps done.
        """
        import torch

        if self.done:
            random_state = engine.load_checkpoint(str(self.state), tag=f"step-{self.done}")[1]
            torch.set_rng_state(random_state["cpu"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(random_state["cuda"])
            if self.rank == 0:
                print(f"resumed after step {self.done}", flush=True)
        elif self.rank == 0:
            write_whole(self.file, json.dumps(self.settings, indent=2) + "\n")
        torch.distributed.barrier()  # the log lies in the same folder
        return self.done

    def save(self, engine, step: int) -> None:
        """Write a resume point under another name, rename it, only then delete the one before."""
        import torch
        import torch.distributed as dist

        partial, earlier = self.state / "partial", self._steps()
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        random_state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random_state["cuda"] = torch.cuda.get_rng_state()
        with full_disk_named(partial):
            engine.save_checkpoint(
                str(self.state), tag=partial.name, client_state=random_state, save_latest=False
            )
        dist.barrier()
        if self.rank == 0:
            os.replace(partial, self.state / f"step-{step}")
            for number in [] if self.keep else earlier:
                shutil.rmtree(self.state / f"step-{number}")
        dist.barrier()

    def export(self, engine, tokenizer, rows: list[dict], start: str, form: str) -> None:
        """Write `out` whole: weights, configurations, tokenizer, metrics and curves.

        `form` is one of weights.EXPORTS; `start` is the model that training began with.
        """
        import torch.distributed as dist
        import transformers

        tensors = self._gather(engine, start, form)
        if self.rank == 0:
            model, partial = engine.module.model, Path(f"{self.out}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            # an end token that the model did not know as one must stop generation from now on
            # (Qwen2's base model: <|im_end|>)
            known = model.generation_config.eos_token_id
            known = known if isinstance(known, list) else [known]
            ends = end_tokens(rows, tokenizer).union(known) - {None}
            config = generation_config(sorted(ends))
            model.generation_config = transformers.GenerationConfig(**config)
            with full_disk_named(partial):
                model.save_pretrained(partial, state_dict=tensors)
                # it names the format of the working copy
                weights.set_dtype(partial, "float32" if form == "fp32" else "bfloat16")
                tokenizer.save_pretrained(partial)
                for name in ("metrics.jsonl", "curves.png", "settings.json"):
                    shutil.copy(self.state / name, partial / name)
            if self.out.is_dir():
                self.out.rmdir()
            os.replace(partial, self.out)
            self.locked.close()  # NFS keeps the name of what is open, and its folder then
            if not self.keep:
                shutil.rmtree(self.state)
        dist.barrier()

    def _gather(self, engine, start: str, form: str) -> dict:
        """The master weights by name in `form`, on rank 0, which says what is left of the update.

        Not the bf16 copy that the passes compute with: most of a small update is not in it.
        """
        import torch
        from deepspeed.utils import safe_get_full_fp32_param

        before, tensors = weights.stored(start), {}
        export, nearest = weights.Kept(), weights.Kept()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in engine.module.model.named_parameters():
            # rank 0 reads and writes meanwhile: who asked ahead of it would time out
            torch.distributed.barrier()
            master = safe_get_full_fp32_param(parameter)  # by all ranks: each has a part
            if self.rank:
                continue
            master = master.cpu()
            tensors[name] = weights.exported(master, form, generator)
            if name in before:
                export.add(before[name][:], master, tensors[name])
                nearest.add(before[name][:], master, master.bfloat16())
        if export.weights:
            print(
                f"update: rms {export.rms:.1e}; the export ({form}) keeps {export.share:.1%}; "
                f"rounded to the nearest bf16, {nearest.share:.1%} would be left",
                flush=True,
            )
        return tensors


@contextlib.contextmanager
def full_disk_named(path: Path):
    """UserError when a full disk ends the block, which each library says in its own way."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in FULL_DISK):
            raise
        raise UserError(
            f"{path} cannot be written, the disk is full; make room and run the same command: "
            "it goes on from the last resume point"
        ) from None
