"""What a training run leaves on disk: resume points that appear whole, and at the end an ordinary checkpoint."""

import json
import os
import shutil
from pathlib import Path

from autoif.files import UserError
from autoif.models import fingerprint
from autoif.training.engine import digest

# Flags that may change between a killed run and its continuation, since the result does not depend on them.
FREE = (
    "input",
    "out",
    "command",
    "model",
    "reference",
    "micro_batch",
    "ds_config",
    "chat_template",
    "save_every",
    "keep_checkpoints",
    "divergence",
    "wandb",
)


class Checkpoints:
    """Resume points `<out>.state/step-N`, valid only for the settings and data they were made with."""

    def __init__(self, args, rows: list[dict], world: int, rank: int):
        self.out, self.state, self.rank, self.keep = (
            Path(args.out),
            Path(f"{args.out}.state"),
            rank,
            args.keep_checkpoints,
        )
        # An end token that the model did not know as one must stop generation from now on (Qwen2's base model: <|im_end|>).
        self.end_tokens = {response[-1] for row in rows for response in row["responses"]}
        if self.out.is_dir() and any(self.out.iterdir()):
            raise UserError(f"{self.out} exists; delete it to train again")
        settings = {name: value for name, value in vars(args).items() if name not in FREE}
        settings |= {
            name: fingerprint(getattr(args, name))
            for name in ("model", "reference")
            if getattr(args, name, None)
        }
        settings |= {"data": digest(rows), "processes": world}
        file = self.state / "settings.json"
        if file.exists():
            before = json.loads(file.read_text())
            changed = [
                f"{name} was {before.get(name)}, is {value}"
                for name, value in settings.items()
                if before.get(name) != value
            ]
            if changed:
                raise UserError(
                    f"{self.state} was begun with other settings ({'; '.join(changed)}); "
                    "go back to those, or delete it to begin again"
                )
        elif rank == 0:
            self.state.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(settings, indent=2) + "\n")
            os.replace(partial, file)

    def _steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.state.glob("step-*"))

    def restore(self, engine) -> int:
        """Load the latest resume point, if any: weights, optimizer, schedule, random state. Returns the steps done."""
        import torch

        done = max(self._steps(), default=0)
        if done:
            random_state = engine.load_checkpoint(str(self.state), tag=f"step-{done}")[1]
            torch.set_rng_state(random_state["cpu"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(random_state["cuda"])
            if self.rank == 0:
                print(f"resumed after step {done}", flush=True)
        return done

    def save(self, engine, step: int) -> None:
        """Write a resume point under another name, rename it, and only then delete the one before."""
        import torch
        import torch.distributed as dist

        partial, earlier = self.state / "partial", self._steps()
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        random_state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random_state["cuda"] = torch.cuda.get_rng_state()
        engine.save_checkpoint(
            str(self.state), tag=partial.name, client_state=random_state, save_latest=False
        )
        dist.barrier()
        if self.rank == 0:
            os.replace(partial, self.state / f"step-{step}")
            for number in [] if self.keep else earlier:
                shutil.rmtree(self.state / f"step-{number}")
        dist.barrier()

    def export(self, engine, tokenizer) -> None:
        """Write `out` whole: weights, config, generation config, tokenizer with its chat template, metrics and curves."""
        import torch.distributed as dist

        weights = (
            engine._zero3_consolidated_16bit_state_dict()
        )  # on rank 0 only; accelerate's get_state_dict is this call
        if self.rank == 0:
            model, partial = engine.module.model, Path(f"{self.out}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            known = model.generation_config.eos_token_id
            known = known if isinstance(known, list) else [] if known is None else [known]
            if self.end_tokens - set(known):
                model.generation_config.eos_token_id = known + sorted(self.end_tokens - set(known))
            model.save_pretrained(
                partial, state_dict={name.removeprefix("model."): w for name, w in weights.items()}
            )
            tokenizer.save_pretrained(partial)
            for name in ("metrics.jsonl", "curves.png"):
                shutil.copy(self.state / name, partial / name)
            shutil.copytree(self.state / "tensorboard", partial / "tensorboard")
            if self.out.is_dir():
                self.out.rmdir()
            os.replace(partial, self.out)
            if not self.keep:
                shutil.rmtree(self.state)
            print(f"wrote {self.out}", flush=True)
        dist.barrier()
