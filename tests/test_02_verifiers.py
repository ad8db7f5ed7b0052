import asyncio
import importlib
import json
from collections import Counter

import pytest
from fake_server import FakeServer, command, without
from shared_data import needs, rows

from autoif import files, sandbox, verifiers
from autoif.files import UserError
from autoif.flags import call, parse

stage = importlib.import_module("02_verifiers")
LOWER = "def evaluate(response):\n    return response == response.lower()"


def completion(func=LOWER, cases=(("abc", True), ("ABC", False))):
    return {"func": func, "cases": [{"input": text, "output": output} for text, output in cases]}


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "```json\n{}\n```",
        "Sure! Here it is:\n```\n{}\n```\nIt lowers the text.",
        "The object is {} as asked.",
    ],
)
def test_json_is_found_fenced_bare_or_in_prose(wrap):
    code, cases = verifiers.parse(wrap.replace("{}", json.dumps(completion())))
    assert code == LOWER and cases == [
        {"input": "abc", "output": True},
        {"input": "ABC", "output": False},
    ]


LIST = """\
test_cases = [
    {"input": "abc", "output": True},
    {"input": "ABC", "output": False},
]"""
OBJECT, JSON_CASES = json.dumps(completion()), json.dumps(completion()["cases"])
FENCED = json.dumps(completion(f"```python\n{LOWER}\n```"))
LINES = json.dumps(completion(LOWER.splitlines()))
DOUBLED = json.dumps(completion(LOWER.replace("\n", "\\n")))
TRIPLE = f'{{"func": """{LOWER}""", "cases": {JSON_CASES}}}'


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{LOWER}\n\n{LIST}\n```\nIt lowers the text.",
        f"First the function:\n\n```python\n{LOWER}\n```\nThen the cases:\n```python\n{LIST}\n```",
        f"```\n{LOWER}\n```\n```json\n{JSON_CASES}\n```",
        f"{LOWER}\n\n{LIST}",
        f"```python\n{LOWER}\n\n{LIST}\nfor case in test_cases:\n    assert evaluate(case)\n```",
        f'```python\n{LOWER}\n```\n{{\n  "func": evaluate,\n  "cases": {JSON_CASES}\n}}',
        f'```python\n{LOWER}\n```\n```json\n{{"func": "evaluate", "cases": {JSON_CASES}}}\n```',
        json.dumps({"func": LOWER}) + f'\n\n{{"cases": {JSON_CASES}}}',
        FENCED,
        f"```json\n{FENCED}\n```",
        LINES,
        DOUBLED,
        TRIPLE,
        f"Here:\n```json\n{TRIPLE}\n```",
        f"```python\n{TRIPLE.replace('true', 'True').replace('false', 'False')}\n```",
        str(completion()),
        f'```\n{LOWER}\n```\n{{"func": "def evaluate(response)", "cases": {JSON_CASES}}}',
        f'```\n{LOWER}\n```\n{{"func": "evaluate(response)", "cases": [...]}}\n{JSON_CASES}',
        f'```python\n{LOWER}\n\n{LIST}\nresult = {{"func": "def evaluate(": x "y}}\n```',
        f"```python\n{LOWER}\n```\n"
        + "\n".join(f"case = {case}" for case in completion()["cases"]),
    ],
)
def test_a_function_and_its_cases_are_read_in_every_wrapping_that_models_write(text):
    code, cases = verifiers.parse(text)
    assert verifiers.distinct_functions([LOWER, code]) == [LOWER]
    assert cases == completion()["cases"]


@pytest.mark.parametrize(
    "pattern",
    [
        r'r"\bcat\b"',
        r"R'\bcat\b'",
        r'"\bcat\b"',
        r'"""\bcat\b"""',
        "# it's a word\n        r'\\bcat\\b'",
    ],
)
def test_backspaces_of_json_are_the_word_boundaries_that_the_code_meant(tmp_path, pattern):
    """They matched nothing, and cases that expect a failure kept the function."""
    code = f"import re\ndef evaluate(response):\n    return bool(re.search({pattern}, response))"
    answer = completion(code, [("a cat", True), ("a dog", False), ("cats", False)])
    answer["func"] = answer["func"].replace(r"\b", "\b")  # what JSON makes of a single backslash
    [row] = run(tmp_path, [answer])
    assert [verifier["accuracy"] for verifier in row["verifiers"]] == [1.0]
    assert len(row["cases"]) == 3


def test_form_feeds_of_json_are_the_escapes_that_the_code_meant():
    answer = completion('def evaluate(response):\n    return r"\f" in response')
    assert 'return r"\\f" in' in verifiers.parse(json.dumps(answer))[0]


def test_nothing_that_a_completion_holds_is_executed(tmp_path):
    trap = f"__import__('pathlib').Path({str(tmp_path / 'trap')!r}).touch()"
    for text in (
        f'{{"func": {trap}, "cases": []}}',
        f"```python\n{LOWER}\ntest_cases = [{trap}]\n```",
        f"[{trap}]",
    ):
        verifiers.parse(text)
    assert not (tmp_path / "trap").exists()


def ask(tmp_path, server, *flags):
    tmp_path.mkdir(exist_ok=True)
    source = tmp_path / "01.jsonl"
    source.write_text(json.dumps({"id": "i0", "instruction": "Use lower case"}) + "\n")
    base_url = getattr(server, "url", None)
    flags = [*flags, *(["--base-url", base_url] if base_url else [])]
    call(stage.main, command(*flags, model="m", in_=source, out=tmp_path / "02.jsonl", k=1))


def test_a_schema_of_function_and_cases_is_sent_where_it_is_wanted_and_taken(tmp_path, capsys):
    with FakeServer(lambda messages, request: OBJECT) as server:
        ask(tmp_path / "plain", server)
        ask(tmp_path / "schema", server, "--structured-outputs")
    plain, structured = server.requests
    schema = structured["response_format"]["json_schema"]["schema"]
    assert "response_format" not in plain and schema["required"] == ["func", "cases"]

    refuse = without("response_format", "This response_format type is unavailable now")
    with FakeServer(lambda messages, request: OBJECT, refuse=refuse) as server:
        ask(tmp_path / "refused", server, "--structured-outputs")
    assert len(server.answered) == 1 and "going on without it" in capsys.readouterr().err


def test_a_schema_and_the_released_codes_fence_exclude_each_other():
    with pytest.raises(UserError, match="--released-parsing wants a fence"):
        parse(stage.main, command("--structured-outputs", "--released-parsing", model="m"))


def test_completions_stored_without_a_schema_are_read_without_a_server(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with FakeServer(lambda messages, request: OBJECT) as server:
        ask(tmp_path, server)
    ask(tmp_path, None, "--structured-outputs")
    assert len(list(files.read(tmp_path / "02.jsonl"))) == 1


def test_real_newlines_and_trailing_commas_are_repaired():
    text = (
        '{"func": "def evaluate(response):\n    return \\"a\\" in response", '
        '"cases": [{"input": "a", "output": true},],}'
    )
    assert verifiers.parse(text) == (
        'def evaluate(response):\n    return "a" in response',
        [{"input": "a", "output": True}],
    )


def test_backticks_and_braces_in_the_answer_end_no_json():
    fence = (
        "def evaluate(response):\n"
        "    return response.startswith('```') and response.endswith('```')"
    )
    cases = [("```\nx\n```", True), ("x", False)]
    answer = json.dumps(completion(fence, cases))
    for text in (
        f"```json\n{answer}\n```",
        f"{answer}\nIt looks at both ends, as in a set {{a, b}}.",
        f"Here:\n```json\n{answer[:-1]},}}\n```",
    ):
        code, found = verifiers.parse(text)
        assert code == fence and len(found) == 2
    assert verifiers.parse('{"a":' * 5000) == "no function in the JSON"


def test_expected_outputs_are_normalised_and_others_left_out():
    written = [True, "True", "false", 0, "yes", None, [True]]
    assert [
        case["output"]
        for case in verifiers.parse_cases([{"input": "a", "output": output} for output in written])
    ] == [True, True, False, False]
    assert verifiers.parse_cases([{"input": 5, "output": True}, {"output": True}, "text"]) == []


def test_completions_without_a_function_have_a_named_reason():
    assert verifiers.parse("I cannot help with that.") == "no JSON"
    assert verifiers.parse('{"function": "x"}') == "no function in the JSON"


def test_functions_that_differ_in_layout_only_count_once():
    same = "def evaluate( response ):  # a comment\n  return response==response.lower()"
    assert verifiers.distinct_functions([LOWER, same, "def evaluate("]) == [LOWER, "def evaluate("]


async def judged(jobs):
    async with sandbox.Sandbox(sandbox.Flags()) as box:
        return await box.run(jobs)


def validate(functions, cases, **thresholds):
    """Criteria (a) to (d) on real verdicts."""
    cases = [{"input": text, "output": output} for text, output in cases]
    jobs = [{"code": code, "inputs": [case["input"] for case in cases]} for code in functions]
    results = asyncio.run(judged(jobs))
    return stage.cross_validate(
        results, functions, cases, **{"case_agreement": 0.5, "min_accuracy": 0.5, **thresholds}
    )


TRUE = "def evaluate(response): return True"
CRASH = "def evaluate(response): return 1 / 0"
BROKEN = "def evaluate(response) return"
CASES = [("abc", True), ("ABC", False), ("Abc", False)]


def test_a_case_needs_more_than_half_of_the_functions():
    functions, cases, _ = validate([LOWER, TRUE], CASES)  # on the last two cases just half agree
    assert [case["input"] for case in cases] == ["abc"]
    assert len(functions) == 2


def test_a_function_needs_more_than_half_of_the_kept_cases():
    other = LOWER.replace("== response.lower()", "in response.lower()")
    functions, cases, _ = validate([LOWER, other, TRUE], CASES)
    assert [function["code"] for function in functions] == [LOWER, other] and len(cases) == 3
    assert [function["accuracy"] for function in functions] == [1.0, 1.0]


def test_an_error_agrees_with_nothing():
    assert (
        validate([CRASH, CRASH + "  # again"], [("a", False), ("b", True)])[2] == "no case agreed"
    )


def test_functions_that_do_not_compile_have_no_say():
    functions, cases, reason = validate(
        [LOWER, BROKEN, "x = 1", "import no_such_module\n" + TRUE], CASES
    )
    assert (
        reason is None
        and len(cases) == 3
        and [function["code"] for function in functions] == [LOWER]
    )
    assert validate([BROKEN], CASES)[2] == "no verifier compiles"


def test_a_case_carries_what_stage_06_pairs_by():
    _, cases, _ = validate([LOWER, LOWER + "  "], CASES)
    assert [(case["accuracy"], case["agreement"], case["verdicts"]) for case in cases] == [
        (1.0, 1.0, ["pass"] * 2),
        (0.0, 1.0, ["fail"] * 2),
        (0.0, 1.0, ["fail"] * 2),
    ]


def run(tmp_path, completions, *flags):
    """The rows that stage 02 writes for one constraint, `completions` being the answers to it."""
    source, out = tmp_path / "01.jsonl", tmp_path / "02.jsonl"
    source.write_text(
        json.dumps({"id": "i0", "instruction": "Use lower case", "source": "seed"}) + "\n"
    )
    with FakeServer(lambda messages, request: [json.dumps(each) for each in completions]) as server:
        named = {"base_url": server.url, "in_": source, "out": out, "k": len(completions)}
        call(stage.main, command(*flags, model="m", **named))
    return list(files.read(out))


def test_the_row_carries_verifiers_and_cases(tmp_path):
    [row] = run(tmp_path, [completion(), completion(LOWER.replace("==", "in"))])
    assert row["id"] == "i0" and row["instruction"] == "Use lower case"
    assert [set(verifier) for verifier in row["verifiers"]] == [{"code", "accuracy"}] * 2
    assert {(case["input"], case["output"]) for case in row["cases"]} == {
        ("abc", True),
        ("ABC", False),
    }


def test_without_cross_validation_all_that_compiles_and_every_case_is_kept(tmp_path):
    other = LOWER.replace("==", "in")
    answers = [
        completion(),
        completion(other),
        completion(TRUE, [("abc", False)]),
        completion(BROKEN, [("Abc", True)]),
    ]
    [row] = run(tmp_path, answers)
    assert [verifier["code"] for verifier in row["verifiers"]] == [LOWER, other]
    assert len(row["cases"]) == 2
    [row] = run(tmp_path, answers, "--no-cross-validation")
    assert [verifier["code"] for verifier in row["verifiers"]] == [LOWER, other, TRUE]
    assert len(row["cases"]) == 4  # with a contradictory one and one that few functions agree with


def test_nothing_kept_is_an_error_that_names_the_likeliest_cause_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="1 in -> 0 kept .no verifier compiles 1.*write Python"):
        run(tmp_path, [completion(BROKEN)])
    assert not (tmp_path / "02.jsonl").exists() and not (tmp_path / "stats.json").exists()
    assert list(files.read(tmp_path / "02.dropped.jsonl"))[0]["reason"] == "no verifier compiles"


def test_a_failing_rerun_leaves_the_dropped_rows_and_the_numbers_of_the_output_that_stays(tmp_path):
    source = tmp_path / "01.jsonl"
    run(tmp_path, [completion()])
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / "completions" / "02_verifiers.jsonl").unlink()
    with pytest.raises(UserError, match="0 kept"):
        run(tmp_path, [completion(BROKEN)])
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert found == kept and source.exists()


def test_own_functions_without_a_split_are_named_with_what_to_write(tmp_path):
    path = tmp_path / "own.jsonl"
    row = {"id": "o0", "instruction": "Constraint 0", "verifiers": [{"code": LOWER}]}
    path.write_text(json.dumps(row) + "\n")
    four = importlib.import_module("04_responses")
    with pytest.raises(UserError, match="a file of your own: write .split.: .train."):
        named = {"queries": path, "in_": path, "out": tmp_path / "04.jsonl"}
        call(four.main, command(model="m", **named))


# Accuracies of the functions that the authors' script 3 keeps of their sample, and the number of
# cases it keeps, when each function runs in one namespace (their two dictionaries hide helpers: one
# function less in the last row).
RELEASED = [
    ([0.8125, 0.9375], 16),
    ([1.0] * 3, 13),
    ([], 0),
    ([0.8462] + [1.0] * 4, 13),
    ([1.0] * 7, 10),
]


@needs("autoif_sample/eval_func_rft.jsonl")
def test_the_released_settings_keep_the_released_functions_with_the_released_accuracies(tmp_path):
    sample = rows("autoif_sample/eval_func_rft.jsonl")
    source, out = tmp_path / "01.jsonl", tmp_path / "02.jsonl"
    source.write_text(
        "".join(
            json.dumps({"id": str(n), "instruction": row["instruction"]}) + "\n"
            for n, row in enumerate(sample)
        )
    )
    answers = {row["instruction"]: row["gpt-answer"] for row in sample}

    def find(messages):
        return next(each for each in answers if f"\n{each}\n" in messages[0]["content"])

    with FakeServer(lambda messages, request: answers[find(messages)]) as server:
        call(
            stage.main,
            command(
                "--released-parsing",
                model="m",
                base_url=server.url,
                in_=source,
                out=out,
                case_agreement=0,
                min_accuracy=0.7999,
                min_functions=3,
                min_cases=10,
            ),
        )
    kept = {row["id"]: row for row in files.read(out)}
    found = [kept.get(str(n), {"verifiers": [], "cases": []}) for n in range(len(sample))]
    assert [
        (sorted(each["accuracy"] for each in row["verifiers"]), len(row["cases"])) for row in found
    ] == RELEASED


@pytest.mark.parametrize("cases", [[{"output": True}], [{"input": ["a"], "output": True}], True])
def test_the_released_parsing_leaves_out_what_is_no_case(cases):
    written = json.dumps({"func": LOWER, "cases": cases})
    sample = {"text": f"```json\n{written}\n```", "finish_reason": "stop"}
    assert verifiers.parse_samples([sample], Counter(), released=True) == ([LOWER], [])


def answers_of(text):
    """A server whose samples differ, if only in white space."""
    return FakeServer(lambda messages, request: [text + " " * n for n in range(request["n"])])


def failing(kind):
    """(finish reason, answer of a supervisor that is not able, the cause that is named)."""
    return {
        "cut": ("length", '{"func": "def evaluate(response):\\n', "give more --max-tokens"),
        "prose": ("stop", "I would count the words.", "is it a chat model"),
        "no Python": ("stop", json.dumps(completion("def evaluate(response: ???")), "Python"),
        "contradiction": ("stop", json.dumps(completion(cases=[("ABC", True)])), "contradict"),
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "prose", "no Python", "contradiction"])
def test_a_supervisor_that_is_not_able_ends_the_run_after_twenty_constraints(tmp_path, kind):
    finish_reason, text, cause = failing(kind)
    source, out = tmp_path / "01.jsonl", tmp_path / "02.jsonl"
    lines = [json.dumps({"id": f"i{n}", "instruction": f"Use {n} words"}) for n in range(30)]
    source.write_text("\n".join(lines))
    command = ["--model", "m", "--in", str(source), "--out", str(out), "--k", "2"]
    with answers_of(text) as server:
        server.finish_reason = finish_reason
        with pytest.raises(UserError, match="20 in -> 0 kept") as error:
            call(stage.main, [*command, "--base-url", server.url])
    assert cause in str(error.value) and not out.exists()


def test_constraints_that_nothing_answered_say_nothing_about_the_supervisor(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    source, requests = tmp_path / "01.jsonl", tmp_path / "requests.jsonl"
    lines = [json.dumps({"id": f"i{n}", "instruction": f"Use {n} words"}) for n in range(200)]
    source.write_text("\n".join(lines))
    command = ["--model", "m", "--in", str(source), "--out", str(tmp_path / "02.jsonl"), "--k", "2"]
    with pytest.raises(UserError, match="^200 requests are in "):
        call(stage.main, [*command, "--concurrency", "4", "--batch-out", str(requests)])
    assert len(requests.read_text().splitlines()) == 200


def test_an_able_supervisor_is_said_to_be_one(tmp_path, capsys):
    source = tmp_path / "01.jsonl"
    lines = [json.dumps({"id": f"i{n}", "instruction": f"Use {n} words"}) for n in range(21)]
    source.write_text("\n".join(lines))
    command = ["--model", "m", "--in", str(source), "--out", str(tmp_path / "02.jsonl"), "--k", "2"]
    with answers_of(json.dumps(completion())) as server:
        call(stage.main, [*command, "--base-url", server.url])
    said = "of the first 20 constraints 20 are kept; of 40 completions 40 have a function"
    assert said in capsys.readouterr().out
