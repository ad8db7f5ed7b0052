"""Jobs of one function that wait at the same time as one job: it is loaded once for all of them.

Its calls are one after another in one process then, so that a function which keeps something from
call to call, or draws from `random`, may judge otherwise where its jobs come in another order.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice

from autoif.sandbox.pool import Sandbox


class Together:
    """As a Sandbox to whoever runs jobs; while one of a function is under way the others gather."""

    def __init__(self, box: Sandbox):
        self.box, self.turns = box, defaultdict(asyncio.Lock)
        self.waiting: dict[str, tuple[asyncio.Future, list[list[str]]]] = {}

    async def run(self, jobs: Iterable[dict]) -> list[dict]:
        return await asyncio.gather(*map(self._answer, jobs))

    async def _answer(self, job: dict) -> dict:
        code = job["code"]
        if code not in self.waiting:
            self.waiting[code] = asyncio.ensure_future(self._run(code)), []
        answers, of_jobs = self.waiting[code]
        of_jobs.append(job["inputs"])
        place = len(of_jobs) - 1
        return (await answers)[place]

    async def _run(self, code: str) -> list[dict]:
        """The answer to each job of a function that has come before its turn."""
        try:
            async with self.turns[code]:
                _, of_jobs = self.waiting.pop(code)
                inputs = [text for texts in of_jobs for text in texts]
                [whole] = await self.box.run([{"code": code, "inputs": inputs}])
                # eight bad texts disqualify a function: those of one job must not do so for another
                if whole["error"] and len(of_jobs) > 1:
                    jobs = [{"code": code, "inputs": texts} for texts in of_jobs]
                    return await self.box.run(jobs)
        finally:
            if code not in self.waiting:  # nobody is next; a million functions leave no locks
                self.turns.pop(code, None)
        verdicts = iter(whole["verdicts"])
        parts = [list(islice(verdicts, len(texts))) for texts in of_jobs]
        return [{"verdicts": part, "error": whole["error"]} for part in parts]
