"""Runs of an earlier version are gone on with: same requests, same keys, same draws, same outputs.

tests/earlier holds what that version wrote and asked for, made by

    PYTHONPATH=. python tests/test_earlier_runs.py CHECKOUT    # of cbb4964, into tests/earlier
"""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_server import FakeServer

from autoif import files, settings
from autoif.flags import call, parse

EARLIER = Path(__file__).with_name("earlier")
# run: the stage, its flags, in a folder that holds 01_instructions.jsonl and the like
RUNS = {
    "verifiers": (
        "02_verifiers",
        "--in 01_instructions.jsonl --out made/02_verifiers.jsonl --k 4",
    ),
    "responses": (
        "04_responses",
        "--in 03_instructions.jsonl --queries queries.txt --out made/04_responses.jsonl --k 4 "
        "--queries-per-instruction 3",
    ),
    "topic": (
        "04_responses",
        "--in 03_instructions.jsonl --queries queries.txt --out topic/04_responses.jsonl --k 4 "
        "--queries-per-instruction 3 --score topic --bare-prompt --seed 7 --heldout-queries 0.2",
    ),
    "online": (
        "04_responses",
        "--in 03_instructions.jsonl --sft made/04_sft.jsonl --out online/04_responses.jsonl --k 4 "
        "--no-score --seed 1",
    ),
}
SCORE_PROMPT = """\
A user asked a question and set a constraint on the form of the answer. Judge whether the answer
helps with the question.

[Question]
{query}

[Constraint]
{instruction}

[Answer]
{response}

The constraint may force an unusual form on the answer; do not hold the form against it. Explain in
a few sentences how well the content answers the question. Then give a score from 0 (has nothing to
do with the question) to 10 (answers it fully) on a last line of its own, in exactly this form:
Score: <number>"""
WORDING = {
    "VERIFIER_PROMPT": [
        (
            "short texts that obey the constraint and short texts",
            "texts that obey the constraint and texts",
        ),
        (", no explanation and no comments in the code:", ":"),
    ],
    "SCORE_PROMPT": [(importlib.import_module("04_responses").SCORE_PROMPT, SCORE_PROMPT)],
}
MOVED = ("function always", "function passes")  # to `python -m autoif.reward --probe`

LOWER = "def evaluate(response):\n    return response == response.lower()"
SHORT = "def evaluate(response):\n    return len(response.split()) < 6"
PLAIN = "def evaluate(response):\n    return ',' not in response"
STOP = "def evaluate(response):\n    return response.endswith('.')"
INSTRUCTIONS = {
    "Use lower case": [(LOWER, ["abc", "a b"], ["ABC", "Abc"])] * 2
    + [(LOWER.replace("==", "in"), ["abc"], ["ABC"]), "I cannot help with that."],
    "Use fewer than 6 words": [
        (SHORT, ["one two", ""], ["a " * 9]),
        (SHORT.replace("6", "7"), ["three"], ["b " * 20]),
        ("def evaluate(response): return 1 / len(response.split()) > 0.17", ["four"], ["c " * 6]),
        ("def evaluate(response) return", ["five"], []),
    ],
    "Use capitals": [("def evaluate(response): return response[99] == ''", ["ABC"], ["abc"])] * 4,
    "Write well": ['{"function": "none"}', "No.", "<think>so", '{"func": '],
    "Use no commas": [
        (PLAIN, ["a b"], ["a, b"]),
        (PLAIN + "  # so", ["x"], ["x,"]),
        "No.",
        "<think>so",
    ],
    "End with a full stop": [(STOP, ["So."], ["So"]), (STOP[:-1] + " or '!')", ["So!"], ["a"])] * 2,
}
THOUGHT = "<think>for ever"  # stored, and no answer
TEXTS = [
    "all fine.",
    "the mountain is tall.",
    "they sleep.",
    "bread, flour, salt",
    "NOT FINE.",
    THOUGHT,
]
QUERIES = [
    "What is the tallest mountain on earth?",
    "Why do cats sleep for most of the day?",
    "How does one bake a simple bread?",
    "Which river is the longest one in Europe?",
    "Where do swallows go when winter comes?",
    "Too short",
]


def completion(written) -> str:
    """A supervisor's answer: a text as it is, a function with its cases as JSON."""
    if isinstance(written, str):
        return written
    code, good, bad = written
    cases = [{"input": text, "output": "True"} for text in good]
    cases += [{"input": text, "output": False} for text in bad]
    return "Here it is:\n```json\n" + json.dumps({"func": code, "cases": cases}) + "\n```"


def answer(messages: list[dict], request: dict) -> list[str]:
    """What depends on the prompt and the sample's index alone, whatever is asked at a time."""
    text, first = messages[0]["content"], request.get("seed", 0) % 1000
    indices = range(first, first + request.get("n", 1))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if "Score: <number>" in text:
        return [["It helps.\nScore: 9", "Score: 4", "It helps.", "Score: 8"][number % 4]]
    for instruction, written in INSTRUCTIONS.items():
        if "evaluate(response)" in text and f"\n{instruction}\n" in text:
            return [completion(written[index]) for index in indices]
    return [TEXTS[(number + index * index) % len(TEXTS)] for index in indices]


def canonical(request: dict) -> str:
    return json.dumps(request, sort_keys=True)


def sources(folder: Path) -> None:
    """The inputs of the runs; that of stage 04 is made of what stage 02 made."""
    with files.writer(folder / "01_instructions.jsonl") as write:
        for number, instruction in enumerate(INSTRUCTIONS):
            write({"id": f"i{number}", "instruction": instruction, "source": "seed"})
    (folder / "queries.txt").write_text("\n".join(QUERIES) + "\n")


def instructions(folder: Path) -> None:
    with files.writer(folder / "03_instructions.jsonl") as write:
        for number, row in enumerate(files.read(folder / "made" / "02_verifiers.jsonl")):
            split = "heldout" if number == 1 else "train"
            write({**row, "family": f"family {number}", "split": split})


def make(checkout: str) -> None:
    """Fill tests/earlier with the runs of another checkout, and with what they asked for."""
    shutil.rmtree(EARLIER, ignore_errors=True)
    EARLIER.mkdir()
    sources(EARLIER)
    with files.writer(EARLIER / "requests.jsonl") as write:
        for run, (name, flags) in RUNS.items():
            with FakeServer(answer) as server:
                environment = {**os.environ, "OPENAI_BASE_URL": server.url, "PYTHONPATH": checkout}
                command = [sys.executable, f"{checkout}/{name}.py", "--model", "m", *flags.split()]
                subprocess.run(command, cwd=EARLIER, env=environment, check=True)
            for request in sorted(server.requests, key=canonical):
                write({"run": run, "request": request})
            if run == "verifiers":
                instructions(EARLIER)


@pytest.fixture(params=RUNS)
def run(request, tmp_path, monkeypatch):
    """(name of the run, its stage, its command line), in a folder with the inputs alone."""
    for path in EARLIER.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "made").mkdir()
    shutil.copy(EARLIER / "made" / "04_sft.jsonl", tmp_path / "made")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    name, flags = RUNS[request.param]
    # with the wording that those prompts had: it is a part of the store's keys
    stage = importlib.import_module(name)
    for prompt, changes in WORDING.items():
        if hasattr(stage, prompt):
            words = getattr(stage, prompt)
            for now, before in changes:
                assert now in words
                words = words.replace(now, before)
            monkeypatch.setattr(stage, prompt, words)
    return request.param, name, ["--model", "m", *flags.split()]


def out_of(argv: list[str]) -> Path:
    return Path(argv[argv.index("--out") + 1])


def assert_as_before(name: str, argv: list[str]) -> None:
    """Every file as the earlier version wrote it, of the dropped rows all but their order."""
    out = out_of(argv)
    same = [out.name, *(["04_sft.jsonl", "04_queries.jsonl"] if name == "04_responses" else [])]
    for path in [out.with_name(each) for each in same]:
        if (EARLIER / path).exists():
            assert path.read_bytes() == (EARLIER / path).read_bytes(), path
    dropped = out.with_suffix(".dropped.jsonl")
    assert sorted(open(dropped)) == sorted(open(EARLIER / dropped))
    before = json.loads((EARLIER / out.parent / "stats.json").read_text())[name]
    now = json.loads((out.parent / "stats.json").read_text())[name]
    assert now == {key: value for key, value in before.items() if not key.startswith(MOVED)}


def bought(path: Path) -> Counter:
    """What a store holds: how often each sample of each request, and its text."""
    return Counter((row["key"], row["index"], row["text"]) for row in files.read(path))


def test_an_earlier_run_is_repeated_request_for_request(run):
    name, module, argv = run
    with FakeServer(answer) as server:
        call(importlib.import_module(module).main, [*argv, "--base-url", server.url])
    assert_as_before(module, argv)
    recorded = [row["request"] for row in files.read("requests.jsonl") if row["run"] == name]
    assert sorted(server.requests, key=canonical) == recorded


def test_an_earlier_store_needs_no_server(run):
    _, module, argv = run
    out = out_of(argv)
    shutil.copytree(EARLIER / out.parent / "completions", out.parent / "completions")
    call(importlib.import_module(module).main, argv)
    assert_as_before(module, argv)


def test_an_earlier_run_that_was_killed_half_way_is_gone_on_with(run):
    _, module, argv = run
    store = out_of(argv).parent / "completions" / f"{module}.jsonl"
    store.parent.mkdir(parents=True)
    lines = (EARLIER / store).read_text().splitlines(keepends=True)
    half = len(lines) // 2 - 1
    store.write_text("".join(lines[:half]) + lines[half][:40])  # with a torn last line
    with FakeServer(answer) as server:
        call(importlib.import_module(module).main, [*argv, "--base-url", server.url])
    assert sum(server.answered.values()) == len(lines) - half
    assert bought(store) == bought(EARLIER / store)
    assert_as_before(module, argv)


def test_the_settings_of_an_earlier_run_are_those_of_the_same_command(run):
    _, module, argv = run
    before = json.loads((EARLIER / settings.settings_path(out_of(argv))).read_text())
    main = importlib.import_module(module).main
    settings.identity.cache_clear()
    # the default that changed (CHANGELOG.md)
    told = list(settings.changes(before, parse(main, argv)[1]))
    assert told == ["--cpu-seconds was 0.2, is 0.4"]
    _, args = parse(main, [*argv, "--cpu-seconds", "0.2"])
    assert before["inputs"] and list(settings.changes(before, args)) == []


if __name__ == "__main__":
    make(sys.argv[1])
