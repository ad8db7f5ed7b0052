"""The pool of workers behind autoif.sandbox: jobs in, verdicts out, in order."""

import argparse
import json
import marshal
import os
import select
import shlex
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from subprocess import PIPE, Popen

from autoif.files import UserError

CHILD_SOURCE = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
# What a verifier may import, as stage 02's prompt says; all of it is loaded before any code comes.
MODULES = tuple(
    "base64 bisect calendar collections copy csv dataclasses datetime decimal difflib enum "
    "fractions functools hashlib heapq html io itertools json math nltk numbers numpy operator "
    "random re statistics string textwrap time typing unicodedata urllib.parse".split()
)
# The third-party ones, and what they stand on; no other package is there, not even to be read.
# They double the cost of a fork: code that names none of them goes to a worker without them.
PACKAGES = ["nltk", "numpy", "punkt", "regex"]
CPU_SECONDS, MEMORY_MB = 0.05, 512  # a verifier needs a millisecond; loops cost what it allows
WALL_FACTOR = 20  # a call that starves on a busy machine is given up after so many CPU limits
ENVIRONMENT = (
    "PYTHONHASHSEED=0 PYTHONIOENCODING=utf-8:backslashreplace LC_ALL=C.UTF-8 TZ=UTC HOME=/ "
    "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1".split()
)
HELD_BYTES = 64 << 20  # of jobs and answers between reading and yielding; beyond it none is read
TRIES = 3  # workers that may die under a job
KEPT_INPUTS, KEPT_BYTES = 16, 1 << 16  # of a job for a child that stays, at most
PREFIX_HINT = "set SANDBOX_PREFIX='docker run -i --rm --network none IMAGE' or the like"
END = object()  # of the jobs
HEAD = struct.Struct("=4q")  # the numbers before a message, see child.py
VERDICTS = {"P": "pass", "F": "fail", "E": "error"}


def check_job(row: dict, where: str) -> None:
    """UserError that names `where` and what is wrong, unless `row` is a job."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is no object with id, code, inputs: {str(row)[:80]!r}")
    for field in ("id", "code", "inputs"):
        if field not in row:
            raise UserError(
                f"{where} has no {field!r}; a job has id, code and inputs, this one {sorted(row)}"
            )
    code, inputs = row["code"], row["inputs"]
    if not isinstance(code, str):
        raise UserError(f"{where}: 'code' must be a string, not {str(code)[:80]!r}")
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise UserError(f"{where}: 'inputs' must be a list of strings, not {str(inputs)[:80]!r}")


class _Worker:
    """One worker process, which answers one job after the other."""

    def __init__(self, settings: dict, packages: bool, prefix: list[str]):
        self.owner, self.ready, self.rest = os.getpid(), False, b""
        self.jobs: deque[dict] = deque()  # the one under way, and those that wait in its pipe
        self.packages = packages
        self.slots: dict[str, int] = {}  # of the functions whose children stay, least recent first
        self.keep = settings["keep"]
        environment = dict(variable.split("=") for variable in ENVIRONMENT)
        for name in {"LD_LIBRARY_PATH", "NLTK_DATA"} & os.environ.keys():
            environment[name] = os.environ[name]
        # The base interpreter, since a virtual environment may lie in the project.
        command = [sys._base_executable, "-s", "-S", "-B", "-c", CHILD_SOURCE]
        folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        if prefix:
            variables = [f"{name}={value}" for name, value in environment.items()]
            command = [*prefix, "env", *variables, "python3", *command[1:]]
            environment, folders = None, []  # those of the place that the prefix leads to
        try:
            # a session of its own: Ctrl-C is the parent's to handle
            options = {"cwd": "/", "env": environment, "bufsize": 0, "start_new_session": True}
            self.process = Popen(command, stdin=PIPE, stdout=PIPE, **options)
        except OSError as error:
            raise UserError(f"the sandbox's worker does not start: {error}") from None
        with suppress(BrokenPipeError):  # found out when its first line is read
            settings = {**settings, "folders": folders, "packages": PACKAGES * packages}
            self.write(json.dumps(settings).encode() + b"\n")

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.process.stdin.fileno(), rest) :]

    def send(self, job: dict) -> None:
        self.jobs.append(job)
        # version 4: that of every Python from 3.4 on, since a prefix may lead to another one
        body = marshal.dumps((job["code"], job["inputs"]), 4)
        slot, another, count = -1, 0, len(job["inputs"])
        if self.keep and 0 < count <= KEPT_INPUTS and len(body) <= KEPT_BYTES:
            slot, another = self.slot(job["code"])
        self.write(HEAD.pack(len(body), count, slot, another) + body)

    def takes(self, job: dict) -> bool:
        """Whether a job of a function whose child stays here can wait in the pipe."""
        return sum(each["size"] for each in self.jobs) + job["size"] < KEPT_BYTES

    def slot(self, code: str) -> tuple[int, bool]:
        """The number under which a function's child stays, and whether it was another's."""
        another = code not in self.slots
        slot = self.slots.pop(code, len(self.slots))
        if slot == self.keep:
            slot = self.slots.pop(next(iter(self.slots)))
        self.slots[code] = slot
        return slot, another

    def lines(self) -> list[str]:
        """The lines that have come: first the layers that do not hold as JSON, then answers."""
        part = os.read(self.process.stdout.fileno(), 1 << 16)
        if not part:
            raise EOFError
        *lines, self.rest = (self.rest + part).split(b"\n")
        return [line.decode("ascii", "replace") for line in lines]

    def close(self) -> None:
        if self.owner != os.getpid():  # a fork of this process shares the pipes, not the worker
            return
        self.process.kill()  # its child dies with it
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Sandbox(AbstractContextManager):
    """Workers that stay up from one `run` to the next; for any number of threads, and for forks.

    with Sandbox() as box: results = list(box.run(jobs))

    With `keep`, the processes of so many functions a worker stay too, and a job of few inputs costs
    no fork; for what that means besides see the head of the package.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        cpu_seconds: float = CPU_SECONDS,
        memory_mb: int = MEMORY_MB,
        unsafe: bool = False,
        keep: int = 0,
    ):
        self.prefix = shlex.split(os.environ.get("SANDBOX_PREFIX", ""))
        if sys.platform != "linux" and not self.prefix:
            raise UserError(f"the sandbox needs Linux, this is {sys.platform}: {PREFIX_HINT}")
        given = {"--workers": workers, "--cpu-seconds": cpu_seconds, "--memory-mb": memory_mb}
        for flag, value in given.items():
            if value is not None and value <= 0:
                raise UserError(f"{flag} must be more than 0, not {value}")
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        self.limit, self.unsafe, self.warned = workers or cores, unsafe, False
        self.settings = {"modules": MODULES, "memory_mb": memory_mb}
        self.settings |= {"cpu_seconds": cpu_seconds, "wall_seconds": WALL_FACTOR * cpu_seconds}
        self.settings["keep"] = keep
        # with more to choose from, fewer workers stand idle while a job waits for a certain one
        self.ahead = 4 * self.limit if keep else self.limit
        self.idle = {False: deque(), True: deque()}  # whose pop and append need no lock

    def close(self, *_) -> None:
        """End the idle workers; those of a `run` under way end with it."""
        for idle in self.idle.values():
            while idle:
                idle.pop().close()

    __exit__ = close

    def borrow(self, packages: bool, code: str) -> _Worker:
        """An idle worker, if possible one where the function's child stays, or a new one."""
        idle = self.idle[packages]
        keepers = [worker for worker in list(idle) if code in worker.slots]
        for worker in keepers or list(idle):
            with suppress(ValueError):  # another thread has taken it
                idle.remove(worker)
                if worker.owner == os.getpid():  # a fork took it along: forgotten
                    return worker
        return _Worker(self.settings, packages, self.prefix)

    def run(self, jobs: Iterable[dict | None]) -> Iterator[dict]:
        """Yield `{"id", "verdicts", "error"}` for each job `{"id", "code", "inputs"}`, in order.

        Lazy on both sides: a few jobs are read ahead. A None among the jobs says that the next one
        may take a while, so everything before it is answered first. UserError where isolation
        cannot be had (unless `unsafe`) or a job is malformed.
        """
        state, jobs, more, pause, given = _Run(self), iter(jobs), True, False, 0
        try:
            while more or given < state.read:
                while more and not pause and len(state.pending) < self.ahead:
                    if state.held >= HELD_BYTES:
                        break
                    row = next(jobs, END)
                    more, pause = row is not END, row is None
                    if more and not pause:
                        state.add(row)
                state.dispatch()
                while given in state.answers:
                    answer, size = state.answers.pop(given)
                    state.held -= size
                    given += 1
                    yield answer
                if state.busy:
                    state.collect()
                elif not state.pending:
                    pause = False
        finally:
            for worker in state.busy:
                worker.close()


class _Run:
    """One `run`: the jobs read ahead, the busy workers, answers that wait for an earlier one."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox, self.busy, self.pending = sandbox, [], deque()
        self.read, self.held = 0, 0
        self.answers: dict[int, tuple[dict, int]] = {}

    def add(self, row: dict) -> None:
        check_job(row, f"job {self.read + 1}")
        size = sys.getsizeof(row["code"]) + sum(map(sys.getsizeof, row["inputs"]))
        packages = any(name in row["code"] for name in PACKAGES)
        ours = {"index": self.read, "size": size, "packages": packages, "lost": 0}
        self.pending.append({**row, **ours})
        self.read, self.held = self.read + 1, self.held + size

    def dispatch(self) -> None:
        """Give every worker that may be had a job, and a busy one those of functions it keeps."""
        for _ in range(len(self.pending)):
            job = self.pending.popleft()
            keepers = [worker for worker in self.busy if job["code"] in worker.slots]
            if keepers and keepers[0].takes(job):
                worker = keepers[0]
            elif not keepers and len(self.busy) < self.sandbox.limit:
                worker = self.sandbox.borrow(job["packages"], job["code"])
                self.busy.append(worker)
            else:
                self.pending.append(job)  # all of them go round, so their order stays
                continue
            try:
                worker.send(job)
            except BrokenPipeError:
                self.lose(worker)

    def collect(self) -> None:
        """Wait for an answer and take all there are."""
        poll, workers = select.poll(), {}
        for worker in self.busy:
            poll.register(worker.process.stdout, select.POLLIN)
            workers[worker.process.stdout.fileno()] = worker
        for descriptor, _ in poll.poll():
            worker = workers[descriptor]
            try:
                for line in worker.lines():
                    (self.judge if worker.ready else self.admit)(worker, line)
            except EOFError:
                self.lose(worker)

    def admit(self, worker: _Worker, line: str) -> None:
        """Refuse a worker without its layers, or say loudly what is missing."""
        try:
            missing = json.loads(line)
        except ValueError:
            raise UserError(
                f"the sandbox's worker does not start, but says {line[:80]!r}"
            ) from None
        sandbox, worker.ready = self.sandbox, True
        if missing and not sandbox.unsafe and not sandbox.prefix:
            raise UserError(
                f"the sandbox cannot be had here: {'; '.join(missing)}. Use a kernel with Landlock "
                f"and seccomp (5.13 or later, allowed in this container), {PREFIX_HINT}, or run "
                "model-written code unprotected with --unsafe-no-sandbox"
            )
        if missing and not sandbox.warned:
            sandbox.warned = True
            print(
                f"sandbox: WARNING: model-written code runs WITHOUT: {'; '.join(missing)} "
                f"(SANDBOX_PREFIX: {shlex.join(sandbox.prefix) or 'none'})",
                file=sys.stderr,
            )

    def lose(self, worker: _Worker) -> None:
        """A worker died: its jobs run again on another one."""
        self.busy.remove(worker)
        worker.close()
        job = worker.jobs.popleft()
        self.pending.extendleft(reversed(worker.jobs))
        job["lost"] += 1
        if job["lost"] < TRIES:
            self.pending.appendleft(job)
        elif worker.ready:
            self.finish(job, ["error"] * len(job["inputs"]), "crash: worker")
        else:
            raise UserError(
                f"the sandbox's worker does not start: {worker.process.args[0]} ended with "
                f"{worker.process.returncode}; is it a command that this user can run?"
            )

    def judge(self, worker: _Worker, line: str) -> None:
        """Take a worker's answer and give the worker back."""
        letters, _, reason = line.partition(" ")
        job = worker.jobs.popleft()
        if not worker.jobs:
            self.busy.remove(worker)
            self.sandbox.idle[worker.packages].append(worker)
        self.finish(job, [VERDICTS[letter] for letter in letters], reason or None)

    def finish(self, job: dict, verdicts: list[str], error: str | None) -> None:
        """Keep an answer, without the code and the inputs, until it is its turn."""
        size = 1000 + 8 * len(verdicts)
        self.held += size - job["size"]
        self.answers[job["index"]] = {"id": job["id"], "verdicts": verdicts, "error": error}, size


def run(jobs: Iterable[dict | None], **options) -> Iterator[dict]:
    """`Sandbox(**options).run(jobs)`, whose workers end with it."""
    with Sandbox(**options) as sandbox:
        yield from sandbox.run(jobs)


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("sandbox", "where model-written code runs")
    cpu = f"of a call, of loading; wall time: {WALL_FACTOR} times that (default: %(default)s)"
    unsafe = "run it even where layers of the sandbox cannot be had"
    flags.add_argument("--workers", type=int, help="processes that run it (default: one a core)")
    flags.add_argument("--cpu-seconds", type=float, default=CPU_SECONDS, help=cpu)
    flags.add_argument("--memory-mb", type=int, default=MEMORY_MB, help="memory of one function")
    flags.add_argument("--unsafe-no-sandbox", action="store_true", help=unsafe)


def options(args: argparse.Namespace) -> dict:
    """The keyword arguments of `run`, from the flags of `add_flags`."""
    limits = {name: getattr(args, name) for name in ("workers", "cpu_seconds", "memory_mb")}
    return {**limits, "unsafe": args.unsafe_no_sandbox}
