"""Rows of 03 and 04 as pairs are made of them, with named errors."""

from collections.abc import Iterator

from autoif import files, shards
from autoif.files import UserError
from autoif.verifiers import has_scores


def read_verified(paths: list[str]) -> Iterator[tuple[dict, bool]]:
    """Yield (row, whether its run scored responses) for the rows of 03 and 04 in `paths`."""
    # a file is a run's, or a shard's of it; read twice rather than held in memory
    scored = {}
    for path in paths:
        run = shards.run_of(path)
        scored[run] = scored.get(run) or has_scores(read(path))
    for path in paths:
        for row in read(path):
            yield row, scored[shards.run_of(path)]


def read(path: str) -> Iterator[dict]:
    """The rows of a file; cases without a split may be held out, which is an error."""
    case = {"input": str, "accuracy": (int, float)}
    response = {"text": str, "verdicts": list, "accuracy": (int, float)}
    forms = {
        "cases": {"instruction": str, "split": {"train", "heldout"}, "cases": [case]},
        "responses": {"prompt": str, "responses": list},
    }
    for number, row in files.numbered(path, {"id": str}, "04_responses.py"):
        kind = "responses" if "responses" in row else "cases"
        if kind not in row:
            raise UserError(
                f"{path}:{number} has neither 'responses' nor 'cases'; pass files of 03 or 04"
            )
        if kind == "cases" and "split" not in row:
            raise UserError(
                f"{path}:{number} has no 'split', so that held-out constraints cannot be told; "
                "pass 03_instructions.jsonl (run 03_backtranslate.py first)"
            )
        wrong = files.mismatch(row, forms[kind])
        for each in row["responses"] if kind == "responses" and not wrong else []:
            wrong = wrong or files.mismatch(each, response)
        if wrong:
            raise UserError(f"{path}:{number} {wrong}; mend or delete the line")
        yield row
