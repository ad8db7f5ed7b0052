"""The flags of all commands: their help, ranges and defaults, and how a command ends."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
import typing
from pathlib import Path

import pytest
import tyro

from autoif import flags
from autoif.files import UserError
from autoif.training import engine

ROOT = Path(__file__).resolve().parents[1]
STAGES = sorted(path.stem for path in ROOT.glob("0?_*.py"))


def modules() -> list[str]:
    """The stages and the modules of autoif that declare flags."""
    names = list(STAGES)
    for path in sorted((ROOT / "autoif").rglob("*.py")):
        if re.search(r"^class \w*Flags\b", path.read_text(), re.MULTILINE):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


def commands() -> dict[str, typing.Callable]:
    """{"06_dpo train": its function} of all modules that read their flags from a dataclass."""
    found = {}
    for name in modules():
        module = importlib.import_module(name)
        for word, command in getattr(
            module, "COMMANDS", {"": getattr(module, "main", None)}
        ).items():
            if inspect.isfunction(command) and dataclasses.is_dataclass(flags_of(command)):
                found[f"{name} {word}".strip()] = command
    return found


def flags_of(command: typing.Callable) -> type | None:
    return next(iter(typing.get_type_hints(command).values()), None)


def flag(field: str) -> str:
    return "--in" if field == "input" else f"--{field.replace('_', '-')}"


def required(command: typing.Callable) -> list[str]:
    """Words for the flags without a default."""
    words = []
    for field in dataclasses.fields(flags_of(command)):
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if no_default and "Positional" not in str(field.type):
            words += [flag(field.name), "x"]
        elif no_default:
            words.append("x")
    return words


COMMANDS = commands()


def classes() -> list[type]:
    """The dataclasses of flags of all modules, each once."""
    found = {}
    for name in modules():
        for value in vars(importlib.import_module(name)).values():
            own = inspect.isclass(value) and value.__module__ == name
            if own and value.__name__.endswith("Flags"):
                found[value] = True
    return list(found | {flags_of(command): True for command in COMMANDS.values()})


NUMBERS = ("INT", "FLOAT", "FLOAT FLOAT")


def spec_of(hint) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """The range that a field's type gives, of `Count | None` as well."""
    for part in (hint, *typing.get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if getattr(extra, "instance_from_str", None) and extra.metavar in NUMBERS:
                return extra
    return None


# ---- all dataclasses ----


@pytest.mark.parametrize("flags_class", classes(), ids=str)
def test_every_flag_has_a_help_behind_it_or_above_it(flags_class):
    source = textwrap.dedent(inspect.getsource(flags_class))
    lines = source.splitlines()
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and node.target.id not in ("input", "out"):
            name, line = node.target.id, lines[node.lineno - 1]
            assert node.lineno == node.end_lineno, f"{name}: tyro reads a field of one line"
            assert "  # " in line or "    # " in lines[node.lineno - 2], f"{name} has no help"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_below_its_range_is_refused_with_the_name_of_its_flag(command):
    hints = typing.get_type_hints(flags_of(COMMANDS[command]), include_extras=True)
    for name, hint in hints.items():
        if spec := spec_of(hint):
            for word in ("-1", "nan", "inf", "x"):
                with pytest.raises(UserError, match=f"^argument {flag(name)}: must be .*{word}"):
                    words = [*required(COMMANDS[command]), flag(name), *[word] * spec.nargs]
                    flags.parse(COMMANDS[command], words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_docstring_and_the_default_of_every_flag(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    module = importlib.import_module(command.split()[0])
    with pytest.raises(SystemExit) as ended:
        flags.call(COMMANDS[command], ["--help"], module.__doc__)
    output = capsys.readouterr().out
    assert not ended.value.code and module.__doc__ in output
    fields = dataclasses.fields(flags_of(COMMANDS[command]))
    assert len(re.findall(r"\((?:default: |required\))", output.partition("usage:")[2])) >= len(
        fields
    )
    for field in fields:
        assert flag(field.name) in output or "Positional" in str(field.type)


PAPER = {
    "01_seed_augment": {"k": 100, "count": 50, "seeds": None},
    "02_verifiers": {"k": 8, "case_agreement": 0.5, "min_accuracy": 0.5}
    | {"min_functions": 1, "min_cases": 1, "no_cross_validation": False},
    "03_backtranslate": {"max_functions": 3, "no_back_translation": False}
    | {"nli": "MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7"},
    "04_responses": {"k": 8, "queries_per_instruction": 16, "min_accuracy": 0.5, "min_score": 8}
    | {"min_chars": 20, "max_chars": 300, "language": "en", "score": "judge"},
    "05_sft": {"lr": 7e-6, "schedule": "linear", "warmup_steps": 20, "batch": 128, "epochs": 3}
    | {"max_length": 8192, "weight_decay": 0.1, "betas": (0.9, 0.95), "save_every": 200}
    | {"precision": "bf16", "zero": "auto"},  # the paper's 3 where it is needed
    "06_dpo pairs": {"min_accuracy": 0.5, "min_score": 8, "pairs_per_prompt": 1, "fraction": 1},
    "06_dpo train": {"lr": 5e-7, "schedule": "cosine", "warmup_ratio": 0.1, "batch": 64}
    | {"epochs": 2, "max_length": 4096, "beta": 0.3, "save_every": 200, "precision": "bf16"}
    | {"zero": "auto", "sft_weight": 0},
}


@pytest.mark.parametrize("command", PAPER)
def test_the_paper_settings_are_the_defaults(command):
    more = ["--queries", "x"] if command == "04_responses" else []
    words = [*required(COMMANDS[command]), *more]
    words += [] if "--model" in words or command == "06_dpo pairs" else ["--model", "m"]
    _, args = flags.parse(COMMANDS[command], words)
    assert {name: getattr(args, name) for name in PAPER[command]} == PAPER[command]


# ---- how a command ends ----

BAD_FLAGS = [
    ("01_seed_augment", "--limit", "-1"),
    ("01_seed_augment", "--shown", "0"),
    ("01_seed_augment", "--near-duplicate", "nan"),
    ("02_verifiers", "--min-accuracy", "2"),
    ("02_verifiers", "--case-agreement", "-1"),
    ("02_verifiers", "--case-agreement", "1"),
    ("04_responses", "--min-accuracy", "1"),
    ("02_verifiers", "--min-cases", "0"),
    ("03_backtranslate", "--heldout", "2"),
    ("03_backtranslate", "--heldout", "-1"),
    ("03_backtranslate", "--max-functions", "0"),
    ("04_responses", "--queries-per-instruction", "-1"),
    ("04_responses", "--queries-per-instruction", "0"),
    ("04_responses", "--min-score", "nan"),
    ("04_responses", "--heldout-queries", "1.1"),
]


@pytest.mark.parametrize("stage, name, value", BAD_FLAGS)
def test_a_value_out_of_range_ends_a_stage_with_exit_code_2_and_one_line(
    stage, name, value, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--model", "m", name, value])
    with pytest.raises(SystemExit) as ended:
        flags.cli(importlib.import_module(stage).main, "")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{stage}.py: error: argument {name}: must be") and value in error
    assert error.count("\n") == 1


@dataclasses.dataclass(kw_only=True)
class Flags:
    input: flags.In  # rows
    share: flags.Share = 0.5  # of rows
    limit: flags.Count | None = None  # rows
    betas: engine.Betas = (0.9, 0.95)  # Adam's
    zero: typing.Literal[1, 2, 3] = 3  # stage
    no_score: bool = False  # no judge
    out: str | None = None  # derived where it is not given

    def __post_init__(self):
        if self.no_score and self.zero == 1:
            raise UserError("--no-score does not go with --zero 1")
        self.out = self.out or f"{self.input}.out"


async def later(args: Flags) -> Flags:
    return args


def now(args: Flags) -> Flags:
    return args


@pytest.mark.parametrize("command", [now, later])
def test_a_command_gets_its_flags_and_gives_its_result(command):
    args = flags.call(command, ["--in", "x", "--share", "1/64", "--no-score", "--limit=3"])
    assert args == Flags(input="x", share=1 / 64, no_score=True, limit=3)
    assert args.out == "x.out" and args.betas == (0.9, 0.95)
    assert flags.call(command, ["--in", "x", "--betas", "0", "0.5"]).betas == (0, 0.5)


LONG = "a/" * 150 + "b"


@pytest.mark.parametrize(
    "words, error",
    [
        ([], "the following arguments are required: --in; see --help"),
        (
            ["--inn", "x"],
            "the following arguments are required: --in; unrecognized arguments: --inn",
        ),
        (["--in", "x", "--inn", LONG], f"unrecognized arguments: --inn {LONG}; see --help"),
        (["--in", "x", LONG], f"unrecognized arguments: {LONG}; see --help"),
        (["--in"], "argument --in: expected 1 value"),
        (["--in", "x", "--betas", "0.9", "1"], "argument --betas: must be at least 0 and at most"),
        (["--in", "x", "--betas", "0.9"], "argument --betas: expected 2 value"),
        (
            ["--in", "x", "--zero", "4"],
            "argument --zero: invalid choice: '4' (choose from 1, 2, 3)",
        ),
        (["--in", "x", "--limit", "1.5"], "argument --limit: must be at least 1, not 1.5; see"),
        (
            ["--in", "x", "--share", "1/0"],
            "argument --share: must be at least 0 and at most 1, not",
        ),
        (["--in", "x", "--no-score", "--zero", "1"], "--no-score does not go with --zero 1"),
    ],
)
def test_wrong_flags_are_told_in_one_line(words, error):
    with pytest.raises(UserError) as raised:
        flags.parse(now, words)
    assert str(raised.value).startswith(error) and "\n" not in str(raised.value)


def test_a_package_that_runs_is_called_by_its_name(monkeypatch):
    for path, name in (("x/autoif/report/__main__.py", "report"), ("02_verifiers.py",) * 2):
        monkeypatch.setattr(sys, "argv", [path])
        assert flags.program() == name


def test_one_of_several_commands_is_named(capsys):
    commands = {"first": now, "second": later}
    assert flags.call(commands, ["second", "--in", "y"]).input == "y"
    for words in ([], ["third"], ["--in", "y"]):
        with pytest.raises(UserError, match="name one of the commands first, second"):
            flags.call(commands, words)
    with pytest.raises(SystemExit):
        flags.call(commands, ["--help"], "What they do.")
    output = capsys.readouterr().out
    assert "What they do." in output and "first, second" in output


def program(tmp_path, end: str, **environment: str) -> subprocess.Popen:
    """A command that says "ready" and then does `end`."""
    lines = [
        "import asyncio, dataclasses",
        "from autoif import flags",
        "from autoif.files import UserError",
        "@dataclasses.dataclass",
        "class Flags: pass",
        "async def main(args: Flags):",
        "    print('ready', flush=True)",
        f"    {end}",
        "flags.cli(main, '')",
    ]
    (tmp_path / "stage.py").write_text("\n".join(lines))
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "stage.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def test_ctrl_c_ends_with_130_and_a_line_that_says_what_to_do(tmp_path):
    process = program(tmp_path, "await asyncio.sleep(60)")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in error
    assert error.endswith("kept, run the same command to go on\n")


def test_of_several_processes_on_a_machine_the_first_says_what_is_wrong(tmp_path):
    first = program(tmp_path, "raise UserError('no rows')", LOCAL_RANK="0")
    second = program(tmp_path, "raise UserError('no rows')", LOCAL_RANK="1")
    assert first.communicate(timeout=30)[1] == "stage.py: error: no rows\n"
    assert first.returncode == 2
    second.stdout.readline()
    second.terminate()  # as torchrun does when one has ended
    assert second.communicate(timeout=30)[1] == "" and second.returncode == -signal.SIGTERM


def test_a_process_that_fails_alone_says_so_itself(tmp_path):
    end = "flags.OTHERS_WAIT = 2; raise UserError('disk full')"
    process = program(tmp_path, end, LOCAL_RANK="3")
    process.stdout.readline()
    began = time.monotonic()
    assert process.communicate(timeout=60)[1] == "stage.py: error: disk full\n"
    assert process.returncode == 2 and time.monotonic() - began > 1


# ---- --help of the stages ----

HELP = """
import runpy, sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name in ("torch", "transformers", "deepspeed", "sklearn", "openai"):
            raise ImportError(f"{name} is asked for")

sys.meta_path.insert(0, Absent)
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", STAGES)
def test_help_takes_less_than_a_second_and_neither_torch_nor_transformers(stage):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", HELP, f"{stage}.py"], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    # of CPU time: other processes may have the machine meanwhile
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_list_without_a_value_is_refused_by_the_name_of_its_flag():
    commands = importlib.import_module("06_dpo").COMMANDS
    with pytest.raises(UserError, match="argument --in: must be at least one value"):
        flags.parse(commands, ["pairs", "--in", "--out", "pairs.jsonl"])
    args = flags.parse(commands, ["pairs", "--in", "a", "b", "--out", "pairs.jsonl"])[1]
    assert args.input == ["a", "b"]
