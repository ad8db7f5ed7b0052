"""What scoring costs: IFEval against lm-eval, with an instant server.

    pip install "lm-eval[api]==0.4.13"           for lm-eval's side
    python bench/bench_eval.py                   541 tests and answers made up in the owners' form
    python bench/bench_eval.py --data-dir DIR    the owners' tests, and ifeval/gpt4_answers.jsonl

Both programs start cold, ask the same loopback server for the same answers and print their numbers.
"""

import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import compare  # noqa: E402
from fake_server import FakeServer  # noqa: E402

from autoif import files  # noqa: E402
from autoif.evaluation.benchmarks import punkt  # noqa: E402
from autoif.files import UserError  # noqa: E402
from autoif.flags import cli  # noqa: E402

INSTRUCTIONS = [
    ("punctuation:no_comma", {}),
    ("change_case:english_lowercase", {}),
    ("startend:quotation", {}),
    ("keywords:existence", {"keywords": ["river", "stone"]}),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 150}),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 30}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
]
WORDS = "the river runs past a stone house and its garden where people sit in the shade to talk"


@dataclass(kw_only=True)
class Flags(compare.Flags):
    data_dir: Path | None = None  # the owners' files (default: made up here)


def make_data(folder: Path) -> None:
    """Tests of our own in the owners' form and number, and an answer of 200 words to each."""
    rng, tests, answers = random.Random(0), folder / "input_data.jsonl", "gpt4_answers.jsonl"
    with files.writer(tests) as write_test, files.writer(folder / answers) as write_answer:
        for key in range(541):
            names, kwargs = zip(*rng.sample(INSTRUCTIONS, rng.choice([1, 1, 2])))
            row = {"key": key, "prompt": f"Tell me about subject {key}. {' and '.join(names)}"}
            write_test({**row, "instruction_id_list": names, "kwargs": kwargs})
            sentences = []
            for _ in range(rng.randint(8, 24)):
                sentences.append(" ".join(rng.choices(WORDS.split(), k=12)).capitalize() + ".")
            write_answer({**row, "response": " ".join(sentences)})


def seconds(name: str, command: list[str], wanted: str) -> float:
    """Run a program and print its seconds and those lines of its output that match `wanted`."""
    environment, began = {**os.environ, "HF_HUB_OFFLINE": "1"}, time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    took = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if re.search(wanted, line)]
    print(f"{name}: {took:.1f} s", *lines, sep="\n")
    return took


def lm_eval_command(folder: str, data: Path, url: str) -> list[str]:
    """lm-eval on IFEval's local file; [], saying what to install, where its extra is missing."""
    for package in ("lm_eval", "tenacity"):
        if importlib.util.find_spec(package) is None:
            print(f'lm-eval left out: {package} is missing; pip install "lm-eval[api]==0.4.13"')
            return []
    punkt.install()
    [root] = importlib.util.find_spec("lm_eval").submodule_search_locations
    task = f"include: {root}/tasks/ifeval/ifeval.yaml\ntask: ifeval_local\ndataset_path: json\n"
    task += "dataset_name: null\ndataset_kwargs: {data_files: {train: %s}}\n"
    Path(folder, "task.yaml").write_text(task % (data / "ifeval/input_data.jsonl"))
    words = f"--model_args model=m,base_url={url}/chat/completions,num_concurrent=64 "
    words += "--model local-chat-completions --apply_chat_template --tasks ifeval_local"
    return [sys.executable, "-m", "lm_eval", *words.split(), "--include_path", folder]


def main(args: Flags) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = (args.data_dir or Path(folder, "data")).resolve()
        if args.data_dir is None:
            make_data(data / "ifeval")
        rows, numbers = files.read(data / "ifeval/gpt4_answers.jsonl"), {}
        answers = {row["prompt"]: row["response"] for row in rows}

        def answer(messages, request):
            return answers.get(messages[-1]["content"], "None.")

        with FakeServer(answer, keep=False) as server:
            stage = [sys.executable, str(compare.ROOT / "07_eval.py"), "--base-url", server.url]
            stage += ["--model", "m", "--benchmarks", "ifeval", "--data-dir", str(data)]
            stage += ["--out", f"{folder}/ours/07_results.json"]
            numbers["ifeval seconds"] = seconds("07_eval", stage, r"^\| \*\*m")
            if command := lm_eval_command(folder, data, server.url):
                numbers["lm_eval seconds"] = seconds("lm_eval", command, "_acc")
                numbers["ifeval ratio"] = numbers["lm_eval seconds"] / numbers["ifeval seconds"]
                print(f"ratio: {numbers['ifeval ratio']:.1f}")
    compare.save(args.json, numbers)


if __name__ == "__main__":
    cli(main, __doc__)
