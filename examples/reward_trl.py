"""The verifiers as a reward of TRL's trainers (GRPO, RLOO, AsyncGRPO), sync or async.

    python -m autoif.export out --to trl out/trl --pass-rate 0 1
    AUTOIF_VERIFIERS=out/trl/verifiers.jsonl python your_training.py      # PYTHONPATH=.:examples

    rows = load_dataset("json", data_files="out/trl/grpo.jsonl", split="train")
    GRPOTrainer(reward_funcs=follows, train_dataset=rows, ...)

The signature is that of trl 1.16.0, `GRPOTrainer._calculate_rewards`: keyword arguments prompts,
completions, completion_ids and every other column of the rows. None, the reward of a text that a
function erred on, is left out of the group's mean there and moves nothing.
"""

import os
from functools import cache

from autoif.reward import Verifiers


@cache
def verifiers() -> Verifiers:
    return Verifiers.load(os.environ.get("AUTOIF_VERIFIERS", "out/trl/verifiers.jsonl"))


def texts(completions: list) -> list[str]:
    """The last message of conversations; plain completions as they are."""
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def follows(
    prompts: list, completions: list, completion_ids: list, instruction_id: list[str], **columns
) -> list[float | None]:
    """The share of its constraint's functions that each completion passes."""
    return [score.pass_share for score in verifiers().score(instruction_id, texts(completions))]


async def follows_async(
    prompts: list, completions: list, completion_ids: list, instruction_id: list[str], **columns
) -> list[float | None]:
    scores = await verifiers().score_async(instruction_id, texts(completions))
    return [score.pass_share for score in scores]
