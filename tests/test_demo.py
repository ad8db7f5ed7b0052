"""The demo's recordings, completions of a --live run, through stages 01 to 04 without a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoif import files, queries

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
RECORDINGS = sorted((DEMO / "completions").glob("*.jsonl"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that holds what stages 01 to 04 made of the recordings."""
    out = tmp_path_factory.mktemp("demo")
    (out / "base").mkdir()  # kept as it is: these stages need no model
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    command = ["bash", "run_all.sh", "--demo", "--until", "04"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**env, "OUT": str(out), "VENV": sys.prefix},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return out


@pytest.fixture(scope="module")
def rows(out):
    return list(files.read(out / "03_instructions.jsonl"))


def test_the_stages_ask_for_nothing_that_is_not_recorded(out):
    assert len(RECORDINGS) == 4
    for path in RECORDINGS:
        assert (out / "completions" / path.name).read_bytes() == path.read_bytes(), (
            "a prompt or a flag has changed: run_all.sh --live, then the command of demo/README.md"
        )


def test_the_recordings_are_under_three_megabytes():
    assert sum(path.stat().st_size for path in RECORDINGS) < 3e6


def test_forty_constraints_in_twenty_families_reach_stage_04(rows):
    assert len(rows) >= 40 and len({row["family"] for row in rows}) >= 20


def test_no_held_out_constraint_has_a_sibling_that_is_trained_on(rows):
    families = {"train": set(), "heldout": set()}
    for row in rows:
        families[row["split"]].add(row["family"])
    assert not families["train"] & families["heldout"]
    assert len(families["heldout"]) >= 5


def test_stats_say_what_supervisor_and_judge_are_worth(out):
    stats = json.loads((out / "stats.json").read_text())
    assert stats["02_verifiers"]["functions"] > stats["02_verifiers"]["functions kept"]
    assert 0 <= stats["04_responses"]["judge AUC"] <= 1


def test_the_demo_departs_from_a_live_run_in_its_recordings_alone():
    settings = (DEMO / "settings.sh").read_text()
    assert "source live/settings.sh" in settings
    assert not re.search("^FLAGS_", settings, re.MULTILINE)


@pytest.mark.parametrize("name, number", [("queries.txt", 44), ("heldout_queries.txt", 16)])
def test_all_queries_pass_the_filters_of_stage_04(name, number):
    kept, dropped = queries.load(str(DEMO / name), 20, 300, "en", 0.0)
    assert len(kept) == number and not dropped


def test_the_held_out_queries_are_others():
    trained = set(queries.kept(str(DEMO / "queries.txt"), "train"))
    assert not trained & set(queries.kept(str(DEMO / "heldout_queries.txt"), "train"))
