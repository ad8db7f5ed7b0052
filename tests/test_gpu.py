"""Machines with GPUs, by faked devices: who uses them, who is told what is wrong with them."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny_models
import torch

from autoif import gpu
from autoif.files import UserError
from autoif.serving import __main__ as serving
from autoif.serving import engines, llamacpp

ROOT = tiny_models.ROOT
SIZE = 24 * 1024**3


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(GPUs)`: what torch says of a machine with a driver and so many usable GPUs."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "SERVE", "VLLM_FLAGS"):
        monkeypatch.delenv(name, raising=False)

    def machine(gpus, driver=True):
        file = tmp_path / "nvidiactl"
        file.touch()
        if not driver:
            file.unlink()
        monkeypatch.setattr(gpu, "DRIVERS", (str(file),))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        properties = SimpleNamespace(total_memory=SIZE)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)

    return machine


def test_gpus_are_there_unless_the_environment_says_to_do_without(machine, monkeypatch):
    machine(2)
    assert gpu.memory() == [SIZE, SIZE]
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("DS_ACCELERATOR", "cpu")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert gpu.memory() == []
    machine(0, driver=False)
    assert gpu.memory() == []


@pytest.mark.parametrize(
    "words, told",
    [
        (
            "The NVIDIA driver on your system is too old (found version 12040). Please update",
            "too old .found version 12040.; update the driver .*580 or later.*cu126",
        ),
        ("Torch not compiled with CUDA enabled", "Torch not compiled with CUDA enabled; "),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told_with_the_driver_and_the_build(
    machine, monkeypatch, words, told
):
    def init():
        raise RuntimeError(words)

    machine(0)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError, match=f"nvidiactl is there, and torch .* cannot .*{told}"):
        gpu.memory()


def settings(name, **environment):
    """What a settings file exports, and the engine that serves under it where a GPU is."""
    line = f"source {name}/settings.sh; env -0"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env={**os.environ, **environment}, capture_output=True
    )
    return dict(each.split("=", 1) for each in done.stdout.decode().split("\0") if "=" in each)


@pytest.mark.parametrize(
    "name, environment, llama",
    [
        ("demo", {}, True),
        ("study", {}, True),
        ("live", {}, True),
        ("demo", {"DEMO_GPU": "1"}, False),
    ],
)
def test_demo_study_and_live_run_on_the_cpu_of_a_machine_with_a_gpu(
    machine, monkeypatch, tmp_path, name, environment, llama
):
    machine(1)
    exported = settings(name, **environment)
    for variable in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        if variable in exported:
            monkeypatch.setenv(variable, exported[variable])
    monkeypatch.setattr(llamacpp, "converted", lambda *_: "model.gguf")
    monkeypatch.setattr(engines, "vllm", lambda: "vllm")
    monkeypatch.setattr(engines, "free_share", lambda: 0.9)
    model = tiny_models.checkpoint(tmp_path / "base")
    flags = serving.Flags(model=model, command=("true",))
    line = serving.command_line(flags, tmp_path / "served", 7000)
    assert ("llamacpp" in " ".join(line)) == llama and (line[0] == "vllm") != llama


STARTED = """
import json, torch
from autoif import gpu
gpu.DRIVERS = (gpu.__file__,)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
from autoif.training import engine
engine.start(0, "bf16")
import deepspeed, os
print(json.dumps([
    deepspeed.accelerator.get_accelerator().device_name(),
    list(deepspeed.ops.__compatible_ops__),
    deepspeed.constants.default_pg_timeout.total_seconds() / 60,
    os.environ["CUDA_VISIBLE_DEVICES"],
    os.environ["PYTORCH_ALLOC_CONF"],
]))
torch._C._accelerator_setAllocatorSettings(os.environ["PYTORCH_ALLOC_CONF"])  # it knows the name
"""


def test_a_training_that_is_told_to_run_on_the_cpu_does_and_waits_for_long_exports():
    """With a GPU in the machine: DeepSpeed compiles nothing, and torch does not see it either."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *told, allocation = json.loads(done.stdout.splitlines()[-1])
    assert told == ["cpu", [], 180, ""]
    assert allocation == "pinned_max_round_threshold_mb:64"


# ---- vLLM beside others on the card ----


def test_vllm_takes_no_more_than_the_fullest_gpu_has_free(monkeypatch):
    """As `nvidia-smi` would show 2 GB of a desktop on the second of two 24 GB cards."""
    free = [(SIZE, SIZE), (SIZE - 2e9, SIZE)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: free[number])
    assert gpu.free_share() == pytest.approx((SIZE - 3e9) / SIZE)
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: f"{gpu.free_share()}\n")
    assert engines.free_share() == 0.88
    free[1] = (SIZE, SIZE)
    assert engines.free_share() == 0.9


def test_a_card_that_somebody_else_fills_is_refused_with_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "vllm", lambda: "vllm")
    model = tiny_models.qwen2(tmp_path / "Qwen2-7B", "7B")
    shape = engines.shape(model)
    line = engines.vllm_command(model, "FOLDER", 8000, shape, [SIZE], 0.88)
    assert line[line.index("--gpu-memory-utilization") + 1] == "0.88"
    with pytest.raises(UserError, match="and 30% of a GPU is 8 GB; use more or emptier GPUs"):
        engines.vllm_command(model, "FOLDER", 8000, shape, [SIZE], 0.3)


def test_further_flags_of_vllm_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "vllm", lambda: "vllm")
    monkeypatch.setenv("VLLM_FLAGS", "--max-model-len 4096 --quantization fp8")
    model = tiny_models.qwen2(tmp_path / "Qwen2-1.5B", "1.5B")
    line = engines.vllm_command(model, "FOLDER", 8000, engines.shape(model), [SIZE])
    assert line[-4:] == ["--max-model-len", "4096", "--quantization", "fp8"]


def test_a_server_of_ones_own_gets_the_folder_and_the_name_that_clients_ask_for(
    tmp_path, monkeypatch
):
    words = "vllm serve {model} --served-model-name {name} --port {port} --json '{\"a\": {}}'"
    monkeypatch.setenv("SERVE", words)
    model = tiny_models.checkpoint(tmp_path / "base")
    flags = serving.Flags(model=model, command=("true",))
    line = serving.command_line(flags, tmp_path / "served", 7000)
    assert line[:3] == ["vllm", "serve", str(tmp_path / "served")] and line[2] != model
    assert line[3:] == ["--served-model-name", model, "--port", "7000", "--json", '{"a": {}}']
