"""The verifiers as a reward of verl, one call a sample.

    python -m autoif.export out --to verl out/verl --pass-rate 0 1
    export AUTOIF_VERIFIERS=$PWD/out/verl/verifiers.jsonl PYTHONPATH=$PWD
    python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\
        data.train_files=out/verl/train.parquet data.val_files=out/verl/test.parquet \\
        reward.custom_reward_function.path=examples/reward_verl.py \\
        reward.custom_reward_function.name=compute_score_async ...

The signature and the key are those of verl 0.9.1 (`trainer/ppo/reward.py`,
`trainer/config/reward/reward.yaml`). Its reward managers await a coroutine function
(`reward_loop/reward_manager/naive.py`), so that the samples of a batch share the sandbox's jobs.

verl has no way to leave a sample's reward out: where a function erred `score` is 0 and `errored`,
which verl logs in its validation only, is 1. On a cluster of `ray start`, export both variables
before it on every node.
"""

import os
from functools import cache

from autoif.reward import Score, Verifiers


@cache
def verifiers() -> Verifiers:
    return Verifiers.load(os.environ.get("AUTOIF_VERIFIERS", "out/verl/verifiers.jsonl"))


def reward(score: Score) -> dict[str, float]:
    share = score.pass_share or 0.0
    return {"score": share, "acc": share, "errored": float(score.error is not None)}


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **kwargs
) -> dict[str, float]:
    """`ground_truth` is the constraint's id, as `autoif.export --to verl` writes it."""
    [score] = verifiers().score([ground_truth], [solution_str])
    return reward(score)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **kwargs
) -> dict[str, float]:
    [score] = await verifiers().score_async([ground_truth], [solution_str])
    return reward(score)
