"""The study's recordings, through stages 01 to 03, without endpoint, key or network."""

import json
import re
import shutil

import pytest
from recordings import FILES, STUDY, completions, rekey, run_stage

from autoif import files, reward, sandbox

SPLITS = ("train", "heldout")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that holds what stages 01 to 03 made of the recordings."""
    assert rekey.stale() == []
    out = tmp_path_factory.mktemp("recorded")
    shutil.copytree(STUDY / "completions", out / "completions")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_BASE_URL", raising=False)
        for name in FILES:
            run_stage(name, out)
    return out


def test_the_store_keeps_what_was_recorded(out):
    for name in FILES:  # nothing was asked for: the files are as they were
        assert (out / "completions" / f"{name}.jsonl").read_bytes() == (
            STUDY / "completions" / f"{name}.jsonl"
        ).read_bytes()


def test_they_have_the_sizes_that_other_tests_need(stats, rows):
    assert stats["01_seed_augment"]["seeds"] >= 12
    assert stats["01_seed_augment"]["kept"] >= 70
    assert len(rows) >= 60 and stats["03_backtranslate"]["families"] >= 35
    assert stats["02_verifiers"]["completions"] == 4 * stats["02_verifiers"]["in"]


def test_seed_augment_drops_each_kind_of_bad_line(stats):
    dropped = stats["01_seed_augment"]["dropped"]
    assert set(dropped) == {
        "exact duplicate",
        "near duplicate",
        "over-long",
        "style, metaphor or translation",
    }


def test_lists_are_recorded_with_dashes_numbers_and_stars_and_prose_around_them(out):
    texts = [record["text"] for record in completions("01_seed_augment")]
    dashes, numbers, stars, brackets = texts[:4]
    assert "\n- " in dashes and "\n2. " in numbers and "\n* **" in stars
    assert "\n(2) " in brackets
    instructions = {row["instruction"] for row in files.read(out / "01_instructions.jsonl")}
    assert {
        'Include the word "important"',
        'Include the word "first"',
        'Use the word "often"',
    } <= instructions
    assert (
        not {dashes.splitlines()[0], dashes.splitlines()[-1], stars.splitlines()[0]} & instructions
    )


def test_constraints_die_in_every_way_that_the_default_thresholds_allow(stats):
    # "no verifier accurate" is none of them: a kept case has more than half of the functions behind
    # it, so one must be accurate
    assert set(stats["02_verifiers"]["dropped"]) == {
        "too few cases",
        "no verifier compiles",
        "no case agreed",
    }
    assert sum(stats["02_verifiers"]["dropped"].values()) <= 5
    contradictions = stats["03_backtranslate"]["dropped"]["contradiction"]
    assert 0.10 <= contradictions / stats["03_backtranslate"]["in"] <= 0.15


def test_the_released_thresholds_leave_some_constraint_without_an_accurate_verifier(out, tmp_path):
    shutil.copytree(out, tmp_path / "released")
    run_stage(
        "02_verifiers",
        tmp_path / "released",
        "--case-agreement",
        "0",
        "--min-accuracy",
        "0.7999",
        "--min-functions",
        "3",
        "--min-cases",
        "10",
    )
    stats = json.loads((tmp_path / "released" / "stats.json").read_text())["02_verifiers"]
    assert stats["dropped"]["no verifier accurate"] >= 1


def test_the_recordings_hold_the_failures_of_a_live_model(stats):
    stats = stats["02_verifiers"]
    assert (
        stats["no JSON"]
        and stats["no function in the JSON"]
        and stats["no function in the JSON, truncated"]
    )
    assert stats["duplicate functions"] >= 3
    errors = {
        reason.removeprefix("function error: ").split(":")[0]
        for reason in stats
        if reason.startswith("function error")
    }
    assert {"syntax", "no evaluate", "missing module", "exception", "timeout"} <= errors
    assert stats["functions kept"] < stats["functions"] - stats["duplicate functions"]
    assert stats["cases kept"] < stats["cases"]


def test_the_recordings_hold_functions_that_always_pass_or_pass_an_empty_answer(out, tmp_path):
    shutil.copytree(out, tmp_path / "all")
    run_stage("02_verifiers", tmp_path / "all", "--no-cross-validation")
    always, rows = 0, list(files.read(tmp_path / "all" / "02_verifiers.jsonl"))
    for row in rows:
        by_function = zip(*(case["verdicts"] for case in row["cases"]))
        always += sum(set(verdicts) == {"pass"} for verdicts in by_function)
    assert always and reward.probe(rows, sandbox.Flags())["empty answer"]["functions"]


def test_json_is_recorded_bare_fenced_inside_prose_and_broken():
    texts = [record["text"] for record in completions("02_verifiers")]
    assert any(text.startswith("{") and text.endswith("}") for text in texts)
    assert any(text.startswith("```json") for text in texts)
    assert any(not text.startswith(("{", "```")) and '"cases"' in text for text in texts)
    assert any("},\n  ]" in text for text in texts)  # a trailing comma
    assert any(
        '"func": "def evaluate(response):\n' in text for text in texts
    )  # a real newline in a string
    assert any('"output": "False"' in text for text in texts)


def test_a_contradictory_case_is_dropped_and_a_crash_agrees_with_nothing(out):
    kept = {row["instruction"]: row for row in files.read(out / "02_verifiers.jsonl")}
    outputs = [
        case["output"]
        for case in kept["Include the number 7"]["cases"]
        if case["input"] == "It costs 17 pounds."
    ]
    assert outputs == [False]  # recorded as true by one completion and as false by another
    crashed = [
        case for case in kept["Use a colon exactly once"]["cases"] if "error" in case["verdicts"]
    ]
    assert crashed and all(0 < case["agreement"] < 1 for case in crashed)


def test_back_translations_are_judged_entailment_neutral_and_contradiction(stats):
    stats = stats["03_backtranslate"]
    assert stats["entailment"] > stats["neutral"] > 0 and stats["contradiction"] > 0


def test_no_held_out_constraint_has_a_sibling_that_is_trained_on(rows):
    families = {name: {row["family"] for row in rows if row["split"] == name} for name in SPLITS}
    assert not families["train"] & families["heldout"]
    heldout = [row["instruction"] for row in rows if row["split"] == "heldout"]
    assert len(heldout) >= 10 and len(families["heldout"]) >= 8


def test_most_held_out_constraints_are_not_about_length(rows):
    """Or a gain could be had by brevity alone."""
    heldout = [row["instruction"] for row in rows if row["split"] == "heldout"]
    length = [each for each in heldout if re.search(r"\d+ words|longer|shorter|characters", each)]
    assert 1 <= len(length) <= len(heldout) / 3


def test_some_training_constraints_ask_for_more_and_not_for_less(rows):
    trained = [row["instruction"] for row in rows if row["split"] == "train"]
    more = [each for each in trained if re.search("at least|more than|or more", each)]
    assert len(more) >= 6
