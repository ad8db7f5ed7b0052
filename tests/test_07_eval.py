import csv
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from fake_server import FakeServer, always, but_not, command  # noqa: E402
from killed import killed  # noqa: E402
from shared_data import DATA, needs  # noqa: E402

from autoif import files, relevance  # noqa: E402
from autoif.evaluation import benchmarks, contamination, results  # noqa: E402
from autoif.evaluation.benchmarks import spread  # noqa: E402
from autoif.evaluation.benchmarks.source import Source  # noqa: E402
from autoif.evaluation.judge import JUDGE_ATTEMPTS  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import call  # noqa: E402

stage = importlib.import_module("07_eval")

CONSTRAINTS = [
    {
        "id": "lower",
        "instruction": "Answer in lower case.",
        "split": "heldout",
        "verifiers": [
            {"code": "def evaluate(response):\n    return response.islower()", "accuracy": 1.0}
        ],
    },
    {
        "id": "tea",
        "instruction": "Mention tea.",
        "split": "heldout",
        "verifiers": [
            {
                "code": "def evaluate(response):\n    return 'tea' in response.lower()",
                "accuracy": 1.0,
            },
            {"code": "def evaluate(response):\n    return 1 / 0", "accuracy": 0.6},
            {"code": "def evaluate(response):\n    return bool(response)", "accuracy": 1.0},
        ],
    },
    {
        "id": "seen",
        "instruction": "Never asked here.",
        "split": "train",
        "verifiers": [{"code": "def evaluate(response):\n    return True", "accuracy": 1.0}],
    },
]
QUERIES = [
    "How do I brew a good pot of green leaves?",
    "Tell me something about the history of Rome.",
    "What should I pack for a week in the mountains?",
]


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(Source, "unreachable", "no network in tests")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def folder(tmp_path):
    """A data folder in the layout of the real one, three rows of each kind."""
    data = tmp_path / "data"
    lines(
        data / "ifeval/input_data.jsonl",
        [
            {
                "key": n,
                "prompt": f"Prompt {n}.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
            }
            for n in range(3)
        ],
    )
    lines(
        data / "gsm8k/test.jsonl",
        [{"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(3)],
    )
    lines(
        data / "mt_bench/question.jsonl",
        [
            {"question_id": 81 + n, "category": "writing", "turns": [f"First {n}?", f"Second {n}?"]}
            for n in range(3)
        ],
    )
    lines(data / "mt_bench/reference_answer/gpt-4.jsonl", [])
    lines(
        data / "infobench/InfoBench.json",
        [
            {
                "id": str(n),
                "input": "",
                "instruction": f"Do {n}.",
                "decomposed_questions": ["Is it done?", "Is it short?"],
            }
            for n in range(3)
        ],
    )
    lines(
        data / "arena_hard/v0.1/question.jsonl",
        [{"uid": f"u{n}", "prompt": f"Arena {n}?"} for n in range(3)],
    )
    lines(
        data / "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl",
        [
            {
                "uid": f"u{n}",
                "messages": [
                    {"role": "user", "content": ""},
                    {"role": "assistant", "content": {"answer": "BASE"}},
                ],
            }
            for n in range(3)
        ],
    )
    for category in ("content", "situation", "style", "format", "mixed", "example"):
        path = data / f"followbench/data/{category}_constraints.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                [
                    {
                        "example_id": 1,
                        "category": category,
                        "source": "quora",
                        "level": level,
                        "instruction": f"{category} {level}",
                        "target": "{answer}",
                    }
                    for level in range(category == "example", 6)
                ]
            )
        )
    (data / "mmlu/test").mkdir(parents=True)
    with open(data / "mmlu/test/tea_test.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
        writer.writerows([[f"Q{n}?", "w", "x", "y", "z", n] for n in range(3)])
    lines(data / "humaneval/HumanEval.jsonl.gz", [])
    import gzip

    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "wt") as file:
        file.write(
            json.dumps(
                {
                    "task_id": "H/0",
                    "prompt": "def one():\n    ",
                    "canonical_solution": "return 1\n",
                    "entry_point": "one",
                    "test": "def check(candidate):\n    assert candidate() == 1\n",
                }
            )
            + "\n"
        )
    return data


def run(tmp_path, *words: str, **named) -> list[dict]:
    """The results of a run, the exit code beside each row as `exit`."""
    out, code = tmp_path / "out" / "07_results.json", 0
    try:
        call(stage.main, command(*words, **named, out=out))
    except SystemExit as error:
        code = error.code
    return [{**row, "exit": code} for row in json.loads(out.read_text())] if out.exists() else []


@pytest.fixture
def heldout(tmp_path, monkeypatch) -> list:
    monkeypatch.setattr(relevance, "encoder", lambda: "TF-IDF")  # a model takes seconds to load
    return command(
        benchmarks="heldout",
        heldout=lines(tmp_path / "03.jsonl", CONSTRAINTS),
        queries=lines(tmp_path / "queries.jsonl", [{"query": query} for query in QUERIES]),
    )


# Held-out constraints


def test_heldout_scores_only_held_out_constraints_by_more_than_half_of_their_functions(
    tmp_path, heldout
):
    def answer(messages, request):
        return (
            "green tea, of course" if "Mention tea." in messages[0]["content"] else "In Upper Case"
        )

    with FakeServer(answer) as server:
        (row,) = run(tmp_path, *heldout, model="m", base_url=server.url, k=2)
    assert not any("Never asked" in json.dumps(request) for request in server.requests)
    assert len(server.requests) == 2 * 3 * 2 and row["exit"] == 0
    assert row["metrics"]["Held-out"]["value"] == 0.5  # tea: 2 of 3 functions pass, one errs
    assert (
        row["metrics"]["Held-out"]["clusters"] == 6
        and row["metrics"]["by constraint"]["clusters"] == 2
    )
    items = [json.loads(line) for line in open(tmp_path / "out" / row["items"])]
    assert {"id", "prompt", "answers", "verdict", "reason"} <= items[0].keys() and len(items) == 12
    assert {tuple(item["verdicts"]) for item in items if item["verdict"]} == {
        ("pass", "error", "pass")
    }


def test_every_model_is_asked_the_same_queries(tmp_path, heldout):
    with FakeServer() as first, FakeServer() as second:
        for server, name in ((first, "a"), (second, "b")):
            run(tmp_path, *heldout, model=name, base_url=server.url, k=1, queries_per_instruction=2)
    assert first.answered == second.answered and len(first.answered) == 4


def test_models_share_a_table_and_a_rerun_replaces_its_own_row(tmp_path, heldout):
    with (
        FakeServer(lambda messages, request: "tea") as good,
        FakeServer(lambda messages, request: "No.") as bad,
    ):
        run(tmp_path, *heldout, model="m1", name="base", base_url=bad.url)
        run(tmp_path, *heldout, model="m2", name="online", base_url=good.url)
        rows = run(tmp_path, *heldout, model="m1", name="base", base_url=bad.url)
    assert [(row["model"], row["metrics"]["Held-out"]["value"]) for row in rows] == [
        ("base", 0.0),
        ("online", 1.0),
    ]
    table = (tmp_path / "out/07_results.md").read_text()
    assert "| base | 0.0 [" in table and "| online | 100.0 [" in table
    assert (tmp_path / "out/07_results.png").read_bytes().startswith(b"\x89PNG")


def test_another_model_of_the_same_last_part_needs_a_name_of_its_own(tmp_path, heldout, capsys):
    with FakeServer(lambda messages, request: "tea") as server:
        run(tmp_path, *heldout, model="online_1/06_dpo", base_url=server.url)
        assert "07_eval heldout: 48 in -> 48 scored\n" in capsys.readouterr().out
        with pytest.raises(UserError, match="results of online_1/06_dpo under the name '06_dpo'"):
            run(tmp_path, *heldout, model="online_2/06_dpo", base_url=server.url)
        rows = run(tmp_path, *heldout, model="online_2/06_dpo", name="two", base_url=server.url)
        run(tmp_path, *heldout, model="./online_1/06_dpo", base_url=server.url)
    assert [row["model"] for row in rows] == ["06_dpo", "two"]


def test_a_batch_file_is_of_one_benchmark():
    with pytest.raises(UserError, match="--batch-out holds one benchmark's requests"):
        call(stage.main, command(model="m", benchmarks="ifeval,gsm8k", batch_out="b.jsonl"))


def test_compare_says_which_difference_is_beyond_noise(tmp_path, heldout, capsys):
    with (
        FakeServer(lambda messages, request: "tea") as good,
        FakeServer(lambda messages, request: "No.") as bad,
    ):
        run(tmp_path, *heldout, model="base", base_url=bad.url)
        run(tmp_path, *heldout, model="same", base_url=bad.url)
        run(tmp_path, *heldout, model="online", base_url=good.url)
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out/07_results.json")]
    call(results.main, ["base", "online", *out])
    assert "| +100.00 | [+100.00, +100.00] | 6 | yes |" in capsys.readouterr().out
    call(results.main, ["base", "same", *out])
    assert "| +0.00 | [+0.00, +0.00] | 6 | no |" in capsys.readouterr().out
    with pytest.raises(UserError, match="no benchmark of both 'base' and 'other'.*'online'"):
        call(results.main, ["base", "other", *out])


# All benchmarks


def everything(messages, request) -> str:
    """Answers and judgements in one: what each benchmark wants to hear."""
    text = " ".join(turn["content"] for turn in messages)
    if "Python list" in text:
        return str(["YES"] * text.count("#Instruction with "))
    if "[[rating]]" in text:
        return "[[6]]"
    if "[[A>>B]]" in text:
        return "[[A=B]]"
    if "Generated Text" in text:
        return "YES"
    if "Which choice" in text:
        return "Answer: A"
    if "Complete this Python" in text:
        return "```python\ndef one():\n    return 1\n```"
    return "The answer is 2."


ALL = {
    "ifeval": {"Pr(S)": 1, "Ins(L)": 1, "mean(S)": 1},
    "followbench": {"FB SSR": 1, "FB HSR": 1, "FB CSL": 5, "FB L3": 1},
    "infobench": {"InfoBench": 1},
    "mtbench": {"MT-Bench": 6, "MT turn 2": 6},
    "arenahard": {"Arena-Hard": 0.5},
    "mmlu": {"MMLU": 1 / 3},
    "gsm8k": {"GSM8K": 1 / 3},
    "humaneval": {"HumanEval": 1},
}


def test_all_benchmarks_fill_the_table_and_missing_data_is_a_named_gap(tmp_path, folder, capsys):
    with FakeServer(everything) as server:
        rows = run(
            tmp_path,
            model="org/m",
            base_url=server.url,
            data_dir=folder,
            judge_model="j",
            judge_base_url=server.url,
        )
    found = {row["benchmark"]: row for row in rows}
    for benchmark, metrics in ALL.items():
        assert {
            name: found[benchmark]["metrics"][name]["value"] for name in metrics
        } == pytest.approx(metrics), benchmark
        for metric in found[benchmark]["metrics"].values():
            assert metric["n"] > 0
            if metric["interval"] != "n/a":
                assert metric["low"] <= metric["value"] <= metric["high"]
            else:  # of one cluster, or of clusters that are all equal
                assert (metric["low"], metric["high"]) == (None, None)
        assert (
            len(found[benchmark]["data"]["sha256"]) == 64 and found[benchmark]["versions"]["python"]
        )
    assert {row["benchmark"] for row in rows if "gap" in row} == {
        "ceval",
        "ifbench",
        "heldout",
    } and rows[0]["exit"] == 1
    table = (tmp_path / "out/07_results.md").read_text()
    assert (
        "| **m** |" in table
        and "| Qwen2-7B + online DPO | 44.0 | 46.6 |" in table
        and "judge j" in table
    )
    assert "m, ceval: not run" in table and "ceval/ceval-exam" in table
    said = capsys.readouterr().err
    assert "gsm8k: 3 items x 1, 3 requests to send" in said


def test_a_second_run_asks_nothing_and_needs_no_endpoint(tmp_path, folder):
    flags = command("--allow-gaps", model="m", data_dir=folder, judge_model="j")
    with FakeServer(everything) as server:
        first = run(tmp_path, *flags, base_url=server.url, judge_base_url=server.url)
        asked = Counter(server.answered)
    assert set(asked.values()) == {1}
    second = run(
        tmp_path, *flags, base_url="http://127.0.0.1:9/v1", judge_base_url="http://127.0.0.1:9/v1"
    )
    assert [row.get("metrics") for row in first] == [
        row.get("metrics") for row in second
    ] and first[0]["exit"] == 0


def test_without_a_judge_the_judged_benchmarks_are_gaps_and_their_answers_are_kept(
    tmp_path, folder
):
    flags = command(model="m", data_dir=folder, benchmarks="infobench,gsm8k")
    with FakeServer(everything) as server:
        rows = run(tmp_path, *flags, base_url=server.url)
        assert "--judge-model" in rows[0]["gap"] and "metrics" in rows[1] and rows[0]["exit"] == 1
        before = len(server.requests)
        rows = run(
            tmp_path, *flags, base_url=server.url, judge_model="j", judge_base_url=server.url
        )
    assert rows[0]["metrics"]["InfoBench"]["value"] == 1 and rows[0]["exit"] == 0
    assert (
        len(server.requests) == before + 2
    )  # three equal answers are judged once, with two questions


def test_answers_first_and_verdicts_later_are_what_both_at_once_are(tmp_path, folder):
    """The judge comes when the model is gone; an answer that the model refused stays open."""
    benchmarks = "infobench,mtbench,gsm8k"
    flags = command(model="m", data_dir=folder, benchmarks=benchmarks)
    judged, nobody = command(judge_model="j"), "http://127.0.0.1:9/v1"
    refusing = {"refuse": but_not("Do 2.", "too long")}
    with FakeServer(everything, **refusing) as server:
        run(tmp_path, *flags, only="answers", base_url=server.url)
        asked = sum(server.answered.values())
    assert asked == 2 + 2 * 3 + 3
    made = tmp_path / "out/07_items/m"
    assert [path.name for path in made.iterdir()] == ["answers.settings.json"]
    with FakeServer(everything) as judge:
        rows = run(
            tmp_path, *flags, *judged, only="verdicts", base_url=nobody, judge_base_url=judge.url
        )
        assert {request["model"] for request in judge.requests} == {"j"}
    assert {row["exit"] for row in rows} == {0} and (made / "benchmarks.settings.json").exists()
    with FakeServer(everything, **refusing) as server:
        together = run(
            tmp_path / "2", *flags, *judged, base_url=server.url, judge_base_url=server.url
        )
    for apart, whole in zip(rows, together, strict=True):
        same = ("benchmark", "metrics", "unanswered", "refused")
        assert [apart[name] for name in same] == [whole[name] for name in same]
    assert rows[0]["unanswered"] == 1


def test_verdicts_of_a_models_turn_that_did_not_end_leave_open_what_is_not_stored(tmp_path, folder):
    flags = command(model="m", data_dir=folder, benchmarks="gsm8k")
    with FakeServer(everything) as server:
        [row] = run(tmp_path, *flags, limit=2, base_url=server.url)
    (tmp_path / "out/07_items").rename(tmp_path / "earlier")
    [row] = run(tmp_path, *flags, only="verdicts", base_url="http://127.0.0.1:9/v1")
    assert (row["unanswered"], row["refused"], row["exit"]) == (1, 0, 1)


def test_an_unreadable_judge_is_reported_and_never_scored(tmp_path, folder):
    with FakeServer(lambda messages, request: "Hm.") as server:
        rows = run(
            tmp_path,
            model="m",
            base_url=server.url,
            data_dir=folder,
            benchmarks="mtbench,infobench,arenahard,followbench",
            judge_model="j",
            judge_base_url=server.url,
        )
    for row in rows[:3]:
        assert row["metrics"] == {} and row["unparsable"] == 1 and row["n"] == 3
    assert rows[3]["unparsable"] == 25 / 30 and all(
        metric["value"] >= 0 for metric in rows[3]["metrics"].values()
    )


def test_empty_and_truncated_answers_are_counted_and_fail(tmp_path, folder):
    with FakeServer(lambda messages, request: "", finish_reason="length") as server:
        (row,) = run(tmp_path, model="m", base_url=server.url, data_dir=folder, benchmarks="ifeval")
    assert (
        row["metrics"]["Pr(S)"]["value"] == 0
        and row["n"] == 3
        and (row["empty"], row["truncated"]) == (1, 1)
    )


def test_requests_that_keep_failing_are_unanswered_not_wrong(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    flags = command(model="m", data_dir=folder, benchmarks="gsm8k", max_failed=1)

    def fails(request):
        return "500" if "What is 2" in request["messages"][0]["content"] else None

    with FakeServer(lambda *_: "The answer is 1.", faults=fails) as server:
        (row,) = run(tmp_path, *flags, base_url=server.url)
    assert row["exit"] == 1
    assert row["unanswered"] == 1 and row["n"] == 2 and row["metrics"]["GSM8K"]["value"] == 0.5
    done, incomplete = (
        tmp_path / "out/07_items/m/gsm8k.jsonl",
        tmp_path / "out/07_items/m/gsm8k.incomplete.jsonl",
    )
    assert incomplete.exists() and not done.exists()  # nobody takes it for finished
    with FakeServer(lambda *_: "The answer is 1.") as server:
        (row,) = run(tmp_path, *flags, base_url=server.url)
    assert row["exit"] == 0 and len(server.requests) == 1
    assert done.exists() and not incomplete.exists()


def test_a_refused_prompt_is_counted_and_neither_blocks_nor_is_asked_for_ever(tmp_path, folder):
    lines(
        folder / "gsm8k/test.jsonl",
        [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)],
    )
    with FakeServer(everything, refuse=but_not("What is 2 + 1", "too long")) as server:
        flags = command(model="m", base_url=server.url, data_dir=folder, benchmarks="gsm8k,ifeval")
        rows = run(tmp_path, *flags)
    assert (
        rows[0]["unanswered"] == rows[0]["refused"] == 1
        and rows[0]["n"] == 39
        and rows[0]["exit"] == 0
    )
    assert rows[1]["metrics"]["Pr(S)"]["value"] == 1  # the others go on
    table = (tmp_path / "out/07_results.md").read_text()
    assert "| gsm8k | 39 | 1 (1 refused) |" in table and "- made with python 3." in table


def test_allowed_gaps_are_those_that_a_rerun_would_not_fill(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    flags = command("--allow-gaps", model="m", data_dir=folder, judge_model="j")
    with FakeServer(everything) as server, FakeServer(faults=always("500")) as judge:
        rows = run(
            tmp_path,
            *flags,
            base_url=server.url,
            judge_base_url=judge.url,
            benchmarks="ceval,mtbench",
        )
        assert (
            "no data" in rows[0]["gap"]
            and "kept failing" in rows[1]["gap"]
            and rows[0]["exit"] == 1
        )
        (row,) = run(tmp_path / "other", *flags, base_url=server.url, benchmarks="ceval")
        assert row["exit"] == 0


def test_what_is_stored_is_scored_although_another_benchmark_needs_an_endpoint(tmp_path, folder):
    flags = command(model="m", data_dir=folder)
    with FakeServer(everything) as server:
        run(tmp_path, *flags, base_url=server.url, benchmarks="gsm8k")
    (tmp_path / "out/07_results.json").unlink()
    rows = run(tmp_path, *flags, benchmarks="humaneval,gsm8k")
    assert (
        "no server to ask" in rows[0]["gap"]
        and rows[1]["metrics"]["GSM8K"]["n"] == 3
        and rows[0]["exit"] == 1
    )


def test_an_empty_judgement_is_asked_again_at_the_concurrency_given(tmp_path, folder):
    said = iter(["", ""])
    with (
        FakeServer(everything) as server,
        FakeServer(lambda *_: next(said, "YES"), delay=0.02) as judge,
    ):
        (row,) = run(
            tmp_path,
            model="m",
            base_url=server.url,
            data_dir=folder,
            benchmarks="infobench",
            judge_model="j",
            judge_base_url=judge.url,
            concurrency=1,
        )
    assert (
        row["metrics"]["InfoBench"]["value"] == 1 and row["exit"] == 0 and judge.most_in_flight == 1
    )


def test_empty_judgements_are_unreadable_and_a_rerun_does_not_ask_for_them_for_ever(
    tmp_path, folder
):
    flags = command(model="m", data_dir=folder, benchmarks="infobench", judge_model="j")
    with (
        FakeServer(everything) as server,
        FakeServer(lambda messages, _: "" if "short" in str(messages[-1]) else "YES") as judge,
    ):
        (first,) = run(tmp_path, *flags, base_url=server.url, judge_base_url=judge.url)
        # three equal answers: one question read, the other asked as three different samples
        asked = len(judge.requests)
        (second,) = run(tmp_path, *flags, base_url=server.url, judge_base_url=judge.url)
    assert asked == 1 + JUDGE_ATTEMPTS == len(judge.requests)
    assert first["unparsable"] == 1 and first["unanswered"] == 0 and first["exit"] == 0
    assert first["metrics"] == second["metrics"] and first["metrics"]["InfoBench"]["value"] == 1


def test_a_file_scores_only_the_benchmarks_it_answers_and_no_judge_reads_what_is_not_there(
    tmp_path, folder
):
    answers = lines(tmp_path / "answers.jsonl", [{"prompt": "Do 0.", "response": "Done."}])
    with FakeServer(everything) as judge:
        rows = run(
            tmp_path,
            responses=answers,
            data_dir=folder,
            benchmarks="gsm8k,infobench",
            judge_model="j",
            judge_base_url=judge.url,
        )
    assert "answers none of the 3 prompts, such as 'What is 0 + 1?" in rows[0]["gap"]
    assert (
        rows[1]["metrics"]["InfoBench"]["clusters"] == 1
        and rows[1]["missing"] == 2
        and len(judge.requests) == 2
    )
    shown = (tmp_path / "out/07_results.md").read_text()
    assert "100.0* [n/a]" in shown  # of a part of the items
    items = files.read(tmp_path / "out/07_items/answers/infobench.jsonl")
    assert [row["reason"] for row in items][1:] == ["--responses has no answer"] * 2
    lines(answers, [{"prompt": "Do 0.", "response": None}])
    with pytest.raises(UserError, match="answers.jsonl:1: prompt and response must be text"):
        run(tmp_path, responses=answers, data_dir=folder, benchmarks="ifeval")


def test_results_can_be_compared_after_they_have_moved(tmp_path, heldout, capsys):
    with FakeServer(lambda messages, request: "tea") as server:
        for name in "ab":
            run(tmp_path, *heldout, model=name, base_url=server.url)
    (tmp_path / "out").rename(tmp_path / "moved")
    call(results.main, ["a", "b", "--out", str(tmp_path / "moved/07_results.json")])
    assert "| +0.00 |" in capsys.readouterr().out


def test_seeds_average_over_runs_and_cluster_by_item(tmp_path, folder):
    said = itertools.count()
    with FakeServer(lambda messages, request: f"The answer is {next(said) % 2 + 1}.") as server:
        (row,) = run(
            tmp_path,
            model="m",
            base_url=server.url,
            data_dir=folder,
            benchmarks="gsm8k",
            seeds=5,
            temperature=0.7,
        )
    assert len(server.requests) == 15
    metric = row["metrics"]["GSM8K"]
    assert (metric["n"], metric["clusters"], metric["interval"]) == (15, 3, "cluster bootstrap")
    assert row["settings"]["samples"] == 5 and row["settings"]["temperature"] == 0.7


def test_a_limited_run_is_marked_as_partial(tmp_path, folder):
    with FakeServer(everything) as server:
        (row,) = run(
            tmp_path, model="m", base_url=server.url, data_dir=folder, benchmarks="gsm8k", limit=2
        )
    assert row["partial"] and row["n"] == 2 and len(server.requests) == 2
    assert "50.0* [" in (tmp_path / "out/07_results.md").read_text()


def test_a_run_whose_checkers_lack_data_is_marked_as_partial(tmp_path, folder, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)  # no network in tests
    monkeypatch.setattr(nltk.data, "path", [path for path in nltk.data.path if "autoif" in path])
    rows = []
    for key, name, kwargs in (
        ("3", "format:no_whitespace", {"N": None}),
        ("4", "ratio:stop_words", {"percentage": 50, "N": None}),
    ):
        row = {"key": key, "prompt": f"Say {key}."}
        rows.append({**row, "instruction_id_list": [name], "kwargs": [kwargs]})
    lines(folder / "ifbench/IFBench_test.jsonl", rows)
    with FakeServer(everything) as server:
        (row,) = run(
            tmp_path, model="m", base_url=server.url, data_dir=folder, benchmarks="ifbench"
        )
    assert row["partial"] and "* [" in (tmp_path / "out/07_results.md").read_text()


def test_a_limit_spreads_over_the_benchmark_in_whole_clusters():
    items = [{"cluster": str(number // 5), "id": number} for number in range(100)]
    chosen = spread(items, 10)
    assert [item["id"] for item in chosen] == [*range(5), *range(50, 55)]
    assert spread(items, None) == spread(items, 1000) == items


def test_answers_from_a_file_are_scored_and_one_that_lacks_has_failed(tmp_path, folder):
    answers = lines(
        tmp_path / "answers.jsonl",
        [
            {"prompt": "Prompt 0.", "response": "tea"},
            {"prompt": " Prompt 1.\n", "response": "a, b"},
        ],
    )
    (row,) = run(tmp_path, responses=answers, data_dir=folder, benchmarks="ifeval")
    assert (
        row["metrics"]["Pr(S)"]["value"] == pytest.approx(1 / 3)
        and row["n"] == 3
        and row["missing"] == 1
    )


@pytest.mark.parametrize(
    "flags, share",
    [([], 2 / 3), (["--keep-think"], 0), (["--think-tags", "<hm>", "</hm>"], 1)],
)
def test_thoughts_in_a_file_of_answers_are_no_part_of_them(tmp_path, folder, flags, share):
    thoughts = ["<think>\nno, none\n</think>\n\n", "[THINK]no, none[/THINK]", "<hm>no, none</hm>"]
    rows = [{"prompt": f"Prompt {n}.", "response": f"{thoughts[n]}tea"} for n in range(3)]
    answers = lines(tmp_path / "answers.jsonl", rows)
    (row,) = run(tmp_path, *flags, responses=answers, data_dir=folder, benchmarks="ifeval")
    assert row["metrics"]["Pr(S)"]["value"] == pytest.approx(share)


def test_bad_input_ends_with_exit_code_2_and_says_what_to_do(tmp_path):
    for flags, words in (
        (["--benchmarks", "ifevil"], "choose from"),
        (["--data-dir", str(tmp_path / "none")], "is no folder"),
        (
            command(responses=tmp_path / "none.jsonl", benchmarks="ifeval", data_dir=tmp_path),
            "none.jsonl does not exist",
        ),
    ):
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "07_eval.py"),
                "--model",
                "m",
                "--out",
                str(tmp_path / "o.json"),
                *flags,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 2 and words in done.stderr + done.stdout, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--limit", "-1"], "--limit: must be at least 1, not -1"),
        (["--limit", "0"], "--limit: must be"),
        (["--seeds", "0"], "--seeds: must be"),
        (["--seeds", "two"], "--seeds: must be at least 1, not two"),
        (["--queries-per-instruction", "0"], "--queries-per-instruction: must be"),
        (["--queries-per-instruction", "-1"], "--queries-per-instruction: must be"),
        (["--benchmarks", "ifevil"], "'ifevil' is none; choose from"),
        (["--benchmarks", ""], "'' is none; choose from"),
    ],
)
def test_the_parser_refuses_a_flag_out_of_range_and_writes_nothing(tmp_path, flags, words):
    with pytest.raises(UserError, match=re.escape(words)):
        call(stage.main, command(*flags, model="m", out=tmp_path / "out/07_results.json"))
    assert not (tmp_path / "out").exists()


def test_neither_a_model_nor_answers_is_an_error_of_the_parser():
    with pytest.raises(UserError, match="give --model NAME, or --responses"):
        call(stage.main, command(benchmarks="ifeval"))


def test_what_is_there_and_broken_is_an_error_and_no_gap(tmp_path, folder, capsys):
    lines(folder / "gsm8k/test.jsonl", [{"problem": "What?", "answer": "#### 1"}])
    flags = command("--allow-gaps", model="m", data_dir=folder, benchmarks="gsm8k")
    with pytest.raises(UserError, match="gsm8k/test.jsonl has a row without 'question'"):
        run(tmp_path, *flags)
    (folder / "gsm8k/test.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"test.jsonl:1 is not UTF-8 \(the byte 0xff"):
        run(tmp_path, *flags)


def test_without_held_out_constraints_the_benchmarks_are_measured_all_the_same(
    tmp_path, folder, capsys
):
    trained = lines(tmp_path / "03.jsonl", [{**CONSTRAINTS[0], "split": "train"}])
    asked = lines(tmp_path / "q.jsonl", [{"query": QUERIES[0]}])
    flags = command("--allow-gaps", model="m", data_dir=folder, benchmarks="heldout,gsm8k")
    with FakeServer(everything) as server:
        urls = command(base_url=server.url, heldout=trained, queries=asked)
        rows = run(tmp_path, *flags, *urls)
    assert {row["benchmark"]: "metrics" in row for row in rows} == {"heldout": False, "gsm8k": True}
    assert "heldout: left out" in capsys.readouterr().err
    settings = json.loads((tmp_path / "out/07_items/m/benchmarks.settings.json").read_text())
    assert settings["flags"]["benchmarks"] == ["heldout", "gsm8k"]


def test_the_recorded_settings_say_what_was_sent(tmp_path, folder):
    flags = command(data_dir=folder, benchmarks="gsm8k,mtbench,mmlu", judge_model="j")
    with FakeServer(everything) as server:
        urls = command(base_url=server.url, judge_base_url=server.url)
        rows = run(tmp_path, *urls, *flags, model="m", seed=7, max_tokens=99)
    sent = {"top_p": 1.0, "max_tokens": 99, "n": 1, "seed": 7, "samples": 1}
    settings = {row["benchmark"]: row["settings"] for row in rows}
    assert settings["gsm8k"] == {"temperature": 0.0, **sent}
    assert settings["mmlu"] == {"temperature": 0.0, **sent, "mode": "gen"}
    assert settings["mtbench"] == {"temperature": "by category", **sent, "judge": "j"}
    asked = [request for request in server.requests if request["model"] == "m"]
    assert {request["max_tokens"] for request in asked} == {99}


def test_the_paper_can_be_left_out(tmp_path, folder):
    flags = command(model="m", data_dir=folder, benchmarks="gsm8k")
    with FakeServer(everything) as server:
        run(tmp_path, *flags, base_url=server.url)
        assert "LLaMA3-8B base" in (tmp_path / "out/07_results.md").read_text()
        run(tmp_path, *flags, "--no-paper", base_url=server.url)
    table = (tmp_path / "out/07_results.md").read_text()
    assert "LLaMA3-8B base" not in table and "| m | 33.3 [" in table


def test_a_benchmark_is_one_module_and_its_name_in_the_list():
    for name in benchmarks.NAMES:
        settings, module = benchmarks.settings(name), benchmarks.module(name)
        assert settings.columns and callable(module.load) and callable(module.score)
        assert set(settings.ratings) <= set(settings.columns)
        assert hasattr(module, "judge") == bool(settings.judge)
        assert bool(settings.judge) == bool(settings.judge_max_tokens)


def test_kill_9_and_resume_asks_nothing_twice(tmp_path, folder):
    lines(
        folder / "gsm8k/test.jsonl",
        [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(60)],
    )
    started = [sys.executable, str(ROOT / "07_eval.py")]
    started += command(
        model="m",
        data_dir=folder,
        benchmarks="gsm8k",
        concurrency=4,
        out=tmp_path / "out/07_results.json",
    )
    store = tmp_path / "out/completions/07_eval.jsonl"
    with FakeServer(everything, delay=0.05) as server:
        started += ["--base-url", server.url]
        assert killed(started, lambda _: store.exists() and store.read_text().count("\n") >= 15)
        time.sleep(0.2)
        kept, asked = store.read_text().count("\n"), len(server.requests)
        assert 15 <= kept < 60
        done = subprocess.run(started, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) - asked == 60 - kept
    assert json.loads((tmp_path / "out/07_results.json").read_text())[0]["n"] == 60


def test_contamination_is_checked_without_a_model(tmp_path, folder, capsys):
    training = lines(
        tmp_path / "04_sft.jsonl",
        [{"messages": [{"role": "user", "content": "What is 1 + 1? Tell me."}]}],
    )
    out = tmp_path / "07_contamination.json"
    flags = command(benchmarks="gsm8k", data_dir=folder, out=out)
    call(contamination.main, [str(training), *flags])
    found = json.loads(out.read_text())["benchmarks"]["gsm8k"]
    assert (found["tests"], found["overlap"], found["rephrased"]) == (3, 1, None)
    assert "| gsm8k | 3 | 1 | 1 (33.3%) | no judge | no judge |" in capsys.readouterr().out


def test_contamination_shows_the_share_rephrased_beside_the_count(tmp_path, folder, capsys):
    training = lines(tmp_path / "sft.jsonl", [{"text": "What is 2 + 1? Who knows."}])
    out = tmp_path / "07_contamination.json"
    flags = command(benchmarks="gsm8k,heldout", data_dir=folder, out=out)

    def says(messages, request):
        return str("What is 1 + 1" in messages[0]["content"])

    with FakeServer(says) as judge:
        flags += command(judge_model="j", judge_base_url=judge.url)
        call(contamination.main, [str(training), *flags])
    assert "| gsm8k | 3 | 1 | 1 (33.3%) | 1 (33.3%) | 0 |" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["benchmarks"]["gsm8k"]["rephrased share"] == pytest.approx(1 / 3)
    assert report["not checked"] == {} and report["judge"] == "j"


def test_help_answers_within_a_second_and_without_torch():
    code = (
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        "        if name in ('torch', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "sys.argv = ['07_eval.py', '--help']\n"
        f"runpy.run_path({str(ROOT / '07_eval.py')!r}, run_name='__main__')"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and "--benchmarks" in done.stdout, done.stderr
    assert time.monotonic() - started < 2  # a second, and a second for a busy machine


@needs("ifeval/input_data.jsonl", "ifeval/gpt4_answers.jsonl")
def test_the_published_gpt4_answers_through_the_command(tmp_path):
    (row,) = run(
        tmp_path,
        model="gpt-4",
        responses=DATA / "ifeval/gpt4_answers.jsonl",
        data_dir=DATA,
        benchmarks="ifeval",
    )
    shown = {name: round(100 * metric["value"], 1) for name, metric in row["metrics"].items()}
    assert (
        shown["Pr(S)"] == 76.9
        and shown["Pr(L)"] == pytest.approx(79.3, abs=0.25)
        and shown["Ins(S)"] == pytest.approx(83.6, abs=0.15)
    )
    assert shown["Ins(L)"] == pytest.approx(85.4, abs=0.1) and row["missing"] == 1


def test_a_gap_does_not_wipe_out_what_was_measured(tmp_path, folder):
    flags = command(model="m", benchmarks="gsm8k")
    with FakeServer(everything) as server:
        run(tmp_path, *flags, base_url=server.url, data_dir=folder)
        (row,) = run(tmp_path, *flags, base_url=server.url, data_dir=tmp_path)
    assert row["exit"] == 1 and row["metrics"]["GSM8K"]["n"] == 3


def test_a_file_of_single_answers_is_no_conversation(tmp_path, folder):
    answers = lines(tmp_path / "answers.jsonl", [{"prompt": "First 0?", "response": "one"}])
    flags = command(data_dir=folder, benchmarks="mtbench", judge_model="j", responses=answers)
    (row,) = run(tmp_path, *flags)
    assert "a list of 2 answers is wanted" in row["gap"]
    lines(answers, [{"prompt": f"First {n}?", "response": ["one", "two"]} for n in range(3)])
    with FakeServer(everything) as server:
        (row,) = run(tmp_path, *flags, judge_base_url=server.url)
    assert row["metrics"]["MT-Bench"]["value"] == 6 and row["missing"] == 0
