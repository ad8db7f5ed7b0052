"""Fine-tune the base model on the responses that passed; all weights, the loss on the response and its end token.

Reads 04_sft.jsonl (rows with `messages`: user, assistant). Writes a directory that `from_pretrained` and vLLM load, with
metrics.jsonl, curves.png and tensorboard/ in it. Paper: section 4 and its table of settings, which are the defaults.

    torchrun --nproc_per_node=8 05_sft.py --in out/04_sft.jsonl --model Qwen/Qwen2-7B --out out/05_sft

A killed run goes on from its last resume point when the same command is repeated. Departures from the paper:
1. Rows longer than --max-length are dropped and counted, not cut.
2. Every step has exactly --batch rows: batches run across epochs, and the last is filled from one more shuffle.
"""

import argparse
from collections.abc import Iterator

from autoif import files
from autoif.files import UserError
from autoif.stage import run
from autoif.training import engine as train


def sft_loss(logprobs, tokens):
    """Cross-entropy: -sum over responses of log p(response | prompt) / tokens.

    `logprobs`: summed log-probabilities of a micro-batch's responses in nats, shape (rows,). `tokens`: number of response
    tokens in the global batch, so that the micro-batches of all ranks add up to the mean over tokens.
    """
    return -logprobs.sum() / tokens


def read_rows(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 04_sft.jsonl as token ids: a prompt and one response."""
    for number, row in enumerate(files.read(path, ["id", "messages"], "04_responses.py"), 1):
        messages = row["messages"]
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise UserError(
                f"{path}:{number}: messages must be a list of {{role, content}}, not {messages!r}"
            )
        yield {
            "id": row["id"],
            **train.encode(tokenizer, messages[:-1], [messages[-1:]], f"{path}:{number}"),
        }


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in", dest="input", required=True, metavar="FILE", help="04_sft.jsonl")
    parser.add_argument(
        "--model", required=True, help="base model: a directory, or a name on the hub"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the trained model")
    parser.add_argument(
        "--batch",
        type=int,
        default=128,
        help="rows a step over all devices (paper: 128; 512 for 70B)",
    )
    parser.add_argument("--epochs", type=float, default=3, help="(paper: 3)")
    parser.add_argument(
        "--max-length", type=int, default=8192, help="tokens of prompt and response (paper: 8192)"
    )
    parser.add_argument("--lr", type=float, default=7e-6, help="(paper: 7e-6)")
    parser.add_argument(
        "--schedule", default="linear", help="name of a transformers schedule (paper: linear)"
    )
    parser.add_argument("--warmup-steps", type=int, default=20, help="(paper: 20)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="(paper: 0.1)")
    parser.add_argument(
        "--betas",
        type=float,
        nargs=2,
        default=[0.9, 0.95],
        help="Adam's (released command: 0.9 0.95)",
    )
    train.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    rank, world = train.start(args)
    config = train.deepspeed_config(args, world)
    tokenizer = train.load_tokenizer(args)
    rows = train.usable("05_sft", read_rows(args.input, tokenizer), tokenizer, args, rank)
    plan = train.plan(len(rows), args.batch, args.epochs, args.seed)

    import torch

    from autoif.training.checkpoints import Checkpoints
    from autoif.training.log import Log
    from autoif.training.packed import pack

    checkpoints = Checkpoints(args, rows, world, rank)
    engine = train.trainable(
        train.load_model(args.model, args, config), args, config, len(plan), args.warmup_steps
    )
    done = checkpoints.restore(engine)
    log = Log(args, len(plan), done, rank)
    for step in range(done + 1, len(plan) + 1):
        batch = [rows[number] for number in plan[step - 1]]
        tokens = sum(len(row["responses"][0]) for row in batch)
        lr, sums = engine.get_lr()[0], torch.zeros(1, device=engine.device)
        for micro in train.micro_batches(batch, args.micro_batch, rank, world):
            logprobs = engine(**pack(micro, engine.device))
            loss = sft_loss(logprobs, tokens)
            engine.backward(
                loss * world, scale_wrt_gas=False
            )  # DeepSpeed takes the mean over ranks; ours is a sum
            engine.step()
            sums += loss.detach()
        [loss] = train.sum_over_ranks(sums)
        log.step(
            step,
            {"loss": loss},
            lr,
            float(engine.get_global_grad_norm()),
            train.tokens(batch),
            [row["id"] for row in batch],
        )
        if step % args.save_every == 0 or step == len(plan):
            checkpoints.save(engine, step)
    log.close()
    checkpoints.export(engine, tokenizer)


if __name__ == "__main__":
    run(main)
