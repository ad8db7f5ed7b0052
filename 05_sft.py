"""Fine-tune the base model on the responses that passed: all weights, the loss on responses only.

Reads 04_sft.jsonl, or any JSONL whose rows have `messages`, the last one the assistant's. Of
several turns the loss is on that last answer alone: what stands before it (the system's words,
earlier answers, tool calls and their results, with the row's `tools`) is context. Writes a
directory that `from_pretrained` and vLLM load, with metrics.jsonl and curves.png in it (its
numbers: autoif/training/log.py). Paper: section 4 and its table of settings, which are the
defaults.

    torchrun --nproc_per_node=8 05_sft.py --in out/04_sft.jsonl --model Qwen2-7B --out out/05_sft

A killed run goes on from its last resume point when the same command is repeated. Departures from
the paper:
1. Rows longer than --max-length are dropped and counted, not cut.
2. Every step has exactly --batch rows: batches run across epochs, and the last is filled from one
   more shuffle.
3. The loss is the mean over the response tokens of the whole batch, not the mean of its parts'
   means, as in the trainer of the released command.

Shapes: R responses of a pack.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
from dataclasses import dataclass
from pathlib import Path

from autoif.flags import Count, Ins, Natural, NonNegative, Positive, cli, within
from autoif.shards import run_of
from autoif.training import engine as train
from autoif.training.checkpoints import Checkpoints
from autoif.training.rows import batches, first_day, load_tokenizer, micro_steps, read_sft, usable

NEXT = (
    "python 06_dpo.py pairs --in {data}/03_instructions.jsonl {responses} "
    "--sft {input} --out {folder}/06_pairs.jsonl"
)


@dataclass(kw_only=True)
class Flags(train.Flags):
    input: Ins  # 04_sft.jsonl, or those of several runs or shards
    model: str  # base model: a directory, or a name on the hub
    out: str  # the trained model
    batch: Count = 128  # rows a step over all devices (paper: 128; 512 for 70B)
    epochs: Positive = 3.0  # (paper: 3)
    max_length: within(int, 2) = 8192  # tokens of prompt and response (paper: 8192)
    lr: Positive = 7e-6  # (paper: 7e-6)
    schedule: train.Schedule = "linear"  # of the learning rate (paper: linear)
    warmup_steps: Natural = 20  # (paper: 20)
    weight_decay: NonNegative = 0.1  # (paper: 0.1)
    betas: train.Betas = (0.9, 0.95)  # Adam's (released command: 0.9 0.95)


def sft_loss(logprobs_R, tokens):
    """Cross-entropy: -sum over responses of log p(response | prompt) / tokens.

    `logprobs_R`: summed log-probabilities of a pack's responses in nats. `tokens`: number of
    response tokens in the global batch, so that the packs of all ranks add up to the mean over
    tokens.
    """
    return -logprobs_R.sum() / tokens


def following(args: Flags) -> str:
    """The command that comes next, with the files that lie beside those of this one."""
    names = {"input": " ".join(args.input), "folder": Path(args.out).parent}
    beside = [str(Path(path).with_name("04_responses.jsonl")) for path in args.input]
    names |= {"data": Path(run_of(args.input[0])).parent, "responses": " ".join(beside)}
    return NEXT.format(**names)


def main(args: Flags) -> None:
    rank, world = train.start(args.seed, args.precision)

    # check model and rows before anything is written: bad rows end the run with their lines
    train.check_shape(args.model, args.max_length)
    date = first_day(args.out)
    tokenizer = load_tokenizer(args.model, args.chat_template, date)
    rows = (row for path in args.input for row in read_sft(path, tokenizer))
    rows = usable("05_sft", rows, tokenizer, args, rank)
    plan = batches(len(rows), args.batch, args.epochs, args.seed)

    # bring up the policy where the last resume point left it, under the same settings only
    checkpoints = Checkpoints(args, rows, date, rank, world)
    policy = train.Policy(args, rows, checkpoints, steps=len(plan), warmup=args.warmup_steps)

    # train: each step is one batch, shared out over ranks and packs whose losses add up
    for step in policy.steps_left():
        batch = [rows[number] for number in plan[step - 1]]
        # the mean is over the whole batch: packs hold unequal numbers of response tokens
        tokens = sum(len(row["responses"][0]) for row in batch)
        loss_sum = 0
        for micro, weight, last in micro_steps(batch, policy.micro_tokens, rank, world):
            logprobs_R = policy(micro)
            loss = weight * sft_loss(logprobs_R, tokens)
            policy.backward(loss, last)
            loss_sum += loss.detach()
        [loss] = train.sum_over_ranks(loss_sum)
        policy.finish_step(step, {"loss": loss}, batch)
    policy.export(tokenizer, then=following(args))


if __name__ == "__main__":
    cli(main, __doc__)
