"""A GRPO run whose only reward is the verifiers', small enough for two CPU cores.

    bash run_all.sh --demo
    python -m autoif.export out/demo --to trl out/demo/trl --pass-rate 0 1 \\
        --heldout-queries demo/heldout_queries.txt
    python examples/grpo_trl.py --model out/demo/base --data out/demo/trl --out out/demo/grpo

Writes the model, metrics.jsonl (a row a step), curve.png and result.json: the share of answers to
held-out constraints that pass (more than half of the functions), before and after, with intervals.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, uninstalled
from autoif import files  # noqa: E402
from autoif.evaluation import intervals  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import Count, Positive, cli  # noqa: E402
from autoif.reward import Verifiers  # noqa: E402
from autoif.verifiers import MIN_ACCURACY  # noqa: E402


@dataclass(kw_only=True)
class Flags:
    model: str  # a checkpoint with a chat template
    data: Path  # a folder of autoif.export --to trl
    out: Path  # the trained model, its curve and its numbers
    steps: Count = 40  # of the trainer
    batch: Count = 16  # answers a step
    group: Count = 8  # answers to a prompt
    max_tokens: Count = 48  # of an answer
    lr: Positive = 2e-5  # constant
    samples: Count = 4  # answers to a held-out prompt
    seed: int = 0  # of the sampling and of the trainer

    def __post_init__(self):
        if self.group < 2 or self.batch % self.group:
            raise UserError("--group must be 2 or more, and --batch a multiple of it")


def sampled(model, tokenizer, rows: list[dict], samples: int, args) -> list[tuple[dict, str]]:
    """(row, answer) for `samples` answers to each row, sampled as the trainer samples."""
    import torch
    from transformers import set_seed

    set_seed(args.seed)  # before and after are sampled alike
    found = []
    for start in range(0, len(rows), args.batch):
        part = rows[start : start + args.batch]
        inputs = tokenizer.apply_chat_template(
            [row["prompt"] for row in part],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                max_new_tokens=args.max_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                num_return_sequences=samples,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        found += [(part[place // samples], text) for place, text in enumerate(texts)]
    return found


def held_out(model, tokenizer, rows: list[dict], verifiers: Verifiers, args) -> dict:
    """The share of answers to held-out constraints that pass, with its interval; errors do not."""
    answers = sampled(model, tokenizer, rows, args.samples, args)
    ids = [row["instruction_id"] for row, _ in answers]
    scores = verifiers.score(ids, [text for _, text in answers])
    points = []
    for (row, _), score in zip(answers, scores):
        points.append(("", row["id"], (score.pass_share or 0) > MIN_ACCURACY, 1))
    return intervals.interval(points)


def shown(metric: dict) -> str:
    """`43.9 [37.1, 50.8]` in per cent."""
    value, low, high = (100 * metric[part] for part in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def draw(steps: list[dict], path: Path) -> None:
    """The reward of each step, and its mean over ten."""
    from matplotlib.figure import Figure

    rewards = [row["reward"] for row in steps]
    smooth = []
    for end in range(1, len(rewards) + 1):
        last = rewards[max(0, end - 10) : end]
        smooth.append(sum(last) / len(last))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    places = [row["step"] for row in steps]
    axes.plot(places, rewards, alpha=0.35, label="step")
    axes.plot(places, smooth, label="mean of ten")
    axes.set_xlabel("step")
    axes.set_ylabel("share of functions passed")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(args: Flags) -> None:
    rows = list(files.read(args.data / "grpo.jsonl", ["prompt", "instruction_id"]))
    test = list(files.read(args.data / "grpo_heldout.jsonl", ["prompt", "instruction_id"]))
    if not rows or not test:
        raise UserError(
            f"{args.data} has {len(rows)} prompts and {len(test)} held-out ones; run python -m "
            "autoif.export --to trl again, with --heldout-queries where stage 04 held out none"
        )
    verifiers = Verifiers.load(args.data / "verifiers.jsonl")
    began = time.monotonic()

    # torch and TRL take seconds to load: only now, when the input is known to be good
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    before = held_out(model, tokenizer, test, verifiers, args)
    print(f"held out, before: {shown(before)} % of {before['n']} answers pass", flush=True)

    # the reward: the share of its constraint's functions that an answer passes; None moves nothing
    def follows(completions: list, instruction_id: list[str], **columns) -> list[float | None]:
        texts = [completion[-1]["content"] for completion in completions]
        return [score.pass_share for score in verifiers.score(instruction_id, texts)]

    steps = []

    class Lines(TrainerCallback):
        """One line and one row of metrics.jsonl a step."""

        def on_log(self, arguments, state, control, logs=None, **more) -> None:
            if logs.get("reward") is None:  # or all answers of the step have none
                return
            row = {"step": state.global_step, "reward": logs["reward"], "loss": logs["loss"]}
            row |= {"length": logs["completions/mean_length"], "lr": logs["learning_rate"]}
            steps.append(row)
            said = f"step {row['step']}/{args.steps} | reward {row['reward']:.3f}"
            minutes = (time.monotonic() - began) / 60
            print(f"{said} | {row['length']:.0f} tokens | {minutes:.1f} min", flush=True)

    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=follows,
        train_dataset=Dataset.from_list(
            [{name: row[name] for name in ("prompt", "instruction_id")} for row in rows]
        ),
        callbacks=[Lines()],
        args=GRPOConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            num_generations=args.group,
            max_completion_length=args.max_tokens,
            learning_rate=args.lr,
            lr_scheduler_type="constant",
            beta=0.0,  # no reference model: half the memory, and the usual choice by now
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,  # short answers: memory is there, time is not
            use_cpu=True,
            bf16=False,
            seed=args.seed,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # thirty numbers a step; Lines has those that matter
    trainer.train()
    trainer.save_model(str(args.out))
    files.write_whole(args.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in steps))
    draw(steps, args.out / "curve.png")

    # the same prompts, sampled with the same seed
    after = held_out(model.eval(), tokenizer, test, verifiers, args)
    minutes = (time.monotonic() - began) / 60
    outcome = {"before": before, "after": after, "steps": len(steps), "minutes": minutes}
    files.write_whole(args.out / "result.json", json.dumps(outcome, indent=1) + "\n")
    print(f"held out: {shown(before)} -> {shown(after)} % in {minutes:.0f} minutes")
    verifiers.close()


if __name__ == "__main__":
    cli(main, __doc__)
