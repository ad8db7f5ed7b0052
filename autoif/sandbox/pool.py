"""The pool of workers behind autoif.sandbox: jobs in, verdicts out, in order."""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.machinery
import json
import marshal
import os
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoif.files import UserError

CHILD_SOURCE = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
CPU_SECONDS, MEMORY_MB = (
    0.1,
    512,
)  # a verifier needs a millisecond; loops cost what the limit allows
MODULE_FACTOR = 10  # on the CPU limit of a function that imports third-party modules: they load data in its first call
WALL_FACTOR = 10  # a call that sleeps, or starves on a busy machine, is given up after this many times its CPU limit
GROUP, GROUP_CHARACTERS = (
    16,
    1 << 19,
)  # functions that share a child, and the size of their message, at most
SHARED_CPU_SECONDS = (
    0.02  # of a call in a shared child; one that needs more is tried apart, with all it may have
)
PIPE = 1 << 20
AHEAD_CHARACTERS = 64 << 20  # jobs read ahead, at most
WINDOW = 8192  # answers held back for an earlier one, at most
TRIES = (
    3  # workers that a job, or a worker that a run may lose at its start, before it is called off
)


@dataclasses.dataclass(slots=True)
class _Job:
    index: int
    id: object
    code: str
    inputs: list[str]
    digest: bytes  # of the code
    modules: tuple[str, ...]  # third-party modules that it imports
    apart: bool = False
    lost: int = 0  # workers that died under it

    @property
    def size(self) -> int:
        return len(self.code) + sum(map(len, self.inputs))


@functools.cache
def _libraries() -> tuple[list[str], list[str], list[str]]:
    """Directories of the standard library, of third-party packages, and what else an import reads."""
    stdlib = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    standard = [path for path in sys.path if path.startswith(stdlib) and path not in packages]
    shared = [
        f"{sys.base_prefix}/lib",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/etc/ld.so.cache",
        "/usr/share/zoneinfo",
        "/dev/null",
        "/dev/urandom",
    ]
    return standard, packages, shared


@functools.lru_cache(maxsize=4096)
def _is_package(name: str) -> bool:
    return (
        name not in sys.stdlib_module_names
        and importlib.machinery.PathFinder.find_spec(name, _libraries()[1]) is not None
    )


_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([\w., \t]+))", re.MULTILINE)


def _third_party(code: str) -> tuple[str, ...]:
    """Installed third-party modules that `code` seems to import; the text is only looked at, never parsed here."""
    names = set()
    for name, several in _IMPORT.findall(code):
        names.update([name] if name else re.findall(r"(?:^|,)[ \t]*(\w+)", several))
    return tuple(sorted(filter(_is_package, names)))


def _job(row: dict, index: int, where: str) -> _Job:
    """`row` as a job, or UserError that names `where` and what is wrong."""
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
    digest = hashlib.blake2b(code.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return _Job(index, row["id"], code, inputs, digest, _third_party(code))


class _Worker:
    """One worker process, which answers one message at a time. Nothing here depends on the thread it is used from."""

    def __init__(self, modules: tuple[str, ...], memory_mb: int):
        self.modules, self.ready, self.jobs = modules, False, []
        standard, packages, shared = _libraries()
        path = standard + (packages if modules else [])
        environment = {
            "PYTHONHASHSEED": "0",
            "PYTHONIOENCODING": "utf-8:backslashreplace",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "HOME": "/",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        environment |= {
            name: os.environ[name]
            for name in ("LD_LIBRARY_PATH", "NLTK_DATA")
            if name in os.environ
        }
        data = os.environ.get("NLTK_DATA", "").split(os.pathsep) if "nltk" in modules else []
        # The base interpreter, since a virtual environment may lie in the project; a session of its own, since Ctrl-C
        # is the parent's to handle.
        self.process = subprocess.Popen(
            [sys._base_executable, "-s", "-S", "-B", "-c", CHILD_SOURCE],
            cwd="/",
            env=environment,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # So that a write does not wait for the child's fork; a user's pipes share a quota, and only speed depends on it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.process.stdin, fcntl.F_SETPIPE_SZ, PIPE)
        settings = {
            "path": path,
            "readable": path + shared + data,
            "modules": modules,
            "memory_mb": memory_mb,
            "wall_factor": WALL_FACTOR,
        }
        self._write(json.dumps(settings).encode() + b"\n")

    def fileno(self) -> int:
        return self.process.stdout.fileno()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.process.stdin.fileno(), rest) :]

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = os.read(self.fileno(), size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def missing(self) -> list[str]:
        """The layers that do not hold; it is the worker's first answer."""
        line = b"".join(iter(lambda: self._read(1), b"\n"))
        self.ready = True
        return json.loads(line)["missing"]

    def send(self, jobs: list[_Job], cpu_seconds: float) -> None:
        self.jobs = jobs
        body = marshal.dumps((len(jobs) > 1, [(job.code, job.inputs) for job in jobs]))
        self._write(
            struct.pack("=QId", len(body), sum(len(job.inputs) + 2 for job in jobs), cpu_seconds)
            + body
        )

    def receive(self) -> tuple[int, bool, bytes]:
        """The child's exit code (negative: signal), whether its time was up, and its frames."""
        status, timed_out, size = struct.unpack("=i?I", self._read(9))
        return os.waitstatus_to_exitcode(status), timed_out, self._read(size)

    def close(self) -> None:
        self.process.kill()  # its child dies with it
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class _Answer:
    """What a child said of one function."""

    __slots__ = ("verdicts", "error", "apart", "done")

    def __init__(self):
        self.verdicts, self.error, self.apart, self.done = [], None, False, False


_FRAME = re.compile(rb"[PFRZA]|E[^\n]{1,62}\n")
_VERDICTS = {b"P": "pass", b"F": "fail"}


def parse(frames: bytes, counts: list[int], share: bool) -> list[_Answer] | None:
    """One answer a function that was begun, only the last of them perhaps not done; None where the protocol is broken.

    `counts` is how many inputs each function has. The bytes come from a process that ran hostile code.
    """
    answers, position = [], 0
    for count in counts:
        answer, loaded = _Answer(), False
        answers.append(answer)
        while position < len(frames) and not answer.done:
            match = _FRAME.match(frames, position)
            letter = match and match.group()[:1]
            open_inputs = loaded and len(answer.verdicts) < count
            if letter == b"R" and not loaded and not answer.error:
                loaded = True
            elif letter in _VERDICTS and open_inputs:
                answer.verdicts.append(_VERDICTS[letter])
            elif letter == b"E" and open_inputs:
                answer.verdicts.append("error")
                answer.error = answer.error or match.group()[1:-1].decode("ascii", "replace")
            elif letter == b"E" and not loaded and not answer.error:
                answer.error = match.group()[1:-1].decode("ascii", "replace")
            elif letter == b"A" and share and not loaded and not answer.error:
                answer.apart = answer.done = True
            elif letter == b"Z" and not open_inputs and (loaded or answer.error):
                answer.verdicts = answer.verdicts if loaded else ["error"] * count
                answer.done = True
            else:
                return None
            position = match.end()
        if not answer.done:
            break
    return answers if position == len(frames) else None


class _Run:
    """One `run`: the jobs read ahead, the workers, and the answers that wait for an earlier one."""

    def __init__(self, workers: int, cpu_seconds: float, memory_mb: int, unsafe: bool):
        self.limit, self.cpu_seconds, self.memory_mb, self.unsafe = (
            workers,
            cpu_seconds,
            memory_mb,
            unsafe,
        )
        self.owner = os.getpid()
        self.workers: list[_Worker] = []
        self.failed_starts = 0
        self.pending: deque[_Job] = deque()
        self.pending_size = 0
        self.answers: dict[int, tuple[_Job, list[str], str | None]] = {}
        # By digest of the code. While one job of a slow function is on trial for all its time, the others wait, so that
        # a loop in a thousand jobs costs its time once.
        self.timed_out: dict[bytes, int] = {}  # index of the first job
        self.trial: dict[bytes, int] = {}  # index of the job on trial
        self.alone: set[bytes] = set()  # had its trial, or must not share
        self.warned = False

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.jobs]

    def add(self, job: _Job) -> None:
        self.pending.append(job)
        self.pending_size += job.size

    def full(self) -> bool:
        return len(self.pending) >= self.limit * GROUP or self.pending_size > AHEAD_CHARACTERS

    def again(self, job: _Job, apart: bool) -> None:
        """Have `job` run before the others."""
        job.apart = apart
        self.pending.appendleft(job)
        self.pending_size += job.size

    def finish(self, job: _Job, verdicts: list[str], error: str | None) -> None:
        if self.trial.get(job.digest) == job.index:
            del self.trial[job.digest]
            self.alone.add(job.digest)
        self.answers[job.index] = (
            job,
            verdicts + ["error"] * (len(job.inputs) - len(verdicts)),
            error,
        )

    def disqualified(self, job: _Job) -> bool:
        """Whether the same code timed out in an earlier job: a matter of order, not of when the answers came."""
        return self.timed_out.get(job.digest, job.index) < job.index

    def take(self) -> list[_Job]:
        """The next message: a job that goes apart, or some that may share a child; none while all wait for a trial."""
        size = min(
            GROUP, max(4, -(-len(self.pending) // self.limit))
        )  # small runs are spread over the workers
        group, others = [], []
        while self.pending and len(group) < size:
            job = self.pending.popleft()
            job.apart |= job.digest in self.alone
            if self.trial.get(job.digest, job.index) != job.index:
                fits = False
            else:
                fits = not group or not (
                    job.apart
                    or job.modules != group[0].modules
                    or sum(other.size for other in group) + job.size > GROUP_CHARACTERS
                )
            (group if fits else others).append(job)
            if group and group[0].apart:
                break
        self.pending.extendleft(reversed(others))
        self.pending_size -= sum(job.size for job in group)
        return group

    def dispatch(self) -> None:
        """Give every idle worker a message, starting workers as they are needed."""
        while self.pending and len(self.busy) < self.limit:
            group = self.take()
            if not group:
                return
            jobs = [job for job in group if not self.disqualified(job)]
            for job in group:
                if self.disqualified(job):
                    self.finish(job, [], "timeout")
            if not jobs:
                continue
            idle = [worker for worker in self.workers if not worker.jobs]
            worker = next((worker for worker in idle if worker.modules == jobs[0].modules), None)
            if worker is None:
                if (
                    len(self.workers) >= 2 * self.limit and idle
                ):  # many sets of modules: keep the latest
                    self.workers.remove(idle[0])
                    idle[0].close()
                worker = _Worker(jobs[0].modules, self.memory_mb)
                self.workers.append(worker)
            try:
                alone = self.cpu_seconds * (MODULE_FACTOR if worker.modules else 1)
                worker.send(
                    jobs, alone if len(jobs) == 1 else min(self.cpu_seconds, SHARED_CPU_SECONDS)
                )
            except BrokenPipeError:
                self.lose(worker)

    def collect(self) -> None:
        """Wait for an answer and take all there are."""
        poll, workers = select.poll(), {worker.fileno(): worker for worker in self.busy}
        for descriptor in workers:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll():
            worker = workers[descriptor]
            try:
                if worker.ready:
                    answer = worker.receive()
                    jobs, worker.jobs = worker.jobs, []
                    self.judge(jobs, *answer)
                else:
                    self.admit(worker.missing())
            except EOFError:
                self.lose(worker)

    def admit(self, missing: list[str]) -> None:
        """Refuse a worker without its layers, or say loudly what is missing."""
        self.failed_starts = 0
        if missing and not self.unsafe:
            raise UserError(
                f"the sandbox cannot be had here: {'; '.join(missing)}. Use a kernel with Landlock and "
                "seccomp (5.13 or later, allowed in this container), or run model-written code unprotected with "
                "--unsafe-no-sandbox"
            )
        if missing and not self.warned:
            self.warned = True
            print(
                f"sandbox: WARNING: model-written code runs WITHOUT: {'; '.join(missing)}",
                file=sys.stderr,
            )

    def lose(self, worker: _Worker) -> None:
        """A worker died: its jobs run again, apart, on another one."""
        worker.close()
        self.workers.remove(worker)
        bare_start = not worker.ready and not worker.modules  # no fault of the jobs
        self.failed_starts += bare_start
        if self.failed_starts == TRIES:
            raise UserError(
                f"the sandbox's worker does not start: {sys._base_executable} ended with "
                f"{worker.process.returncode}; is it an interpreter that this user can run?"
            )
        for job in reversed(worker.jobs):
            job.lost += not bare_start
            if job.lost < TRIES:
                self.again(job, apart=True)
            elif worker.ready:
                self.finish(job, [], "crash: worker")
            else:
                self.finish(job, [], f"missing module: {', '.join(job.modules)} (import fails)")

    def judge(self, jobs: list[_Job], code: int, timed_out: bool, frames: bytes) -> None:
        """Turn a child's end and its frames into answers, or have its functions run again."""
        answers = parse(frames, [len(job.inputs) for job in jobs], share=len(jobs) > 1)
        whole = answers is not None and code == 0 and len(answers) == len(jobs) and answers[-1].done
        stopped = (
            timed_out and answers is not None and not answers[-1].done
        )  # in the midst of the last function begun
        if len(jobs) > 1:
            self.judge_siblings(jobs, answers if whole or stopped else [], stopped)
            return
        [job] = jobs
        if whole:
            self.finish(job, answers[0].verdicts, answers[0].error)
        elif stopped:
            self.timed_out[job.digest] = min(job.index, self.timed_out.get(job.digest, job.index))
            self.finish(job, answers[0].verdicts, "timeout")
        elif (
            answers is None or answers[0].done or code >= 0
        ):  # nothing of ours exits with a code before its `Z`
            self.finish(job, [], "protocol")
        else:
            self.finish(
                job, answers[0].verdicts, answers[0].error or f"crash: {signal.Signals(-code).name}"
            )

    def judge_siblings(self, jobs: list[_Job], answers: list[_Answer], stopped: bool) -> None:
        """`judge` for a shared child: who must not share, and everybody if one misbehaved (no answers), goes apart."""
        if stopped:  # those before the slow one are whole, those after it have not begun
            slow, answers = jobs[len(answers) - 1], answers[:-1]
            for job in reversed(jobs[len(answers) + 1 :]):
                self.again(job, apart=False)
            self.trial.setdefault(slow.digest, slow.index)
            self.again(slow, apart=True)
            jobs = jobs[: len(answers)]
        if any(answer.error == "memory" for answer in answers):  # which they have in common
            answers = []
        for place, job in reversed(list(enumerate(jobs))):
            if answers and not answers[place].apart:
                self.finish(job, answers[place].verdicts, answers[place].error)
                continue
            if answers:
                self.alone.add(job.digest)
            self.again(job, apart=True)

    def results(self, index: int) -> Iterator[dict]:
        """The answers from `index` on, as far as they are there without a gap."""
        while index in self.answers:
            job, verdicts, error = self.answers.pop(index)
            if self.disqualified(job):
                verdicts, error = ["error"] * len(verdicts), "timeout"
            yield {"id": job.id, "verdicts": verdicts, "error": error}
            index += 1

    def close(self) -> None:
        if os.getpid() == self.owner:  # a fork of this process shares the pipes but not the workers
            for worker in self.workers:
                worker.close()


def run(
    jobs: Iterable[dict | None],
    *,
    workers: int | None = None,
    cpu_seconds: float = CPU_SECONDS,
    memory_mb: int = MEMORY_MB,
    unsafe: bool = False,
) -> Iterator[dict]:
    """Yield `{"id", "verdicts", "error"}` for each job `{"id", "code", "inputs"}`, in order.

    Lazy on both sides: a few dozen jobs a worker are read ahead. A None among the jobs says that the next one may take
    a while, so everything before it is answered first. `cpu_seconds` limits each call; loading the code counts as one. Functions
    with third-party modules get ten times that.
    UserError where isolation cannot be had (unless `unsafe`) or a job is malformed.
    """
    if sys.platform != "linux":
        raise UserError(f"the sandbox needs Linux (Landlock, seccomp), this is {sys.platform}")
    for flag, value in (
        ("--workers", workers),
        ("--cpu-seconds", cpu_seconds),
        ("--memory-mb", memory_mb),
    ):
        if value is not None and value <= 0:
            raise UserError(f"{flag} must be more than 0, not {value}")
    jobs, read, given, more, pause = iter(jobs), 0, 0, True, False
    state = _Run(workers or len(os.sched_getaffinity(0)), cpu_seconds, memory_mb, unsafe)
    try:
        while more or given < read:
            while more and not pause and not state.full() and read - given < WINDOW:
                try:
                    row = next(jobs)
                except StopIteration:
                    more = False
                else:
                    pause = row is None
                    if not pause:
                        state.add(_job(row, read, f"job {read + 1}"))
                        read += 1
            state.dispatch()
            for result in state.results(given):
                given += 1
                yield result
            if state.busy:
                state.collect()
            elif not state.pending:
                pause = False
    finally:
        state.close()


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("sandbox")
    flags.add_argument(
        "--workers",
        type=int,
        default=None,
        help="processes that run model-written code (default: one a core)",
    )
    flags.add_argument(
        "--cpu-seconds",
        type=float,
        default=CPU_SECONDS,
        help="CPU time of one call, and of loading a function; ten times that if it imports third-party "
        "modules; its wall time may be ten times its CPU limit (default: %(default)s)",
    )
    flags.add_argument("--memory-mb", type=int, default=MEMORY_MB, help="memory of one function")
    flags.add_argument(
        "--unsafe-no-sandbox",
        action="store_true",
        help="run model-written code even where layers of the sandbox cannot be had",
    )


def options(args: argparse.Namespace) -> dict:
    """The keyword arguments of `run`, from the flags of `add_flags`."""
    return {
        "workers": args.workers,
        "cpu_seconds": args.cpu_seconds,
        "memory_mb": args.memory_mb,
        "unsafe": args.unsafe_no_sandbox,
    }
