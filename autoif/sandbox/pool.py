"""The pool of workers behind autoif.sandbox: jobs in, verdicts out, in order."""

import asyncio
import json
import marshal
import os
import re
import select
import shlex
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

from autoif.files import UserError
from autoif.flags import Count, Positive

CHILD_SOURCE = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
# What a verifier may import, as stage 02's prompt says; all of it is loaded before any code comes.
MODULES = tuple(
    "base64 bisect calendar collections copy csv dataclasses datetime decimal difflib enum "
    "fractions functools hashlib heapq html io itertools json math nltk numbers numpy operator "
    "random re statistics string textwrap time typing unicodedata urllib.parse".split()
)
# The third-party ones and what they stand on; no other package is there. They double the cost of a
# fork: code that imports none of them goes to a worker without them.
PACKAGES = ["nltk", "numpy", "punkt", "regex"]
IMPORTED = re.compile(rf"(import|from)\b[^\n#]*\b({'|'.join(PACKAGES)})\b")
# A verifier needs a millisecond, a sieve of a million at load 0.1 s; loops cost what it allows.
CPU_SECONDS, MEMORY_MB = 0.4, 512
WALL_FACTOR = 100  # no code can wait, but a busy machine may leave it so little
ENVIRONMENT = (
    "PYTHONHASHSEED=0 PYTHONIOENCODING=utf-8:backslashreplace LC_ALL=C.UTF-8 TZ=UTC HOME=/ "
    "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1".split()
)
AHEAD, HELD_ANSWERS = 4, 10_000  # jobs a worker, and answers behind a slow one; then none is read
TRIES = 3  # workers that may die under a job
GRACE = 60  # seconds that a worker has to start, and beyond all limits of a job's calls
KEPT_INPUTS, KEPT_BYTES = 16, 1 << 16  # of a job for a child that stays, at most
PREFIX_HINT = "set SANDBOX_PREFIX='docker run -i --rm --network none IMAGE' or the like"
HEAD, READ_RATE = struct.Struct("=3q"), 10e6  # see child.py
VERDICTS = {"P": "pass", "F": "fail", "E": "error", "D": "error"}


class _Worker:
    def __init__(self, settings: dict, packages: list[str], prefix: list[str]):
        self.ready = False
        environment = dict(variable.split("=") for variable in ENVIRONMENT)
        for name in os.environ.keys() & {"LD_LIBRARY_PATH", *["NLTK_DATA"] * bool(packages)}:
            environment[name] = os.environ[name]
        # The base interpreter, since a virtual environment may lie in the project.
        command = [sys._base_executable, "-s", "-S", "-B", "-c", CHILD_SOURCE]
        # paths of the project, which children could find in memory: only where they are needed
        folders = [path for path in sys.path if packages and path.endswith("-packages")]
        if prefix:
            # keys and tokens are in the environment that a prefix may hand on
            unset = [f"-u{name}" for name in os.environ if name != "PATH"]
            variables = [f"{name}={value}" for name, value in environment.items()]
            command = [*prefix, "env", *unset, *variables, "python3", *command[1:]]
            environment, folders = None, []
        self.settings = {**settings, "packages": packages, "folders": folders}
        try:
            # a session of its own: Ctrl-C is the parent's to handle
            options = {"cwd": "/", "env": environment, "bufsize": 0, "start_new_session": True}
            self.process = Popen(command, stdin=PIPE, stdout=PIPE, **options)
        except OSError as error:
            raise UserError(f"the sandbox's worker does not start: {error}") from None

    def ask(self, data: bytes, seconds: float) -> str:
        """The line that answers `data`; EOFError where the worker is dead, or so long overdue."""
        rest, line, end, poll = memoryview(data), b"", time.monotonic() + seconds, select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        with suppress(BrokenPipeError):  # found out when the answer is read
            while rest:
                rest = rest[os.write(self.process.stdin.fileno(), rest) :]
        while not line.endswith(b"\n"):
            # poll takes no more milliseconds than an int holds
            ready = poll.poll(min(1000 * max(0, end - time.monotonic()), 2**31 - 1))
            part = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                raise EOFError
            line += part
        return line[:-1].decode("ascii", "replace")

    def close(self) -> None:
        with self.process:  # closes the pipes and waits
            self.process.kill()  # its child dies with it


class Sandbox(AbstractContextManager, AbstractAsyncContextManager):
    """Workers that judge jobs, for any number of threads and event loops of this process.

        async with sandbox.Sandbox(args) as box:
            results = await box.run([{"code": "def evaluate(...", "inputs": ["One.", "Two."]}])
            # [{"verdicts": ["pass", "fail"], "error": None}]

    With `keep_mb` the processes of functions stay too, in so much memory, and a job of few inputs
    costs no fork; `patience` multiplies the bad inputs that disqualify a function.
    """

    def __init__(self, flags: "Flags", *, keep_mb: int = 0, patience: int = 1):
        self.prefix = shlex.split(os.environ.get("SANDBOX_PREFIX", ""))
        if sys.platform != "linux" and not self.prefix:
            raise UserError(f"the sandbox needs Linux, this is {sys.platform}: {PREFIX_HINT}")
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        self.limit, self.unsafe = flags.workers or cores, flags.unsafe_no_sandbox
        self.settings = {"modules": MODULES, "patience": patience, "wall_factor": WALL_FACTOR}
        self.settings |= {"cpu_seconds": flags.cpu_seconds, "memory_mb": flags.memory_mb}
        self.settings["keep_mb"] = keep_mb // self.limit
        # where children stay, a function has a thread and a worker of its own, where its child is
        self.places = self.limit if self.settings["keep_mb"] else 1
        self.threads = [ThreadPoolExecutor(self.limit // self.places) for _ in range(self.places)]
        self.workers: set[_Worker] = set()
        self.own = threading.local()  # each thread's workers: one with packages, one without
        self.warned = self.over = False

    async def run(self, jobs: Iterable[dict]) -> list[dict]:
        """`{"verdicts", "error"}` of each job `{"code", "inputs"}`, in order."""
        # in threads: to pack and to send texts here would hold up all else that the loop does
        return await asyncio.gather(*[asyncio.wrap_future(self.submit(job)) for job in jobs])

    def submit(self, job: dict) -> Future:
        """The answer to one job, to come."""
        place = hash(job["code"]) % self.places
        return self.threads[place].submit(self._judge, job)

    def ahead(self, jobs: Iterable[dict]) -> Iterator[Future]:
        """Yield the answer of each job, to come; jobs are read no further than workers need."""
        room = threading.Semaphore(AHEAD * self.limit)
        for job in jobs:
            room.acquire()
            answer = self.submit(job)
            answer.add_done_callback(lambda _: room.release())
            yield answer

    def close(self, *_) -> None:
        """End the workers; jobs that nobody waits for any more end with them."""
        self.over = True
        for worker in list(self.workers):
            worker.process.kill()
        for threads in self.threads:
            threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.close()

    __exit__ = close

    async def __aexit__(self, *_) -> None:
        self.close()

    def _judge(self, job: dict) -> dict:
        """The answer to one job, from this thread's worker or a new one."""
        count, settings = len(job["inputs"]), self.settings
        # version 4: that of every Python from 3.4 on, since a prefix may lead to another one
        body = marshal.dumps((job["code"], job["inputs"]), 4)
        small = 0 < count <= KEPT_INPUTS and len(body) <= KEPT_BYTES
        key = hash(job["code"]) if settings["keep_mb"] and small else 0
        # each input may have a child of its own, which reads all, loads and calls
        seconds = (count + 1) * (2 * settings["cpu_seconds"] + len(body) / READ_RATE)
        packages = PACKAGES if IMPORTED.search(job["code"]) else []
        message = HEAD.pack(len(body), count, key) + body
        own, kind = vars(self.own), "with packages" if packages else "plain"
        line, tries = "", TRIES
        while tries and not line:
            worker = own.pop(kind, None) or _Worker(self.settings, packages, self.prefix)
            tries -= 1
            self.workers.add(worker)
            try:
                if self.over:  # nobody waits, and `close` may have missed this worker
                    raise CancelledError
                if not worker.ready:
                    self._admit(worker)
                line = worker.ask(message, GRACE + WALL_FACTOR * seconds)
                own[kind] = worker
            except EOFError:
                if not tries and not worker.ready:
                    how = f"says nothing within {GRACE} s"
                    with suppress(TimeoutExpired):  # it lives
                        how = f"ended with {worker.process.wait(1)}"
                    raise UserError(
                        f"the sandbox's worker does not start: {worker.process.args[0]} {how}; "
                        "is it a command that this user can run?"
                    ) from None
            finally:
                if not line:
                    self.workers.discard(worker)
                    worker.close()
        letters, _, reason = (line or "E" * count + " crash: worker").partition(" ")
        answer = {"id": job["id"]} if "id" in job else {}
        answer |= {"verdicts": [VERDICTS[letter] for letter in letters], "error": reason or None}
        if "D" in letters:
            answer["untried"] = letters.count("D")
        return answer

    def _admit(self, worker: _Worker) -> None:
        """Refuse a worker without its layers, or say loudly what is missing."""
        line = worker.ask(json.dumps(worker.settings).encode() + b"\n", GRACE)
        try:
            missing = json.loads(line)
        except ValueError:
            text = f"the sandbox's worker does not start, but says {line[:80]!r}"
            raise UserError(text) from None
        if missing and not self.unsafe and not self.prefix:
            raise UserError(
                f"the sandbox cannot be had here: {'; '.join(missing)}. Use a kernel with Landlock "
                f"and seccomp (5.13 or later, allowed in this container), {PREFIX_HINT}, or run "
                "model-written code unprotected with --unsafe-no-sandbox"
            )
        worker.ready = True
        if missing and not self.warned:
            self.warned = True
            text = f"sandbox: WARNING: model-written code runs WITHOUT: {'; '.join(missing)}"
            print(f"{text} (SANDBOX_PREFIX: {shlex.join(self.prefix) or 'none'})", file=sys.stderr)


@dataclass(kw_only=True)
class Flags:
    workers: Count | None = None  # processes that run model-written code (default: one a core)
    cpu_seconds: Positive = CPU_SECONDS  # of a call, of loading; wall time: 100 times that
    memory_mb: Count = MEMORY_MB  # memory of one function
    unsafe_no_sandbox: bool = False  # run it even where layers of the sandbox cannot be had
