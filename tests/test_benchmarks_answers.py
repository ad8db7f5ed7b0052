import asyncio
import dataclasses
import gzip
import textwrap

import pytest
from shared_data import DATA, needs, sample, values

from autoif import sandbox
from autoif.evaluation import benchmarks
from autoif.evaluation.benchmarks import ceval, choice, gsm8k, humaneval, mmlu
from autoif.evaluation.benchmarks.source import Source
from autoif.files import UserError


def run_tests(attempts: list[dict], **limits) -> list[dict]:
    """HumanEval's rows of the attempts, out of a sandbox of their own."""
    flags = dataclasses.replace(humaneval.limits(None, unsafe_no_sandbox=False), **limits)

    async def scored():
        async with sandbox.Sandbox(flags) as box:
            return await humaneval.score(attempts, box)

    return asyncio.run(scored())


# GSM8K


@pytest.mark.parametrize(
    "text, number",
    [
        ("The answer is 18.", 18),
        ("The answer is $18.00.", 18),
        ("#### 1,234", 1234),
        ("so \\boxed{18}", 18),
        ("\\boxed{\\$1{,}200}", 1200),
        ("The answer is **42**", 42),
        ("The answer is: 5 + 13 = 18", 18),
        ("18 dollars", 18),
        ("She makes $18 every day.", 18),
        ("The answer is -3", -3),
        ("The answer is 0.5", 0.5),
        ("The answer is 18 dollars for 7 days.", 18),
        ("Step 1: 3 eggs.\nStep 2: 4 eggs.\n#### 7\nDone in 2 steps.", 7),
        ("First the answer is 3. No: the answer is 4.", 4),
        ("Final answer:\n18", 18),
        ("The answer is \\(18\\).", 18),
        ("None.", None),
        ("", None),
        ("10-12", 12),
        ("**Answer: $1,000**", 1000),
        ("The answer is €12.", 12),
        ("the answer is 70%.", 70),
        ("#### Step 1: eggs\n#### Step 2: money\nShe makes $18 every day.", 18),
        ("Answer: Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18", 18),
        ("To find the answer: first subtract 3, so 18", 18),
        ("\\boxed{1,\\!200}", 1200),
        ("\\boxed{1\\,200}", 1200),
        ("$1,\\!200$", 1200),
        ("**Answer**: 18\n\nSo 3 left over of 7", 18),
        ("The answer is 18. Janet uses 3 + 4 = 7 eggs.", 18),
        ("The answer is 18 (9 eggs at x = 2 dollars).", 18),
        ("__18__", 18),
        ("The answer is 18.\n\nQuestion: What is 2 + 2?\nThe answer is 4.", 18),
        # an equation with words, and a variable that is none
        ("The answer is thus 3 boxes * 4 eggs = 12 eggs.", 12),
        ("The answer is 30 minutes + 15 minutes = 45 minutes in all.", 45),
        ("The answer is \\(7 \\times 6 = 42\\).", 42),
        ("The answer is half of 36, i.e. 18 dollars.", 18),
        ("The answer is 2 times 9 equals 18.", 18),
        ("The answer is 18 when x = 2.", 18),
        ("The answer is 40, i.e. forty.", 40),
        # thousands
        ("The answer is 12 500.", 12500),
        ("The answer is 1\u00a0234\u202f567 people.", 1234567),
        ("The answer is $3'400.", 3400),
        ("#### 2 000", 2000),
        ("The answer is negative 5.", -5),
        # what it is not
        ("The answer is not 25. It is 30", 30),
        ("The answer isn't 25, it is 30", 30),
        ("The answer is 30. The answer is not 25.", 30),
        ("It is 30. The answer is not 25.", 30),
        ("The answer is clearly not 25 but 30.", 30),
        # a heading that another question has, too
        ("Let us see.\n\nProblem: Tom has 5 and buys 13.\n\nThe answer is 18.", 18),
        ("The answer is 18.\n\nQuestion: Tom has 5 and buys 4. The answer is 9.", 18),
    ],
)
def test_gsm8k_reads_the_answer_as_a_number(text, number):
    found = gsm8k.read_answer(text)
    assert (found is None) if number is None else float(found) == number


def test_gsm8k_compares_numbers_not_strings():
    item = {"id": "0", "cluster": "0", "target": "1,800"}
    rows = []
    for text in ("$1800.00", "1801", "no idea"):
        rows.append(gsm8k.score({"item": item, "answers": sample(text)}))
    assert [row["verdict"] for row in rows] == [True, False, False]
    assert [row["unparsable"] for row in rows] == [False, False, True]


@needs("gsm8k/test.jsonl")
def test_gsm8ks_own_solutions_are_all_right():
    import json

    items = list(gsm8k.load(Source(str(DATA))))
    solutions = [
        json.loads(line)["answer"] for line in open(DATA / "gsm8k/test.jsonl", encoding="utf-8")
    ]
    rows, target_only = [], []
    for item, solution in zip(items, solutions, strict=True):
        rows.append(gsm8k.score({"item": item, "answers": sample(solution)}))
        alone = sample(f"The answer is ${item['target']}.00.")
        target_only.append(gsm8k.score({"item": item, "answers": alone}))
    assert len(items) == 1319 and values(rows)["GSM8K"] == 1
    assert values(target_only)["GSM8K"] == 1


# Multiple choice

CHOICES = ["a lesion", "the moon", "seven", "none of these"]


@pytest.mark.parametrize(
    "text, letter",
    [
        ("Answer: B", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("(C) seven", "C"),
        ("**B**", "B"),
        ("The answer is (D).", "D"),
        ("The correct answer is **C**.", "C"),
        ("答案：D", "D"),
        ("答案是B。", "B"),
        ("\\boxed{A}", "A"),
        ("$\\boxed{\\text{C}}$", "C"),
        ("A is wrong because ... so the answer is B", "B"),
        ("Let me think.\nA lesion is not.\nAnswer: C", "C"),
        ("the moon", "B"),
        ("I think a long time. Then:\nD", "D"),
        ("A lesion or the moon", None),
        ("Answer: E", None),
        ("", None),
        ("A good question!", None),
        ("answer: b", "B"),
        ("Answer: Because", None),
        ("Answer:\n\nC", "C"),
        ("Final answer: Option D", "D"),
        ("**Answer**: B", "B"),
        ("The correct option is B.", "B"),
        ("Option B is correct.", "B"),
        ("The answer should be B", "B"),
        ("Answer：B", "B"),
        ("Answer: $B$", "B"),
        ("\\boxed{\\textbf{B}}", "B"),
        ("\\boxed{\\mathrm{B}}", "B"),
        ("Answer: \\(\\text{B}\\)", "B"),
        ("故选B", "B"),
        ("因此应选择C", "C"),
        ("正确选项是B", "B"),
        ("正确的一项是B。", "B"),
        ("B项符合题意", "B"),
        ("B选项正确", "B"),
        ("选项B符合题意", "B"),
        ("A项错误，B项正确", "B"),
        ("答案应该是B", "B"),
        ("答案应为：B", "B"),
        ("选项A的说法错误，选项B的说法错误，不选A。", None),
        ("The answer is a decrease in demand, which is option C.", "C"),
        ("Answer: B, since water boils at 25^\\circ\\text{C}", "B"),
        ("A, B and C are all false, so the right one is D.", "D"),
        ("Answer: B\n\nQuestion: What next?\nAnswer: D", "B"),
        # the letter before its announcement, and other ways to say it
        ("After all, D is correct.", "D"),
        ("Therefore B is the right answer.", "B"),
        ("I would choose (C), to be safe.", "C"),
        ("I'd go with option A.", "A"),
        ("A is not right. It is **D**.", "D"),
        ("The answer is not A but C", "C"),
        ("<answer> B </answer>", "B"),
        ("Final answer C", "C"),
        ("B since the moon is round", "B"),
        ("D — no other fits", "D"),
        ("c", "C"),
        ("(b).", "B"),
        ("所以B正确。", "B"),
        ("正确的应该是D", "D"),
        ("答案不是A而是B", "B"),
        ("It is a good question", None),
        ("answer a question", None),
        ("A correct answer is hard to give", None),
        ("A is incorrect", None),
        ("The answer is not (A).", None),
        # a hedge and an echo settle on nothing
        ("Answer: A or B", None),
        ("Answer: A, B, C or D", None),
        ("Answer: X, where X is A, B, C or D", None),
        ("A, B, C or D", None),
        ("The answer is (A) or (B).", None),
        ("**A** or **B**", None),
        ("\\boxed{A or B}", None),
        ("答案是A或B", None),
        ("Answer: A | B | C | D", None),
        ("Answer: A B C D", None),
        ("Answer: A\nB\nC\nD", None),
        ("Answer: A (or B)", None),
        ("Answer: A, maybe B", None),
        ("Answer: A or possibly B", None),
        ("A or B is correct.", None),
        ("I choose A or B", None),
        ("A. a lesion\nB. the moon\nC. seven\nD. none of these", None),
        ("The answer is A or B. It cannot be A, so the answer is B.", "B"),
        ("Answer: B, A is wrong", "B"),
        ("Answer: B, C and D are wrong", "B"),
        ("A\n\nB is wrong.", "A"),
        ("Answer: A\n\nB says too much.", "A"),
    ],
)
def test_choices_are_read_in_the_forms_models_write(text, letter):
    assert choice.read_choice(text, CHOICES) == letter


def test_an_answer_without_a_choice_is_wrong_and_counted():
    item = {"cluster": "0", "choices": CHOICES, "target": "A", "subject": "x"}
    row = choice.score({"item": item, "answers": sample("I do not know")}, "MMLU", stratum="")
    assert (
        row["verdict"] is False
        and row["unparsable"]
        and row["points"]["MMLU"] == [("", "0", False, 1)]
    )


def test_ceval_is_the_mean_over_subjects(tmp_path):
    (tmp_path / "ceval/val").mkdir(parents=True)
    for subject, count in (("logic", 3), ("law", 1)):
        (tmp_path / f"ceval/val/{subject}_val.csv").write_text(
            "id,question,A,B,C,D,answer\n"
            + "".join(f'{i},"问题, {i}",甲,乙,丙,丁,B\n' for i in range(count)),
            encoding="utf-8",
        )
    items = list(ceval.load(Source(str(tmp_path))))
    assert {item["subject"] for item in items} == {"logic", "law"} and "问题, 0" in items[0][
        "prompt"
    ]
    rows = []
    for item in items:
        answers = sample("答案：B" if item["subject"] == "law" else "答案：A")
        rows.append(ceval.score({"item": item, "answers": answers}))
    assert values(rows)["C-Eval"] == 0.5


HEADER = "question,choice0,choice1,choice2,choice3,answer\n"
QUESTION = '"Is 1, or 2, odd?",1,2,both,"neither, nor",'
MMLU_FILES = {
    "its owners', without a header and with letters": f"{QUESTION}B\n",
    "with a header and indices": f"{HEADER}{QUESTION}1\n",
    "with a byte order mark": f"\ufeff{HEADER}{QUESTION}1\n",
}


@pytest.mark.parametrize("form", MMLU_FILES)
def test_mmlus_files_are_read(tmp_path, form):
    path = tmp_path / "mmlu/test/abstract_algebra_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text(MMLU_FILES[form], encoding="utf-8")
    [item] = list(mmlu.load(Source(str(tmp_path))))
    assert (item["subject"], item["target"]) == ("abstract_algebra", "B")
    assert item["question"] == "Is 1, or 2, odd?"
    assert item["choices"] == ["1", "2", "both", "neither, nor"]


@pytest.mark.parametrize(
    "table", ["question,A,B,C,D,answer\nq,1,2,3,4,B\n", "q,1,2,3,4,E\n", "q,1,2,3,4\n"]
)
def test_an_mmlu_file_of_another_form_is_named_with_the_columns_that_are_wanted(tmp_path, table):
    path = tmp_path / "mmlu/test/law_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text(table)
    with pytest.raises(
        UserError, match="mmlu/test has a row .*question,choice0,.*,answer, or these"
    ):
        list(mmlu.load(Source(str(tmp_path))))


@pytest.mark.parametrize("cut, words", [(40, "cannot be read"), (0, "holds no row")])
def test_data_that_a_broken_download_left_is_to_be_fetched_again(tmp_path, cut, words):
    path = tmp_path / "humaneval/HumanEval.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(
        gzip.compress(b'{"task_id": "x/0", "prompt": "def f():"}\n' * (cut > 0))[: cut or None]
    )
    flags = benchmarks.Flags(benchmarks="humaneval", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"HumanEval.jsonl.gz {words}.*fetch it again"):
        benchmarks.load(["humaneval"], flags)


def test_a_byte_order_mark_before_a_benchmark_is_none_of_it(tmp_path):
    for name in ("ceval/val", "gsm8k"):
        (tmp_path / name).mkdir(parents=True)
    table = "id,question,A,B,C,D,answer\n0,问题,甲,乙,丙,丁,B\n"
    (tmp_path / "ceval/val/law_val.csv").write_text(table, encoding="utf-8-sig")
    row = '{"question": "What is 2 + 2?", "answer": "#### 4"}\n'
    (tmp_path / "gsm8k/test.jsonl").write_text(row, encoding="utf-8-sig")
    source = Source(str(tmp_path))
    assert [item["id"] for item in ceval.load(source)] == ["law-0"]
    assert [item["target"] for item in gsm8k.load(source)] == ["4"]


@needs("mmlu/test")
def test_mmlu_has_its_14042_questions():
    items = list(mmlu.load(Source(str(DATA))))
    assert len(items) == 14042 and len({item["subject"] for item in items}) == 57
    rows = []
    for item in items:
        rows.append(mmlu.score({"item": item, "answers": sample(f"Answer: {item['target']}")}))
    assert values(rows)["MMLU"] == 1


# HumanEval

ADD = {
    "id": "x/0",
    "cluster": "x/0",
    "entry_point": "add",
    "text": "",
    "code": '''\
import math


def helper(x):
    return x


def add(a, b):
    """Add.
    >>> add(1, 2)
    3
    """
''',
    "test": """\
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-1, 1) == 0
""",
}
WHOLE = "def add(a, b):\n    return helper(a) + b\n"
STYLES = {
    "fenced": "```python\n{whole}```",
    "prose around": "Sure! Here it is:\n\n```python\n{whole}```\n\n"
    "It adds `a` and `b`. For example:\n\n```python\nadd(1, 2)\n```\n",
    "bare": "{whole}",
    "body only": "{body}",
    "a blank first": " Here it is:\n\n```python\n{whole}```",
    "a blank first, bare": " from operator import add as plus\n{whole}",
    "body fenced": "Complete it so:\n```\n{body}```",
    "bare with prose": "Here is the function you asked for.\n\n{whole}\nIt adds two numbers.",
    "no closing fence": "```python\n{whole}",
    "a blank before the language": "``` python\n{whole}```",
    "body and a closing fence": "{body}```\nThis works.",
    "a sketch after it": "```python\n{whole}```\n"
    "In short:\n```python\ndef add(a, b):\n    ...\n```",
    "a sketch before it": "```python\ndef add(a, b):\n    ...\n```\n"
    "Filled in:\n```python\n{whole}```",
    "a future import": "```python\nfrom __future__ import annotations\n\n{whole}```",
    "a future import without a fence": "from __future__ import annotations\n\n{whole}",
    "a lambda": "```python\nadd = lambda a, b: helper(a) + b\n```",
    "a lambda without a fence": "Shortest:\n\nadd: object = lambda a, b: helper(a) + b\n\nIt adds.",
    "a lambda after a sketch": "```python\ndef add(a, b):\n    ...\n```\n"
    "```python\nadd = lambda a, b: a + b\n```",
    "a fence in the docstring": '```python\ndef add(a, b):\n    """Add.\n'
    '    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n```',
}


def answer_in(style: str, whole: str) -> str:
    return STYLES[style].format(
        whole=whole,
        body=whole[whole.rindex("def add") :].split("\n", 1)[1] if "def add" in whole else whole,
    )


@pytest.mark.parametrize("style", STYLES)
def test_humaneval_finds_the_code_in_every_style(style):
    [row] = run_tests([{"item": ADD, "answers": sample(answer_in(style, WHOLE))}])
    assert row["verdict"] is True, (row["reason"], row["program"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "```python\ndef add(a, b):\n    return a - b\n```",
        "```python\ndef add(a, b):\n    while True: pass\n```",
        "```python\nimport sys\nsys.exit(0)\n```",
        "```python\ndef add(a, b):\n    raise SystemExit(0)\n```",
        "def add(a, b:",
    ],
)
def test_humaneval_passes_only_what_ran_its_tests_to_the_end(text):
    [row] = run_tests([{"item": ADD, "answers": sample(text)}], cpu_seconds=0.3)
    assert row["verdict"] is False and row["points"]["HumanEval"] == [("", "x/0", False, 1)]


@needs("humaneval/HumanEval.jsonl.gz")
def test_humanevals_canonical_solutions_pass_in_five_styles():
    items = list(humaneval.load(Source(str(DATA))))
    attempts = []
    for item in items:
        body = item["text"][len(item["code"]) :]
        whole = item["code"] + body
        function = whole[whole.rindex(f"def {item['entry_point']}(") :]
        for text in (
            f"```python\n{whole}```",
            f"Here you are:\n```python\n{function}\n```\nIt works.",
            whole,
            body,
            f"```\n{textwrap.dedent(body)}\n```",
        ):
            attempts.append({"item": item, "answers": sample(text)})
    failed = []
    for attempt, row in zip(attempts, run_tests(attempts)):
        if not row["verdict"]:
            failed.append(attempt["item"]["id"])
    assert len(items) == 164 and failed == []
