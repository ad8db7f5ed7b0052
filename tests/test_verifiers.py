"""Verifiers: averaged, run as one fan-out, and tried by `python -m autoif.verifiers FILE`."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoif import sandbox, verifiers
from autoif.files import UserError
from autoif.flags import call

ROOT = Path(__file__).resolve().parents[1]
LOWER = "def evaluate(response):\n    return response == response.lower()"
SHORT = "def evaluate(response):\n    return len(response) < 4"
BROKEN = "def evaluate(response) return"
CRASH = "def evaluate(response): return 1 / 0"
ON_TEXT = "def evaluate(response):\n    return 1 / len(response) < 1"
UNKNOWN = "def evaluate(response):\n    return respons.islower()"


def functions(*codes):
    return [{"code": code} for code in codes]


def test_accuracy_is_the_share_of_passes_and_an_error_is_none():
    assert verifiers.accuracy(["pass", "fail", "error"], functions(1, 2, 3)) == 0.3333
    assert verifiers.accuracy([], []) == 0.0


def test_the_accuracy_under_several_constraints_is_that_of_the_one_obeyed_least():
    several = [{"of": "i1"}, {"of": "i2"}, {"of": "i1"}, {"of": "i2"}]
    assert verifiers.accuracy(["pass", "pass", "pass", "fail"], several) == 0.5
    assert verifiers.constraints({"verifiers": several}) == 2
    assert verifiers.constraints({"verifiers": functions(1, 2)}) == 1


def test_the_pass_rate_is_the_share_of_responses_above_the_threshold_and_none_without_any():
    responses = [{"accuracy": share} for share in (1.0, 0.5, 0.75)]
    assert verifiers.pass_rate(responses) == 0.6667
    assert verifiers.pass_rate(responses, 0.4) == 1.0
    assert verifiers.pass_rate([]) is None


async def on_a_box(work, *arguments):
    async with sandbox.Sandbox(sandbox.Flags(workers=1)) as box:
        return await work(box, *arguments)


def test_a_text_has_the_verdict_of_each_function():
    texts = ["abc", "Abc", "abcdef", "Abcdef"]
    assert asyncio.run(on_a_box(verifiers.judge, functions(LOWER, SHORT), texts)) == [
        ["pass", "pass"],
        ["fail", "pass"],
        ["pass", "fail"],
        ["fail", "fail"],
    ]
    assert asyncio.run(on_a_box(verifiers.judge, functions(LOWER), [])) == []


def test_functions_that_cannot_be_called_are_refused_before_money_is_spent(capsys):
    def row(number, code):
        instruction = f"Constraint {number}"
        return {"id": f"o{number}", "instruction": instruction, "verifiers": functions(code)}

    asyncio.run(on_a_box(verifiers.refuse_broken, [row(0, LOWER), row(1, CRASH)], "03.jsonl"))
    warned = "warning: 03.jsonl: o1, function 1 (Constraint 1): exception: ZeroDivisionError"
    assert warned in capsys.readouterr().err
    broken = [row(number, BROKEN) for number in range(12)]
    with pytest.raises(UserError) as error:
        asyncio.run(on_a_box(verifiers.refuse_broken, broken, "03.jsonl"))
    lines = str(error.value).splitlines()
    assert "cannot be called; mend or delete them" in lines[0] and len(lines) == 12
    assert "o0, function 1 (Constraint 0): syntax" in lines[1] and lines[-1] == "  and 2 more"


# ---- the command ----


def own(tmp_path, *codes, split="train"):
    path = tmp_path / "own.jsonl"
    rows = []
    for n, code in enumerate(codes):
        row = {"id": f"o{n}", "instruction": f"Constraint {n}", "verifiers": [{"code": code}]}
        rows.append({**row, "split": split} if split else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_check_tries_own_functions_and_names_what_cannot_be_called(tmp_path, capsys):
    call(verifiers.main, [own(tmp_path, LOWER, LOWER)])
    assert "all 2 functions of 2 constraints can be called" in capsys.readouterr().out
    misnamed = LOWER.replace("evaluate", "check")
    missing = "import no_such_module\n" + LOWER
    with pytest.raises(UserError, match="3 of 4 functions cannot be used"):
        call(verifiers.main, [own(tmp_path, LOWER, misnamed, BROKEN, missing)])
    named = capsys.readouterr().out.splitlines()
    assert "o1, function 1 (Constraint 1): no evaluate" in named[0]
    assert "o2, function 1 (Constraint 2): syntax" in named[1]
    assert "o3, function 1 (Constraint 3): missing module" in named[2]


def test_check_names_functions_that_err_at_every_call_but_not_those_that_err_on_nothing(
    tmp_path, capsys
):
    with pytest.raises(UserError, match="2 of 4 functions cannot be used"):
        call(verifiers.main, [own(tmp_path, LOWER, CRASH, ON_TEXT, UNKNOWN)])
    named = capsys.readouterr().out.splitlines()
    assert "o1, function 1 (Constraint 1): exception" in named[0]
    assert "o3, function 1 (Constraint 3): exception: NameError, on an empty" in named[1]


def test_check_names_a_split_that_is_missing_with_what_to_write(tmp_path, capsys):
    path = own(tmp_path, LOWER, LOWER, split=None)
    with pytest.raises(UserError, match="'split' in each row; write .split.: .train."):
        call(verifiers.main, [path])
    assert "2 of 2 rows have no 'split', first o0" in capsys.readouterr().out


def test_check_takes_the_rows_of_stage_02_whose_split_is_stage_03s(tmp_path, capsys):
    row = {"id": "i0", "instruction": "Use lower case", "verifiers": functions(LOWER)}
    path = tmp_path / "02.jsonl"
    path.write_text(json.dumps({**row, "cases": [{"input": "abc", "output": True}]}) + "\n")
    call(verifiers.main, [str(path)])
    assert "can be called" in capsys.readouterr().out


def test_check_is_a_command_that_ends_with_2_where_a_function_cannot_be_used(tmp_path):
    command = [sys.executable, "-m", "autoif.verifiers"]
    for code, ending in ((LOWER, 0), (BROKEN, 2)):
        done = subprocess.run([*command, own(tmp_path, code)], cwd=ROOT, capture_output=True)
        assert done.returncode == ending
