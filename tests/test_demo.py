"""The demo's recordings, of a live run, through stages 01 to 04: no server, key or network."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import run_all

from autoif import queries

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
SPLITS = ("train", "heldout")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What `bash run_all.sh --demo --until 04` makes."""
    return run_all(tmp_path_factory.mktemp("demo"), "--demo", "--until", "04")


def test_every_completion_is_recorded_and_none_is_asked_for(out):
    for recorded in (DEMO / "completions").glob("*.jsonl"):
        assert (out / "completions" / recorded.name).read_bytes() == recorded.read_bytes()
    assert not list((out / "logs").glob("serve_*"))


def test_the_recordings_stay_small():
    sizes = [file.stat().st_size for file in (DEMO / "completions").iterdir()]
    assert len(sizes) == 3 and sum(sizes) < 3e6


def test_forty_constraints_of_twenty_families_are_answered(rows):
    assert len(rows) >= 40 and len({row["family"] for row in rows}) >= 20


def test_no_held_out_constraint_has_a_sibling_that_is_trained_on(rows):
    families = {name: {row["family"] for row in rows if row["split"] == name} for name in SPLITS}
    assert not families["train"] & families["heldout"]
    assert sum(row["split"] == "heldout" for row in rows) >= 10


def test_the_supervisor_was_tried_as_a_judge(stats):
    stats = stats["04_responses"]
    assert stats["judge AUC"] > 0.5 and len(stats["judge scores"]) > 1


def test_the_demo_is_the_live_run_but_for_its_recordings():
    def variables(mode):
        line = f"RECORDED= SUPERVISED=() WRITING=(); source {mode}/settings.sh; (set -o posix; set)"
        clean = {"PATH": os.environ["PATH"], "OUT": "out"}
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=clean, capture_output=True)
        return dict(each.split("=", 1) for each in done.stdout.decode().split("\n") if "=" in each)

    demo, live = variables("demo"), variables("live")
    differing = {name for name in demo if demo[name] != live[name]} - {"BASH_EXECUTION_STRING"}
    assert differing == {"RECORDED", "SUPERVISED", "WRITING", "PLAN"}


@pytest.mark.parametrize("name, number", [("queries.txt", 44), ("heldout_queries.txt", 16)])
def test_all_queries_pass_the_filters_of_stage_04(name, number):
    kept, dropped = queries.load(str(DEMO / name), 20, 300, "en", 0.0)
    assert len(kept) == number and not dropped


def test_the_held_out_queries_are_others():
    kept = [
        set(queries.kept(str(DEMO / name), "train"))
        for name in ("queries.txt", "heldout_queries.txt")
    ]
    assert not kept[0] & kept[1]
