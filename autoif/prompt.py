"""How constraint and query become one user turn, and how a response is scored, in 04, 06 and 07."""

from collections.abc import Iterable


def join(query: str, instruction: str) -> str:
    """The user turn: the query, then the constraint on a line of its own (3.3), nothing added."""
    return f"{query.strip()}\n{instruction.strip()}"


def accuracy(verdicts: list[str]) -> float:
    """Share of functions that say pass (section 3.3); an error is no pass. 0.0 without verdicts."""
    return verdicts.count("pass") / len(verdicts) if verdicts else 0.0


def has_scores(rows: Iterable[dict]) -> bool:
    """Whether the run that wrote these rows of 04 scored its responses: one number says so.

    Not to be asked of a single row: a judge may give no number for any response of it.
    """
    for row in rows:
        if any(response.get("score") is not None for response in row.get("responses", [])):
            return True
    return False
