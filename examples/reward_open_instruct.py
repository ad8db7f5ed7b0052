"""The verifiers as a reward of open-instruct, which finds them once this file is imported.

    python -m autoif.export out --to open-instruct out/oi --pass-rate 0 1
    AUTOIF_VERIFIERS=$PWD/out/oi/verifiers.jsonl PYTHONPATH=$PWD:$PWD/examples:OPEN_INSTRUCT \\
        python -c "import reward_open_instruct, runpy; \\
        runpy.run_module('open_instruct.grpo_fast', run_name='__main__')" \\
        --dataset_mixer_list out/oi/rlvr.jsonl 1.0 --apply_verifiable_reward true ...

The interface is that of allenai/open-instruct at commit e6c3044 (2026-08),
`open_instruct/ground_truth_utils.py`: `build_all_verifiers` makes every subclass of
`VerifierFunction`, and a row's `dataset` names the one to ask. It has no way to leave a reward out:
where a function erred the score is 0, and the reason stands in `reasoning`, which it does not show.
"""

import os
from functools import cache

from open_instruct.ground_truth_utils import (
    VerificationResult,
    VerifierFunction,
    remove_thinking_section,
)

from autoif.reward import Score, Verifiers


@cache
def verifiers() -> Verifiers:
    return Verifiers.load(os.environ.get("AUTOIF_VERIFIERS", "out/oi/verifiers.jsonl"))


def result(score: Score) -> VerificationResult:
    return VerificationResult(score=score.pass_share or 0.0, reasoning=score.error)


class AutoIFVerifier(VerifierFunction):
    """The share of a constraint's functions that the answer passes; `label` is its id."""

    def __init__(self, verifier_config=None) -> None:
        super().__init__("autoif", weight=1.0, verifier_config=verifier_config)

    def __call__(
        self, tokenized_prediction, prediction, label, query=None, rollout_state=None
    ) -> VerificationResult:
        [score] = verifiers().score([label], [remove_thinking_section(prediction)])
        return result(score)

    async def async_call(
        self, tokenized_prediction, prediction, label, query=None, rollout_state=None
    ) -> VerificationResult:
        [score] = await verifiers().score_async([label], [remove_thinking_section(prediction)])
        return result(score)
