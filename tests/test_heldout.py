"""The held-out benchmark: its queries, its kinds of constraints, and what stands beside a gain."""

import asyncio
import importlib
import json

import pytest
from fake_server import command
from shared_data import sample, values

from autoif import relevance, sandbox
from autoif.evaluation import results
from autoif.evaluation.benchmarks import heldout
from autoif.files import NotSetUp, UserError
from autoif.flags import call

stage = importlib.import_module("07_eval")

CONSTRAINTS = [
    ("i1", "Use at most three words", "return len(response.split()) <= 3"),
    ("i2", 'Do not use the word "and"', "return 'and' not in response.split()"),
]
QUERIES = ["How do I brew green tea well?", "What is the history of Rome about?"]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setattr(relevance, "encoder", lambda: "TF-IDF")  # a model takes seconds to load
    args = heldout.Flags()
    rows = []
    for name, instruction, body in CONSTRAINTS:
        code = f"def evaluate(response):\n    {body}"
        row = {"id": name, "instruction": instruction, "split": "heldout"}
        rows.append({**row, "verifiers": [{"code": code, "accuracy": 1.0}]})
    args.heldout = write(tmp_path / "03.jsonl", rows)
    args.queries = write(tmp_path / "04_queries.jsonl", [{"query": query} for query in QUERIES])
    return args


def load(args) -> list[dict]:
    values = args.heldout, args.queries, args.queries_per_instruction
    return list(heldout.load(*values, seed=0))


def score(args, attempts: list[dict]) -> list[dict]:
    async def run():
        async with sandbox.Sandbox(sandbox.Flags()) as box:
            return await heldout.score(attempts, box, args.heldout, args.queries)

    return asyncio.run(run())


def scored(args, answer, finish_reason="stop") -> list[dict]:
    attempts = []
    for item in load(args):
        (given,) = sample(answer(item))
        attempts.append({"item": item, "sample": 0, "answers": [given]})
        given["finish_reason"] = finish_reason
    return score(args, attempts)


def test_only_held_out_queries_are_asked_where_the_file_has_a_split(tmp_path, args):
    rows = [{"query": f"Training query {n}?", "split": "train"} for n in range(9)]
    rows.append({"query": "The one held out?", "langdetect": "en", "split": "heldout"})
    args.queries = write(tmp_path / "04_queries.jsonl", rows)
    assert {item["query"] for item in load(args)} == {"The one held out?"}


def test_a_file_without_a_split_is_used_whole_and_nothing_is_filtered_again(tmp_path, args):
    # stage 04 took them: with --language zh, --min-chars 1, --max-chars 5000
    queries = ["红茶怎么泡才好喝?", "Hi", "Warum ist der Himmel blau? " + "x" * 900]
    args.queries = write(tmp_path / "04_queries.jsonl", [{"query": text} for text in queries])
    assert {item["query"] for item in load(args)} == set(queries)


def test_queries_may_be_lines_of_text(tmp_path, args):
    (tmp_path / "queries.txt").write_text("Who was Ada?\n\nWhy is it dark?\n")
    args.queries = str(tmp_path / "queries.txt")
    assert {item["query"] for item in load(args)} == {
        "Who was Ada?",
        "Why is it dark?",
    }


def test_a_constraints_queries_stay_when_other_constraints_go(tmp_path, args):
    queries = [{"query": f"Query number {n}?"} for n in range(99)]
    args.queries = write(tmp_path / "many.jsonl", queries)
    before = [item["query"] for item in load(args) if item["constraint"] == "i2"]
    rows = open(args.heldout).read().splitlines()
    args.heldout = write(tmp_path / "one.jsonl", [json.loads(rows[1])])
    assert [item["query"] for item in load(args)] == before


def test_results_come_in_kinds_beside_the_whole(args):
    rows = scored(args, lambda item: "Green tea and Rome")  # four words, one of them "and"
    found = values(rows)
    assert (found["Held-out"], found["Held-out length"], found["Held-out other"]) == (0, 0, 0)
    rows = scored(args, lambda item: "Brew the green tea well, in Rome's history")
    found = values(rows)
    assert (found["Held-out"], found["Held-out length"], found["Held-out other"]) == (0.5, 0, 1)
    assert {row["kind"] for row in rows} == {"length", "other"}


def test_a_gain_in_brevity_shows_as_one(args):
    long = values(scored(args, lambda item: f"On {item['query']} there is much to say here"))
    short = values(scored(args, lambda item: "Well, yes"))
    assert short["Held-out"] > long["Held-out"]  # the gain ...
    assert short["Held-out other"] == long["Held-out other"]  # ... is in no other constraint
    assert short["words"] == 2 < long["words"]
    assert short["relevance"] == 0 and long["relevance"] == 1  # and says nothing


def test_metrics_say_whether_they_are_shares(args):
    items = load(args)
    texts = ["Tea", "A cup of tea"] * len(items)
    attempts = [{"item": item, "answers": sample(text)} for item, text in zip(items, texts)]
    measured = results.measure("heldout", attempts, score(args, attempts))["metrics"]
    assert list(measured) == list(heldout.SETTINGS.columns)
    assert (measured["Held-out"]["scale"], measured["words"]["scale"]) == (100, 1)
    assert measured["words"]["interval"] == "cluster bootstrap"
    assert measured["relevance"]["interval"] == measured["truncated"]["interval"] == "Wilson"


def test_the_truncated_share_is_a_metric(args):
    found = values(scored(args, lambda item: "Tea", finish_reason="length"))
    assert found["truncated"] == 1


def test_every_model_is_measured_against_all_held_out_queries(args):
    assert heldout.conditions(args.queries) == {"relevance by": "TF-IDF", "queries": 2}


def test_all_answers_to_a_constraint_are_one_job_a_function(args):
    sent = []

    class Box:
        async def run(self, jobs):
            sent.extend(jobs)
            return [{"verdicts": ["pass"] * len(job["inputs"]), "error": None} for job in jobs]

    attempts = [{"item": item, "answers": sample("Tea")} for item in load(args)]
    asyncio.run(heldout.score(attempts, Box(), args.heldout, args.queries))
    codes = [f"def evaluate(response):\n    {body}" for _, _, body in CONSTRAINTS]
    assert [(job["code"], len(job["inputs"])) for job in sent] == [(code, 2) for code in codes]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"instruction": 7}, "'instruction' must be a text"),
        ({"verifiers": []}, "'verifiers' must be a list with at least one element"),
        ({"verifiers": "def evaluate"}, "'verifiers' must be a list with at least one element"),
        ({"verifiers": [{"accuracy": 1.0}]}, "'verifiers' must have 'code'"),
        ({"split": "Heldout"}, "'split' must be one of heldout, train"),
        ({"id": "i1"}, "has the id 'i1' of line 1"),
    ],
)
def test_broken_rows_are_named_before_anything_is_asked(tmp_path, args, row, words):
    good = json.loads(open(args.heldout).readline())
    args.heldout = write(tmp_path / "broken.jsonl", [good, {**good, "id": "i9", **row}])
    with pytest.raises(UserError, match="broken.jsonl:2") as error:
        load(args)
    assert words in str(error.value) and not isinstance(error.value, NotSetUp)


def test_functions_that_cannot_be_called_are_named_instead_of_failing_every_answer(tmp_path, args):
    row = json.loads(open(args.heldout).readline())
    row["verifiers"] = [{"code": "import no_such_module\ndef evaluate(response): return True"}]
    args.heldout = write(tmp_path / "lacking.jsonl", [row])
    flags = command(heldout=args.heldout, queries=args.queries, benchmarks="heldout", model="m")
    with pytest.raises(UserError, match="lacking.jsonl: these functions cannot be called"):
        call(stage.main, [*flags, "--out", str(tmp_path / "07_results.json")])


def test_where_nothing_is_held_out_the_measure_is_a_gap_and_no_error(tmp_path, args):
    row = {**json.loads(open(args.heldout).readline()), "split": "train"}
    args.heldout = write(tmp_path / "trained.jsonl", [row])
    with pytest.raises(NotSetUp, match="no row with split 'heldout'; raise --heldout"):
        load(args)
    args.queries = write(tmp_path / "q.jsonl", [{"query": "Fine?", "split": "train"}])
    with pytest.raises(NotSetUp, match="no query of split 'heldout'"):
        load(args)


def test_a_file_without_a_held_out_query_names_the_flag(tmp_path, args):
    args.queries = write(tmp_path / "q.jsonl", [{"query": "Fine?", "split": "train"}])
    with pytest.raises(UserError, match="no query of split 'heldout'.*--heldout-queries"):
        load(args)
