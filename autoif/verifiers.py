"""Functions that check a constraint, as rows carry them, and a trial before money is spent.

{"id": "i00002", "instruction": "Use no commas", "verifiers": [{"code": "def evaluate(..."}]}
"""

import sys

from autoif import sandbox
from autoif.files import UserError

# What a row must have before its functions can be run; own verifiers need this and a split.
ROW = {"id": str, "instruction": str, "verifiers": [{"code": str}]}


SPLIT = 'write "split": "train" into each row, or "heldout" to measure on it'
PLAIN = "Water the plants before you leave. A friend can do it, too."


def compiles(result: dict) -> bool:
    """Criterion (a) of section 3.2: the function can be called, whatever comes of its calls."""
    reasons = ("syntax", "no evaluate", "missing module", "load")
    return not (result["error"] or "").startswith(reasons)


def tried(rows: list[dict], **options) -> tuple[list[str], list[str]]:
    """Try each function on an empty and on a plain text: (cannot be called, erred on both).

    'i00002, function 1 (Use no commas): missing module pandas'
    """
    jobs, named = [], []
    for row in rows:
        for number, verifier in enumerate(row["verifiers"], 1):
            jobs.append({"id": str(len(jobs)), "code": verifier["code"], "inputs": ["", PLAIN]})
            named.append(f"{row['id']}, function {number} ({row['instruction']})")
    broken, erring = [], []
    for name, result in zip(named, sandbox.run(jobs, **options)):
        line = f"{name}: {result['error']}"
        if not compiles(result):
            broken.append(line)
        elif set(result["verdicts"]) == {"error"}:
            erring.append(f"{line}, on an empty and on a plain text")
    return broken, erring


def refuse_broken(rows: list[dict], path: str, **options) -> None:
    """UserError that names the functions of `path` that cannot be called, and their constraints."""
    lines, erring = tried(rows, **options)
    for line in erring[:10]:  # it may want JSON, and err on all that is none
        print(f"warning: {path}: {line}", file=sys.stderr)
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise UserError(
            f"{path}: these functions cannot be called; mend or delete them:\n  "
            + "\n  ".join(lines[:10])
            + more
        )
