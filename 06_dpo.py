"""Make preference pairs of verified rows (`pairs`) and train the policy on them with DPO (`train`).

`pairs` reads rows of 02 or 03 (instruction level: their cases) and of 04 (query level: their responses), in any mix, and
writes 06_pairs.jsonl. `train` reads it and writes a directory that `from_pretrained` and vLLM load, with metrics.jsonl,
curves.png and tensorboard/ in it. Paper: sections 3.4 and 4 and its table of settings, which are the defaults.

    python 06_dpo.py pairs --in out/03_instructions.jsonl out/04_responses.jsonl --out out/06_pairs.jsonl
    torchrun --nproc_per_node=8 06_dpo.py train --in out/06_pairs.jsonl --model out/05_sft --out out/06_dpo

A killed run goes on from its last resume point when the same command is repeated. Departures from the paper:
1. Pairs longer than --max-length are dropped and counted, not cut.
2. Every step has exactly --batch pairs: batches run across epochs, and the last is filled from one more shuffle.
3. A verifier that crashed says nothing: its case or response is neither chosen nor rejected (released code: rejected).
4. Weight decay (0) and Adam's betas (0.9, 0.999) are ours; the paper states neither.
"""

import argparse
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from autoif import files, models
from autoif.files import UserError
from autoif.stage import Funnel, run
from autoif.training import engine as train
from autoif.training.rows import (
    batches,
    check_messages,
    digest,
    encode,
    load_tokenizer,
    micro_steps,
    packed_tokens,
    usable,
)


def candidates(row: dict) -> list[dict]:
    """`{text, verdicts, accuracy}` of a row of 04 (its responses) or of 02/03 (its cases)."""
    if "responses" in row:
        return row["responses"]
    return [
        {
            "text": case["input"],
            "accuracy": case["accuracy"],
            "verdicts": case.get("verdicts") or ["pass" if case["accuracy"] else "fail"],
        }
        for case in row["cases"]
    ]


def sides(candidates: list[dict], min_accuracy: float) -> tuple[list[str], list[str]]:
    """Texts to choose (accuracy above `min_accuracy`) and to reject (every verdict "fail"), each once (section 3.4)."""
    sound = [
        each
        for each in candidates
        if each["text"].strip() and each["verdicts"] and "error" not in each["verdicts"]
    ]
    whole = [
        each for each in sound if each.get("finish_reason") != "length"
    ]  # a cut answer would teach to stop early
    chosen = dict.fromkeys(each["text"] for each in whole if each["accuracy"] > min_accuracy)
    rejected = dict.fromkeys(each["text"] for each in sound if each["accuracy"] == 0)
    return [text for text in chosen if text not in rejected], [
        text for text in rejected if text not in chosen
    ]


def match(
    chosen: list[str], rejected: list[str], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """At most `count` pairs in random order, in which no text comes again before the others of its side have come."""
    chosen, rejected = rng.sample(chosen, len(chosen)), rng.sample(rejected, len(rejected))
    rounds = math.lcm(len(chosen), len(rejected))
    every = (
        (at % len(chosen), (at + at // rounds) % len(rejected))
        for at in range(len(chosen) * len(rejected))
    )
    return [(chosen[good], rejected[bad]) for good, bad in itertools.islice(every, count)]


def pairs(args):
    rng, funnel, made = random.Random(args.seed), Funnel("06_dpo pairs", args.out), Counter()
    with files.writer(args.out) as write:
        for path in args.input:
            for number, row in enumerate(files.read(path, ["id"], "04_responses.py"), 1):
                if "responses" not in row and "cases" not in row:
                    raise UserError(
                        f"{path}:{number} has neither 'responses' nor 'cases'; pass files of 02, 03 or 04"
                    )
                level = args.level if "responses" in row else "instruction"
                chosen, rejected = sides(candidates(row), args.min_accuracy)
                if row.get("split", "train") != "train":
                    funnel.drop(f"{level}: held out", row)
                elif not chosen:
                    funnel.drop(f"{level}: nothing to choose", row)
                elif not rejected:
                    funnel.drop(f"{level}: nothing to reject", row)
                else:
                    funnel.keep()
                    for good, bad in match(chosen, rejected, args.pairs_per_prompt, rng):
                        made[level] += 1
                        write(
                            {
                                "id": f"{row['id']}/{level}/{made[level]}",
                                "level": level,
                                "prompt": [
                                    {
                                        "role": "user",
                                        "content": row[
                                            "prompt" if "responses" in row else "instruction"
                                        ],
                                    }
                                ],
                                "chosen": [{"role": "assistant", "content": good}],
                                "rejected": [{"role": "assistant", "content": bad}],
                            }
                        )
    funnel.finish(pairs=dict(made))
    print(
        "06_dpo pairs: "
        + (
            ", ".join(f"{count:,} pairs of level {level}" for level, count in made.items())
            or "no pairs"
        )
    )


def dpo_loss(policy_B2, reference_B2, beta):
    """Sigmoid DPO loss, eq. 7 of arXiv 2305.18290: -log sigmoid(reward(chosen) - reward(rejected)).

    `policy_B2`, `reference_B2`: summed log-probabilities in nats of B pairs, chosen first. Returns
    the losses, shape (B,), and without gradient the rewards, shape (B, 2).
    """
    import torch.nn.functional as F

    rewards_B2 = beta * (policy_B2 - reference_B2)
    chosen_B, rejected_B = rewards_B2.unbind(dim=1)
    return -F.logsigmoid(chosen_B - rejected_B), rewards_B2.detach()


def read_rows(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 06_pairs.jsonl as token ids: a prompt and two responses, chosen first.

    A row with `"truncated": ["rejected"]` gets no end token behind that side: none was ever there.
    """
    sides = ("chosen", "rejected")
    for number, row in enumerate(files.read(path, ["prompt", *sides], "06_dpo.py pairs"), 1):
        where, truncated = f"{path}:{number}", row.get("truncated", [])
        for name in ("prompt", *sides):
            check_messages(row[name], name, where)
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{where}: chosen and rejected are equal; delete the row")
        if not isinstance(truncated, list) or not set(truncated) <= set(sides):
            raise UserError(f"{where}: truncated must be a list of {sides}, not {truncated!r}")
        cut = [sides.index(side) for side in truncated]
        encoded = encode(tokenizer, row["prompt"], [row[side] for side in sides], where, cut)
        # one's own rows may have no id: their line is it
        yield {"id": row.get("id", str(number)), **encoded}


def reference_logprobs(rows: list[dict], engine, micro_tokens: int, rank: int, world: int):
    """Log-probabilities of each row's responses under the reference policy, shape (rows, 2)."""
    import torch

    from autoif.training.packed import pack

    found, begin = torch.zeros(len(rows), 2, device=engine.device), time.monotonic()
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    numbered.sort(key=packed_tokens)
    for at in range(0, len(rows), 1000):
        thousand = numbered[at : at + 1000]
        for micro, weight, _last in micro_steps(thousand, micro_tokens, rank, world):
            with torch.no_grad():
                logprobs_B2 = engine(**pack(micro, engine.device)).view(-1, 2)
            found[[row["number"] for row in micro]] += weight * logprobs_B2
        if rank == 0:
            seconds = time.monotonic() - begin
            print(
                f"reference policy: {at + len(thousand):,}/{len(rows):,} pairs in {seconds:.0f} s",
                flush=True,
            )
    torch.distributed.all_reduce(found)
    return found


def add_reference(rows: list[dict], args, rank: int, world: int) -> None:
    """Give each row its `reference` log-probabilities, computed once for pairs and model."""
    import torch

    model = args.reference or args.model
    tokens = [[row["prompt"], row["responses"]] for row in rows]
    key = digest([models.fingerprint(model), args.precision, tokens])
    file = Path(f"{args.input}.reference-{key}.jsonl")
    if not file.exists():
        # nothing is kept for a backward pass: shared out weights, and packs of twice the tokens
        config = train.deepspeed_config(args.ds_config, 3, args.precision, offload=False)
        reference = train.load_model(model, config, args.precision, args.max_length)
        engine = train.frozen(reference, config)
        found = reference_logprobs(rows, engine, 2 * args.micro_tokens, rank, world).tolist()
        train.release(engine)  # the policy takes its place: there are never two models in memory
        if rank == 0:
            with files.writer(file) as write:
                for row, logprobs in zip(rows, found):
                    write({"id": row["id"], "logprobs": logprobs})
    torch.distributed.barrier()
    for row, kept in zip(rows, files.read(file, ["logprobs"]), strict=True):
        row["reference"] = kept["logprobs"]


def parse(argv):
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = train.number
    commands = whole.add_subparsers(required=True, metavar="{pairs,train}")
    parser = commands.add_parser("pairs", help="make pairs of verified rows")
    parser.add_argument(
        "--in",
        dest="input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="files of 02, 03 and 04",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="06_pairs.jsonl")
    parser.add_argument(
        "--level",
        choices=["query", "online"],
        default="query",
        help="what pairs of responses are called",
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.5,
        help="chosen is above this share (paper: 0.5, section 3.4)",
    )
    parser.add_argument(
        "--pairs-per-prompt",
        type=int,
        default=1,
        help="at most (paper: not stated; released code: 4)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    parser.set_defaults(command=pairs)
    parser = commands.add_parser("train", help="train on the pairs")
    parser.add_argument("--in", dest="input", required=True, metavar="FILE", help="06_pairs.jsonl")
    parser.add_argument(
        "--model", required=True, help="policy to begin with: the SFT model, or the last online one"
    )
    parser.add_argument(
        "--reference",
        metavar="MODEL",
        help="reference policy (default: --model; paper: the SFT model)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the trained model")
    parser.add_argument(
        "--batch", type=number(int, 1), default=64, help="pairs a step over all devices (paper: 64)"
    )
    parser.add_argument("--epochs", type=number(float, 0, above=True), default=2, help="(paper: 2)")
    parser.add_argument(
        "--max-length",
        type=number(int, 2),
        default=4096,
        help="tokens of prompt and response (paper: 4096)",
    )
    parser.add_argument(
        "--beta", type=number(float, 0, above=True), default=0.3, help="(paper: 0.3)"
    )
    parser.add_argument(
        "--lr", type=number(float, 0, above=True), default=5e-7, help="(paper: 5e-7)"
    )
    parser.add_argument(
        "--schedule",
        choices=train.SCHEDULES,
        default="cosine",
        help="of the learning rate (paper: cosine)",
    )
    parser.add_argument(
        "--warmup-ratio",
        type=number(float, 0, 1),
        default=0.1,
        help="share of all steps (paper: 0.1)",
    )
    parser.add_argument(
        "--weight-decay", type=number(float, 0), default=0.0, help="(paper: not stated)"
    )
    parser.add_argument(
        "--betas",
        type=number(float, 0, 0.999999),
        nargs=2,
        default=[0.9, 0.999],
        help="Adam's (paper: not stated)",
    )
    train.add_flags(parser)
    parser.set_defaults(command=learn)
    return whole.parse_args(argv)


def learn(args):
    rank, world = train.start(args.seed, args.precision)

    # read and check every row before anything is written: a bad one ends the run with its line
    tokenizer = load_tokenizer(args.model, args.chat_template)
    encoded = read_rows(args.input, tokenizer)
    rows = usable("06_dpo train", encoded, tokenizer, args.max_length, args.input, args.out, rank)
    plan = batches(len(rows), args.batch, args.epochs, args.seed)

    # not at the top of the file: --help does not wait for torch
    import torch

    from autoif.training.checkpoints import Checkpoints, binding
    from autoif.training.log import Log
    from autoif.training.packed import pack

    # bring up the policy where the last resume point left it, under the same settings only
    settings = binding(vars(args), rows, world)
    checkpoints = Checkpoints(args.out, settings, rank, args.keep_checkpoints)
    add_reference(rows, args, rank, world)
    config = train.deepspeed_config(args.ds_config, args.zero, args.precision, args.offload)
    model = train.load_model(args.model, config, args.precision, args.max_length)
    train.checkpoint_activations(
        model, rows, args.activation_checkpointing, args.micro_tokens, config, world
    )
    engine = train.trainable(
        model,
        config,
        steps=len(plan),
        warmup=math.ceil(len(plan) * args.warmup_ratio),
        lr=args.lr,
        betas=args.betas,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
    )
    done = checkpoints.restore(engine)
    log = Log(args.out, engine, len(plan), done, args.divergence, args.wandb)

    # train: each step is one batch, shared out over ranks and packs whose losses add up
    for step in range(done + 1, len(plan) + 1):
        batch = [rows[number] for number in plan[step - 1]]
        lr, sums = engine.get_lr()[0], torch.zeros(5, device=engine.device)
        for micro, weight, last in micro_steps(batch, args.micro_tokens, rank, world):
            # a step has as many packs as its tokens need: DeepSpeed is told which is the last
            engine.set_gradient_accumulation_boundary(last)
            logprobs_B2 = engine(**pack(micro, engine.device)).view(-1, 2)
            reference_B2 = torch.tensor([row["reference"] for row in micro], device=engine.device)
            losses_B, rewards_B2 = dpo_loss(logprobs_B2, reference_B2, args.beta)
            loss = weight * losses_B.sum() / len(batch)
            # DeepSpeed takes the mean over ranks; ours is a sum
            engine.backward(loss * world, scale_wrt_gas=False)
            engine.step()
            # what the log shows beside the loss: shares of the batch, which ranks and packs add up
            chosen, rejected = rewards_B2.sum(dim=0)
            right = (rewards_B2[:, 0] > rewards_B2[:, 1]).sum()
            shares = torch.stack([chosen - rejected, right, chosen, rejected]) / len(batch)
            sums += torch.cat([loss.detach()[None], weight * shares])
        names = ("loss", "margin", "accuracy", "chosen", "rejected")
        numbers = dict(zip(names, train.sum_over_ranks(sums)))
        log.step(step, numbers, lr, float(engine.get_global_grad_norm()), batch)
        # the last one too: a run killed while it exports does not train again
        if step % args.save_every == 0 or step == len(plan):
            checkpoints.save(engine, step)
    log.close()
    checkpoints.export(engine, tokenizer, rows)


def main(argv=None):
    args = parse(argv)
    args.command(args)


if __name__ == "__main__":
    run(main)
