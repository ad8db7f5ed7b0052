"""Single stages on one's own files: a mistake is one line that helps, before anything is asked."""

import importlib
import json
import os

import pytest

from autoif import files
from autoif.files import UserError
from autoif.flags import call

CODE = "def evaluate(response): return response == response.lower()"
SEED = {"id": "i0", "instruction": "Use lower case"}
VERIFIED = {**SEED, "verifiers": [{"code": CODE, "accuracy": 1.0}]}
SPLIT = {**VERIFIED, "split": "train"}
PROMPTED = {
    "id": "i0.0",
    "prompt": "Why?\nUse lower case",
    "responses": [{"text": "so", "verdicts": ["pass"], "accuracy": 1.0}],
}
QUERY = "What is the tallest mountain on earth?"


def run(name, argv):
    module = importlib.import_module(name)
    call(getattr(module, "COMMANDS", None) or module.main, argv)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# stage, what its input holds, further flags, what the one line says
INPUTS = [
    ("02_verifiers", jsonl({**SEED, "instruction": 5}), [], "in:1: 'instruction' must be a text"),
    ("02_verifiers", jsonl(SEED, SEED), [], "in:2 has the id 'i0' of line 1"),
    ("02_verifiers", jsonl({"instruction": "x"}), [], "in:1 has no 'id'.*01_seed_augment.py"),
    ("02_verifiers", "", [], "in is empty; run 01_seed_augment.py again"),
    ("02_verifiers", b"\x80\x81\x00", [], "in:1 is not UTF-8"),
    ("02_verifiers", "Use lower case\n", [], "in:1 is no JSON object"),
    ("02_verifiers", None, [], "in is a directory, not a file"),
    ("03_backtranslate", jsonl(SEED), [], "in:1 has no 'verifiers'.*02_verifiers.py"),
    ("03_backtranslate", jsonl({**SEED, "verifiers": [CODE]}), [], "must be an object with code"),
    (
        "03_backtranslate",
        jsonl({**SEED, "verifiers": [{"code": None}]}),
        [],
        "'verifiers' has 'code', which must be a text",
    ),
    ("04_responses", jsonl(VERIFIED), [], "in:1 has no 'split'.*run 03_backtranslate.py"),
    ("04_responses", jsonl({**SPLIT, "verifiers": []}), [], "at least one element"),
    ("04_responses", jsonl({**SPLIT, "split": "test"}), [], 'one of heldout, train, but is "test"'),
    ("04_responses", jsonl({**SPLIT, "split": ["test"]}), [], "one of heldout, train, but is"),
    (
        "04_responses",
        jsonl(SPLIT),
        ["--queries", "no/such"],
        "no/such does not exist; give ShareGPT",
    ),
    ("04_responses", jsonl(SPLIT), ["--queries", "."], "--queries . is a directory"),
    ("04_responses", jsonl(SPLIT), ["--sft", "no/such"], "no/such does not exist.*04_responses.py"),
    ("06_dpo", jsonl({**PROMPTED, "responses": ["so"]}), [], "in:1 must be an object with text"),
    ("06_dpo", jsonl({**SPLIT, "cases": [{"input": 1}]}), [], "in:1 has 'cases'"),
    ("06_dpo", jsonl({**PROMPTED, "responses": None}), [], "in:1 has 'responses', which must be a"),
    ("06_dpo", jsonl(PROMPTED), ["--sft", "no/such"], "no/such does not exist"),
    *(
        ("06_dpo", jsonl(PROMPTED), ["--sft", sample], "sft.jsonl:1: 'messages' (must|has)")
        for sample in (
            {"instruction_id": "i0", "messages": []},
            {"instruction_id": "i0", "messages": ["x"]},
            {"instruction_id": "i0", "messages": [{"role": "user", "content": [{"text": "x"}]}]},
        )
    ),
]


def test_a_file_that_is_given_twice_is_named():
    with pytest.raises(UserError, match="--in: must not have in.jsonl twice"):
        run("06_dpo", ["pairs", "--in", "in.jsonl", "04.jsonl", "in.jsonl", "--out", "out.jsonl"])


@pytest.mark.parametrize("stage, content, flags, words", INPUTS)
def test_a_wrong_input_is_named_with_its_line_and_the_next_step(
    tmp_path, monkeypatch, stage, content, flags, words
):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    source, out = tmp_path / "in", tmp_path / "out" / "out.jsonl"
    if content is None:
        source.mkdir()
    else:
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["pairs"] if stage == "06_dpo" else ["--model", "m"]
    if flags and isinstance(flags[-1], dict):  # what --sft holds
        (tmp_path / "sft.jsonl").write_text(jsonl(flags[-1]))
        flags = [*flags[:-1], str(tmp_path / "sft.jsonl")]
    if stage == "04_responses" and not flags:
        (tmp_path / "queries.txt").write_text(QUERY)
        flags = ["--queries", str(tmp_path / "queries.txt")]
    with pytest.raises(UserError, match=words):
        run(stage, [*command, "--in", str(source), "--out", str(out), *flags])
    assert not out.exists()


def test_a_file_without_the_right_to_read_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # the tests may be root's
    with pytest.raises(UserError, match="rows.jsonl cannot be read; chmod"):
        list(files.read(tmp_path / "rows.jsonl"))


QUERIES = [
    (jsonl({"question": QUERY}), "no record has 'query', nor a human turn"),
    (jsonl({"query": 5}), "no record has 'query', nor a human turn"),
    ("short\n", "none is left, 1 in -> 0 kept .*length 1.*--min-chars"),
    (jsonl({"query": QUERY, "split": "Train"}), "the split 'Train' is neither train nor heldout"),
    (jsonl({"query": QUERY, "split": "heldout"}), "1 in -> 0 kept .held out 1.*--heldout-queries"),
    ("\0\1\2binary", "is no text in UTF-8"),
]


@pytest.mark.parametrize("content, words", QUERIES)
def test_queries_that_cannot_be_used_are_named(tmp_path, content, words):
    source, asked = tmp_path / "in", tmp_path / "queries"
    source.write_text(jsonl(SPLIT))
    asked.write_text(content)
    flags = ["--model", "m", "--in", str(source), "--queries", str(asked)]
    with pytest.raises(UserError, match=words):
        run("04_responses", [*flags, "--out", str(tmp_path / "out.jsonl")])


MISSING = [
    ("02_verifiers", [], "required: --model"),
    ("03_backtranslate", [], "required: --model"),
    ("04_responses", ["--queries", "x"], "required: --model"),
    ("04_responses", ["--model", "m"], "one of --queries and --sft is required"),
    ("04_responses", ["--model", "m", "--queries", "x", "--sft", "y"], "one of --queries and"),
]


@pytest.mark.parametrize("stage, flags, words", MISSING)
def test_missing_flags_end_the_parser(stage, flags, words):
    with pytest.raises(UserError, match=words):
        run(stage, flags)


@pytest.mark.parametrize("stage", ["01_seed_augment", "02_verifiers", "03_backtranslate"])
def test_an_output_that_cannot_be_written_is_named_before_anything_is_asked(
    tmp_path, monkeypatch, stage
):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "in").write_text(jsonl(VERIFIED))
    source = [] if stage == "01_seed_augment" else ["--in", str(tmp_path / "in")]
    out = str(tmp_path / "in" / "out.jsonl")
    with pytest.raises(UserError, match="in/out.* cannot be written"):
        run(stage, ["--model", "m", *source, "--out", out])
