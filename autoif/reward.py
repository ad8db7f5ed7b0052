"""Verifiers as rewards: constraint ids and texts in, a score for each text out.

    verifiers = Verifiers.load("out/03_instructions.jsonl")
    verifiers.score(["i00002"], ["One sentence. And another."])
    # [Score(pass_share=1.0, all_pass=True, error=None)]
    await verifiers.score_async(["i00002"], ["One sentence. And another."])

    python -m autoif.reward --probe out/03_instructions.jsonl     # what fools them
    python -m autoif.reward --probe out/02_verifiers.jsonl --keep out/02_strong.jsonl

A file is JSONL of rows with `id` and `verifiers` (stages 02 and 03), or of rows with `key`,
`instruction_id_list` and `kwargs` (IFEval, IFBench), which their owners' checkers score in this
process.

The sandbox stays up between calls, which may come from any thread: those that arrive while others
are answered share its next jobs. The processes of the functions asked last stay too: what a
function remembers of one text may reach the next one (keep_mb=0: in a call only). A forked process
makes a sandbox of its own. A function that errs says nothing: its text has no reward (`pass_share`
is None), not a reward of 0; where a function hung on so many texts that the rest of a job was not
tried, `error` says so.
"""

import asyncio
import os
import re
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from autoif import files, sandbox
from autoif.files import UserError
from autoif.flags import cli
from autoif.settings import write_settings
from autoif.stage import Funnel
from autoif.verifiers import MIN_ACCURACY, ROW, accuracy, constraints, join, judge

# Of processes that stay for the next call, for all workers: some 2 MB a function.
KEEP_MB = 1024
# A job has the texts of many callers: so many times more bad ones disqualify a function.
PATIENCE = 4
Verdict = tuple[str, str | None]  # and the reason of an error


class Score(NamedTuple):
    """What a constraint's functions say of one text; None twice where one of them erred."""

    pass_share: float | None
    all_pass: bool | None
    error: str | None


def score_of(verdicts: Sequence[Verdict], verifiers: list[dict]) -> Score:
    """A text's (verdict, error) of each function as a Score: an error, or the share that passes."""
    for verdict, error in verdicts:
        if verdict == "error":
            return Score(None, None, error or "error")
    share = accuracy([verdict for verdict, _ in verdicts], verifiers)
    return Score(share, share == 1.0, None)


def verdicts_of(result: dict) -> list[Verdict]:
    """(verdict, error) of each text of a sandbox job; those that it did not try say why."""
    verdicts, error, untried = result["verdicts"], result["error"], result.get("untried", 0)
    tried = len(verdicts) - untried
    bad = verdicts[:tried].count("error")
    not_tried = f"not tried after {error} on {bad} of {tried} other texts"
    return list(zip(verdicts, [error] * tried + [not_tried] * untried))


class Verifiers:
    """The functions of many constraints, by the constraints' ids; see the head of this file."""

    def __init__(self, rows: dict[str, dict], source: str = "", keep_mb: int = KEEP_MB, **flags):
        """`rows` by id; `flags` are fields of `autoif.sandbox.Flags`, such as workers=4."""
        for name in flags.keys() & {"workers", "cpu_seconds", "memory_mb"}:
            if flags[name] is not None and flags[name] <= 0:
                raise UserError(f"{name} must be more than 0, not {flags[name]}")
        self.rows, self.source = rows, source
        self.keep_mb, self.flags = keep_mb, sandbox.Flags(**flags)
        self._renew()
        _alive.add(self)

    @classmethod
    def load(cls, path: str, **options) -> "Verifiers":
        rows, lines = {}, {}
        for number, row in files.numbered(path):
            identity = row.get("id", row.get("key"))
            first, wrong = lines.setdefault(str(identity), number), None
            if not row.get("verifiers") and not row.get("instruction_id_list"):
                wrong = f"has neither 'verifiers' nor 'instruction_id_list' (it has {sorted(row)})"
                wrong += "; give a file of 02_verifiers.py or 03_backtranslate.py"
            elif identity is None:
                wrong = "has no 'id' and no 'key'; give each row its own"
            elif first != number:
                wrong = f"has the id {identity!r} of line {first}; give each row its own"
            if wrong:
                raise UserError(f"{path}:{number} {wrong}")
            rows[str(identity)] = row
        if not rows:
            raise UserError(f"{path} has no row; give a file of 02_verifiers.py or later")
        return cls(rows, str(path), **options)

    def score(self, ids: Sequence[str], texts: Sequence[str]) -> list[Score]:
        """One Score for each text, by the functions of the constraint beside it."""
        rows, answers = self._ask(ids, texts)
        return scores(rows, texts, {code: answer.result() for code, answer in answers.items()})

    async def score_async(self, ids: Sequence[str], texts: Sequence[str]) -> list[Score]:
        rows, answers = self._ask(ids, texts)
        verdicts = await asyncio.gather(*map(asyncio.wrap_future, answers.values()))
        return scores(rows, texts, dict(zip(answers, verdicts)))

    def close(self) -> None:
        """End the sandbox; the next call starts it again."""
        while True:
            with self._lock:
                jobs = list(self._under_way.values())
                if not jobs:
                    box, self._box = self._box, None
                    break
            wait(jobs)
        if box is not None:
            box.close()

    def _renew(self) -> None:
        """Forget the sandbox: it belongs to the process that this one was forked from."""
        self._lock, self._box = threading.RLock(), None
        # by function: the calls that wait for its next job, and its job under way
        self._waiting: dict[str, list[tuple[list[str], Future]]] = defaultdict(list)
        self._under_way: dict[str, Future] = {}

    def _constraints(self, identity: str) -> list[dict]:
        """Those of a text; a prompt of stage 04 with two has the id "i2+i5"."""
        # a file may have a row of several constraints, or those that it is made of
        parts = [identity] if identity in self.rows else str(identity).split("+")
        for unknown in parts:
            if unknown not in self.rows:
                raise UserError(
                    f"{self.source} has no constraint {unknown!r} (it has {len(self.rows)}, such "
                    f"as {next(iter(self.rows))!r}); give the file that the rows were made from"
                )
        return [self.rows[part] for part in parts]

    def _ask(
        self, ids: Sequence[str], texts: Sequence[str]
    ) -> tuple[list[list[dict]], dict[str, Future]]:
        """(the constraints of each text, {code: the (verdict, error) of its texts, to come})."""
        if len(ids) != len(texts):
            raise UserError(f"{len(ids)} ids for {len(texts)} texts; give one id a text")
        rows, wanted, answers = list(map(self._constraints, ids)), defaultdict(list), {}
        for under, text in zip(rows, texts):
            for row in under:
                for verifier in row.get("verifiers", []):
                    wanted[verifier["code"]].append(text)
        with self._lock:
            if self._box is None:
                self._box = sandbox.Sandbox(self.flags, keep_mb=self.keep_mb, patience=PATIENCE)
            for code, its in wanted.items():
                answers[code] = answer = Future()
                answer.set_running_or_notify_cancel()  # who no longer waits for it cancels nothing
                self._waiting[code].append((its, answer))
                if code not in self._under_way:
                    self._send(code)
        return rows, answers

    def _send(self, code: str) -> None:
        """One job of all that waits for a function; what comes meanwhile is its next one."""
        calls = self._waiting.pop(code)
        texts = [text for its, _ in calls for text in its]
        self._under_way[code] = job = self._box.submit({"code": code, "inputs": texts})
        job.add_done_callback(partial(self._deliver, code, calls))

    def _deliver(self, code: str, calls: list[tuple[list[str], Future]], job: Future) -> None:
        """Hand a job's verdicts to its calls, and ask for what has come meanwhile."""
        try:
            verdicts = iter(verdicts_of(job.result()))
            for texts, answer in calls:
                answer.set_result(list(islice(verdicts, len(texts))))
        except BaseException as error:  # a sandbox that cannot be had: every caller hears it
            for _, answer in calls:
                answer.set_exception(error)
        with self._lock:
            del self._under_way[code]
            if code in self._waiting:
                self._send(code)


def scores(
    rows: list[list[dict]], texts: Sequence[str], answers: dict[str, list[Verdict]]
) -> list[Score]:
    """One Score for each text: of several constraints, each of which has to pass, the lowest."""
    # a function's answer is in the order of its texts, so each text takes the next verdict
    verdicts = {code: iter(answer) for code, answer in answers.items()}
    of_texts = []
    for under, text in zip(rows, texts):
        of_text = []
        for row in under:
            if "verifiers" in row:
                of_row = [next(verdicts[verifier["code"]]) for verifier in row["verifiers"]]
                of_text.append(score_of(of_row, row["verifiers"]))
            else:
                of_text.append(check(row, text))
        erred = (score for score in of_text if score.pass_share is None)
        of_texts.append(next(erred, None) or min(of_text))
    return of_texts


_alive: weakref.WeakSet[Verifiers] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [verifiers._renew() for verifiers in _alive])


# ---- other people's checkers: rows of IFEval and IFBench ----

_checking = threading.Lock()  # these checkers draw from the global random generator


def as_item(row: dict) -> tuple[dict, dict[str, type]]:
    """A row of IFEval or IFBench as an item, and the checkers; UserError names an unknown one."""
    from autoif.evaluation.benchmarks import ifbench, ifeval

    [item] = ifeval.items([row])
    registry = ifeval.checkers(*ifeval.PACKAGES)
    if not registry.keys() >= set(item["instruction_ids"]):
        registry = {**registry, **ifeval.checkers(*ifbench.PACKAGES)}
    for name in item["instruction_ids"]:
        if name not in registry:
            raise UserError(
                f"no checker {name!r} in lm-eval or if-verifiable; leave the row {item['id']} out"
            )
    return item, registry


def check(row: dict, text: str) -> Score:
    """A text's Score by the checkers that a row of IFEval or IFBench names (strict)."""
    from autoif.evaluation.benchmarks import ifeval

    with _checking:
        item, registry = as_item(row)
        try:
            strict, _ = ifeval.check(item, text, registry)
        except LookupError as error:
            return Score(None, None, ifeval.lacking(error))
    share = sum(strict) / len(strict)
    return Score(share, share == 1.0, None)


# ---- probes: texts that earn a reward without an answer ----

QUERY = "How can I keep the plants on my balcony alive while I am away?"
CONSTANT = "Thank you for your question. I will gladly help you with it today."
WEAK = 4  # of the five probes: a constraint under which so many pass is not worth training on


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


async def judged(
    rows: list[dict], flags: sandbox.Flags, with_cases: bool
) -> list[tuple[dict, list[list[str]]]]:
    """(a row of 02 or 03, what its functions say of its cases, if wanted, then of each probe)"""
    calls = []
    async with sandbox.Sandbox(flags) as box:
        for row in rows:
            cases = row.get("cases", []) * with_cases
            texts = [*map(itemgetter("input"), cases), *probes(row["instruction"]).values()]
            calls.append(judge(box, row["verifiers"], texts))
        return list(zip(rows, await asyncio.gather(*calls)))


def probe(rows: list[dict], flags: sandbox.Flags) -> dict[str, dict]:
    """What each probe earns: {probe: {functions, of_functions, ids, of_constraints}}.

    `functions` counts those that pass it, where no other function of their constraint errs; `ids`
    are the constraints under which stage 04 would accept it. An empty answer truly keeps a
    constraint on what to leave out: a share above 0 is what a policy is paid for saying nothing.
    """
    verdicts_of_rows, earned = asyncio.run(judged(rows, flags, with_cases=False)), {}
    for place, name in enumerate(probes("")):
        passing, functions, accepted = 0, 0, []
        for row, of_probes in verdicts_of_rows:
            verdicts = of_probes[place]
            functions += len(verdicts)
            # as in a reward: where one function errs nothing is said
            if "error" in verdicts:
                continue
            passing += verdicts.count("pass")
            if accuracy(verdicts, row["verifiers"]) > MIN_ACCURACY:
                accepted.append(row["id"])
        earned[name] = {"functions": passing, "of_functions": functions}
        earned[name] |= {"ids": accepted, "of_constraints": len(rows)}
    return earned


def strengthen(row: dict, verdicts: list[list[str]]) -> tuple[dict, str | None]:
    """(a constraint without its constant functions, why it is not worth keeping if it is not).

    `verdicts` are those of its functions on each case, then on each probe.
    """
    of_functions = list(map(set, zip(*verdicts)))
    places = [place for place, said in enumerate(of_functions) if len(said) > 1]
    strong = reduced(row, places)
    # of several constraints in one, each needs a function
    if constraints(strong) < constraints(row):
        return row, "only constant functions"
    # a probe fools a constraint as a response passes in stage 04; one or two of them may be right,
    # such as an empty answer under "use no commas"
    fooled = 0
    for of_probe in verdicts[-len(probes("")) :]:
        passed = accuracy([of_probe[place] for place in places], strong["verifiers"])
        fooled += passed > MIN_ACCURACY
    return (row, "fooled by probes") if fooled >= WEAK else (strong, None)


def reduced(row: dict, places: list[int]) -> dict:
    """A row of 02 or 03 with the functions at these places only, and what is said of each."""
    row = dict(row)
    names = ["verifiers", "back_translations", "nli"]
    # 03 asks for the first functions only: back-translations of fewer stay as they are
    if {len(row.get(name, [])) for name in names} != {len(row["verifiers"])}:
        names = ["verifiers"]
    for name in names:
        row[name] = [row[name][place] for place in places]
    cases = []
    for case in row.get("cases", []):
        if "verdicts" in case:  # cases of one's own have none
            verdicts = [case["verdicts"][place] for place in places]
            passed = accuracy(verdicts, row["verifiers"])
            case = {**case, "accuracy": passed, "verdicts": verdicts}
        cases.append(case)
    return {**row, "cases": cases} if cases else row


@dataclass(kw_only=True)
class Flags(sandbox.Flags):
    probe: str  # rows of 02 or 03: which of their functions pass an answer that answers nothing?
    keep: str | None = None  # write the rows that are not fooled there


def keep(rows: list[dict], args: Flags) -> None:
    """Write the constraints that probes do not fool, without functions that always say the same."""
    funnel, counts = Funnel("reward", args.keep), Counter()
    functions = 0
    with files.writer(args.keep) as write:
        for row, verdicts in asyncio.run(judged(rows, args, with_cases=True)):
            functions += len(row["verifiers"])
            row, reason = strengthen(row, verdicts)
            if reason:
                funnel.drop(reason, row)
                continue
            counts["functions kept"] += len(row["verifiers"])
            write(row)
            funnel.keep()
        funnel.refuse_empty("Do these functions look at the text at all?")
        write_settings(args, args.keep)
    funnel.finish(functions=functions, **counts)


def main(args: Flags) -> None:
    rows = files.read_all(args.probe, ROW, "02_verifiers.py")
    for name, earned in probe(rows, args).items():
        functions = f"{earned['functions']:,} of {earned['of_functions']:,} functions"
        line = f"{name}: {functions}, {len(earned['ids']):,} of {earned['of_constraints']:,}"
        shown = ", ".join(earned["ids"][:5]) + " ..." * (len(earned["ids"]) > 5)
        print(f"{line} constraints" + f" ({shown})" * bool(shown))
    if args.keep:
        keep(rows, args)


if __name__ == "__main__":
    cli(main, __doc__)
