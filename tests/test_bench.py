"""bench/: the GPU benchmark on tiny shapes, and what compare.py calls a loss."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tiny_models

from autoif.files import UserError
from autoif.flags import call

sys.path.append(str(tiny_models.ROOT / "bench"))  # where the benchmarks find compare.py


def script(name):
    path = tiny_models.ROOT / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_benchmark_measures_each_part_and_goes_on_after_one_that_fails(tmp_path, capsys):
    # zero3 is SFT
    parts = ["attention", "dpo-0.5b", "trl-dpo-0.5b", "compiled-dpo-0.5b", "zero3", "no-such"]
    out = tmp_path / "tiny.json"
    flags = ["--tiny", "--json", str(out), "--part-seconds", "500"]
    with pytest.raises(SystemExit) as end:
        call(script("gpu").main, [*flags, "--parts", *parts])
    record, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert end.value.code == 1 and list(record["failed"]) == ["no-such"], printed
    numbers = record["numbers"]
    assert numbers["attention sdpa key error"] < 0.02
    for part in parts[1:-1]:
        assert numbers[f"{part} tokens_per_second"] > 0 and numbers[f"{part} tflops"] > 0
    assert numbers["zero3 memory by arithmetic_gb"] > 0
    assert numbers["dpo-0.5b ratio"] > 0 and numbers["compiled-dpo-0.5b ratio"] > 0
    assert "no-such: FAILED" in printed


def test_a_part_that_runs_out_of_time_leaves_its_words_in_the_log(tmp_path):
    compare, path = script("compare"), tmp_path / "slow.py"
    path.write_text("import time\nprint('at work', flush=True)\ntime.sleep(60)\n")
    with pytest.raises(UserError, match="at work\n+out of time$"):
        compare.alone(str(path), seconds=5)


def test_without_a_gpu_the_gpu_benchmark_says_what_runs_instead():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(UserError, match="no GPU; `--tiny` runs the same code on a CPU"):
        call(script("gpu").main, [])


def record(machine="a", **numbers):
    return {"machine": machine, "numbers": numbers}


def test_a_loss_of_more_than_a_tenth_is_flagged_whichever_way_is_better():
    compare = script("compare").compare
    base = record(speed=100.0, memory_gb=10.0, ratio=2.0)
    lost = {name: flag for name, _, flag in compare(base, record(**base["numbers"]), 0.1)}
    assert not any(lost.values())
    new = record(speed=89.0, memory_gb=11.2, ratio=1.81)
    lost = {name: flag for name, _, flag in compare(base, new, 0.1)}
    assert lost == {"speed": True, "memory_gb": True, "ratio": False}


def test_on_another_machine_only_ratios_are_losses():
    compare = script("compare").compare
    base, new = record(speed=100.0, ratio=2.0), record("b", speed=10.0, ratio=1.0)
    lost = {name: flag for name, _, flag in compare(base, new, 0.1)}
    assert lost == {"speed": False, "ratio": True}


def test_where_a_machine_is_shared_only_ratios_are_losses():
    compare = script("compare").compare
    base, new = record(speed=100.0, ratio=2.0), record(speed=10.0, ratio=1.0)
    lost = {name: flag for name, _, flag in compare(base, new, 0.1, ratios=True)}
    assert lost == {"speed": False, "ratio": True}


@pytest.mark.parametrize(
    "name, flags, number",
    [
        ("bench_sandbox", "--jobs 50 --inputs 2 --repeats 1", "ratio to bare_exec"),
        ("bench_reward", "--texts 20 --repeats 1", "a call a text, one after the other ratio"),
    ],
)
def test_a_benchmarks_json_is_what_compare_reads(name, flags, number, tmp_path):
    path, folder = tmp_path / "new" / "numbers.json", tiny_models.ROOT / "bench"
    command = [sys.executable, str(folder / f"{name}.py"), *flags.split(), "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(path.read_text())["numbers"][number] > 0
    call(script("compare").main, [str(path), str(path)])  # exit code 0


def test_too_few_rows_for_a_second_step_are_refused():
    command = [sys.executable, str(tiny_models.ROOT / "bench" / "bench_train.py"), "--rows", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "argument --rows: 8 are 1 steps of --batch 8" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_that_is_gone_is_a_loss(tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps(record(speed=1.0)))
    (tmp_path / "new.json").write_text(json.dumps(record()))
    with pytest.raises(SystemExit) as end:
        call(script("compare").main, [str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert end.value.code == 1 and "speed   LOST" in capsys.readouterr().out
