"""Verifiers as rewards: scores, errors, threads, forks, event loops, checkers, probes."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_models

from autoif import files, reward, sandbox
from autoif.files import UserError
from autoif.flags import call
from autoif.reward import Score, Verifiers

SHORT = "def evaluate(response):\n    return len(response.split()) <= 3"
LOWER = "def evaluate(response):\n    return response == response.lower()"
FRAGILE = "def evaluate(response):\n    return response[0] == 'a'"
ROWS = [
    {"id": "short", "instruction": "Use at most three words", "verifiers": [{"code": SHORT}]},
    {
        "id": "lower",
        "instruction": 'Use lower case, and the word "calm"',
        "verifiers": [{"code": LOWER}, {"code": SHORT}],
    },
    {
        "id": "fragile",
        "instruction": "Begin with an a",
        "verifiers": [{"code": LOWER}, {"code": FRAGILE}],
    },
]


@pytest.fixture
def file(tmp_path):
    return tiny_models.write(tmp_path / "03_instructions.jsonl", ROWS)


@pytest.fixture
def verifiers(file):
    loaded = Verifiers.load(file, workers=1)
    yield loaded
    loaded.close()


def starts(monkeypatch) -> list:
    """A list that grows with every sandbox."""
    begun, real = [], sandbox.Sandbox
    monkeypatch.setattr(
        sandbox, "Sandbox", lambda *flags, **o: begun.append(os.getpid()) or real(*flags, **o)
    )
    return begun


def children(pid) -> list[int]:
    """Processes that any thread of `pid` has started."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):  # the thread has ended meanwhile
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


# ---- scores ----


def test_a_score_is_the_share_of_functions_that_pass(verifiers):
    texts = ["one two", "One", "one two three four", "ONE TWO THREE FOUR"]
    ids = ["short", "lower", "lower", "lower"]
    assert verifiers.score(ids, texts) == [
        Score(1.0, True, None),
        Score(0.5, False, None),
        Score(0.5, False, None),
        Score(0.0, False, None),
    ]


def test_the_score_under_several_constraints_is_the_lowest_of_them(verifiers):
    texts = ["one two", "One", "one two three four"]
    assert verifiers.score(["short+lower"] * 3, texts) == [
        Score(1.0, True, None),
        Score(0.5, False, None),
        Score(0.0, False, None),
    ]
    [erred] = verifiers.score(["short+fragile"], [""])
    assert erred.pass_share is None and "IndexError" in erred.error
    with pytest.raises(UserError, match="no constraint 'i9'"):
        verifiers.score(["short+i9"], ["one"])


def test_a_verdict_error_is_no_reward_and_not_zero(verifiers):
    erred, passed = verifiers.score(["fragile", "fragile"], ["", "abc"])
    assert erred.pass_share is None and erred.all_pass is None and "IndexError" in erred.error
    assert passed == Score(1.0, True, None)


def test_an_unknown_id_and_unequal_lengths_are_named(verifiers, file):
    with pytest.raises(UserError, match=f"{file} has no constraint 'i9' .*such as 'short'"):
        verifiers.score(["i9"], ["text"])
    with pytest.raises(UserError, match="1 ids for 2 texts"):
        verifiers.score(["short"], ["a", "b"])
    assert verifiers.score([], []) == []


@pytest.mark.parametrize("row, words", [({"id": "i1"}, ":1 has neither"), (None, "has no row")])
def test_a_file_without_verifiers_is_refused(tmp_path, row, words):
    path = tiny_models.write(tmp_path / "rows.jsonl", [row] if row else [])
    with pytest.raises(UserError, match=words):
        Verifiers.load(path)


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"verifiers": [{"code": SHORT}]}], ":1 has no 'id' and no 'key'"),
        ([ROWS[0], ROWS[1], {**ROWS[1], "id": "short"}], ":3 has the id 'short' of line 1"),
        ([{**ROWS[0], "id": 7}, {**ROWS[0], "id": "7"}], ":2 has the id '7' of line 1"),
    ],
)
def test_a_missing_or_repeated_id_is_refused(tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        Verifiers.load(tiny_models.write(tmp_path / "rows.jsonl", rows))


# ---- one sandbox, many callers ----


def test_the_sandbox_lives_across_calls(verifiers, monkeypatch):
    begun = starts(monkeypatch)
    for _ in range(5):
        assert verifiers.score(["short"], ["one"])[0].all_pass
    assert len(begun) == 1


def test_threads_get_their_own_answers(verifiers, monkeypatch):
    begun = starts(monkeypatch)
    texts = ["word " * (number % 6) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        scores = list(pool.map(lambda text: verifiers.score(["short"], [text])[0], texts))
    assert [score.all_pass for score in scores] == [number % 6 <= 3 for number in range(200)]
    assert len(begun) == 1


def test_an_event_loop_gets_the_same_scores_and_shares_the_jobs(verifiers, monkeypatch):
    texts = [f"word {number} " * (number % 3) for number in range(300)]
    asked, real = [], sandbox.Sandbox.submit
    monkeypatch.setattr(
        sandbox.Sandbox, "submit", lambda self, job: asked.append(job) or real(self, job)
    )

    async def each_alone():
        calls = [verifiers.score_async(["lower"], [text]) for text in texts]
        return [score for [score] in await asyncio.gather(*calls)]

    assert asyncio.run(each_alone()) == verifiers.score(["lower"] * 300, texts)
    assert sum(len(job["inputs"]) for job in asked) == 2 * 2 * 300
    assert len(asked) < 100  # 600 without sharing


def test_a_call_that_is_cancelled_takes_no_other_one_along(verifiers):
    async def work():
        given_up = asyncio.create_task(verifiers.score_async(["short"], ["one"]))
        other = asyncio.create_task(verifiers.score_async(["short"], ["one two"]))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        return await asyncio.wait_for(other, 60)

    assert asyncio.run(work())[0].all_pass
    assert verifiers.score(["short"], ["one"])[0].all_pass


HANGS = "def evaluate(response):\n    while 'loop' in response: pass\n    return True"


def test_texts_that_hang_cost_the_others_nothing_until_many_do_and_that_is_said():
    rows = {"hangs": {"id": "hangs", "verifiers": [{"code": HANGS}]}}
    loaded = Verifiers(rows, workers=1, cpu_seconds=0.05)
    few = loaded.score(["hangs"] * 4, ["loop", "loop", "fine", "fine"])
    assert [score.all_pass for score in few] == [None, None, True, True]
    many = loaded.score(["hangs"] * 10, ["loop"] * 8 + ["fine"] * 2)
    loaded.close()
    assert [score.error for score in many] == ["timeout"] * 8 + [
        "not tried after timeout on 8 of 8 other texts"
    ] * 2


def test_a_function_that_needs_memory_has_the_verdict_of_the_sandbox():
    code = (
        "def evaluate(response):\n    try:\n        return len(bytes(40 << 20)) > 0\n"
        "    except Exception:\n        return False"
    )
    loaded = Verifiers({"large": {"id": "large", "verifiers": [{"code": code}]}}, workers=1)
    for _ in range(3):
        assert loaded.score(["large"], ["one"])[0].all_pass
    loaded.close()


def test_calls_one_after_the_other_start_no_process(verifiers):
    others = set(children(os.getpid()))

    def grandchildren():
        own = set(children(os.getpid())) - others
        return {pid for worker in own for pid in children(worker)}

    assert verifiers.score(["lower"], ["one"])[0].all_pass
    before = grandchildren()
    assert len(before) == 2
    for text in ("one", "two three", "four"):
        assert verifiers.score(["lower"], [text])[0].all_pass
    assert before and grandchildren() == before


def child(verifiers, answers):
    answers.put((os.getpid(), verifiers.score(["lower"], ["one"])[0]))


def test_a_forked_process_has_a_sandbox_of_its_own(verifiers, monkeypatch):
    begun = starts(monkeypatch)
    assert verifiers.score(["lower"], ["one"])[0].all_pass  # the parent's is up before the fork
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    children = [fork.Process(target=child, args=(verifiers, answers)) for _ in range(3)]
    for each in children:
        each.start()
    found = [answers.get(timeout=60) for _ in children]
    for each in children:
        each.join(60)
    assert {score.all_pass for _, score in found} == {True}
    assert len({pid for pid, _ in found}) == 3
    assert verifiers.score(["lower"], ["ONE TWO THREE FOUR"])[0].pass_share == 0.0
    assert begun == [os.getpid()]  # this process started one, before and after


def test_closing_ends_the_workers_and_a_later_call_starts_them_again(verifiers):
    verifiers.score(["short"], ["one"])
    [thread] = verifiers._box.threads[0]._threads
    verifiers.close()
    assert not thread.is_alive()
    assert verifiers.score(["short"], ["one"])[0].all_pass


def test_a_sandbox_that_cannot_be_had_is_told_to_every_caller(verifiers, monkeypatch):
    def refuse(box, worker):
        raise UserError("the sandbox cannot be had here: Landlock")

    monkeypatch.setattr(sandbox.Sandbox, "_admit", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be had"):
            verifiers.score(["short"], ["one"])


def test_an_interpreter_that_ends_without_closing_leaves_no_process(file):
    code = (
        "import subprocess, os\nfrom autoif.reward import Verifiers\n"
        f"verifiers = Verifiers.load({file!r}, workers=1)\nverifiers.score(['short'], ['one'])\n"
        "print(*open(f'/proc/self/task/{os.getpid()}/children').read().split())\n"
        "for task in os.listdir('/proc/self/task'):\n"
        "    print(*open(f'/proc/self/task/{task}/children').read().split())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_models.ROOT, capture_output=True, text=True
    )
    workers = {int(word) for word in done.stdout.split()}
    assert done.returncode == 0 and workers, done.stderr
    deadline = time.monotonic() + 10
    while workers and time.monotonic() < deadline:
        for pid in list(workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                continue
            workers.discard(pid)
    assert not workers


# ---- IFEval's and IFBench's checkers ----

IFEVAL = {
    "key": 7,
    "prompt": "Write without commas and in lower case.",
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{}, {}],
}


def test_rows_with_instruction_ids_are_scored_by_their_owners_checkers(tmp_path):
    loaded = Verifiers.load(tiny_models.write(tmp_path / "ifeval.jsonl", [IFEVAL]))
    texts = ["all is well here in this place", "All is well, here in this place"]
    assert loaded.score(["7", "7"], texts) == [Score(1.0, True, None), Score(0.0, False, None)]


def test_checkers_leave_the_callers_random_numbers_alone(tmp_path):
    import random

    loaded = Verifiers.load(tiny_models.write(tmp_path / "ifeval.jsonl", [IFEVAL]))
    random.seed(5)
    wanted = random.random()
    random.seed(5)
    loaded.score(["7"], ["some text"])
    assert random.random() == wanted


def test_a_row_may_name_checkers_of_both_benchmarks(tmp_path):
    row = {**IFEVAL, "instruction_id_list": ["punctuation:no_comma", "words:start_verb"]}
    loaded = Verifiers.load(
        tiny_models.write(tmp_path / "rows.jsonl", [{**row, "kwargs": [{}] * 2}])
    )
    [score] = loaded.score(["7"], ["Go, now"])
    assert score.pass_share in (0.0, 0.5, None)  # None: NLTK's data are not there


def test_an_unknown_checker_is_named(tmp_path):
    row = {**IFEVAL, "instruction_id_list": ["no:such", "nor:this"]}
    loaded = Verifiers.load(tiny_models.write(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(UserError, match="no checker 'no:such' .* leave the row 7 out"):
        loaded.score(["7"], ["text"])


# ---- probes ----


def test_probes_count_the_functions_and_constraints_that_they_fool(verifiers):
    found = reward.probe(list(verifiers.rows.values()), verifiers.flags)
    assert found["empty answer"] == {
        "functions": 3,  # one errs on it, so nothing is said of its constraint
        "of_functions": 5,
        "ids": ["short", "lower"],
        "of_constraints": 3,
    }
    assert found["constant answer"]["ids"] == []
    assert reward.stuffing(ROWS[1]["instruction"]) == "calm calm calm"


def test_the_command_names_what_is_fooled(file, capsys):
    call(reward.main, ["--probe", file, "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "empty answer: 3 of 5 functions, 2 of 3 constraints (short, lower)"
    assert len(lines) == len(reward.probes(""))


ALWAYS = "def evaluate(response): return True"


def test_rows_that_a_probe_cannot_ask_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "verifiers": [{"code": LONG}]}) + "\n")
    with pytest.raises(UserError, match="rows.jsonl:1 has no 'instruction'.*02_verifiers.py"):
        call(reward.main, ["--probe", str(path)])


LONG = "def evaluate(response): return len(response) > 9"  # as all probes but the empty answer


def kept(tmp_path, *codes, **more):
    """What is left of a constraint with these functions: (its row, the dropped rows)."""
    row = {"id": "i0", "instruction": "Use lower case", "source": "seed", "split": "train"}
    row |= {"verifiers": [{"code": code, "accuracy": 1.0} for code in codes], **more}
    path = tiny_models.write(tmp_path / "02.jsonl", [row, ROWS[1]])
    call(reward.main, ["--probe", path, "--keep", str(tmp_path / "kept.jsonl"), "--workers", "1"])
    rows = {each["id"]: each for each in files.read(tmp_path / "kept.jsonl")}
    assert rows.pop("lower") == ROWS[1]
    return rows.get("i0"), list(files.read(tmp_path / "kept.dropped.jsonl"))


CASES = [
    {"input": "abc", "output": True, "agreement": 1.0, "accuracy": 1.0, "verdicts": ["pass"] * 2},
    {"input": "ABC", "output": False, "agreement": 0.5, "accuracy": 0.5},
]
CASES[1]["verdicts"] = ["fail", "pass"]


def test_functions_that_always_say_the_same_are_left_out_with_what_is_said_of_them(tmp_path):
    more = {"cases": CASES, "back_translations": ["Lower case", "Any"], "nli": ["entails"] * 2}
    row, dropped = kept(tmp_path, LOWER, ALWAYS, **more)
    assert not dropped and [each["code"] for each in row["verifiers"]] == [LOWER]
    assert row["back_translations"] == ["Lower case"] and row["nli"] == ["entails"]
    assert [(case["accuracy"], case["verdicts"]) for case in row["cases"]] == [
        (1.0, ["pass"]),
        (0.0, ["fail"]),
    ]
    assert row["cases"][1]["agreement"] == 0.5


def test_back_translations_of_the_first_functions_stay_where_a_later_one_is_left_out(tmp_path):
    more = {"back_translations": ["Lower case", ""], "nli": ["neutral"]}
    row, dropped = kept(tmp_path, LOWER, LOWER.replace("==", "in"), ALWAYS, **more)
    assert not dropped and len(row["verifiers"]) == 2
    assert row["back_translations"] == ["Lower case", ""] and row["nli"] == ["neutral"]


@pytest.mark.parametrize("flag", ["workers", "cpu_seconds", "memory_mb"])
def test_a_limit_that_is_none_is_refused_by_name(file, flag):
    with pytest.raises(UserError, match=f"{flag} must be more than 0, not -1"):
        Verifiers.load(file, **{flag: -1})


def test_a_constraint_of_constant_functions_only_is_dropped(tmp_path, capsys):
    row, [dropped] = kept(tmp_path, ALWAYS, ALWAYS + "  # again")
    assert row is None and dropped["reason"] == "only constant functions"
    assert "reward: 2 in -> 1 kept (only constant functions 1)" in capsys.readouterr().out
    stats = json.loads((tmp_path / "stats.json").read_text())["reward"]
    assert stats["functions"] == 4 and stats["functions kept"] == 2


def test_a_constraint_that_answers_without_content_obey_is_dropped(tmp_path, capsys):
    row, [dropped] = kept(tmp_path, LONG)
    assert row is None and dropped["id"] == "i0" and dropped["verifiers"][0]["code"] == LONG
    assert "reward: 2 in -> 1 kept (fooled by probes 1)" in capsys.readouterr().out


def test_a_constraint_that_probes_do_not_fool_stays_as_it_is(tmp_path):
    row, dropped = kept(tmp_path, LOWER, LOWER.replace("==", "in"), cases=CASES)
    assert row == next(files.read(tmp_path / "02.jsonl")) and not dropped


def test_of_several_constraints_in_one_each_needs_a_function(tmp_path):
    first, second = {"code": LOWER, "of": "i1"}, {"code": ALWAYS, "of": "i2"}
    row, [dropped] = kept(tmp_path, verifiers=[first, second])
    assert row is None and dropped["reason"] == "only constant functions"
    row, dropped = kept(tmp_path, verifiers=[first, second, {"code": SHORT, "of": "i2"}])
    assert [each["of"] for each in row["verifiers"]] == ["i1", "i2"] and not dropped


def test_a_bad_file_ends_the_command_with_code_2(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "i1"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "autoif.reward", "--probe", str(path)],
        cwd=tiny_models.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "run 02_verifiers.py first" in done.stderr
