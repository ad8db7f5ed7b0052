"""The study's recorded completions, through stages 01 to 03, without endpoint, key or network."""

import ast
import csv
import importlib
from collections import Counter
from pathlib import Path

import pytest
from conftest import run_all
from recordings import completions, rekey

from autoif import files, sandbox
from autoif.evaluation.kinds import kind

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "study"
NAMES = ("01_seed_augment", "02_verifiers", "03_backtranslate")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that holds what stages 01 to 03 made of the recordings."""
    out = tmp_path_factory.mktemp("study")
    (out / "base").mkdir()  # kept as it is: these stages need no model
    return run_all(out, "--study", "--until", "03")


@pytest.fixture(scope="module")
def marked():
    """The families that IFEval tests too, each with the type of instruction."""
    with open(STUDY / "ifeval_families.tsv") as table:
        return {row["family"]: row["ifeval"] for row in csv.DictReader(table, delimiter="\t")}


def heldout(rows):
    return [row for row in rows if row["split"] == "heldout"]


def test_every_recording_matches_the_prompt_of_its_stage():
    stale = rekey.stale()
    assert not stale, (
        "these no longer match (python study/rekey.py, where they still answer):\n"
        + "\n".join(stale)
    )


def test_the_stages_ask_for_nothing_that_is_not_recorded(out):
    for name in NAMES:
        assert list(files.read(out / "completions" / f"{name}.jsonl")) == completions(name)


def test_nothing_is_stored_twice():
    for name in NAMES:
        stored = Counter()
        for record in completions(name):
            stored[record["key"], record["index"]] += 1
        assert set(stored.values()) == {1}, name


def test_the_study_has_the_sizes_it_promises(stats, rows):
    assert len(rows) >= 120
    assert stats["03_backtranslate"]["families"] >= 40
    assert stats["02_verifiers"]["completions"] == 4 * stats["02_verifiers"]["in"]


def test_twelve_families_or_more_are_held_out_whole_and_most_are_not_about_length(rows):
    trained = {row["family"] for row in rows if row["split"] == "train"}
    kinds = Counter({row["family"]: kind(row["instruction"]) for row in heldout(rows)}.values())
    assert not trained & {row["family"] for row in heldout(rows)}
    assert kinds.total() >= 12
    assert 3 <= kinds["length"] <= kinds.total() / 3


@pytest.mark.parametrize(
    "given, follows",
    [
        ("End the answer with an exclamation mark", "Include an exclamation mark"),
        (
            "End the answer with a question mark",
            "Ask the reader a question somewhere in the answer",
        ),
        ("Write at least 45 words", "Write more than 200 characters"),
        ("Write everything in lower case", "Let the answer begin with a small letter"),
        ("Answer in at most 10 words", "Let no sentence be longer than 12 words"),
        ("Answer in at most 10 words", "Keep the whole answer below 150 characters"),
        ("Answer with exactly two sentences", "Use at most three sentences"),
    ],
)
def test_these_constraints_are_on_one_side_since_one_follows_from_the_other(rows, given, follows):
    split = {row["instruction"]: row["split"] for row in rows}
    assert split[given] == split[follows]


def test_every_constraint_has_four_recorded_completions():
    samples = Counter(record["for"] for record in completions("02_verifiers"))
    assert set(samples.values()) == {4} and len(samples) >= 140


def test_a_reworded_prompt_is_told_by_the_constraints_it_concerns(monkeypatch):
    stage = importlib.import_module("02_verifiers")
    monkeypatch.setattr(stage, "VERIFIER_PROMPT", stage.VERIFIER_PROMPT + " Please.")
    stale = rekey.stale()
    assert len(stale) == len(completions("02_verifiers"))
    assert "02_verifiers, sample 2 of 'Use no apostrophes'" in stale


def test_constraints_die_in_02_and_03(out):
    reasons = Counter()
    for name in ("02_verifiers", "03_instructions"):
        reasons.update(row["reason"] for row in files.read(out / f"{name}.dropped.jsonl"))
    assert reasons["too few functions"] and reasons["no verifier compiles"]
    assert 8 <= reasons["contradiction"] <= 22


def test_verifiers_import_only_what_the_sandbox_offers(rows):
    for row in rows:
        for verifier in row["verifiers"]:
            for node in ast.walk(ast.parse(verifier["code"])):
                named = [alias.name for alias in getattr(node, "names", [])]
                modules = [node.module] if isinstance(node, ast.ImportFrom) else named
                offered = [m for m in modules if m.startswith("nltk.") or m in sandbox.MODULES]
                assert offered == modules, row["instruction"]


@pytest.mark.parametrize(
    "instruction, type",
    [
        ("Use no more than 20 words", "length_constraints:number_words"),
        ("Use at most three sentences", "length_constraints:number_sentences"),
        ("Write the answer as a single paragraph", "length_constraints:number_paragraphs"),
        ('Include the word "water"', "keywords:existence"),
        ('Use the word "not" exactly once', "keywords:frequency"),
        ('Do not use the word "is"', "keywords:forbidden_words"),
        ("Write everything in lower case", "change_case:english_lowercase"),
        ("Answer with a bulleted list", "detectable_format:number_bullet_lists"),
        ('Finish with the words "the end"', "startend:end_checker"),
        ("Use no commas", "punctuation:no_comma"),
        ("Enclose the whole answer in double quotes", "startend:quotation"),
        (
            'Give the answer as a JSON object with the key "answer"',
            "detectable_format:json_format",
        ),
        ('Write "P.S." and an afterthought below the answer', "detectable_content:postscript"),
        ("Mention a day of the week", None),
        ("Use no word with a double letter in it", None),
    ],
)
def test_families_that_ifeval_tests_too_are_marked(rows, marked, instruction, type):
    family = {row["instruction"]: row["family"] for row in rows}
    assert marked.get(family[instruction]) == type


def test_held_out_families_can_be_read_with_and_without_those_of_ifeval(rows, marked):
    assert set(marked) <= {row["family"] for row in rows}
    names = {row["family"] for row in heldout(rows)}
    assert len(names & set(marked)) >= 6 and len(names - set(marked)) >= 6
