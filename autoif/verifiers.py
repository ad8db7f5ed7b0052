"""Functions that check a constraint, as rows carry them, and a trial before money is spent.

{"id": "i00002", "instruction": "Use no commas", "verifiers": [{"code": "def evaluate(..."}]}
"""

from autoif import sandbox
from autoif.files import UserError

# What a row must have before its functions can be run; own verifiers need this and a split.
ROW = {"id": str, "instruction": str, "verifiers": [{"code": str}]}


def compiles(result: dict) -> bool:
    """Criterion (a) of section 3.2: the function can be called, whatever comes of its calls."""
    reasons = ("syntax", "no evaluate", "missing module", "load")
    return not (result["error"] or "").startswith(reasons)


def broken(rows: list[dict], **options) -> list[str]:
    """Try each function once on an empty text; one line for each that cannot be called.

    'i00002, function 1 (Use no commas): missing module pandas'
    """
    jobs, named = [], []
    for row in rows:
        for number, verifier in enumerate(row["verifiers"], 1):
            jobs.append({"id": str(len(jobs)), "code": verifier["code"], "inputs": [""]})
            named.append(f"{row['id']}, function {number} ({row['instruction']})")
    lines = []
    for name, result in zip(named, sandbox.run(jobs, **options)):
        if not compiles(result):
            lines.append(f"{name}: {result['error']}")
    return lines


def refuse_broken(rows: list[dict], path: str, **options) -> None:
    """UserError that names the functions of `path` that cannot be called, and their constraints."""
    lines = broken(rows, **options)
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise UserError(
            f"{path}: these functions cannot be called; mend or delete them:\n  "
            + "\n  ".join(lines[:10])
            + more
        )
