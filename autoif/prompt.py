"""How constraint and query become one user turn, and how a response is scored, in 04, 06 and 07."""


def join(query: str, instruction: str) -> str:
    """The user turn: the query, then the constraint on a line of its own (3.3), nothing added."""
    return f"{query.strip()}\n{instruction.strip()}"


def accuracy(verdicts: list[str]) -> float:
    """Share of functions that say pass (section 3.3); an error is no pass. 0.0 without verdicts."""
    return verdicts.count("pass") / len(verdicts) if verdicts else 0.0
