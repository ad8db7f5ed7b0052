"""The commands of README's "On your own data" run as they stand, from the first to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from fake_server import FakeServer

ROOT = tiny_models.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
        code = "def evaluate(response):\n    return bool(response.strip())"
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
