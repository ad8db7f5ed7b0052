"""Benchmark data for the tests that need them: $AUTOIF_DATA, else ../shared/data."""

import json
import os
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get("AUTOIF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)


def needs(*names: str):
    """Skip a test, by name, where one of the files is absent."""
    lacking = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(
        bool(lacking),
        reason=f"benchmark data absent: {', '.join(lacking)} under {DATA} ($AUTOIF_DATA)",
    )


def rows(name: str) -> list[dict]:
    with open(DATA / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Scripted:
    """Stands in for the client: answers with `say(request)`, fails a request where that is None."""

    ahead = 16

    def __init__(self, say):
        self.say, self.requests = say, []

    async def ask(self, messages, k=1, first=0, **more):
        request = {"messages": messages, "first": first, **more}
        self.requests.append(request)
        text = self.say(request)
        return [] if text is None else [{"index": first, "text": text, "finish_reason": "stop"}]


def sample(*texts: str) -> list[dict]:
    return [{"text": text, "finish_reason": "stop"} for text in texts]


def values(rows_scored: list[dict]) -> dict[str, float]:
    """{metric: value} of scored rows."""
    from autoif.evaluation import intervals

    points: dict[str, list] = {}
    for row in rows_scored:
        for metric, found in row["points"].items():
            points.setdefault(metric, []).extend(found)
    return {metric: intervals.mean(found) for metric, found in points.items()}
