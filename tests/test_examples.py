"""The adapters of examples/: with the library they are for where it is installed, else by its form.

$AUTOIF_PYTHONS may name interpreters of other environments, as `verifiers` wants one of its own.
Libraries that no environment can have here are stood in for in the form of their base classes.
"""

import asyncio
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import types

import pytest
import tiny_models

from autoif.flags import call, parse

EXAMPLES = tiny_models.ROOT / "examples"
SHORT = "def evaluate(response):\n    return len(response.split()) <= 3"
FRAGILE = "def evaluate(response):\n    return response[0] == 'a'"
ROWS = [
    {"id": "short", "instruction": "Use at most three words", "verifiers": [{"code": SHORT}]},
    {"id": "fragile", "instruction": "Begin with an a", "verifiers": [{"code": FRAGILE}]},
]
# ids, texts, and what they earn: a pass, a fail, an error
ASKED = [("short", "two words", 1.0), ("short", "one two three four", 0.0), ("fragile", "", None)]


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """Import a file of examples/ with its verifiers set."""
    file = tiny_models.write(tmp_path / "verifiers.jsonl", ROWS)
    monkeypatch.setenv("AUTOIF_VERIFIERS", file)
    monkeypatch.syspath_prepend(EXAMPLES)

    def imported(name: str):
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return imported


def stand_in(monkeypatch, name: str, **members) -> None:
    """A module with these members in the place of a library that is not installed."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        module = types.ModuleType(path)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, path, module)
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


# ---- TRL: the library is a requirement of the tests ----


def test_trl_sync_and_async_give_a_reward_or_none(adapter):
    module = adapter("reward_trl")
    ids, texts, wanted = map(list, zip(*ASKED))
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    given = {"prompts": [""] * 3, "completion_ids": [[1]] * 3, "instruction_id": ids}
    extra = {"trainer_state": None, "pass_rate": [0.5] * 3}
    assert module.follows(completions=completions, **given, **extra) == wanted
    assert module.follows(completions=texts, **given) == wanted  # plain, not conversational
    assert asyncio.run(module.follows_async(completions=completions, **given)) == wanted


def test_trls_own_trainer_takes_the_rewards_and_leaves_errors_out(adapter):
    """GRPOTrainer._calculate_rewards with both functions: NaN is its form of no reward."""
    import torch
    from accelerate import PartialState
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    PartialState(cpu=True)  # the trainer's logger wants it
    module = adapter("reward_trl")
    ids, texts, wanted = map(list, zip(*ASKED))
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    loop_thread, loop, ready = grpo_trainer.start_event_loop_in_daemon("test")
    ready.wait()
    trainer = types.SimpleNamespace(
        accelerator=types.SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        reward_funcs=[module.follows, module.follows_async],
        reward_processing_classes=[None, None],
        reward_func_names=["follows", "follows_async"],
        state=types.SimpleNamespace(global_step=1),
        environments=None,
        async_loop=loop,
        args=types.SimpleNamespace(report_to=[]),
        _log_completion_extra=None,
        _log_metric=None,
    )
    inputs = [{"prompt": "", "instruction_id": each} for each in ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo_trainer, "gather", lambda tensor: tensor)
        rewards = inspect.unwrap(GRPOTrainer._calculate_rewards)(
            trainer, inputs, [""] * 3, completions, [[1]] * 3
        )
    grpo_trainer.shutdown_event_loop_in_daemon(loop_thread, loop)
    for column in rewards.T.tolist():
        assert [None if value != value else value for value in column] == wanted


# ---- verl: the form that trainer/ppo/reward.py and reward_manager/naive.py ask for ----


def test_verl_gets_a_score_a_sample_and_is_told_of_errors(adapter):
    module = adapter("reward_verl")
    assert list(inspect.signature(module.compute_score).parameters) == [
        *("data_source", "solution_str", "ground_truth", "extra_info", "kwargs")
    ]
    assert inspect.iscoroutinefunction(module.compute_score_async)
    for identity, text, wanted in ASKED:
        given = {"data_source": "autoif", "solution_str": text, "ground_truth": identity}
        given |= {"extra_info": {"index": 0}, "reward_router_address": None}
        found = module.compute_score(**given)
        assert found == asyncio.run(module.compute_score_async(**given))
        assert found == {
            "score": wanted or 0.0,
            "acc": wanted or 0.0,
            "errored": float(wanted is None),
        }


# ---- open-instruct: not on PyPI; stand-ins in the form of ground_truth_utils.py ----


class VerificationResult(types.SimpleNamespace):
    pass


class VerifierFunction:
    def __init__(self, name, weight=1.0, verifier_config=None):
        self.name, self.weight, self.verifier_config = name, weight, verifier_config


def test_open_instruct_finds_the_subclass_and_gets_results(adapter, monkeypatch):
    stand_in(
        monkeypatch,
        "open_instruct.ground_truth_utils",
        VerificationResult=VerificationResult,
        VerifierFunction=VerifierFunction,
        remove_thinking_section=lambda text: text.split("</think>")[-1].strip(),
    )
    adapter("reward_open_instruct")
    verifier = VerifierFunction.__subclasses__()[-1](None)
    assert verifier.name == "autoif"
    for identity, text, wanted in ASKED:
        found = verifier([1, 2], f"<think>so many words</think>{text}", identity, query="q")
        again = asyncio.run(verifier.async_call([1], text, identity, rollout_state=None))
        assert found.score == again.score == (wanted or 0.0)
        assert (found.reasoning is None) == (wanted is not None)


# ---- Prime Intellect's verifiers: an environment of its own, since it wants other versions ----


def python_with(module: str) -> str | None:
    """An interpreter that has `module`: this one, or one of $AUTOIF_PYTHONS."""
    for python in [sys.executable, *os.environ.get("AUTOIF_PYTHONS", "").split()]:
        code = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({module!r}))"
        if subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    return None


TASKSET = """
import asyncio, json, sys
import verifiers.v1 as vf
from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

config = taskset_config_type("reward-verifiers").model_validate(
    {"id": "reward-verifiers", "rows": sys.argv[1], "task": {"verifiers": sys.argv[2]}}
)
tasks = list(load_taskset(config))
found = []
for task, text in zip(tasks, json.loads(sys.argv[3])):
    trace = type("Trace", (), {"last_reply": text})()
    try:
        found.append(asyncio.run(task.follows(trace)))
    except RuntimeError as error:
        found.append(str(error))
hooks = [hook.__name__ for hook in tasks[0].hooks("reward")]
print(json.dumps([found, hooks, tasks[0].data.prompt_text]))
"""


def test_verifiers_loads_the_taskset_by_name_and_scores_replies(tmp_path):
    python = python_with("verifiers.v1")
    if python is None:
        pytest.skip("verifiers is not installed; name an interpreter that has it in AUTOIF_PYTHONS")
    prompt = [{"role": "user", "content": "Why?"}]
    rows = [{"id": f"p{n}", "instruction_id": ASKED[n][0], "prompt": prompt} for n in range(3)]
    done = subprocess.run(
        [python, "-c", TASKSET, tiny_models.write(tmp_path / "grpo.jsonl", rows)]
        + [tiny_models.write(tmp_path / "verifiers.jsonl", ROWS)]
        + [json.dumps([text for _, text, _ in ASKED])],
        env={**os.environ, "PYTHONPATH": f"{tiny_models.ROOT}:{EXAMPLES}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, hooks, asked = json.loads(done.stdout.splitlines()[-1])
    assert found[:2] == [1.0, 0.0] and "a verifier of fragile erred" in found[2]
    assert hooks == ["follows"] and asked == "Why?"


def test_verifiers_taskset_defines_no_load_environment():
    text = (EXAMPLES / "reward_verifiers.py").read_text()
    assert "def load_environment" not in text
    assert re.search(r'^__all__ = \["AutoIFTaskset"\]$', text, re.MULTILINE)


# ---- NeMo Gym: needs Python 3.13; stand-ins in the form of base_resources_server.py ----


def test_nemo_gym_answers_verify_and_raises_on_errors(adapter, monkeypatch):
    from pydantic import BaseModel

    class JudgeError(Exception):
        pass

    class RunRequest(BaseModel):
        responses_create_params: dict

    class VerifyRequest(RunRequest):
        response: types.SimpleNamespace
        model_config = {"arbitrary_types_allowed": True}

    class VerifyResponse(VerifyRequest):
        reward: float

    stand_in(
        monkeypatch,
        "nemo_gym.base_resources_server",
        BaseResourcesServerConfig=type("BaseResourcesServerConfig", (), {}),
        BaseRunRequest=RunRequest,
        BaseVerifyRequest=VerifyRequest,
        BaseVerifyResponse=VerifyResponse,
        SimpleResourcesServer=type("SimpleResourcesServer", (), {}),
    )
    judge = types.ModuleType("nemo_gym.judge")
    judge.JudgeError = JudgeError
    monkeypatch.setitem(sys.modules, "nemo_gym.judge", judge)
    module = adapter("reward_nemo_gym")
    assert inspect.iscoroutinefunction(module.AutoIFResourcesServer.verify)
    for identity, text, wanted in ASKED:
        content = types.SimpleNamespace(text=text)
        output = types.SimpleNamespace(content=[content])
        body = module.AutoIFVerifyRequest(
            responses_create_params={"input": []},
            response=types.SimpleNamespace(output=[output]),
            verifier_metadata={"instruction_id": identity},
        )
        server = module.AutoIFResourcesServer()
        if wanted is None:
            with pytest.raises(JudgeError, match="fragile erred"):
                asyncio.run(server.verify(body))
            continue
        answered = asyncio.run(server.verify(body))
        assert answered.reward == wanted and answered.follow_all_functions == (wanted == 1.0)
    assert module.last_text(types.SimpleNamespace(output=[])) == ""


# ---- all examples ----


def test_the_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".sbatch"):
            assert file.name in text, file.name


def test_the_slurm_job_writes_where_run_all_looks():
    job = (EXAMPLES / "train.sbatch").read_text()
    assert "06_offline" in (tiny_models.ROOT / "run_all.sh").read_text()
    assert '--out "$DATA/06_offline"' in job and "06_dpo/" not in job


# ---- shards ----


def test_the_slurm_array_gives_each_task_its_shard(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    task = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_TASK_COUNT": 3}
    said = subprocess.run(
        ["bash", str(EXAMPLES / "shards.sbatch"), "--queries", "q.jsonl"],
        env={**os.environ, "MODEL": "big", **{name: str(value) for name, value in task.items()}},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[:6] == ["-m", "autoif.serving", "big", "--", ".venv/bin/python", "04_responses.py"]
    _, args = parse(tiny_models.stage("04_responses").main, said[6:])
    assert (args.model, args.input) == ("big", "out/03_instructions.jsonl")
    assert (args.out, args.of_shard([0, 1, 2, 3, 4])) == ("out/1-of-3/04_responses.jsonl", [1, 4])


def test_ray_runs_the_command_once_for_each_shard(monkeypatch, tmp_path):
    options = {}

    def remote(**given):
        options.update(given)
        return lambda function: types.SimpleNamespace(remote=function)

    stand_in(monkeypatch, "ray", remote=remote, init=lambda: None, get=list)
    monkeypatch.syspath_prepend(EXAMPLES)
    code = (
        "import os, sys; from pathlib import Path; "
        "Path(sys.argv[1], sys.argv[3].replace('/', '_')).write_text(sys.argv[2] + os.getcwd())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    importlib.import_module("shards_ray").main(2, command)
    assert options == {"num_gpus": 1, "max_retries": 3, "retry_exceptions": True}
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == dict.fromkeys(["0_2", "1_2"], f"--shard{tiny_models.ROOT}")


# ---- one's own ----


def test_sample_and_filter_keeps_what_the_checkers_pass(tmp_path):
    from fake_server import FakeServer

    row = {
        "id": "a row",
        "key": 3,
        "prompt": "Say something calm.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    texts = ["A calm sea", "Calm, very calm", "A calm sea "]

    def sampled(row, url):
        file = tiny_models.write(tmp_path / "prompts.jsonl", [row])
        return subprocess.run(
            [sys.executable, str(EXAMPLES / "sample_and_filter.py"), "--in", file, "--k", "3"]
            + ["--model", "big", "--base-url", url, "--out", str(tmp_path / "sft.jsonl")],
            capture_output=True,
            text=True,
        )

    with FakeServer(lambda messages, request: texts[: request.get("n", 1)]) as server:
        refused = sampled({**row, "kwargs": [{"sentences": 2}]}, server.url)
        assert refused.returncode == 2 and "does not take {'sentences': 2}" in refused.stderr
        assert not server.requests
        done = sampled(row, server.url)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "kept 1 of 3 answers, to 1 of 1 prompts"
    [kept] = map(json.loads, open(tmp_path / "sft.jsonl"))
    assert kept["id"] == "a row.0" and kept["messages"][1]["content"] == "A calm sea"
    [whole] = map(json.loads, open(tmp_path / "sft.responses.jsonl"))
    assert [each["verdicts"] for each in whole["responses"]] == [["pass"], ["fail"], ["pass"]]


def test_own_verifiers_go_through_stage_04_and_pairs(tmp_path):
    from fake_server import FakeServer

    texts = ["It is blue. Did this help?", "word " * 90]
    out = tmp_path / "04_responses.jsonl"
    with FakeServer(lambda messages, request: texts[: request.get("n", 1)]) as server:
        call(
            tiny_models.stage("04_responses").main,
            ["--in", str(EXAMPLES / "verifiers_own.jsonl"), "--out", str(out), "--no-score"]
            + ["--queries", str(tiny_models.ROOT / "demo" / "queries.txt"), "--model", "big"]
            + ["--queries-per-instruction", "2", "--k", "2", "--base-url", server.url],
        )
    made = tmp_path / "06_pairs.jsonl"
    pairs = ["pairs", "--in", str(out), "--out", str(made)]
    call(tiny_models.stage("06_dpo").COMMANDS, pairs)
    pairs = list(map(json.loads, open(made)))
    assert len(pairs) == 4
    assert {pair["chosen"][0]["content"] for pair in pairs} == {texts[0]}


def test_own_seeds_are_read(tmp_path):
    seeds = tiny_models.stage("01_seed_augment").read_seeds(str(EXAMPLES / "seeds_support.txt"))
    assert len(seeds) == 10


# ---- GRPO ----


def test_grpo_trains_and_measures_held_out_constraints_before_and_after(tmp_path):
    data, out = tmp_path / "trl", tmp_path / "grpo"
    data.mkdir()
    tiny_models.write(data / "verifiers.jsonl", ROWS)
    for name in ("grpo", "grpo_heldout"):
        rows = []
        for number in range(4):
            prompt = [{"role": "user", "content": f"Say {number}"}]
            rows.append({"id": f"p{number}", "instruction_id": "short", "prompt": prompt})
        tiny_models.write(data / f"{name}.jsonl", rows)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "grpo_trl.py"), "--data", str(data), "--out", str(out)]
        + ["--model", tiny_models.checkpoint(tmp_path / "base"), "--steps", "3", "--batch", "4"]
        + ["--group", "2", "--max-tokens", "8", "--samples", "1"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    wrong = [*done.args, "--group", "3"]
    refused = subprocess.run(wrong, capture_output=True, text=True)
    assert refused.returncode == 2 and "--batch a multiple of it" in refused.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"held out: [\d.]+ \[.*\] -> [\d.]+ \[", done.stdout.splitlines()[-1])
    assert len(tiny_models.metrics(out)) == 3
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 3 and {"value", "low", "high", "n"} <= set(result["after"])
    assert (out / "curve.png").stat().st_size > 5_000
    assert (out / "model.safetensors").is_file()
