"""The reference policy: log-probabilities of each pair under it, computed once and kept on disk."""

import math
import time
from pathlib import Path

from autoif import files
from autoif.files import UserError
from autoif.settings import fingerprint
from autoif.training import engine
from autoif.training.ranks import from_first
from autoif.training.rows import digest, packed_tokens

# Nats a token by which two passes may differ, since they pack rows differently. On a CPU the runs
# of the study (fp32) began within 1e-5 of ln 2, and two passes of SmolLM2-135M in bf16 were equal;
# on a GPU it is not measured, so that bf16's is wide: an honest run is never to be refused.
NOISE = {"fp32": 1e-3, "bf16": 0.1}


def add_reference(rows: list[dict], args, rank: int, world: int) -> None:
    """Give each pair its `reference`: [log p(chosen), log p(rejected)] under --reference, in nats.

    They are kept in `<in>.reference-<key>.jsonl`.
    """
    model = args.reference or args.model
    tokens = [[row["prompt"], row["responses"]] for row in rows]
    # named by all that the numbers depend on: other pairs or another reference are another file
    key = digest([fingerprint(model), args.precision, tokens])
    file = Path(f"{args.input}.reference-{key}.jsonl")
    if not from_first(file.exists):
        from_first(lambda: files.refuse_unwritable(file))
        logprobs = frozen_pass(model, rows, args, rank, world)
        if rank == 0:
            with files.writer(file) as write:
                for row, both in zip(rows, logprobs):
                    write({"id": row["id"], "logprobs": both})
    kept = from_first(lambda: list(files.read(file, ["logprobs"])))
    for row, both in zip(rows, kept, strict=True):
        row["reference"] = both["logprobs"]


def frozen_pass(model: str, rows: list[dict], args, rank: int, world: int) -> list[list[float]]:
    """Compute them by a model that is gone at the end: there are never two models in memory."""
    import deepspeed

    engine.check_shape(model, args.max_length)
    config = engine.deepspeed_config(args.ds_config, 3, args.precision, offload=False)
    policy = engine.load_model(model, config, args.precision, rows).requires_grad_(False)
    frozen = deepspeed.initialize(model=policy, config=config)[0]
    frozen.eval()
    # nothing is kept for a backward pass: shared out weights, and packs of twice the tokens
    logprobs = compute(rows, frozen, 2 * args.micro_tokens, rank, world).tolist()
    frozen.destroy()
    # DeepSpeed keeps references to the module: its weights are freed one by one
    for parameter in policy.parameters():
        parameter.ds_tensor.data = parameter.data = parameter.data.new_empty(0)
    return logprobs


def compute(rows: list[dict], frozen, capacity: int, rank: int, world: int):
    """Log-probabilities in packs of `capacity` tokens, shape (rows, 2); the same on every rank."""
    import torch

    from autoif.training.packed import frozen_logprobs

    logprobs, begin = torch.zeros(len(rows), 2, device=frozen.device), time.monotonic()
    # rows of like lengths fill packs best, and here no order has to be random
    order = sorted(range(len(rows)), key=lambda number: packed_tokens(rows[number]))
    # a thousand at a time, for a line of progress
    for at in range(0, len(rows), 1000):
        numbers = order[at : at + 1000]
        thousand = [rows[number] for number in numbers]
        logprobs[numbers] = frozen_logprobs(frozen, thousand, capacity, frozen.device, rank, world)
        if rank == 0:
            done, seconds = at + len(numbers), time.monotonic() - begin
            print(f"reference policy: {done:,}/{len(rows):,} pairs in {seconds:.0f} s", flush=True)
    # each rank has filled in its own rows, the others' are 0
    torch.distributed.all_reduce(logprobs)
    return logprobs


def check_first_loss(loss: float, batch: list[dict], args, rank: int) -> None:
    """UserError where a policy that is its own reference has another first loss than ln 2.

    Policy and reference agree on every pair before the first step, so that no margin is there:
    -log sigmoid(0). An online iteration may keep an earlier reference: then nothing is known.
    """
    reference = args.reference or args.model
    # a loss that is no number is the log's to stop
    if not math.isfinite(loss) or fingerprint(reference) != fingerprint(args.model):
        return
    tokens = sum(len(response) for row in batch for response in row["responses"]) / len(batch)
    # the noise of tokens grows with the root of their number
    if abs(loss - math.log(2)) > args.beta * NOISE[args.precision] * math.sqrt(tokens):
        raise UserError(
            f"the first loss is {loss:.4f} and not ln 2 = 0.6931, though the policy {args.model} "
            f"and the reference {reference} are the same model; the log-probabilities in "
            f"{args.input}.reference-*.jsonl are those of another: delete it and run again"
        )
    if rank == 0:
        print(f"first loss {loss:.4f}: ln 2, since the policy begins as the reference", flush=True)
