"""Make preference pairs of verified rows (`pairs`) and train the policy on them with DPO (`train`).

`pairs` reads rows of 03 (instruction level: their cases) and of 04 (query level: their responses),
in any mix, and writes 06_pairs.jsonl: pairs for the training samples of --sft, as the paper derives
them (3.4, appendix D; an instruction-level pair needs a sample of its constraint), or without --sft
for every prompt. `train` reads it and writes a directory that `from_pretrained` and vLLM load, with
metrics.jsonl, curves.png and tensorboard/ in it. Paper: sections 3.4 and 4 and its table of
settings, which are the defaults.

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

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autoif import files, models
from autoif.files import UserError
from autoif.prompt import has_scores
from autoif.stage import (
    Funnel,
    Help,
    non_negative,
    positive,
    positive_int,
    run,
    share,
    within,
    write_settings,
    wrote,
)
from autoif.training import engine as train
from autoif.training.rows import (
    batches,
    digest,
    encode,
    encoded_rows,
    first_day,
    load_tokenizer,
    micro_steps,
    packed_tokens,
    read_messages,
    usable,
)

NEXT = (
    "python -m autoif.serving {args.out} -- python 07_eval.py --model {args.out} "
    "--benchmarks heldout --heldout 03_instructions.jsonl --queries 04_queries.jsonl"
)


def candidates(row: dict) -> list[dict]:
    """`{text, verdicts, accuracy}` of a row of 04 (its responses) or of 03 (its cases)."""
    if "responses" in row:
        return row["responses"]
    found = []
    for case in row["cases"]:
        # a case of one's own may have an accuracy alone: then that is the verdict
        verdicts = case.get("verdicts") or ["pass" if case["accuracy"] else "fail"]
        found.append({"text": case["input"], "accuracy": case["accuracy"], "verdicts": verdicts})
    return found


def sides(
    candidates: list[dict], min_accuracy: float, min_score: float, reject_truncated: bool
) -> tuple[list[dict], list[dict]]:
    """The candidates to choose and those to reject, each text once (3.4).

    chosen      accuracy above `min_accuracy`, and a quality score of `min_score` (0: or none)
    rejected    accuracy 0: every verdict "fail", of several constraints those of one

    An answer that was cut off is on neither side: chosen, it would teach to stop early, and
    rejected, to be brief. `reject_truncated` rejects it all the same.
    """
    chosen, rejected = {}, {}
    for each in candidates:
        cut = each.get("finish_reason") == "length"
        # a function that crashed has not judged: the text is neither good nor bad
        if not each["text"].strip() or not each["verdicts"] or "error" in each["verdicts"]:
            continue
        accepted = each["accuracy"] > min_accuracy and (each.get("score") or 0) >= min_score
        if accepted and not cut:
            chosen.setdefault(each["text"], each)
        if each["accuracy"] == 0 and (reject_truncated or not cut):
            rejected.setdefault(each["text"], each)
    # an answer that two runs of a function judge differently teaches nothing
    both = chosen.keys() & rejected.keys()
    return (
        [each for text, each in chosen.items() if text not in both],
        [each for text, each in rejected.items() if text not in both],
    )


def alike_in_length(good: dict, bad: dict, max_gap: float) -> bool:
    """Whether the shorter text lacks at most the share `max_gap` of the longer one's characters."""
    shorter, longer = sorted(len(each["text"]) for each in (good, bad))
    return longer - shorter <= max_gap * longer


def match(
    chosen: list[dict],
    rejected: list[dict],
    count: int,
    rng: random.Random,
    texts: int | None = None,
    max_gap: float = 1.0,
) -> list[tuple[dict, dict]]:
    """At most `count` pairs in random order, out of at most `texts` of each side.

    No text comes again before the others of its side have come:
    2 chosen, 2 rejected:  c0 r0, c1 r1, then shifted by one: c0 r1, c1 r0
    Pairs whose lengths are further apart than the share `max_gap` are passed over.
    """
    chosen = rng.sample(chosen, len(chosen))[:texts]
    rejected = rng.sample(rejected, len(rejected))[:texts]
    rounds = math.lcm(len(chosen), len(rejected))  # after so many pairs the same ones would come
    found = []
    for at in range(len(chosen) * len(rejected)):
        shifted = at + at // rounds
        good, bad = chosen[at % len(chosen)], rejected[shifted % len(rejected)]
        if len(found) < count and alike_in_length(good, bad, max_gap):
            found.append((good, bad))
    return found


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
    if "instruction_ids" in row:  # several constraints: the id leads back to the first alone
        pair["instruction_ids"] = row["instruction_ids"]
    if bad.get("finish_reason") == "length":
        pair["truncated"] = ["rejected"]
    return pair


def training_samples(path: str | None) -> tuple[set[str], set[str]] | None:
    """The prompts and the ids of the constraints in a 04_sft.jsonl; None without a file."""
    if path is None:
        return None
    prompts, constraints = set(), set()
    for row in files.read(path, ["instruction_id", "messages"], "04_responses.py"):
        prompts.add(row["messages"][0]["content"])
        constraints.update(row.get("instruction_ids", [row["instruction_id"]]))
    return prompts, constraints


def read_verified(path: str) -> Iterator[dict]:
    """Yield the rows of 03 and 04 in `path`; cases without a split may be held out: an error."""
    case = {"input": str, "accuracy": (int, float)}
    response = {"text": str, "verdicts": list, "accuracy": (int, float)}
    forms = {
        "cases": {"instruction": str, "split": {"train", "heldout"}, "cases": [case]},
        "responses": {"prompt": str},
    }
    for number, row in files.numbered(path, {"id": str}, "04_responses.py"):
        kind = "responses" if "responses" in row else "cases"
        if kind not in row:
            raise UserError(
                f"{path}:{number} has neither 'responses' nor 'cases'; pass files of 03 or 04"
            )
        if kind == "cases" and "split" not in row:
            raise UserError(
                f"{path}:{number} has no 'split', so that held-out constraints cannot be told; "
                "pass 03_instructions.jsonl (run 03_backtranslate.py first)"
            )
        wrong = files.mismatch(row, forms[kind])
        for each in row["responses"] if kind == "responses" else []:
            wrong = wrong or files.mismatch(each, response)
        if wrong:
            raise UserError(f"{path}:{number} {wrong}; mend or delete the line")
        yield row


def of_runs(paths: list[str]) -> Iterator[tuple[dict, bool]]:
    """Yield (row, whether its run scored responses) for the rows of 03 and 04 in `paths`."""
    for path in paths:
        # a file is a run's; read twice rather than held in memory
        scored = has_scores(read_verified(path))
        for row in read_verified(path):
            yield row, scored


def thinned(rows: list[dict], fraction: float, seed: int) -> list[dict]:
    """A fraction of the pairs in their order; a smaller fraction is a part of a larger one."""
    wanted = math.ceil(len(rows) * fraction)
    shuffled = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[place] for place in sorted(shuffled[:wanted])]


def pairs(args):
    rng, funnel = random.Random(args.seed), Funnel("06_dpo pairs", args.out)
    made, count = [], Counter()  # the pairs, and how many there are of each level
    samples = training_samples(args.sft)

    # one generator for all rows: a seed makes the whole file again
    matches = partial(
        match,
        count=args.pairs_per_prompt,
        rng=rng,
        texts=args.texts_per_side,
        max_gap=args.max_length_gap,
    )

    # pair: each row's good texts with its bad ones; the reasons are asked in the order of blame
    for row, scored in of_runs(args.input):
        of_responses = "responses" in row
        level = args.level if of_responses else "instruction"

        # inputs are those of the training samples (3.4, appendix D): prompts, constraints
        outside = False
        if samples:
            prompts, constraints = samples
            outside = row["prompt"] not in prompts if of_responses else row["id"] not in constraints

        # cases have no scores, nor have the responses of a run with --no-score
        min_score = args.min_score if of_responses and scored else 0
        chosen, rejected = sides(
            candidates(row), args.min_accuracy, min_score, args.reject_truncated
        )
        if row.get("split", "train") != "train":
            funnel.drop(f"{level}: held out", row)
        elif outside:
            funnel.drop(f"{level}: no training sample", row)
        elif not chosen:
            funnel.drop(f"{level}: nothing to choose", row)
        elif not rejected:
            funnel.drop(f"{level}: nothing to reject", row)
        elif not (matched := matches(chosen, rejected)):
            funnel.drop(f"{level}: lengths apart", row)
        else:
            funnel.keep()
            for good, bad in matched:
                count[level] += 1
                made.append(pair_row(row, level, count[level], good, bad))

    funnel.refuse_empty("More responses a prompt (--k of stage 04) make both good and bad ones")

    # thin: after the pairing, so that the pairs of a fraction are among those of the whole
    made = thinned(made, args.fraction, args.seed)
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


def read_rows(path: str, tokenizer) -> Iterator[dict]:
    """Rows of 06_pairs.jsonl as token ids: a prompt and two responses, chosen first.

    A row with `"truncated": ["rejected"]` gets no end token behind that side: none was ever there.
    """
    sides = ("chosen", "rejected")

    def encode_row(row, where):
        prompt, *responses = [read_messages(row[name], name, where) for name in ("prompt", *sides)]
        # the margin of equal sides is 0 whatever the policy: such a pair teaches nothing
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{where}: chosen and rejected are equal; delete the row")
        truncated = row.get("truncated", [])
        if not isinstance(truncated, list) or not all(side in sides for side in truncated):
            raise UserError(f"{where}: truncated must be a list of {sides}, not {truncated!r}")
        cut = [sides.index(side) for side in truncated]
        return encode(tokenizer, prompt, responses, where, cut, row.get("tools"))

    return encoded_rows(path, ["prompt", *sides], "06_dpo.py pairs", encode_row)


def reference_logprobs(rows: list[dict], engine, micro_tokens: int, rank: int, world: int):
    """Log-probabilities of each row's responses under the reference policy, shape (rows, 2)."""
    import torch

    from autoif.training.packed import pack

    found, begin = torch.zeros(len(rows), 2, device=engine.device), time.monotonic()
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    # rows of like lengths fill packs best, and here no order has to be random
    numbered.sort(key=packed_tokens)
    # a thousand at a time, for a line of progress
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
    # each rank has filled in its own rows, the others' are 0
    torch.distributed.all_reduce(found)
    return found


def add_reference(rows: list[dict], args, rank: int, world: int) -> None:
    """Give each row its `reference` log-probabilities, computed once for pairs and model."""
    import torch

    model = args.reference or args.model
    tokens = [[row["prompt"], row["responses"]] for row in rows]
    # named by all that the numbers depend on: other pairs or another reference are another file
    key = digest([models.fingerprint(model), args.precision, tokens])
    file = Path(f"{args.input}.reference-{key}.jsonl")
    if not file.exists():
        train.check_shape(model, args.max_length)
        # nothing is kept for a backward pass: shared out weights, and packs of twice the tokens
        config = train.deepspeed_config(args.ds_config, 3, args.precision, offload=False)
        reference = train.load_model(model, config, args.precision, rows)
        engine = train.frozen(reference, config)
        found = reference_logprobs(rows, engine, 2 * args.micro_tokens, rank, world).tolist()
        train.release(engine)  # the policy takes its place: there are never two models in memory
        if rank == 0:
            with files.writer(file) as write:
                for row, logprobs in zip(rows, found):
                    write({"id": row["id"], "logprobs": logprobs})
    # the other ranks read what the first has written
    torch.distributed.barrier()
    for row, kept in zip(rows, files.read(file, ["logprobs"]), strict=True):
        row["reference"] = kept["logprobs"]


def parse(argv):
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = whole.add_subparsers(required=True, metavar="{pairs,train}")
    parser = commands.add_parser("pairs", help="make pairs of verified rows", formatter_class=Help)
    parser.add_argument(
        "--in",
        dest="input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="files of 03 and 04",
    )
    parser.add_argument(
        "--sft",
        metavar="FILE",
        help="04_sft.jsonl: pairs for its prompts and constraints only (default: for all)",
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
        type=share,
        default=0.5,
        help="chosen is above this share (paper: 0.5, section 3.4)",
    )
    parser.add_argument(
        "--min-score",
        type=non_negative,
        default=8.0,
        help="chosen has this quality score, where its run gave scores (paper: 8, 3.3)",
    )
    parser.add_argument(
        "--reject-truncated",
        action="store_true",
        help="answers that were cut off may be rejected; `train` puts no end token behind them",
    )
    parser.add_argument(
        "--pairs-per-prompt",
        type=positive_int,
        default=1,
        help="at most (paper: not stated; released code: 4)",
    )
    parser.add_argument(
        "--texts-per-side",
        type=positive_int,
        help="out of so many texts to choose and to reject (default: all; released code: 2)",
    )
    parser.add_argument(
        "--max-length-gap",
        type=share,
        default=1.0,
        help="only pairs whose shorter side lacks at most this share of the longer one's "
        "characters: 0.3 keeps DPO from learning brevity (default: 1, any)",
    )
    parser.add_argument(
        "--fraction",
        type=share,
        default=1.0,
        help="write this share of the pairs, such as 1/64 (the paper's scaling study)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    parser.set_defaults(command=pairs)
    parser = commands.add_parser("train", help="train on the pairs", formatter_class=Help)
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
        "--batch", type=positive_int, default=64, help="pairs a step over all devices (paper: 64)"
    )
    parser.add_argument("--epochs", type=positive, default=2, help="(paper: 2)")
    parser.add_argument(
        "--max-length",
        type=within(int, 2),
        default=4096,
        help="tokens of prompt and response (paper: 4096)",
    )
    parser.add_argument("--beta", type=positive, default=0.3, help="(paper: 0.3)")
    parser.add_argument(
        "--sft-weight",
        type=non_negative,
        default=0.0,
        help="of the chosen responses' loss a token, added to DPO's (paper: none)",
    )
    parser.add_argument("--lr", type=positive, default=5e-7, help="(paper: 5e-7)")
    parser.add_argument(
        "--schedule",
        choices=train.SCHEDULES,
        default="cosine",
        help="of the learning rate (paper: cosine)",
    )
    parser.add_argument(
        "--warmup-ratio",
        type=share,
        default=0.1,
        help="share of all steps (paper: 0.1)",
    )
    parser.add_argument(
        "--weight-decay", type=non_negative, default=0.0, help="(paper: not stated)"
    )
    parser.add_argument(
        "--betas",
        type=within(float, 0, 0.999999),
        nargs=2,
        default=[0.9, 0.999],
        help="Adam's (paper: not stated)",
    )
    train.add_flags(parser)
    parser.set_defaults(command=learn)
    return whole.parse_args(argv)


def learn(args):
    rank, world = train.start(args.seed, args.precision)

    # check model and rows before anything is written: bad rows end the run with their lines
    train.check_shape(args.model, args.max_length)
    date = first_day(args.out)
    tokenizer = load_tokenizer(args.model, args.chat_template, date)
    rows = usable("06_dpo train", read_rows(args.input, tokenizer), tokenizer, args, rank)
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
    add_reference(rows, args, rank, world)
    config = train.deepspeed_config(args.ds_config, args.zero, args.precision, args.offload)
    model = train.load_model(args.model, config, args.precision, rows)
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
    train.restore_masters(engine, args.model)
    done = checkpoints.restore(engine)
    log = Log(args.out, engine, len(plan), done, args.divergence, args.wandb)

    # train: each step is one batch, shared out over ranks and packs whose losses add up
    for step in range(done + 1, len(plan) + 1):
        batch = [rows[number] for number in plan[step - 1]]
        # the mean is over the whole batch: packs hold unequal numbers of response tokens
        tokens = sum(len(row["responses"][0]) for row in batch)
        lr, sums = engine.get_lr()[0], torch.zeros(5, device=engine.device)
        for micro, weight, last in micro_steps(batch, args.micro_tokens, rank, world):
            # a step has as many packs as its tokens need: DeepSpeed is told which is the last
            engine.set_gradient_accumulation_boundary(last)
            logprobs_B2 = engine(**pack(micro, engine.device)).view(-1, 2)
            reference_B2 = torch.tensor([row["reference"] for row in micro], device=engine.device)
            losses_B, rewards_B2 = dpo_loss(logprobs_B2, reference_B2, args.beta)
            sft_loss = -logprobs_B2[:, 0].sum() / tokens  # stage 05's, of the chosen responses
            loss = weight * (losses_B.sum() / len(batch) + args.sft_weight * sft_loss)
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
    checkpoints.export(engine, tokenizer, rows, args.model, args.export_dtype)
    if rank == 0:
        wrote(args.out, then=NEXT.format(args=args, folder=Path(args.out).parent))


def main(argv=None):
    args = parse(argv)
    args.command(args)


if __name__ == "__main__":
    run(main)
