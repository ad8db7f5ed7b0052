"""examples/one_gpu.sh from end to end on a CPU: a scripted supervisor and tiny real policies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_run_all
import tiny_models
from test_serving import chat_model

ROOT = tiny_models.ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory, smollm2):
    """(folder, what the script said)"""
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    folder = tmp_path_factory.mktemp("one_gpu")
    (folder / "seeds.txt").write_text("\n".join(test_run_all.CONSTRAINTS[::4]))
    data = Path(test_run_all.benchmark_rows(folder / "data"))
    (data / "infobench").mkdir()
    question = {"id": "1", "input": "", "instruction": "Name a drink."}
    question["decomposed_questions"] = ["Is it a drink?"]
    (data / "infobench/InfoBench.json").write_text(json.dumps(question) + "\n")
    serve = f"{sys.executable} {ROOT}/tests/served_in_turns.py {{model}} {{name}} {{port}}"
    settings = {
        "SUPERVISOR": tiny_models.checkpoint(folder / "supervisor"),
        "BASE": chat_model("base", smollm2, folder / "base"),
        "QUERIES": test_run_all.question_file(folder),
        "DATA_DIR": str(data),
        "ONLINE_ITERATIONS": "1",
        "OUT": str(folder / "run"),
        "VENV": sys.prefix,
        "SERVE": serve,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **test_run_all.FLAGS,
        "FLAGS_01": f"--k 2 --seeds {folder / 'seeds.txt'}",
        "FLAGS_07": "--max-tokens 40 --benchmarks ifeval,infobench",
    }
    done = subprocess.run(
        ["bash", "examples/one_gpu.sh"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "run", done.stdout


def test_supervisor_policies_and_judge_stand_there_in_turns_and_each_comes_once(run):
    folder, _ = run
    turns = (folder / "logs/turns").read_text().split()
    # data; the online loop's policy; held-out answers and benchmarks of four models; the judge
    measured = [name for name in ("07_base", "05_sft", "06_offline", "06_dpo") for _ in range(2)]
    assert turns == ["supervisor", "05_sft", *measured, "supervisor"]


def test_the_table_is_whole_although_nobody_could_judge_in_the_policies_turn(run):
    folder, said = run
    results = json.loads((folder / "07_results.json").read_text())
    measured = {(row["model"], row["benchmark"]) for row in results if "metrics" in row}
    for model in ("base", "sft", "offline", "online"):
        assert {(model, "heldout"), (model, "ifeval"), (model, "infobench")} <= measured
    assert "nothing is judged yet" in said and (folder / "report.html").exists()


def test_a_second_call_trains_and_measures_nothing_again(run):
    _, said = run
    made = [line.split()[1] for line in said.splitlines() if ": done in" in line]
    assert len(made) == len(set(made))
