"""Verifiers as rewards: constraint ids and texts in, a score for each text out.

    verifiers = Verifiers.load("out/03_instructions.jsonl")
    verifiers.score(["i00002"], ["One sentence. And another."])
    # [Score(pass_share=1.0, all_pass=True, error=None)]
    await verifiers.score_async(["i00002"], ["One sentence. And another."])

    python -m autoif.reward --probe out/03_instructions.jsonl     # what fools them

A file is JSONL of rows with `id` and `verifiers` (stages 02 and 03), or of rows with `key`,
`instruction_id_list` and `kwargs` (IFEval, IFBench), which their owners' checkers score in this
process.

The sandbox stays up between calls, which may come from any thread: those that arrive while others
are answered share its next jobs. The processes of the functions asked last stay too: what a
function remembers of one text may reach the next one, in a call or between calls (keep_mb=0: in a
call only). A forked process makes a sandbox of its own. A function that errs says nothing: its text
has no reward (`pass_share` is None), not a reward of 0; a function that hung on so many texts that
the rest of a job was not tried says that in `error`.
"""

import argparse
import asyncio
import contextlib
import os
import queue
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from autoif import files, sandbox
from autoif.files import UserError
from autoif.prompt import accuracy, join
from autoif.stage import Help
from autoif.stage import run as run_command

GATHERING = 0.002  # seconds without a further call after which several that came are answered
GATHERED = 10_000  # calls that are answered together, at most
# Of processes that stay for the next call, for all workers: some 2 MB a function.
KEEP_MB = 1024
# A job has the texts of many callers: so many times more bad ones disqualify a function.
PATIENCE = 4


class Score(NamedTuple):
    """What a constraint's functions say of one text; None twice where one of them erred."""

    pass_share: float | None
    all_pass: bool | None
    error: str | None


def score_of(verdicts: Sequence[str], errors: Sequence[str | None]) -> Score:
    """A text's verdicts as a Score, with the reason of the first function that erred."""
    if "error" in verdicts:
        return Score(None, None, errors[verdicts.index("error")] or "error")
    share = accuracy(list(verdicts))
    return Score(share, share == 1.0, None)


def lowest(scores: Sequence[Score]) -> Score:
    """The Score under several constraints, each of which has to pass: an error, or the lowest."""
    for score in scores:
        if score.pass_share is None:
            return score
    return min(scores)


class _Call:
    """One `score`: its (code, text) pairs, and the verdicts as they come in."""

    def __init__(self, wanted: list[tuple[str, str]]):
        self.wanted, self.missing = wanted, len(wanted)
        self.verdicts: list[str] = [""] * len(wanted)
        self.errors: list[str | None] = [None] * len(wanted)
        self.answer: Future = Future()
        self.answer.set_running_or_notify_cancel()  # who no longer waits for it cancels nothing

    def put(self, place: int, verdict: str, error: str | None) -> None:
        self.verdicts[place] = verdict
        self.errors[place] = error
        self.missing -= 1
        if not self.missing:
            self.answer.set_result((self.verdicts, self.errors))


class _Pool:
    """One `sandbox.run` without an end, in a thread that takes all waiting calls at a time."""

    def __init__(self, options: dict):
        self.options = options
        self.waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.taken: list[_Call] = []
        self.ending = False
        self.thread = threading.Thread(target=self._work, name="verifiers", daemon=True)
        self.thread.start()

    def ask(self, wanted: list[tuple[str, str]]) -> Future:
        """The verdicts and errors of (code, text) pairs, to come."""
        call = _Call(wanted)
        self.waiting.put(call)
        return call.answer

    def _jobs(self) -> Iterator[dict | None]:
        """A job for each function that waiting calls name; its id: where its verdicts go."""
        while not self.ending:
            # all that has come since the last answer, and what follows on the heels of several,
            # such as a batch that a trainer asks for one by one: a function then runs once for it
            found = [self.waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(found) < GATHERED:
                    pause = GATHERING if len(found) > 1 else 0
                    found.append(self.waiting.get(timeout=pause))
            self.taken = [call for call in found if call is not None]
            self.ending = None in found
            places = defaultdict(list)
            for call in self.taken:
                for place, (code, _) in enumerate(call.wanted):
                    places[code].append((call, place))
            for code, found in places.items():
                texts = [call.wanted[place][1] for call, place in found]
                yield {"id": found, "code": code, "inputs": texts}
            yield None  # nothing more for now: answer

    def _work(self) -> None:
        try:
            options = {"keep_mb": KEEP_MB, "patience": PATIENCE, **self.options}
            for result in sandbox.run(self._jobs(), **options):
                verdicts, error = result["verdicts"], result["error"]
                tried = len(verdicts) - result.get("untried", 0)
                bad = verdicts[:tried].count("error")
                for number, (call, place) in enumerate(result["id"]):
                    if number == tried:  # and all behind it
                        error = f"not tried after {error} on {bad} of {tried} other texts"
                    call.put(place, verdicts[number], error)
        except BaseException as error:  # a sandbox that cannot be had: every caller hears it
            while True:
                for call in self.taken:
                    if not call.answer.done():
                        call.answer.set_exception(error)
                last = None if self.ending else self.waiting.get()
                if last is None:
                    return
                self.taken = [last]

    def close(self) -> None:
        self.waiting.put(None)
        self.thread.join()


class Verifiers:
    """The functions of many constraints, by the constraints' ids; see the head of this file."""

    def __init__(self, rows: dict[str, dict], source: str = "", **options):
        """`rows` by id; `options` are those of `autoif.sandbox.run`, such as workers=4."""
        self.rows, self.source, self.options = rows, source, options
        self._renew()
        _alive.add(self)

    @classmethod
    def load(cls, path: str, **options) -> "Verifiers":
        rows, lines = {}, {}
        for number, row in files.numbered(path):
            if not row.get("verifiers") and not row.get("instruction_id_list"):
                raise UserError(
                    f"{path}:{number} has neither 'verifiers' nor 'instruction_id_list' (it has "
                    f"{sorted(row)}); give a file of 02_verifiers.py or 03_backtranslate.py"
                )
            identity = row.get("id", row.get("key"))
            if identity is None:
                raise UserError(f"{path}:{number} has no 'id' and no 'key'; give each row its own")
            first = lines.setdefault(str(identity), number)
            if first != number:
                text = f"{path}:{number} has the id {identity!r} of line {first}"
                raise UserError(f"{text}; give each row its own")
            rows[str(identity)] = row
        if not rows:
            raise UserError(f"{path} has no row; give a file of 02_verifiers.py or later")
        return cls(rows, str(path), **options)

    def score(self, ids: Sequence[str], texts: Sequence[str]) -> list[Score]:
        """One Score for each text, by the functions of the constraint beside it."""
        rows = self._rows(ids, texts)
        return self._scores(rows, texts, self._ask(rows, texts).result())

    async def score_async(self, ids: Sequence[str], texts: Sequence[str]) -> list[Score]:
        rows = self._rows(ids, texts)
        verdicts = await asyncio.wrap_future(self._ask(rows, texts))
        return self._scores(rows, texts, verdicts)

    def close(self) -> None:
        """End the sandbox; the next call starts it again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _renew(self) -> None:
        """Forget the sandbox: it belongs to the process that this one was forked from."""
        self._lock, self._pool = threading.Lock(), None

    def _rows(self, ids: Sequence[str], texts: Sequence[str]) -> list[list[dict]]:
        """The constraints of each text; a prompt of stage 04 with two has the id "i2+i5"."""
        if len(ids) != len(texts):
            raise UserError(f"{len(ids)} ids for {len(texts)} texts; give one id a text")
        return [self._constraints(each) for each in ids]

    def _constraints(self, identity: str) -> list[dict]:
        if identity in self.rows:
            return [self.rows[identity]]
        parts = str(identity).split("+")
        for unknown in parts:
            if unknown not in self.rows:
                raise UserError(
                    f"{self.source} has no constraint {unknown!r} (it has {len(self.rows)}, such "
                    f"as {next(iter(self.rows))!r}); give the file that the rows were made from"
                )
        return [self.rows[each] for each in parts]

    def _ask(self, rows: list[list[dict]], texts: Sequence[str]) -> Future:
        wanted = []
        for constraints, text in zip(rows, texts):
            for row in constraints:
                wanted += [(verifier["code"], text) for verifier in row.get("verifiers", [])]
        if not wanted:
            answer = Future()
            answer.set_result(([], []))
            return answer
        with self._lock:
            if self._pool is None:
                self._pool = _Pool(self.options)
            return self._pool.ask(wanted)

    def _scores(self, rows: list[list[dict]], texts: Sequence[str], answer: tuple) -> list[Score]:
        verdicts, errors = answer
        scores, at = [], 0
        for constraints, text in zip(rows, texts):
            found = []
            for row in constraints:
                if "verifiers" not in row:
                    found.append(check(row, text))
                    continue
                end = at + len(row["verifiers"])
                found.append(score_of(verdicts[at:end], errors[at:end]))
                at = end
            scores.append(lowest(found))
        return scores


_alive: weakref.WeakSet[Verifiers] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [verifiers._renew() for verifiers in _alive])


# ---- other people's checkers: rows of IFEval and IFBench ----

_checking = threading.Lock()  # these checkers draw from the global random generator


def check(row: dict, text: str) -> Score:
    """A text's Score by the checkers that a row of IFEval or IFBench names (strict)."""
    from autoif.evaluation.benchmarks import ifeval

    with _checking:
        registry = ifeval.checkers("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval")
        if row["instruction_id_list"][0] not in registry:
            registry = ifeval.checkers("if_verifiable", "if_verifiable.ifbench")
        [item] = ifeval.items([row])
        for unknown in item["instruction_ids"]:
            if unknown not in registry:
                raise UserError(
                    f"no checker {unknown!r} in lm-eval or if-verifiable; "
                    f"leave the row {item['id']} out"
                )
        try:
            strict, _ = ifeval.check(item, text, registry)
        except LookupError as error:  # data of NLTK that no package carries
            reason = str(error).strip("*\n ").split("\n")[0]
            return Score(None, None, f"missing data: {reason}")
    return score_of(["pass" if verdict else "fail" for verdict in strict], [])


# ---- probes: texts that earn a reward without an answer ----

QUERY = "How can I keep the plants on my balcony alive while I am away?"
CONSTANT = "Thank you for your question. I will gladly help you with it today."


def stuffing(instruction: str) -> str:
    """The words that a constraint names in quotes, else its longer words, three times over."""
    quoted = re.findall(r'["“‘\']([^"”’\']+)["”’\']', instruction)
    return " ".join(3 * (quoted or re.findall(r"\w{4,}|\d+", instruction)))


def probes(instruction: str, query: str = QUERY) -> dict[str, str]:
    """{name: text} of answers that do not answer the query."""
    return {
        "empty answer": "",
        "prompt copied": join(query, instruction),
        "constraint repeated": instruction,
        "keyword stuffing": stuffing(instruction),
        "constant answer": CONSTANT,
    }


def probe(verifiers: Verifiers) -> dict[str, dict]:
    """What each probe earns: {probe: {functions, of_functions, ids, of_constraints}}.

    `functions` counts those that pass it, where no other function of their constraint errs; `ids`
    are the constraints under which stage 04 would accept it (more than half of the functions pass).
    A constraint on what to leave out is truly kept by an empty answer, so a share above 0 is no
    fault by itself: it is what a policy is paid for saying nothing.
    """
    rows = [row for row in verifiers.rows.values() if row.get("verifiers")]
    names = list(probes(""))
    ids = [str(row["id"]) for row in rows for _ in names]
    texts = [text for row in rows for text in probes(row["instruction"]).values()]
    scores = verifiers.score(ids, texts)
    found = {}
    for place, name in enumerate(names):
        passing, accepted = 0, []
        for row, score in zip(rows, scores[place :: len(names)]):
            passing += round((score.pass_share or 0) * len(row["verifiers"]))
            if score.pass_share is not None and score.pass_share > 0.5:
                accepted.append(row["id"])
        found[name] = {
            "functions": passing,
            "of_functions": sum(len(row["verifiers"]) for row in rows),
            "ids": accepted,
            "of_constraints": len(rows),
        }
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.reward",
        description=__doc__,
        formatter_class=Help,
    )
    parser.add_argument(
        "--probe",
        metavar="FILE",
        required=True,
        help="rows of 02 or 03: say which of their verifiers an answer that answers nothing passes",
    )
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    verifiers = Verifiers.load(args.probe, **sandbox.options(args))
    for name, found in probe(verifiers).items():
        shown = ", ".join(found["ids"][:5]) + (" ..." if len(found["ids"]) > 5 else "")
        print(
            f"{name}: {found['functions']:,} of {found['of_functions']:,} functions, "
            f"{len(found['ids']):,} of {found['of_constraints']:,} constraints"
            + (f" ({shown})" if shown else "")
        )
    verifiers.close()


if __name__ == "__main__":
    run_command(main)
