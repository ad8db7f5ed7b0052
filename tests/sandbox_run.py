"""The sandbox without an event loop: jobs in, answers out, in order."""

from collections import deque
from collections.abc import Iterable, Iterator

from autoif.sandbox.pool import HELD_ANSWERS, Flags, Sandbox


def run(jobs: Iterable[dict], *, keep_mb: int = 0, patience: int = 1, **flags) -> Iterator[dict]:
    """Yield `{"id", "verdicts", "error"}` of each job `{"id", "code", "inputs"}`, in order.

    `flags` are fields of `Flags`. A few jobs are read ahead.
    """
    answers = deque()
    with Sandbox(Flags(**flags), keep_mb=keep_mb, patience=patience) as box:
        for answer in box.ahead(jobs):
            answers.append(answer)
            while answers and (answers[0].done() or len(answers) > HELD_ANSWERS):
                yield answers.popleft().result()
        while answers:
            yield answers.popleft().result()
