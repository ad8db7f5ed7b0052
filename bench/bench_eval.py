"""What scoring costs: IFEval against lm-eval, and all benchmarks, with an instant server.

    pip install "lm-eval[api]==0.4.13"           for lm-eval's side
    python bench/bench_eval.py                   tests and answers made up in the owners' forms
    python bench/bench_eval.py --data-dir DIR    the owners' tests, and ifeval/gpt4_answers.jsonl

Both programs start cold, ask the same loopback server for the same answers to IFEval and print
their numbers. What is made up has the size of the owners' files.
"""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
# what a judge says, by a mark in its prompt
JUDGEMENTS = {"[[rating]]": "[[6]]", "[[A>>B]]": "[[A=B]]", "Generated Text": "YES"}


@dataclass(kw_only=True)
class Flags(compare.Flags):
    data_dir: Path | None = None  # the owners' files (default: made up here)
    ifeval_only: bool = False  # leave the other benchmarks out


def made_up() -> Iterator[tuple[str, str | dict]]:
    """(file, line): tests of our own in the owners' forms and numbers; answers to IFEval's."""
    rng = random.Random(0)
    for key in range(541):
        names, kwargs = zip(*rng.sample(INSTRUCTIONS, rng.choice([1, 1, 2])))
        row = {"key": key, "prompt": f"Tell me about subject {key}. {' and '.join(names)}"}
        yield "ifeval/input_data.jsonl", {**row, "instruction_id_list": names, "kwargs": kwargs}
        sentences = []  # of 200 words in all
        for _ in range(rng.randint(8, 24)):
            sentences.append(" ".join(rng.choices(WORDS.split(), k=12)).capitalize() + ".")
        yield "ifeval/gpt4_answers.jsonl", {**row, "response": " ".join(sentences)}
    for n in range(1319):
        yield "gsm8k/test.jsonl", {"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"}
    for n in range(80):
        row = {"category": "writing", "turns": [f"Write about {n}.", "Now shorter."]}
        yield "mt_bench/question.jsonl", {"question_id": n, **row}
    answer = {"role": "assistant", "content": {"answer": "A baseline answer."}}
    for n in range(500):
        arena, baseline = "arena_hard/v0.1", {"uid": f"u{n}", "messages": [answer]}
        yield f"{arena}/question.jsonl", {"uid": f"u{n}", "prompt": f"Explain {n}."}
        yield f"{arena}/model_answer/gpt-4-0314.jsonl", baseline
    for n in range(14_042):
        choices = f"{n},{n + 1},{n + 2},{n + 3},A"
        yield "mmlu/test/made_up_test.csv", f"Which of these is number {n}?,{choices}"


def make_data(folder: Path) -> None:
    of_file = {}
    for name, line in made_up():
        of_file.setdefault(name, []).append(line if isinstance(line, str) else json.dumps(line))
    for name, lines in of_file.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def stage_command(data: Path, url: str, out: str, words: str) -> list[str]:
    stage = [sys.executable, str(compare.ROOT / "07_eval.py"), "--model", "m", "--base-url", url]
    return [*stage, "--data-dir", str(data), "--out", out, *words.split()]


def judge_or_answer(messages: list[dict], request: dict) -> str:
    """One server for both: a judgement where a judge's prompt asks for one, else an answer."""
    text = messages[-1]["content"] + messages[0]["content"]
    if "Python list" in text:
        return str(["YES"] * text.count("#Instruction with "))
    marks = [mark for mark in JUDGEMENTS if mark in text]
    return JUDGEMENTS[marks[0]] if marks else "A short answer of a few words. The answer is 18."


def main(args: Flags) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = (args.data_dir or Path(folder, "data")).resolve()
        if args.data_dir is None:
            make_data(data)

        # against lm-eval: both programs score the answers to IFEval that lie with the data
        rows, numbers = files.read(data / "ifeval/gpt4_answers.jsonl"), {}
        answers = {row["prompt"]: row["response"] for row in rows}
        out = f"{folder}/ours/07_results.json"

        def answer(messages, request):
            return answers.get(messages[-1]["content"], "None.")

        with FakeServer(answer, keep=False) as server:
            command = stage_command(data, server.url, out, "--benchmarks ifeval")
            numbers["ifeval seconds"] = seconds("07_eval", command, r"^\| \*\*m")
            if command := lm_eval_command(folder, data, server.url):
                numbers["lm_eval seconds"] = seconds("lm_eval", command, "_acc")
                numbers["ifeval ratio"] = numbers["lm_eval seconds"] / numbers["ifeval seconds"]
                print(f"ratio: {numbers['ifeval ratio']:.1f}")

        # all benchmarks: the stage's seconds, and those of each
        if not args.ifeval_only:
            out = f"{folder}/all/07_results.json"
            with FakeServer(judge_or_answer, keep=False) as server:
                words = f"--judge-model j --judge-base-url {server.url} --allow-gaps"
                command = stage_command(data, server.url, out, words)
                numbers["all benchmarks seconds"] = seconds("all benchmarks", command, "not run")
            for row in json.loads(Path(out).read_text()):
                if "seconds" in row:
                    print(f"{row['benchmark']}: {row['seconds']:.1f} s, n {row['n']:,}")
                    numbers[f"{row['benchmark']} of all seconds"] = row["seconds"]
    compare.save(args.json, numbers)


if __name__ == "__main__":
    cli(main, __doc__)
