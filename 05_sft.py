"""Fine-tune the base model on the responses that passed: all weights, the loss on responses only.

Reads 04_sft.jsonl, or any JSONL whose rows have `messages`, the last one the assistant's. Of
several turns the loss is on that last answer alone: what stands before it (the system's words,
earlier answers, tool calls and their results, with the row's `tools`) is context. Writes a
directory that `from_pretrained` and vLLM load, with metrics.jsonl, curves.png and tensorboard/ in
it (its numbers: autoif/training/log.py). Paper: section 4 and its table of settings, which are the
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

import argparse
from collections.abc import Iterator
from pathlib import Path

from autoif.stage import (
    Help,
    natural,
    non_negative,
    positive,
    positive_int,
    run,
    within,
    write_settings,
    wrote,
)
from autoif.training import engine as train
from autoif.training.rows import (
    batches,
    encode,
    encoded_rows,
    first_day,
    load_tokenizer,
    micro_steps,
    read_messages,
    usable,
)

NEXT = (
    "python 06_dpo.py pairs --in 03_instructions.jsonl 04_responses.jsonl --sft {args.input} "
    "--out {folder}/06_pairs.jsonl"
)


def sft_loss(logprobs_R, tokens):
    """Cross-entropy: -sum over responses of log p(response | prompt) / tokens.

    `logprobs_R`: summed log-probabilities of a pack's responses in nats. `tokens`: number of
    response tokens in the global batch, so that the packs of all ranks add up to the mean over
    tokens.
    """
    return -logprobs_R.sum() / tokens


def read_rows(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 04_sft.jsonl as token ids: a prompt and one response, of several turns the last."""

    def encode_row(row, where):
        messages = read_messages(row["messages"], "messages", where)
        return encode(tokenizer, messages[:-1], [messages[-1:]], where, tools=row.get("tools"))

    return encoded_rows(path, ["messages"], "04_responses.py", encode_row)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    # what changes the result stands here; speed, memory and bookkeeping in train.add_flags
    parser.add_argument("--in", dest="input", required=True, metavar="FILE", help="04_sft.jsonl")
    parser.add_argument(
        "--model", required=True, help="base model: a directory, or a name on the hub"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the trained model")
    parser.add_argument(
        "--batch",
        type=positive_int,
        default=128,
        help="rows a step over all devices (paper: 128; 512 for 70B)",
    )
    parser.add_argument("--epochs", type=positive, default=3, help="(paper: 3)")
    parser.add_argument(
        "--max-length",
        type=within(int, 2),
        default=8192,
        help="tokens of prompt and response (paper: 8192)",
    )
    parser.add_argument("--lr", type=positive, default=7e-6, help="(paper: 7e-6)")
    parser.add_argument(
        "--schedule",
        choices=train.SCHEDULES,
        default="linear",
        help="of the learning rate (paper: linear)",
    )
    parser.add_argument("--warmup-steps", type=natural, default=20, help="(paper: 20)")
    parser.add_argument("--weight-decay", type=non_negative, default=0.1, help="(paper: 0.1)")
    parser.add_argument(
        "--betas",
        type=within(float, 0, 0.999999),
        nargs=2,
        default=[0.9, 0.95],
        help="Adam's (released command: 0.9 0.95)",
    )
    train.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    rank, world = train.start(args.seed, args.precision)

    # check model and rows before anything is written: bad rows end the run with their lines
    train.check_shape(args.model, args.max_length)
    date = first_day(args.out)
    tokenizer = load_tokenizer(args.model, args.chat_template, date)
    rows = usable("05_sft", read_rows(args.input, tokenizer), tokenizer, args, rank)
    plan = batches(len(rows), args.batch, args.epochs, args.seed)

    # not at the top of the file: --help does not wait for torch
    import torch

    from autoif.training.checkpoints import Checkpoints, binding
    from autoif.training.log import Log
    from autoif.training.packed import pack

    # bring up the policy where the last resume point left it, under the same settings only
    settings = {**binding(vars(args), rows, world), "date": date}
    checkpoints = Checkpoints(args.out, settings, rank, args.keep_checkpoints)
    if rank == 0:
        write_settings(args, args.out)
    config = train.deepspeed_config(args.ds_config, args.zero, args.precision, args.offload)
    model = train.load_model(args.model, config, args.precision, rows)
    train.checkpoint_activations(
        model, rows, args.activation_checkpointing, args.micro_tokens, config, world
    )
    engine = train.trainable(
        model,
        config,
        steps=len(plan),
        warmup=args.warmup_steps,
        lr=args.lr,
        betas=args.betas,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
    )
    train.restore_masters(engine, args.model)
    done = checkpoints.restore(engine)
    log = Log(args.out, engine, len(plan), done, args.divergence, args.wandb)

    # train: each step is one batch, shared out over ranks and packs whose losses add up
    for step in range(done + 1, len(plan) + 1):
        batch = [rows[number] for number in plan[step - 1]]
        # the mean is over the whole batch: packs hold unequal numbers of response tokens
        tokens = sum(len(row["responses"][0]) for row in batch)
        lr, sums = engine.get_lr()[0], torch.zeros(1, device=engine.device)
        for micro, weight, last in micro_steps(batch, args.micro_tokens, rank, world):
            # a step has as many packs as its tokens need: DeepSpeed is told which is the last
            engine.set_gradient_accumulation_boundary(last)
            logprobs_R = engine(**pack(micro, engine.device))
            loss = weight * sft_loss(logprobs_R, tokens)
            # DeepSpeed takes the mean over ranks; ours is a sum
            engine.backward(loss * world, scale_wrt_gas=False)
            engine.step()
            sums += loss.detach()
        [loss] = train.sum_over_ranks(sums)
        log.step(step, {"loss": loss}, lr, float(engine.get_global_grad_norm()), batch)
        # the last one too: a run killed while it exports does not train again
        if step % args.save_every == 0 or step == len(plan):
            checkpoints.save(engine, step)
    log.close()
    checkpoints.export(engine, tokenizer, rows, args.model, args.export_dtype)
    if rank == 0:
        wrote(args.out, then=NEXT.format(args=args, folder=Path(args.out).parent))


if __name__ == "__main__":
    run(main)
