"""Make preference pairs of verified rows (`pairs`) and train the policy on them with DPO (`train`).

`pairs` reads rows of 03 (instruction level: their cases) and of 04 (query level: their responses),
in any mix, and writes 06_pairs.jsonl: pairs for the training samples of --sft, as the paper derives
them (3.4, appendix D; an instruction-level pair needs a sample of its constraint), or without --sft
for every prompt. `train` reads it and writes a directory that `from_pretrained` and vLLM load, with
metrics.jsonl and curves.png in it. Paper: sections 3.4 and 4 and its table of settings, which are
the defaults.

    python 06_dpo.py pairs --in out/03_instructions.jsonl out/04_responses.jsonl \\
        --sft out/04_sft.jsonl --out out/06_pairs.jsonl
    torchrun --nproc_per_node=8 06_dpo.py train --in out/06_pairs.jsonl --model out/05_sft \\
        --out out/06_dpo

A killed run goes on from its last resume point when the same command is repeated.

Departures from the paper:
1. Pairs longer than --max-length are dropped and counted, not cut.
2. Every step has exactly --batch pairs: batches run across epochs, and the last is filled from one
   more shuffle.
3. A verifier that crashed says nothing: its case or response is neither chosen nor rejected. The
   released code leaves errors out of the mean: all errors are rejected, pass and error is chosen.
4. An answer that was cut off is neither chosen nor rejected, unless --reject-truncated; a chosen
   one has the quality score of stage 04 where its run gave scores.
5. Weight decay (0) and Adam's betas (0.9, 0.999) are ours; the paper states neither.
6. --sft-weight adds the SFT loss of the chosen responses; the paper has none (0).
7. The accuracy of a case is that of a response with its text, the share of kept functions that it
   passes, whatever output was expected of it; the paper does not say which.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoif import files
from autoif.flags import Count, In, Ins, NonNegative, Positive, Share, Texts, Threshold, cli, within
from autoif.settings import write_settings
from autoif.stage import Funnel, wrote
from autoif.training import engine as train
from autoif.training.checkpoints import Checkpoints
from autoif.training.reference import add_reference, check_first_loss
from autoif.training.rows import batches, first_day, load_tokenizer, micro_steps, read_pairs, usable
from autoif.training.verified import read_verified

NEXT = (
    "python -m autoif.serving {out} -- python 07_eval.py --model {out} --benchmarks heldout "
    "--heldout {data}/03_instructions.jsonl --queries {data}/04_queries.jsonl "
    "--out {data}/07_results.json"
)


@dataclass(kw_only=True)
class Pairs:
    input: Ins  # files of 03 and 04
    sft: Texts | None = None  # 04_sft.jsonl: pairs for its prompts and constraints only (else all)
    out: str  # 06_pairs.jsonl
    level: Literal["query", "online"] = "query"  # what pairs of responses are called
    min_accuracy: Threshold = 0.5  # chosen is above this share (paper: 0.5, section 3.4)
    min_score: NonNegative = 8.0  # chosen has this score, where its run gave any (paper: 8, 3.3)
    reject_truncated: bool = False  # cut off answers may be rejected (trained without an end token)
    pairs_per_prompt: Count = 1  # at most (paper: not stated; released code: 4)
    texts_per_side: Count | None = None  # out of so many to choose and to reject (released code: 2)
    max_length_gap: Share = 1.0  # of the longer side's characters; 0.3 keeps from learning brevity
    fraction: Share = 1.0  # write this share of the pairs, such as 1/64 (paper's scaling study)
    seed: int = 0  # of the choice of pairs


@dataclass(kw_only=True)
class Train(train.Flags):
    input: In  # 06_pairs.jsonl
    model: str  # policy to begin with: the SFT model, or the last online one
    reference: str | None = None  # reference policy (default: --model; paper: the SFT model)
    out: str  # the trained model
    batch: Count = 64  # pairs a step over all devices (paper: 64)
    epochs: Positive = 2.0  # (paper: 2)
    max_length: within(int, 2) = 4096  # tokens of prompt and response (paper: 4096)
    beta: Positive = 0.3  # (paper: 0.3)
    sft_weight: NonNegative = 0.0  # of the chosen responses' loss a token, added (paper: none)
    lr: Positive = 5e-7  # (paper: 5e-7)
    schedule: train.Schedule = "cosine"  # of the learning rate (paper: cosine)
    warmup_ratio: Share = 0.1  # share of all steps (paper: 0.1)
    weight_decay: NonNegative = 0.0  # (paper: not stated)
    betas: train.Betas = (0.9, 0.999)  # Adam's (paper: not stated)


def candidates(row: dict) -> list[dict]:
    """`{text, verdicts, accuracy}` of a row of 04 (its responses) or of 03 (its cases)."""
    if "responses" in row:
        return row["responses"]
    texts = []
    for case in row["cases"]:
        # a case of one's own may have an accuracy alone: then that is the verdict
        verdicts = case.get("verdicts") or ["pass" if case["accuracy"] else "fail"]
        texts.append({"text": case["input"], "accuracy": case["accuracy"], "verdicts": verdicts})
    return texts


def sides(candidates: list[dict], args: Pairs, scored: bool) -> tuple[list[dict], list[dict]]:
    """The candidates to choose and those to reject, each text once (3.4).

    chosen      accuracy above --min-accuracy, and where responses are `scored` --min-score
    rejected    accuracy 0: every verdict "fail", of several constraints those of one
    """
    chosen, rejected = {}, {}
    for candidate in candidates:
        text, accuracy = candidate["text"], candidate["accuracy"]
        # a function that crashed has not judged: the text is neither good nor bad
        if not text.strip() or not candidate["verdicts"] or "error" in candidate["verdicts"]:
            continue
        # cut off and chosen it would teach to stop early, cut off and rejected to be brief
        cut = candidate.get("finish_reason") == "length"
        good_enough = not scored or (candidate.get("score") or 0) >= args.min_score
        if accuracy > args.min_accuracy and good_enough and not cut:
            chosen.setdefault(text, candidate)
        if accuracy == 0 and (args.reject_truncated or not cut):
            rejected.setdefault(text, candidate)
    # an answer that two runs of a function judge differently teaches nothing
    for text in chosen.keys() & rejected.keys():
        del chosen[text], rejected[text]
    return list(chosen.values()), list(rejected.values())


def match(chosen: list[dict], rejected: list[dict], args: Pairs, rng: random.Random) -> list[tuple]:
    """At most --pairs-per-prompt (good, bad) in random order, of --texts-per-side of each side.

    No text comes again before the others of its side have come:
    2 chosen, 2 rejected:  c0 r0, c1 r1, then shifted by one: c0 r1, c1 r0
    """
    chosen = rng.sample(chosen, len(chosen))[: args.texts_per_side]
    rejected = rng.sample(rejected, len(rejected))[: args.texts_per_side]
    rounds = math.lcm(len(chosen), len(rejected))  # after so many pairs the same ones would come
    matched = []
    for at in range(len(chosen) * len(rejected)):
        good, bad = chosen[at % len(chosen)], rejected[(at + at // rounds) % len(rejected)]
        shorter, longer = sorted([len(good["text"]), len(bad["text"])])
        if longer - shorter <= args.max_length_gap * longer:
            matched.append((good, bad))
    return matched[: args.pairs_per_prompt]


def pair_row(row: dict, level: str, number: int, good: dict, bad: dict) -> dict:
    """A row of 06_pairs.jsonl; `train` puts no end token behind the sides in `truncated`."""
    prompt = row["prompt"] if "responses" in row else row["instruction"]
    pair = {
        "id": f"{row['id']}/{level}/{number}",
        "level": level,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": good["text"]}],
        "rejected": [{"role": "assistant", "content": bad["text"]}],
    }
    if bad.get("finish_reason") == "length":
        pair["truncated"] = ["rejected"]
    return pair


def training_samples(paths: list[str]) -> set[str]:
    """The prompts of files 04_sft.jsonl and the ids of their constraints."""
    samples, fields = set(), {"instruction_id": str, "messages": [{"role": str, "content": str}]}
    for path in paths:
        for row in files.read(path, fields, "04_responses.py"):
            # of several constraints, "i2+i7", each is one
            name = row["instruction_id"]
            samples |= {row["messages"][0]["content"], name, *name.split("+")}
    return samples


def pairs(args: Pairs) -> None:
    # one generator for all rows: a seed makes the whole file again
    rng, funnel = random.Random(args.seed), Funnel("06_dpo pairs", args.out)
    made, count = [], Counter()  # the pairs, and how many there are of each level
    samples = training_samples(args.sft) if args.sft is not None else None

    # pair: each row's good texts with its bad ones; the reasons are asked in the order of blame
    for row, scored in read_verified(args.input):
        of_responses = "responses" in row
        level = args.level if of_responses else "instruction"
        chosen, rejected = sides(candidates(row), args, scored and of_responses)
        # inputs are those of the training samples (3.4, appendix D): prompts, constraints
        name = row["prompt"] if of_responses else row["id"]
        if row.get("split", "train") != "train":
            funnel.drop(f"{level}: held out", row)
        elif samples is not None and name not in samples:
            funnel.drop(f"{level}: no training sample", row)
        elif not chosen:
            funnel.drop(f"{level}: nothing to choose", row)
        elif not rejected:
            funnel.drop(f"{level}: nothing to reject", row)
        elif not (matched := match(chosen, rejected, args, rng)):
            funnel.drop(f"{level}: lengths apart", row)
        else:
            funnel.keep()
            for good, bad in matched:
                count[level] += 1
                made.append(pair_row(row, level, count[level], good, bad))
    funnel.refuse_empty("More responses a prompt (--k of stage 04) make both good and bad ones")

    # thin: after the pairing, so that the pairs of a fraction are among those of the whole
    places = random.Random(args.seed).sample(range(len(made)), len(made))
    wanted = math.ceil(len(made) * args.fraction)
    made = [made[place] for place in sorted(places[:wanted])]
    with files.writer(args.out) as write:
        for pair in made:
            write(pair)
        write_settings(args, args.out)
    levels = Counter(pair["level"] for pair in made)
    funnel.finish(pairs=dict(levels))
    counted = [f"{count:,} pairs of level {level}" for level, count in levels.items()]
    print("06_dpo pairs: " + ", ".join(counted))
    out = Path(args.out).with_name("06_dpo")
    wrote(args.out, then=f"python 06_dpo.py train --in {args.out} --model SFT_MODEL --out {out}")


def dpo_loss(policy_B2, reference_B2, beta):
    """Sigmoid DPO loss, eq. 7 of arXiv 2305.18290: -log sigmoid(reward(chosen) - reward(rejected)).

    `policy_B2`, `reference_B2`: summed log-probabilities in nats of B pairs, chosen first. Returns
    the losses, shape (B,), and without gradient the rewards, shape (B, 2).
    """
    import torch.nn.functional as F

    rewards_B2 = beta * (policy_B2 - reference_B2)
    chosen_B, rejected_B = rewards_B2.unbind(dim=1)
    return -F.logsigmoid(chosen_B - rejected_B), rewards_B2.detach()


def logged_sums(losses_B, rewards_B2):
    """What the log shows of a pack's pairs, added up: margin, accuracy, chosen, rejected, loss."""
    import torch  # not at the top of the file: --help does not wait for it

    chosen, rejected = rewards_B2.sum(dim=0)
    right = (rewards_B2[:, 0] > rewards_B2[:, 1]).sum()
    return torch.stack([chosen - rejected, right, chosen, rejected, losses_B.detach().sum()])


def following(args: Train) -> str:
    """The next step of a run: to measure the model."""
    data = Path(args.input).parent
    if (data.parent / "03_instructions.jsonl").exists():  # the pairs are of an online iteration
        data = data.parent
    return NEXT.format(out=args.out, data=data)


def learn(args: Train) -> None:
    rank, world = train.start(args.seed, args.precision)

    # check model and rows before anything is written: bad rows end the run with their lines
    train.check_shape(args.model, args.max_length)
    date = first_day(args.out)
    tokenizer = load_tokenizer(args.model, args.chat_template, date)
    rows = usable("06_dpo train", read_pairs(args.input, tokenizer), tokenizer, args, rank)
    plan = batches(len(rows), args.batch, args.epochs, args.seed)

    # bring up the policy where the last resume point left it, under the same settings only
    checkpoints = Checkpoints(args, rows, date, rank, world)
    add_reference(rows, args, rank, world)
    warmup = math.ceil(len(plan) * args.warmup_ratio)
    policy = train.Policy(args, rows, checkpoints, steps=len(plan), warmup=warmup)

    # train: each step is one batch, shared out over ranks and packs whose losses add up
    for step in policy.steps_left():
        batch = [rows[number] for number in plan[step - 1]]
        # the mean is over the whole batch: packs hold unequal numbers of response tokens
        tokens = sum(len(row["responses"][0]) for row in batch)
        loss_sum, sums = 0, 0
        for micro, weight, last in micro_steps(batch, policy.micro_tokens, rank, world):
            logprobs_B2 = policy(micro).view(-1, 2)
            reference_B2 = policy.tensor([row["reference"] for row in micro])
            losses_B, rewards_B2 = dpo_loss(logprobs_B2, reference_B2, args.beta)
            sft_loss = -logprobs_B2[:, 0].sum() / tokens  # stage 05's, of the chosen responses
            loss = weight * (losses_B.sum() / len(batch) + args.sft_weight * sft_loss)
            policy.backward(loss, last)
            loss_sum += loss.detach()
            sums += weight * logged_sums(losses_B, rewards_B2) / len(batch)
        loss, margin, accuracy, chosen, rejected, without_sft = train.sum_over_ranks(loss_sum, sums)
        if step == 1:
            check_first_loss(without_sft, batch, args, rank)
        numbers = {"loss": loss, "margin": margin, "accuracy": accuracy}
        policy.finish_step(step, {**numbers, "chosen": chosen, "rejected": rejected}, batch)
    policy.export(tokenizer, then=following(args))


COMMANDS = {"pairs": pairs, "train": learn}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
