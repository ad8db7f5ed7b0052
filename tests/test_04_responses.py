import asyncio
import contextlib
import importlib
import json
import os
import random
import re
import tracemalloc
from collections import Counter

import pytest
import tiny_models
from fake_server import FakeServer

from autoif import files, queries, replies, sandbox, several
from autoif.files import UserError
from autoif.flags import call, parse
from autoif.verifiers import accuracy, join, pass_rate

stage = importlib.import_module("04_responses")
LOWER = "def evaluate(response): return response == response.lower()"
SHORT = "def evaluate(response): return len(response) < 12"
CRASH = "def evaluate(response): return response[99] == ''"
QUERIES = [
    "What is the tallest mountain on earth?",
    "Why do cats sleep for most of the day?",
    "How does one bake a simple bread?",
]


@pytest.mark.parametrize(
    "text, score",
    [
        ("Good answer.\nScore: 8", 8),
        ("Score: 8.5", 8.5),
        ("Score: 8/10", 8),
        ("**Score: 8**", 8),
        ("**Score:** 8 ", 8),
        ("Score: 8 out of 10.", 8),
        ("Rating: 9", 9),
        ("It helps.\n10", 10),
        ("It helps.\n7/10", 7),
        ("Score: {9}", 9),
        ("The score of the first part is 3.\nScore: 9", 9),
        ("Score: 0", 0),
        ("Score: 10.0", 10),
        ("## Score\n8", 8),
        ("Score (out of 10): 3", 3),
        ("Score (0-10): 8", 8),
        ("Score from 0 to 10: 7", 7),
        ("On a scale of 1 to 10: score 6", 6),
        ("Score: 8\n\nNote: I would give a score of 10 if it were longer.", 8),
        ("Score: -1", None),
        ("Score: 10: it answers fully", 10),
        ("Final score: 7 out of 10", 7),
        ("It helps a lot.", None),
        ("Score: great", None),
        ("I give it 9/10", 9),
        ("Helpfulness: 7 / 10.", 7),
        ("They want 3 goals a score.\nI would call it 9 out of 10, all in all.", 9),
        ("Score: 7\n\nScoring guide: 0 = off the topic, 5 = partly, 10 = fully", 7),
        ("Score: 7\nRating scale: 0 to 10", 7),
        ("Score: 9 ... Rating scale: 0 = unrelated, 10 = complete", 9),
        ("Score: 9 (0 = unrelated, 10 = complete)", 9),
        ("Score between 0 and 10: 6", 6),
        # another scale, a range, a choice: nobody can say which score of 0 to 10 is meant
        ("Score: 3/5", None),
        ("Score: 80/100", None),
        ("Rating: 4 out of 5 stars", None),
        ("Score: 6-7", None),
        ("Score: 6~7", None),
        ("Score: between 6 and 7", None),
        ("7 or 8", None),
        ("It is of 9/10/2024.", None),
        ("19/10", None),
        ("Score: 85", None),
        ("", None),
        ("In 1990 it rained.", None),
    ],
)
def test_the_score_is_found_in_every_usual_form(text, score):
    assert replies.score(text) == score


def test_the_prompt_is_query_and_constraint_without_doubled_punctuation():
    assert join(" Name a fruit. ", "Use lower case.") == "Name a fruit.\nUse lower case."


def test_an_error_is_no_pass():
    assert accuracy(["pass", "error", "fail", "pass"], [{}] * 4) == 0.5 and accuracy([], []) == 0.0


def run(tmp_path, answer, *flags, verifiers=(LOWER,), splits=("train",), constraints=None):
    """(rows of 04_responses, rows of 04_sft, stats) for one constraint a split, or for those."""
    source, out, asked = (
        tmp_path / "03.jsonl",
        tmp_path / "04_responses.jsonl",
        tmp_path / "queries.txt",
    )
    rows = [
        {
            "id": f"i{n}",
            "instruction": "Use lower case",
            "split": split,
            "verifiers": [{"code": code, "accuracy": 1.0} for code in verifiers],
        }
        for n, split in enumerate(splits)
    ]
    rows = constraints or rows
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked.write_text("\n".join(QUERIES))
    with FakeServer(answer) as server:
        command = ["--model", "m", "--base-url", server.url, "--in", str(source), "--k", "4"]
        command += ["--out", str(out), "--queries", str(asked), "--queries-per-instruction", "2"]
        call(stage.main, [*command, "--heldout-queries", "0", *flags])
    stats = json.loads((tmp_path / "stats.json").read_text())["04_responses"]
    return list(files.read(out)), list(files.read(tmp_path / "04_sft.jsonl")), stats


def answers(messages, request):
    if "Score: <number>" in messages[0]["content"]:
        return "It answers the question.\nScore: " + (
            "9" if "Answer: all fine" in messages[0]["content"] else "4"
        )
    return ["all fine", "also fine", "NOT FINE", "all fine"]


def test_responses_keep_their_verdicts_and_only_the_good_ones_become_sft_rows(tmp_path):
    responses, sft, stats = run(tmp_path, answers)
    assert len(responses) == 2 and set(responses[0]) == {
        "id",
        "instruction_id",
        "instruction",
        "query",
        "prompt",
        "pass_rate",
        "responses",
    }
    assert [each["verdicts"] for each in responses[0]["responses"]] == [
        ["pass"],
        ["pass"],
        ["fail"],
        ["pass"],
    ]
    assert [each["score"] for each in responses[0]["responses"]] == [9.0, 4.0, None, None]
    assert [row["messages"][1]["content"] for row in sft] == ["all fine"] * 2
    assert sft[0]["messages"][0] == {"role": "user", "content": responses[0]["prompt"]}
    assert (
        stats["dropped"] == {"accuracy": 2, "duplicate": 2, "score under 8": 2} and stats["in"] == 8
    )


def test_queries_that_are_dropped_are_accounted_for_and_the_files_and_the_next_step_named(
    tmp_path, capsys
):
    _, _, stats = run(tmp_path, answers)
    said = capsys.readouterr().out.splitlines()
    [line] = [line for line in said if line.startswith("04_responses queries:")]
    numbers = [int(number) for number in re.findall(r"\d+", line.split(":")[1])]
    came, kept, *lost = numbers
    assert came == len(QUERIES) == kept + sum(lost) and kept == stats["queries"]
    for reason, count in stats["queries_dropped"].items():
        assert f"{reason} {count}" in line
    out, sft = tmp_path / "04_responses.jsonl", tmp_path / "04_sft.jsonl"
    assert said[-1].startswith(f"wrote {out} and {sft}; next: python 05_sft.py --in {sft}")


def test_without_scores_every_accepted_response_is_kept_and_nobody_is_asked(tmp_path, capsys):
    _, sft, stats = run(tmp_path, answers, "--no-score")
    assert len(sft) == 4 and "score under 8" not in stats["dropped"]
    assert "no quality scores" in capsys.readouterr().out


def test_without_a_judge_a_response_is_scored_by_whether_it_is_on_its_query(tmp_path):
    asked = []

    def answer(messages, request):
        asked.append(messages[0]["content"])
        return ["the mountain is far", "they sleep and sleep", "use bread", "BREAD"]

    nearest = {"mountain": 0, "cats": 1, "bread": 2}
    responses, sft, stats = run(tmp_path, answer, "--score", "topic")
    for row in responses:
        [own] = [number for word, number in nearest.items() if word in row["query"]]
        expected = [0.0, 0.0, 0.0, None]
        expected[own] = 10.0
        assert [each["score"] for each in row["responses"]] == expected
    assert len(sft) == 2 and stats["dropped"] == {"accuracy": 2, "score under 8": 4}
    assert stats["share above 8"] == pytest.approx(1 / 3, abs=1e-4)
    assert not any("Score:" in text for text in asked)


def test_accuracy_must_be_more_than_half_of_the_functions(tmp_path):
    responses, sft, _ = run(
        tmp_path,
        lambda *_: ["a long lower case text", "short", "SHORT", "no"],
        "--no-score",
        verifiers=(LOWER, SHORT),
    )
    assert [each["accuracy"] for each in responses[0]["responses"]] == [0.5, 1.0, 0.5, 1.0]
    assert [row["messages"][1]["content"] for row in sft[:2]] == ["short", "no"]


def refused(tmp_path, words, answer, *flags, **more):
    """Asserts that nothing is kept, that the funnel says why, and that no output is left."""
    with pytest.raises(UserError, match="nothing was kept, nothing is written.*" + words):
        run(tmp_path, answer, *flags, **more)
    assert not (tmp_path / "04_responses.jsonl").exists()
    assert not (tmp_path / "04_sft.jsonl").exists() and not (tmp_path / "stats.json").exists()


def test_a_crashing_function_is_an_error_not_a_failure(tmp_path):
    refused(tmp_path, "verdict errors 8", answers, "--no-score", verifiers=(CRASH,))
    dropped = list(files.read(tmp_path / "04_responses.dropped.jsonl"))
    assert [row["verdicts"] for row in dropped] == [["error"]] * 8


def test_the_released_flags_keep_what_a_mean_without_errors_keeps(tmp_path):
    """There pass and error is 1.0, fail and error 0; here 0.5 and 0, and above 0 is kept."""
    flags, never = ("--min-accuracy", "0", "--no-score"), "def evaluate(response): return False"
    assert len(run(tmp_path, answers, *flags, verifiers=(LOWER, CRASH))[1]) == 4
    with pytest.raises(UserError, match="nothing was kept.*verdict errors 8"):
        run(tmp_path, answers, *flags, verifiers=(never, CRASH))


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "content_filter"])
def test_truncated_answers_are_counted_apart_and_never_trained_on(tmp_path, monkeypatch, reason):
    defaults = FakeServer.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "finish_reason", reason)
    refused(tmp_path, "truncated 8", answers, "--no-score")


def test_an_answer_that_never_came_is_accounted_for(tmp_path):
    _, _, stats = run(
        tmp_path, lambda *_: ["all fine", "<think>for ever", "", "<think>x</think>NO"], "--no-score"
    )
    assert stats["dropped"] == {"no answer": 4, "accuracy": 2} and stats["in"] == 8


def test_a_judgement_that_was_cut_off_has_no_score(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage,
        "drop_reason",
        lambda response, *_: None if response["text"] == "all fine" else "other",
    )
    monkeypatch.setitem(FakeServer.__init__.__kwdefaults__, "finish_reason", "length")
    refused(tmp_path, "no score found 4", answers)


def test_the_responses_are_there_before_the_file_that_says_the_stage_is_done(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(
        "os.replace", lambda source, target: order.append(target.name) or replace(source, target)
    )
    run(tmp_path, answers)
    assert order.index("04_responses.jsonl") < order.index("04_sft.jsonl")


def test_a_judgement_without_a_score_is_a_counted_drop(tmp_path):
    def judge_without_score(messages, request):
        return "Hm." if "Score:" in messages[0]["content"] else "fine indeed"

    refused(tmp_path, "duplicate 6, no score found 2", judge_without_score)


def test_the_supervisor_is_asked_through_a_template_and_the_sample_keeps_the_bare_prompt(tmp_path):
    asked = []

    def answer(messages, request):
        asked.append(messages[0]["content"])
        return "all fine"

    _, sft, _ = run(tmp_path, answer, "--no-score")
    for text in asked:
        assert "strictly" in text and "Use lower case" in text
        assert any(query in text for query in QUERIES)
    bare = {row["messages"][0]["content"] for row in sft}
    assert bare <= {join(query, "Use lower case") for query in QUERIES} and not bare & set(asked)
    asked.clear()
    (tmp_path / "bare").mkdir()
    run(tmp_path / "bare", answer, "--no-score", "--bare-prompt")
    assert set(asked) == bare


def test_the_online_loop_asks_the_bare_prompts_of_the_samples_each_time_the_same(tmp_path):
    responses, sft, _ = run(tmp_path, answers, "--no-score", splits=("train", "train", "heldout"))
    prompts = {row["id"]: row["prompt"] for row in responses}
    samples = [row for row in sft if not row["id"].startswith(("i0.1", "i1.0"))]
    assert {row["id"].rpartition(".")[0] for row in samples} == {"i0.0", "i1.1"}
    path = tmp_path / "some_sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in samples[::-1]))
    common = ["--model", "policy", "--in", str(tmp_path / "03.jsonl"), "--no-score", "--k", "4"]
    for iteration in ("1", "2"):
        out = tmp_path / iteration / "04_responses.jsonl"
        with FakeServer(answers) as server:
            flags = ["--base-url", server.url, "--sft", str(path), "--out", str(out)]
            call(stage.main, [*common, *flags, "--seed", iteration])
        rows = list(files.read(out))
        assert {row["id"]: row["prompt"] for row in rows} == {
            each: prompts[each] for each in ("i0.0", "i1.1")
        }
        assert {row["query"] for row in rows} <= set(QUERIES)
        asked = {request["messages"][0]["content"] for request in server.requests}
        assert asked == {row["prompt"] for row in rows}


def test_samples_of_another_run_are_refused(tmp_path):
    run(tmp_path, answers, "--no-score")
    path = tmp_path / "other.jsonl"
    message = {"role": "user", "content": "What is new?\nUse upper case"}
    path.write_text(json.dumps({"id": "x.0.0", "instruction_id": "i0", "messages": [message]}))
    flags = ["--model", "m", "--in", str(tmp_path / "03.jsonl"), "--sft", str(path)]
    with pytest.raises(UserError, match="other.jsonl:1: 'i0' is no train constraint"):
        call(stage.main, [*flags, "--out", str(tmp_path / "x" / "04_responses.jsonl")])


def test_the_samples_that_are_read_are_never_overwritten(tmp_path):
    with pytest.raises(UserError, match="would be overwritten"):
        out = str(tmp_path / "04_responses.jsonl")
        call(stage.main, ["--model", "m", "--sft", str(tmp_path / "04_sft.jsonl"), "--out", out])


def test_a_function_is_one_job_with_the_responses_to_all_prompts_of_its_constraint(
    tmp_path, monkeypatch
):
    jobs, real = [], sandbox.Sandbox.run

    async def spy(box, given):
        given = list(given)
        jobs.extend(given)
        return await real(box, given)

    monkeypatch.setattr(sandbox.Sandbox, "run", spy)
    run(tmp_path, answers, "--no-score", verifiers=(LOWER, SHORT), splits=("train", "train"))
    # of both constraints in one, where both wait at the same time
    sizes = {LOWER: [], SHORT: []}
    for job in jobs:
        if len(job["inputs"]) != 2:  # of the trial before anything is asked
            sizes[job["code"]].append(len(job["inputs"]))
    assert sizes[LOWER] in ([8, 8], [16]) and sizes[SHORT] in ([8, 8], [16])


def test_a_function_that_cannot_be_called_is_named_before_anything_is_asked(tmp_path):
    for code, words in (
        ("def check(response): return True", "no evaluate"),
        ("import no_such_module\n" + LOWER, "missing module"),
        ("def evaluate(response) return", "syntax"),
    ):
        with pytest.raises(UserError, match=f"i0, function 2 .Use lower case.: {words}"):
            run(tmp_path, lambda *_: pytest.fail("asked"), verifiers=(LOWER, code))


@pytest.mark.parametrize(
    "splits, words",
    [
        (("Train",), "03.jsonl:1: 'split' must be one of heldout, train, but is \"Train\""),
        (("heldout",), "has no row with split 'train'"),
    ],
)
def test_a_split_that_is_none_is_an_error(tmp_path, splits, words):
    with pytest.raises(UserError, match=words):
        run(tmp_path, answers, splits=splits)


def test_a_row_says_which_share_of_its_responses_is_accepted(tmp_path):
    responses, _, stats = run(tmp_path, answers, "--no-score")
    assert [row["pass_rate"] for row in responses] == [0.75, 0.75]
    assert stats["prompts mixed"] == 2 and pass_rate([], 0.5) is None


def test_the_share_scored_above_8_stands_beside_the_papers(tmp_path):
    _, _, stats = run(tmp_path, answers)
    assert stats["raw samples"] == 8 and stats["scored"] == 4 and stats["share above 8"] == 0.5
    assert stats["paper_table_5"]["GPT-4"] == [210_000, 25_000, 15_000, 0.34]


def test_held_out_queries_are_never_trained_on_and_hang_on_the_query_alone(tmp_path, monkeypatch):
    many = [f"What should I know about the number {n} today?" for n in range(100)]
    monkeypatch.setattr(stage, "QUERIES", many, raising=False)
    monkeypatch.setitem(globals(), "QUERIES", many)
    run(tmp_path, answers, "--no-score", "--heldout-queries", "0.2")
    kept = list(files.read(tmp_path / "04_queries.jsonl"))
    assert set(kept[0]) == {"query", "langdetect", "split"}
    held = queries.kept(str(tmp_path / "04_queries.jsonl"), "heldout")
    train = queries.kept(str(tmp_path / "04_queries.jsonl"), "train")
    assert 10 <= len(held) <= 30 and not set(held) & set(train) and len(held + train) == 100
    asked = {row["query"] for row in files.read(tmp_path / "04_responses.jsonl")}
    assert asked <= set(train)
    assert [queries.side(query, 0.2) for query in many[::-1]].count("heldout") == len(held)
    (tmp_path / "plain.txt").write_text("\n".join(many))
    assert queries.kept(str(tmp_path / "plain.txt"), "heldout") == many


def test_held_out_constraints_are_not_answered(tmp_path):
    responses, _, _ = run(tmp_path, answers, "--no-score", splits=("heldout", "train"))
    assert {row["instruction_id"] for row in responses} == {"i1"}


def test_output_is_byte_identical_whatever_the_concurrency(tmp_path):
    for concurrency in ("1", "7"):
        run(
            tmp_path / concurrency if not (tmp_path / concurrency).mkdir() else None,
            answers,
            "--concurrency",
            concurrency,
        )
    for name in ("04_responses.jsonl", "04_sft.jsonl", "04_responses.dropped.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "7" / name).read_bytes()


class Stub(contextlib.AsyncExitStack):
    """A client that allows 64 prompts under way and answers with 10 KB a sample."""

    ahead = 64

    async def ask(self, prompt, k):
        await asyncio.sleep(0)
        text = f"fine {len(prompt)} " * 1000
        return [{"index": n, "text": f"{n} {text}", "finish_reason": "stop"} for n in range(k)]


def test_what_is_in_memory_does_not_grow_with_the_number_of_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(stage.llm, "Client", lambda *_: Stub())
    source, asked, out = tmp_path / "03.jsonl", tmp_path / "queries.txt", tmp_path / "04.jsonl"
    rows = [constraint(f"i{n}", "Use lower case", LOWER) for n in range(100)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked.write_text("\n".join(f"What should I know about the number {n}?" for n in range(16)))
    flags = ["--in", str(source), "--queries", str(asked), "--out", str(out), "--language", "any"]
    tracemalloc.start()
    call(stage.main, ["--model", "m", "--k", "4", "--heldout-queries", "0", "--no-score", *flags])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.stat().st_size > 50e6 and peak < 20e6


# ---- several constraints in one ----


def constraint(identity, instruction, *codes):
    verifiers = [{"code": code, "accuracy": 1.0} for code in codes]
    return {"id": identity, "instruction": instruction, "split": "train", "verifiers": verifiers}


UPPER = "def evaluate(response): return response == response.upper()"
LONG = "def evaluate(response): return len(response) > 5"
CONSTRAINTS = [
    constraint("case", "Use lower case", LOWER, LOWER + "  # again"),
    constraint("size", "Use fewer than 12 characters", SHORT, LONG, SHORT + "  # again"),
]


def joined(tmp_path, constraints, numbers, *flags):
    """The rows that autoif.several makes of constraints."""
    source, out = tmp_path / "one.jsonl", tmp_path / "several.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in constraints))
    flags = ["--out", str(out), "--constraints", numbers, *flags]
    call(several.main, [str(source), *flags])
    return list(files.read(out))


def test_a_row_draws_how_many_constraints_it_has_and_from_different_families(tmp_path):
    rows = []
    for number in range(12):
        row = constraint(f"i{number}", f"Constraint {number}", LOWER)
        rows.append({**row, "family": f"family {number // 3}"})
    drawn = joined(tmp_path, rows, "1-3", "--draws", "9")
    counts, seen = Counter(), set()
    for row in drawn:
        ids, families = row["id"].split("+"), row["family"].split(" + ")
        assert len(set(families)) == len(families) == len(ids)
        assert families == [f"family {int(each[1:]) // 3}" for each in ids]
        counts[len(ids)] += 1
        seen.update(ids[1:])
    # one that draws none comes once, however often
    assert set(counts) == {1, 2, 3} and 8 <= counts[1] <= 12 < min(counts[2], counts[3])
    assert len(seen) == 12 and len({row["id"] for row in drawn}) == len(drawn)
    assert joined(tmp_path, rows, "1-3", "--draws", "9") == drawn


def test_the_draws_are_even(tmp_path):
    families = {f"family {n}": [{"id": n, "family": f"family {n}"}] for n in range(4)}
    counts = Counter()
    for number in range(1200):
        row = {"family": f"family {number % 4}"}
        counts[len(several.companions(row, random.Random(f"0 {number}"), families, (1, 3)))] += 1
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 340


def test_held_out_constraints_are_joined_with_held_out_ones_alone(tmp_path):
    rows = []
    for number in range(12):
        row = constraint(f"i{number}", f"Constraint {number}", LOWER)
        split = "heldout" if number % 3 == 0 else "train"
        rows.append({**row, "family": f"family {number}", "split": split})
    drawn = joined(tmp_path, rows, "2", "--draws", "5")
    for row in drawn:
        assert {int(each[1:]) % 3 == 0 for each in row["id"].split("+")} == {
            row["split"] == "heldout"
        }
    assert Counter(row["split"] for row in drawn)["heldout"] > 8


def test_one_constraint_alone_is_written_as_it_was(tmp_path):
    rows = [{**row, "cases": [], "nli": ["neutral"]} for row in CONSTRAINTS]
    assert joined(tmp_path, rows, "1") == rows
    assert joined(tmp_path, rows, "1", "--draws", "3") == rows


def test_several_constraints_are_one_row_for_every_stage(tmp_path):
    first, second = joined(tmp_path, CONSTRAINTS, "2")
    assert (first["id"], second["id"]) == ("case+size", "size+case")
    assert first["instruction"] == "Use lower case\nUse fewer than 12 characters"
    assert [each["of"] for each in first["verifiers"]] == ["case"] * 2 + ["size"] * 3
    assert set(first) == {"id", "instruction", "verifiers", "family", "split"}


def test_a_row_of_one_constraint_names_no_other(tmp_path):
    responses, _, _ = run(tmp_path, answers, constraints=CONSTRAINTS)
    first = responses[0]
    assert first["id"] == "case.0" and first["instruction_id"] == "case"
    assert list(first)[:3] == ["id", "instruction_id", "instruction"]
    assert first["responses"][0] == {
        "text": "all fine",
        "verdicts": ["pass", "pass"],
        "accuracy": 1.0,
        "score": 9.0,
        "finish_reason": "stop",
    }


def test_a_response_has_to_pass_each_of_its_constraints(tmp_path):
    texts = ["all fine", "all fine, but long", "NOT FINE", "ok"]
    rows = joined(tmp_path, CONSTRAINTS, "2")
    responses, sft, stats = run(tmp_path, lambda *_: texts, "--no-score", constraints=rows)
    assert [row["instruction_id"] for row in responses] == ["case+size"] * 2 + ["size+case"] * 2
    row = responses[0]
    assert row["id"] == "case+size.0"
    assert row["instruction"] == "Use lower case\nUse fewer than 12 characters"
    assert row["prompt"] == f"{row['query']}\n{row['instruction']}"
    # of five functions three, one, three and four pass: the mean would keep the second and third
    assert [each["accuracy"] for each in row["responses"]] == [1.0, 0.3333, 0.0, 0.6667]
    assert row["responses"][1]["verdicts"] == ["pass", "pass", "fail", "pass", "fail"]
    assert row["pass_rate"] == 0.5 and stats["prompts of 2 constraints mixed"] == 4
    # the same functions said so whichever of the two constraints drew the other
    assert [each["accuracy"] for each in responses[2]["responses"]] == [1.0, 0.3333, 0.0, 0.6667]
    assert sft[0]["instruction_id"] == "case+size"
    assert {row["messages"][1]["content"] for row in sft} == {"all fine", "ok"}


def test_constraints_that_no_response_passes_together_are_dropped_under_their_own_name(tmp_path):
    at_odds = [constraint("low", "Use lower case", LOWER), constraint("up", "Use capitals", UPPER)]
    rows = joined(tmp_path, at_odds, "1-2", "--draws", "4")
    assert {len(row["id"].split("+")) for row in rows} == {1, 2}

    def answer(messages, request):
        return ["all fine", "NOT FINE", "Neither", "all fine"]

    responses, sft, stats = run(tmp_path, answer, "--no-score", constraints=rows)
    several_of = [row for row in responses if "+" in row["instruction_id"]]
    assert 0 < len(several_of) < len(responses)
    assert {row["pass_rate"] for row in several_of} == {0.0}
    assert stats["dropped"]["no response passes all constraints"] == 4 * len(several_of)
    assert stats["prompts of 2 constraints all fail"] == len(several_of)
    assert not any("+" in row["instruction_id"] for row in sft)


def test_the_online_loop_asks_prompts_of_several_constraints_again(tmp_path):
    rows = joined(tmp_path, CONSTRAINTS, "2")
    responses, _, _ = run(tmp_path, answers, "--no-score", constraints=rows)
    out = tmp_path / "online_1" / "04_responses.jsonl"
    flags = ["--model", "policy", "--no-score", "--k", "4", "--out", str(out)]
    flags += ["--in", str(tmp_path / "03.jsonl"), "--sft", str(tmp_path / "04_sft.jsonl")]
    with FakeServer(answers) as server:
        call(stage.main, [*flags, "--base-url", server.url])
    assert list(files.read(out)) == responses


class Counted(sandbox.Sandbox):
    """A sandbox that notes its jobs."""

    async def run(self, jobs):
        self.jobs = [*getattr(self, "jobs", []), *jobs]
        return await super().run(jobs)


def together(jobs):
    """(answers to jobs that come at the same time, how many jobs the sandbox saw)"""

    async def judged():
        async with Counted(sandbox.Flags()) as box:
            gathered = sandbox.Together(box)
            answers = await asyncio.gather(*(gathered.run([job]) for job in jobs))
            return [answer for [answer] in answers], len(box.jobs)

    return asyncio.run(judged())


def test_rows_that_share_a_constraint_load_its_functions_together():
    jobs = []
    for number in range(40):
        code = (LOWER, SHORT)[number % 2]
        jobs.append({"code": code, "inputs": ["ok", "NO, it is long", f"{number}"]})
    answers, count = together(jobs)
    wanted = {"verdicts": ["pass", "fail", "pass"], "error": None}
    assert answers == [wanted] * 40 and count <= 4


def test_texts_that_disqualify_a_function_do_not_do_so_for_other_rows():
    code = "def evaluate(response):\n    while response == 'x': pass\n    return True"
    # two time-outs with nothing answered would leave the later texts untried
    jobs = [{"code": code, "inputs": texts} for texts in (["x"] * 2, ["fine"] * 3)]
    answers, _ = together(jobs)
    assert answers[0]["verdicts"] == ["error"] * 2 and answers[0]["error"] == "timeout"
    assert answers[1] == {"verdicts": ["pass"] * 3, "error": None}


def test_a_sample_of_constraints_that_are_not_there_is_named(tmp_path):
    run(tmp_path, answers, "--no-score", constraints=CONSTRAINTS)
    path = tmp_path / "other.jsonl"
    message = {"role": "user", "content": "What is new?\nUse lower case"}
    sample = {"id": "case+gone.0.0", "instruction_id": "case+gone", "messages": [message]}
    path.write_text(json.dumps(sample))
    flags = ["--model", "m", "--in", str(tmp_path / "03.jsonl"), "--sft", str(path)]
    with pytest.raises(UserError, match="other.jsonl:1: 'case.gone' is no train constraint"):
        call(stage.main, [*flags, "--out", str(tmp_path / "x" / "04_responses.jsonl")])


def test_more_constraints_than_families_are_refused(tmp_path):
    with pytest.raises(UserError, match="a prompt of 3 needs so many families.* are of 2 only"):
        joined(tmp_path, CONSTRAINTS, "1-3")
    assert not (tmp_path / "several.jsonl").exists()


@pytest.mark.parametrize("value", ["0", "3-1", "1-", "-2", "two", "1-2-3"])
def test_a_number_of_constraints_that_is_none_is_refused(value):
    with pytest.raises(UserError, match="--constraints must be a number or LOW-HIGH"):
        several.span(value)
    assert several.span("1-3") == (1, 3) and several.span("2") == (2, 2)


def load(tmp_path, text, **limits):
    path = tmp_path / "queries"
    path.write_text(text, encoding="utf-8")
    rows, dropped = queries.load(
        str(path),
        **{"min_chars": 20, "max_chars": 300, "language": "en", "heldout_share": 0.0, **limits},
    )
    return [row["query"] for row in rows], dropped


def test_queries_come_from_sharegpt_jsonl_and_text(tmp_path):
    sharegpt = [
        {
            "id": "a",
            "conversations": [
                {"from": "gpt", "value": "Hi!"},
                {"from": "human", "value": QUERIES[0]},
                {"from": "human", "value": QUERIES[1]},
            ],
        },
        {"id": "b", "conversations": []},
    ]
    assert load(tmp_path, json.dumps(sharegpt)) == ([QUERIES[0]], {"no human turn": 1})
    assert (
        load(tmp_path, "\n".join(json.dumps({"query": query}) for query in QUERIES))[0] == QUERIES
    )
    assert load(tmp_path, "\n".join(QUERIES + QUERIES[:1])) == (QUERIES, {"duplicate": 1})


def test_kept_queries_are_read_again_without_detecting_their_language(tmp_path, monkeypatch):
    run(tmp_path, answers)
    monkeypatch.setattr("langdetect.detect", None)
    kept = tmp_path / "04_queries.jsonl"
    assert load(tmp_path, kept.read_text()) == (QUERIES, {})
    assert load(tmp_path, kept.read_text(), language="de") == ([], {"language": len(QUERIES)})


def test_a_cut_off_sharegpt_file_yields_its_whole_records_and_a_warning(tmp_path, capsys):
    text = json.dumps([{"conversations": [{"from": "human", "value": query}]} for query in QUERIES])
    assert load(tmp_path, text[: text.rindex("human")])[0] == QUERIES[:2]
    assert "breaks off after 2 whole records" in capsys.readouterr().err


def test_a_broken_record_is_named_and_not_taken_for_the_end(tmp_path):
    records = [
        json.dumps({"conversations": [{"from": "human", "value": query}]}) for query in QUERIES
    ]
    with pytest.raises(UserError, match="record 2 is no JSON"):
        load(tmp_path, f'[{records[0]}, {{"score": NaN}}, {records[1]}]')


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    text = json.dumps([{"conversations": [{"from": "human", "value": query}]} for query in QUERIES])
    assert load(tmp_path, "\ufeff" + text)[0] == load(tmp_path, "\n \n" + text)[0] == QUERIES
    assert load(tmp_path, "\ufeff" + "\n".join(QUERIES))[0] == QUERIES


def test_a_language_includes_its_variants(tmp_path):
    assert (
        len(
            load(
                tmp_path,
                "如何用最简单的方法在家里烤面包？请一步一步地说明。",
                min_chars=2,
                language="zh",
            )[0]
        )
        == 1
    )


def test_the_released_filters_on_length_and_language(tmp_path):
    kept, dropped = load(
        tmp_path,
        "\n".join(
            ["Too short", "x " * 200, "Quelle est la plus haute montagne du monde ?", QUERIES[0]]
        ),
    )
    assert kept == QUERIES[:1] and dropped == {"length": 2, "language": 1}


def test_no_query_left_is_an_error_that_names_the_flags(tmp_path):
    with pytest.raises(UserError, match="none is left.*--min-chars"):
        run(tmp_path, answers, "--min-chars", "290")


def test_the_studys_online_loop_is_scored_though_the_full_runs_is_not():
    """The flags that run_all.sh gives it, and behind them those of a settings file."""
    folder = tiny_models.ROOT
    line = (folder / "run_all.sh").read_text().split('served "$policy" python 04_responses.py')[1]
    [given] = re.findall(r"--score \w+", line.partition("\n")[0])
    [own] = re.findall(
        r'^FLAGS_04_ONLINE="(.*)"$', (folder / "study/settings.sh").read_text(), re.M
    )
    flags = ["--model", "m", "--sft", "04_sft.jsonl", "--out", "online_1/04.jsonl", *given.split()]
    assert parse(stage.main, flags)[1].score == "none"
    assert parse(stage.main, [*flags, *own.split()])[1].score == "topic"


def test_few_held_out_families_are_joined_as_far_as_they_reach(tmp_path):
    rows = []
    for number in range(5):
        row = constraint(f"i{number}", f"Use fewer than {number + 9} words", SHORT)
        rows.append({**row, "family": str(number), "split": "heldout" if number == 4 else "train"})
    *train, heldout = joined(tmp_path, rows, "2-3")
    assert heldout["id"] == "i4" and all("+" in row["id"] for row in train)
