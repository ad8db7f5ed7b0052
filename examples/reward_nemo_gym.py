"""The verifiers as a resources server of NVIDIA's NeMo Gym; this file is its app.py.

    python -m autoif.export out --to trl out/trl --pass-rate 0 1
    jq -c '{responses_create_params: {input: .prompt}, verifier_metadata: {instruction_id}}' \\
        out/trl/grpo.jsonl > train.jsonl
    mkdir -p Gym/resources_servers/autoif/configs
    cp examples/reward_nemo_gym.py Gym/resources_servers/autoif/app.py
    printf '%s\\n' '-e nemo-gym[dev] @ ../../' "-e $PWD" \\
        > Gym/resources_servers/autoif/requirements.txt
    AUTOIF_VERIFIERS=$PWD/out/trl/verifiers.jsonl gym env start \\
        --model-type openai_model --resources-server autoif

Each server has an environment of its own, of those requirements. Its configs/autoif.yaml is that of
`instruction_following` with the names changed; `domain` stays. The interface is that of
NVIDIA-NeMo/Gym at commit 07d6b0d (2026-08), `nemo_gym/base_resources_server.py` and
`resources_servers/instruction_following`. A function that erred raises JudgeError, which Gym's own
rollouts write to the failures beside them; NeMo RL trains on it with a reward of 0.
"""

import os
from functools import cache

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseRunRequest,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from nemo_gym.judge import JudgeError

from autoif.reward import Verifiers


@cache
def verifiers() -> Verifiers:
    return Verifiers.load(os.environ.get("AUTOIF_VERIFIERS", "out/trl/verifiers.jsonl"))


class AutoIFRunRequest(BaseRunRequest):
    verifier_metadata: dict[str, str]


class AutoIFVerifyRequest(AutoIFRunRequest, BaseVerifyRequest):
    pass


class AutoIFVerifyResponse(BaseVerifyResponse):
    verifier_metadata: dict[str, str]
    follow_all_functions: bool


def last_text(response) -> str:
    """The text of the last output message; empty where there is none."""
    content = getattr(response.output[-1], "content", None) if response.output else None
    return content[0].text if content else ""


class AutoIFResourcesServer(SimpleResourcesServer):
    config: BaseResourcesServerConfig

    async def verify(self, body: AutoIFVerifyRequest) -> AutoIFVerifyResponse:
        identity = body.verifier_metadata["instruction_id"]
        [score] = await verifiers().score_async([identity], [last_text(body.response)])
        if score.pass_share is None:
            raise JudgeError(f"a verifier of {identity} erred: {score.error}")
        return AutoIFVerifyResponse(
            **body.model_dump(), reward=score.pass_share, follow_all_functions=score.all_pass
        )


if __name__ == "__main__":
    AutoIFResourcesServer.run_webserver()
