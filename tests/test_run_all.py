"""run_all.sh in full mode, from seeds to the table, on a tiny base model behind llama.cpp.

The base has neither a chat template nor a generation config; the supervisor is scripted. Two
processes train, two online iterations run, and a second call keeps everything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import transformers
from fake_server import FakeServer
from test_end_to_end import CONSTRAINTS, answer
from test_serving import chat_model, smollm2  # noqa: F401  a fixture

from autoif import files

ROOT = tiny_models.ROOT
FLAGS = {
    "FLAGS_02": "--k 3",
    "FLAGS_03": "--heldout 0.3",
    "FLAGS_04": "--k 4 --queries-per-instruction 4",
    # a random model learns to say "word word end" and stop, more or less often
    "FLAGS_05": "--batch 8 --epochs 12 --lr 1e-2 --warmup-steps 2 --max-length 512",
    "FLAGS_06": "--batch 8 --epochs 1 --lr 1e-4 --max-length 512",
    "FLAGS_04_ONLINE": "--max-tokens 40",
    "FLAGS_07_HELDOUT": "--k 4 --queries-per-instruction 2 --max-tokens 40",
    "FLAGS_07": "--max-tokens 40",
}


def run_all(out: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    (out / "seeds.txt").write_text("\n".join(CONSTRAINTS[::4]))
    flags = {**FLAGS, "FLAGS_01": f"--k 2 --seeds {out / 'seeds.txt'}"}
    environment = {
        **os.environ,
        "VENV": sys.prefix,
        "OUT": str(out / "run"),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        **flags,
        **settings,
    }
    command = ["bash", "run_all.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def benchmark_rows(folder: Path) -> str:
    """Two rows of our own in the forms of IFEval and GSM8K."""
    ifeval = {
        "key": 1,
        "prompt": "Name a river. Do not use any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    gsm8k = {"question": "Ann has 2 apples and buys 3. How many has she?", "answer": "#### 5"}
    for name, row in (("ifeval/input_data.jsonl", ifeval), ("gsm8k/test.jsonl", gsm8k)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(row) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, smollm2):  # noqa: F811
    """(folder, first call, second call) of a full run."""
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    out = tmp_path_factory.mktemp("full")
    base = chat_model("base", smollm2, out / "base")
    queries = [f"What should I know about the number {n} today?" for n in range(60)]
    (out / "queries.txt").write_text("\n".join(queries))
    with FakeServer(answer) as server:
        settings = {
            "OPENAI_BASE_URL": server.url,
            "SUPERVISOR": "big",
            "BASE": base,
            "QUERIES": str(out / "queries.txt"),
            "NLI": "llm",
            "DATA_DIR": benchmark_rows(out / "data"),
            "PROCESSES": "2",
            "ONLINE_ITERATIONS": "2",
        }
        first = run_all(out, **settings)
        assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
        second = run_all(out, **settings)
    return out / "run", first.stdout, second


def test_a_full_run_goes_from_seeds_to_a_table_of_four_models(run):
    out, said, _ = run
    results = json.loads((out / "07_results.json").read_text())
    measured = {(row["model"], row["benchmark"]) for row in results if "metrics" in row}
    for model in ("base", "sft", "offline", "online"):
        assert {(model, "heldout"), (model, "ifeval"), (model, "gsm8k")} <= measured
    assert "online - base" in said and (out / "report.html").stat().st_size > 10_000


def test_the_online_loop_samples_anew_from_each_policy(run):
    out, _, _ = run
    texts = []
    for iteration in ("online_1", "online_2"):
        rows = list(files.read(out / iteration / "04_responses.jsonl"))
        sampled = [{response["text"] for response in row["responses"]} for row in rows]
        assert sum(len(each) for each in sampled) > 3 * len(sampled)
        texts.append([sorted(each) for each in sampled])
        assert list(files.read(out / iteration / "06_pairs.jsonl"))
    assert texts[0] != texts[1]


def test_the_base_model_is_measured_with_the_template_it_is_trained_with(run):
    out, _, _ = run
    served = transformers.AutoTokenizer.from_pretrained(out / "07_base")
    trained = transformers.AutoTokenizer.from_pretrained(out / "05_sft")
    assert served.chat_template == trained.chat_template


def test_a_second_call_keeps_everything_that_the_first_made(run):
    _, said, second = run
    assert second.returncode == 0, second.stderr[-2000:]
    made = [line.split()[1] for line in said.splitlines() if ": done in" in line]
    assert made and "done in" not in second.stdout
    assert second.stdout.count("is there: kept") == len(made)


def test_the_data_alone_need_no_model_and_no_benchmark(tmp_path, smollm2):  # noqa: F811
    queries = [f"What should I know about the number {n} today?" for n in range(60)]
    (tmp_path / "queries.txt").write_text("\n".join(queries))
    with FakeServer(answer) as server:
        done = run_all(
            tmp_path,
            "--until",
            "04",
            OPENAI_BASE_URL=server.url,
            SUPERVISOR="big",
            QUERIES=str(tmp_path / "queries.txt"),
            NLI="llm",
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/04_sft.jsonl").exists() and not (tmp_path / "run/05_sft").exists()


def test_help_answers_at_once_and_a_typo_ends_with_exit_code_2(tmp_path):
    settings = {"VENV": str(tmp_path / "none")}
    shown = run_all(tmp_path, "--help", **settings)
    assert shown.returncode == 0 and "--until 04" in shown.stdout
    for wrong in (["--dmeo"], ["--until", "8"], ["--until"]):
        refused = run_all(tmp_path, *wrong, **settings)
        assert refused.returncode == 2 and "error" in refused.stderr
    assert not (tmp_path / "none").exists()
