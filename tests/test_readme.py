"""What README says: its own-data commands run as they stand, its flags are the released code's,
and the files and functions that it and its neighbours name are there."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import tiny_models
from fake_server import FakeServer

from autoif import chain, flags
from autoif.training import engine

ROOT = tiny_models.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = sorted(
    path
    for pattern in ("*.md", "[a-z]*/README.md", "autoif/*/README.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_function_that_readme_names_is_in_its_stage():
    """Those of "Read it", and `02:cross_validate`, `replies.py:score` of the departures."""
    named = [(f"{stage}_*.py", name) for stage, name in re.findall(r"`(0\d):(\w+)`", README)]
    named += [
        (f"autoif/**/{file}", name) for file, name in re.findall(r"`(\w+\.py):(\w+)`", README)
    ]
    for file, cell in re.findall(r"^\| `(0\d_\w+\.py)` \|(.*)\|$", README, re.M):
        named += [(file, name) for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) > 15
    for pattern, name in named:
        (path,) = ROOT.glob(pattern)
        assert re.search(rf"^(async )?(def {name}\(|{name} = )", path.read_text(), re.M), name


def test_readme_names_the_models_that_can_be_trained():
    assert re.search(rf"a {', '.join(engine.MODELS[:-1])} or {engine.MODELS[-1]} model", README)


def test_readme_is_120_columns_wide():
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_what_is_slow_or_to_be_alone_is_named_as_it_is_called():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")]
    for name in [*conftest.SLOW, *conftest.ALONE]:
        there = (ROOT / "tests" / name).exists() or any(f"def {name}(" in text for text in texts)
        assert there, name


def commands(heading: str) -> list[str]:
    """The shell commands of a section's bash block, continued lines joined."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1).replace("\\\n", " ")
    return [line for line in block.splitlines() if line.startswith("python ")]


def answer(messages, request):
    """A supervisor whose functions ask for some text, and whose answers obey every other time."""
    text, count = messages[-1]["content"], request.get("n", 1)
    if '"func"' in text:
        cases = [{"input": "Some text.", "output": True}, {"input": "", "output": False}]
        code = "def evaluate(response):\n    return 0 < len(response) < 100"
        return [json.dumps({"func": code + "\n" * n, "cases": cases}) for n in range(count)]
    if "Hypothesis:" in text:
        return "entailment"
    if "evaluate" in text:
        return "Write something"
    if "constraints" in text.splitlines()[0]:
        return '- Use the word "ticket"\n- Write one paragraph'
    endings = (" Did this help?", " " + "long " * 90)
    return [f"Answer {request['seed'] + n}.{endings[n % 2]}" for n in range(count)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like a checkout, so that nothing is written into this one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("autoif", "demo", "examples", "ds_config.json", *ROOT.glob("0*.py")):
        (folder / Path(name).name).symlink_to(ROOT / name)
    base = tiny_models.checkpoint(folder / "base")
    with FakeServer(answer) as server:
        yield {
            "cwd": folder,
            "env": {
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "OPENAI_BASE_URL": server.url,
                "SUPERVISOR": "big",
                "BASE": base,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        }


def test_the_section_has_commands_for_every_stage():
    said = " ".join(commands("On your own data"))
    for stage in ("01_", "02_", "03_", "04_", "05_", "06_dpo.py pairs", "06_dpo.py train"):
        assert stage in said


@pytest.mark.parametrize("command", commands("On your own data"))
def test_a_command_for_ones_own_data_runs_as_it_stands(checkout, command):
    done = subprocess.run(command, shell=True, capture_output=True, text=True, **checkout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    if command.startswith("python 0"):  # a stage: what it says comes next can be called
        line = done.stdout.splitlines()[-1]
        wrote, _, step = line.partition("; next: ")
        assert wrote.startswith("wrote own/"), line
        name, argv = chain.command_of(shlex.split(step))
        module = importlib.import_module(name)
        flags.parse(getattr(module, "COMMANDS", None) or module.main, argv)
        # the files that it names are there, or are what the user gives or it makes
        files_of = re.findall(r" (own/0[1-4]_\S+)", step.partition(" --out ")[0])
        assert [path for path in files_of if not (checkout["cwd"] / path).exists()] == []


def released(stage: str) -> list[str]:
    """The flags that README gives a stage for the released code's behaviour."""
    row = re.search(rf"^The released code departs.*?^(\| {stage} \|.*?)$", README, re.M | re.S)
    spans = re.findall("`([^`]+)`", row.group(1))
    return " ".join(span for span in spans if " " in span).split()  # not the name of one flag


def parsed(stage: str, argv: list[str]):
    """The flags of a stage's command line."""
    module = tiny_models.stage(stage)
    command = module.COMMANDS if hasattr(module, "COMMANDS") else module.main
    return flags.parse(command, argv)[1]


def test_the_flags_of_the_released_code_give_its_numbers():
    """Those of its scripts and of its training command (8 GPUs, one pair each, two at a time)."""
    train = ["train", "--in", "pairs", "--model", "m", "--out", "o", *released("06 train")]
    args = parsed("06_dpo", train)
    assert (args.lr, args.batch, args.save_every) == (5e-6, 8 * 1 * 2, 1000)
    pairs = ["pairs", "--in", "04", "--out", "o", *released("06 pairs")]
    args = parsed("06_dpo", pairs)
    assert (args.min_accuracy < 0.5, args.pairs_per_prompt, args.texts_per_side) == (True, 4, 2)
    args = parsed("02_verifiers", ["--model", "m", *released("02")])
    assert (args.cpu_seconds, args.min_functions, args.min_cases) == (5, 3, 10)
    command = ["--model", "m", "--queries", "queries.txt"]
    args = parsed("04_responses", [*command, *released("04")])
    assert (args.cpu_seconds, args.min_accuracy, args.min_score > 8) == (5, 0, True)


def test_the_released_flags_of_01_drop_no_line_for_its_length_its_words_or_its_likeness(tmp_path):
    lines = [
        "Use at most ten words",
        "Use at most the ten words",
        "Write in a sad tone",
        "a b " * 99,
    ]
    with FakeServer(lambda messages, request: "\n".join(f"- {line}" for line in lines)) as server:
        out = tmp_path / "01_instructions.jsonl"
        command = ["--model", "m", "--base-url", server.url, "--k", "1", "--out", str(out)]
        flags.call(tiny_models.stage("01_seed_augment").main, [*command, *released("01")])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    added = [row["instruction"] for row in rows if row["source"] == "augmented"]
    assert added == [line.strip() for line in lines]
