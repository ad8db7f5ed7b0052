"""Training speed beside TRL: real tokens/s (padding not counted) and peak memory, on one machine in one run.

    python bench/bench_train.py --model DIR

Each contender trains in a process of its own on the same rows with the same micro-batch, in bf16 with float32 master
weights, AdamW and the same loss; neither recomputes activations. Ours is the real stage (DeepSpeed ZeRO-3, resume points
off the clock), TRL's its trainer without DeepSpeed. The first step is warm-up. A token of a DPO prompt counts twice, once
for each response, for both. Our DPO time includes half of the reference pass, which serves the paper's 2 epochs.
OMP_WAIT_POLICY=passive keeps threads from spinning when something else uses a core; without it TRL's figure collapses.
"""

import argparse
import importlib.util
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the a model answers with short lists of words and then stops because sun moon river stone green blue time".split()


def make_rows(kind: str, count: int, rng: random.Random) -> list[dict]:
    """Short instruction data: prompts of 10 to 60 words, responses of 5 to 120."""

    def text(low, high):
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    def message(role, content):
        return [{"role": role, "content": content}]

    if kind == "sft":
        return [
            {
                "id": str(number),
                "messages": message("user", text(10, 60)) + message("assistant", text(5, 120)),
            }
            for number in range(count)
        ]
    return [
        {
            "id": str(number),
            "prompt": message("user", text(10, 60)),
            "chosen": message("assistant", text(5, 120)),
            "rejected": message("assistant", text(5, 120)),
        }
        for number in range(count)
    ]


def ours(kind: str, args, folder: Path) -> dict:
    """Run the stage's main() and read its metrics."""
    stage = ROOT / ("05_sft.py" if kind == "sft" else "06_dpo.py")
    spec = importlib.util.spec_from_file_location("stage", stage)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT))
    spec.loader.exec_module(module)
    passes = []
    if kind == "dpo":
        reference_logprobs = module.reference_logprobs

        def timed(*arguments):
            begin = time.monotonic()
            found = reference_logprobs(*arguments)
            passes.append(time.monotonic() - begin)
            return found

        module.reference_logprobs = timed
    module.main(
        [
            *(["train"] if kind == "dpo" else []),
            "--in",
            str(folder / "rows.jsonl"),
            "--model",
            args.model,
            "--out",
            str(folder / "ours"),
            "--batch",
            str(args.batch),
            "--micro-batch",
            str(args.micro_batch),
            "--epochs",
            "1",
        ]
    )
    steps = [json.loads(line) for line in open(folder / "ours" / "metrics.jsonl")]
    seconds_per_token = statistics.mean(1 / step["tokens_per_second"] for step in steps[1:])
    if passes:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        tokens = sum(
            count_tokens(kind, json.loads(line), tokenizer) for line in open(folder / "rows.jsonl")
        )
        seconds_per_token += passes[0] / tokens / 2
    return {
        "tokens_per_second": 1 / seconds_per_token,
        "memory_gb": max(step["memory_gb"] for step in steps),
    }


def trl(kind: str, args, folder: Path) -> dict:
    """Run TRL's trainer and time its optimizer steps."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in open(folder / "rows.jsonl")]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.monotonic())

    shared = dict(
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
        data = Dataset.from_list(
            [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows]
        )
        trainer = SFTTrainer(
            args.model,
            SFTConfig(**shared),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
    else:
        data = Dataset.from_list(
            [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
        )
        trainer = DPOTrainer(
            args.model,
            args=DPOConfig(**shared, precompute_ref_log_probs=args.precompute),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
    trainer.train()
    tokens = (
        sum(count_tokens(kind, row, tokenizer) for row in rows)
        / len(rows)
        * args.batch
        * (len(times) - 1)
    )
    return {
        "tokens_per_second": tokens / (times[-1] - times[0]),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def count_tokens(kind: str, row: dict, tokenizer) -> int:
    """Real tokens of a row, the prompt once for each response."""
    whole = (
        [row["messages"]]
        if kind == "sft"
        else [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    )
    return sum(
        len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
        for messages in whole
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of SmolLM2-135M")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument(
        "--precompute",
        action="store_true",
        help="let TRL compute its reference log-probabilities before",
    )
    parser.add_argument("--kinds", nargs="+", default=["sft", "dpo"])
    parser.add_argument(
        "--one", nargs=3, metavar=("WHO", "KIND", "FOLDER"), help="(what the parent process calls)"
    )
    args = parser.parse_args(argv)
    if args.one:
        who, kind, folder = args.one
        print("RESULT " + json.dumps({"ours": ours, "trl": trl}[who](kind, args, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.kinds:
            folder = Path(temporary) / kind
            folder.mkdir()
            with open(folder / "rows.jsonl", "w") as file:
                file.writelines(
                    json.dumps(row) + "\n" for row in make_rows(kind, args.rows, random.Random(0))
                )
            found = {}
            for who in ("ours", "trl"):
                done = subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        *(argv or sys.argv[1:]),
                        "--one",
                        who,
                        kind,
                        str(folder),
                    ],
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
                if not result:
                    sys.exit(f"{who} {kind} failed:\n{done.stdout[-3000:]}")
                found[who] = json.loads(result[1])
            ratio = found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"]
            print(
                f"{kind}: ours {found['ours']['tokens_per_second']:.0f} tok/s, {found['ours']['memory_gb']:.1f} GB | TRL "
                f"{found['trl']['tokens_per_second']:.0f} tok/s, {found['trl']['memory_gb']:.1f} GB | {ratio:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
