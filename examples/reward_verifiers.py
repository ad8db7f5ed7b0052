"""The verifiers as a taskset of Prime Intellect's `verifiers` (v1), for its evals and for prime-rl.

    python -m autoif.export out --to trl out/trl --pass-rate 0 1
    PYTHONPATH=.:examples vf-eval reward-verifiers --env.taskset.rows out/trl/grpo.jsonl \\
        --env.taskset.task.verifiers out/trl/verifiers.jsonl -m MODEL -n 20 \\
        --env.agent.harness.id null --env.agent.runtime.type subprocess

The last two: by default a coding agent answers, in a sandbox of Prime's. Its endpoint is theirs
too, `--client.base-url` and `--client.api-key-var` name another.

Written for verifiers 0.4.0 (`docs/v1/tasksets.md`): a module that names one Taskset in `__all__` is
found by its own name; v1 knows no `load_environment` of a module. A function that erred raises,
which ends the rollout as errored instead of giving it a reward of 0.
"""

import json
from collections.abc import Iterator
from functools import cache

import verifiers.v1 as vf

from autoif.reward import Verifiers

__all__ = ["AutoIFTaskset"]

load = cache(Verifiers.load)


class AutoIFData(vf.TaskData):
    instruction_id: str


class AutoIFTaskConfig(vf.TaskConfig):
    verifiers: str = "out/trl/verifiers.jsonl"


class AutoIFTask(vf.Task[AutoIFData, vf.State, AutoIFTaskConfig]):
    @vf.stop
    async def single_turn(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 1

    @vf.reward
    async def follows(self, trace: vf.Trace) -> float:
        """The share of the constraint's functions that the reply passes."""
        functions = load(self.config.verifiers)
        [score] = await functions.score_async([self.data.instruction_id], [trace.last_reply])
        if score.pass_share is None:
            raise RuntimeError(f"a verifier of {self.data.instruction_id} erred: {score.error}")
        return score.pass_share


class AutoIFConfig(vf.TasksetConfig):
    rows: str = "out/trl/grpo.jsonl"
    task: AutoIFTaskConfig = AutoIFTaskConfig()


class AutoIFTaskset(vf.Taskset[AutoIFTask, AutoIFConfig]):
    def load(self) -> Iterator[AutoIFTask]:
        with open(self.config.rows, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                data = AutoIFData(
                    name=row["id"],
                    prompt=row["prompt"][0]["content"],
                    instruction_id=row["instruction_id"],
                )
                yield AutoIFTask(data, self.config.task)
