"""The folder of a whole run, made in seconds: recordings, a scripted server, tiny models.

python tests/example_run.py OUT     # to look at a report or to try an export without a real run

Stages 01 to 03 read the study's recorded supervisor; 04 and 07 ask a server that answers with the
constraints' own cases, hostile texts among them; 05 and 06 train a model of two layers.
"""

import hashlib
import importlib
import itertools
import os
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import recordings  # noqa: E402  the checkout is on the path only now
import tiny_models  # noqa: E402
from fake_server import FakeServer  # noqa: E402

from autoif import files  # noqa: E402
from autoif.flags import call  # noqa: E402

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">&amp; <b>not bold</b>"
PROSE = [
    "Water the plants well before you leave, and move them out of the sun.",
    "A friend who comes by twice a week is the surest way.",
    "First, group the pots. Second, put a tray of wet gravel under them. Third, trim what is dry.",
    "I would say: it depends! Some plants need a lot of water; others need none for weeks.",
    "浇水之前先检查土壤。Then decide.",
    HOSTILE,
]
MODELS = {"base": 0.25, "sft": 0.4, "offline": 0.55, "online": 0.7}  # how often each obeys


class Server(FakeServer):
    """A FakeServer that cuts off every eleventh answer."""

    ends = itertools.cycle(["stop"] * 10 + ["length"])

    @property
    def finish_reason(self) -> str:
        return next(self.ends)

    @finish_reason.setter
    def finish_reason(self, value: str) -> None:
        pass  # the parent sets a constant


def number(text: str) -> int:
    """A number that looks random and is the same in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def answerer(constraints: list[dict]):
    """The `answer` of a server that obeys as often as its model's name says, and judges too."""
    cases = {row["instruction"]: row["cases"] for row in constraints}

    def answer(messages: list[dict], request: dict) -> list[str]:
        text = messages[-1]["content"]
        if "Score: <number>" in text:
            return [f"It helps.\nScore: {number(text) % 5 + 6}"]
        share = MODELS.get(request["model"], 0.5)
        found, texts = cases.get(text.splitlines()[-1], []), []
        for sample in range(request.get("n", 1)):
            draw = number(f"{text} {sample} {request.get('seed')} {request['model']}")
            good = [case["input"] for case in found if case["output"]]
            options = good if good and draw % 100 < share * 100 else PROSE
            texts.append(options[draw // 100 % len(options)])
        return texts

    return answer


def stage(name: str, *arguments: object) -> None:
    module = importlib.import_module(name)
    command = getattr(module, "COMMANDS", None) or module.main
    call(command, [str(argument) for argument in arguments])


def constraints(out: Path) -> list[dict]:
    """Stages 01 to 03, from the study's recordings."""
    shutil.copytree(recordings.STUDY / "completions", out / "completions", dirs_exist_ok=True)
    for name in recordings.FILES:
        recordings.run_stage(name, out)
    return list(files.read(out / "03_instructions.jsonl"))


def trainings(out: Path) -> list:
    """05 and 06 on a tiny model, for their metrics: side by side, so both begin at the base."""
    flags = ["--batch", "8", "--epochs", "1", "--max-length", "512", "--micro-tokens", "512"]
    base = tiny_models.checkpoint(out / "base")
    steps = [
        ("05_sft.py", ["--in", out / "04_sft.jsonl", "--out", out / "05_sft"]),
        ("06_dpo.py", ["train", "--in", out / "06_pairs.jsonl", "--out", out / "06_offline"]),
    ]
    started = []
    for name, arguments in steps:
        started.append(tiny_models.start(name, *map(str, arguments), "--model", base, *flags))
    return started


def make(out: Path) -> Path:
    """Fill `out` as run_all.sh does."""
    out.mkdir(parents=True, exist_ok=True)
    rows = constraints(out)
    queries = ["--queries", tiny_models.ROOT / "demo" / "queries.txt"]
    instructions = out / "03_instructions.jsonl"
    with Server(answerer(rows)) as server:
        asking = ["--base-url", server.url, "--concurrency", 1, "--k", 6, *queries]
        stage(
            "04_responses",
            *("--model", "policy", "--in", instructions, "--out", out / "04_responses.jsonl"),
            *("--queries-per-instruction", 4, *asking),
        )
        responses = out / "04_responses.jsonl"
        stage("06_dpo", "pairs", "--in", instructions, responses, "--out", out / "06_pairs.jsonl")
        training = trainings(out)
        for model in MODELS:
            stage(
                "07_eval",
                *("--model", model, "--benchmarks", "heldout", "--heldout", instructions),
                *("--queries-per-instruction", 6, "--out", out / "07_results.json", *asking),
            )
        for process in training:
            tiny_models.finish(process)
    return out


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    make(Path(sys.argv[1]))
