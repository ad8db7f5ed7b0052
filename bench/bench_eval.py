"""What scoring costs: IFEval against lm-eval, and all benchmarks, with an instant server.

    pip install "lm-eval[api]==0.4.13"           for lm-eval's side
    python bench/bench_eval.py                   tests and answers made up in the owners' forms
    python bench/bench_eval.py --data-dir DIR    the owners' tests, and ifeval/gpt4_answers.jsonl
    python bench/bench_eval.py --ifeval-only

Both programs start cold, ask the same loopback server for the same answers to IFEval and print
their numbers. What is made up has the size of the owners' files. --json writes the numbers for
bench/compare.py.
"""

import argparse
import csv
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from compare import save  # noqa: E402
from fake_server import FakeServer  # noqa: E402

from autoif.evaluation.benchmarks import punkt  # noqa: E402

TASK = """include: {library}
task: ifeval_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}}}}}
"""
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


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_data(folder: Path) -> None:
    """Tests of our own in the owners' forms and numbers; to IFEval's, answers of 200 words."""
    rng = random.Random(0)
    prompts, answers = [], []
    for key in range(541):
        asked = rng.sample(INSTRUCTIONS, rng.choice([1, 1, 2]))
        names, kwargs = [name for name, _ in asked], [given for _, given in asked]
        prompt = f"Tell me about subject {key}. {' and '.join(names)}"
        row = {"key": key, "prompt": prompt, "instruction_id_list": names, "kwargs": kwargs}
        prompts.append(row)
        sentences = []
        for _ in range(rng.randint(8, 24)):
            sentences.append(" ".join(rng.choices(WORDS.split(), k=12)).capitalize() + ".")
        answers.append({"prompt": prompt, "response": " ".join(sentences)})
    jsonl(folder / "ifeval/input_data.jsonl", prompts)
    jsonl(folder / "ifeval/gpt4_answers.jsonl", answers)
    gsm8k, mtbench, questions, baseline = [], [], [], []
    for n in range(1319):
        gsm8k.append({"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"})
    for n in range(80):
        turns = [f"Write about {n}.", "Now shorter."]
        mtbench.append({"question_id": n, "category": "writing", "turns": turns})
    for n in range(500):
        questions.append({"uid": f"u{n}", "prompt": f"Explain {n}."})
        content = {"answer": "A baseline answer."}
        baseline.append({"uid": f"u{n}", "messages": [{"role": "assistant", "content": content}]})
    jsonl(folder / "gsm8k/test.jsonl", gsm8k)
    jsonl(folder / "mt_bench/question.jsonl", mtbench)
    jsonl(folder / "arena_hard/v0.1/question.jsonl", questions)
    jsonl(folder / "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl", baseline)
    (folder / "mmlu/test").mkdir(parents=True)
    with open(folder / "mmlu/test/made_up_test.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
        for n in range(14_042):
            writer.writerow([f"Which of these is number {n}?", n, n + 1, n + 2, n + 3, 0])


def timed(name: str, command: list[str], wanted: str) -> float:
    """Run a program and print its seconds and those lines of its output that match `wanted`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    print(f"{name}: {seconds:.1f} s")
    for line in done.stdout.splitlines():
        if re.search(wanted, line):
            print(line)
    return seconds


def lm_eval_command(folder: str, data: Path, url: str) -> list[str] | None:
    """lm-eval on IFEval's local file; None, saying what to install, where its extra is missing."""
    for package in ("lm_eval", "tenacity"):
        if importlib.util.find_spec(package) is None:
            print(f'lm-eval left out: {package} is missing; pip install "lm-eval[api]==0.4.13"')
            return None
    punkt.install()
    root = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    library = root / "tasks/ifeval/ifeval.yaml"
    task = TASK.format(library=library, data=data / "ifeval/input_data.jsonl")
    Path(folder, "task.yaml").write_text(task)
    model = ["--model", "local-chat-completions", "--apply_chat_template"]
    model += ["--model_args", f"model=m,base_url={url}/chat/completions,num_concurrent=64"]
    tasks = ["--tasks", "ifeval_local", "--include_path", folder]
    return [sys.executable, "-m", "lm_eval", *model, *tasks]


def stage_command(data: Path, url: str, out: str) -> list[str]:
    asked = ["--model", "m", "--base-url", url, "--data-dir", str(data), "--out", out]
    return [sys.executable, str(ROOT / "07_eval.py"), *asked]


def judge_or_answer(messages: list[dict], request: dict) -> str:
    """One server for both: a judgement where a judge's prompt asks for one, else an answer."""
    text = messages[-1]["content"] + messages[0]["content"]
    if "Python list" in text:
        return str(["YES"] * text.count("#Instruction with "))
    judgements = {"[[rating]]": "[[6]]", "[[A>>B]]": "[[A=B]]", "Generated Text": "YES"}
    for mark, judgement in judgements.items():
        if mark in text:
            return judgement
    return "A short answer of a few words. The answer is 18."


def against_lm_eval(folder: str, data: Path) -> dict[str, float]:
    """Both programs' seconds for the answers to IFEval that lie with the data."""
    with open(data / "ifeval/gpt4_answers.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    answers = {row["prompt"]: row["response"] for row in rows}

    def answer(messages, request):
        return answers.get(messages[-1]["content"], "None.")

    numbers = {}
    with FakeServer(answer, keep=False) as server:
        command = lm_eval_command(folder, data, server.url)
        if command:
            numbers["lm_eval seconds"] = timed("lm_eval", command, "_acc")
        command = stage_command(data, server.url, f"{folder}/ours/07_results.json")
        command += ["--benchmarks", "ifeval"]
        numbers["ifeval seconds"] = timed("07_eval", command, r"^\| \*\*m")
    if "lm_eval seconds" in numbers:
        numbers["ifeval ratio"] = numbers["lm_eval seconds"] / numbers["ifeval seconds"]
        print(f"ratio: {numbers['ifeval ratio']:.1f}")
    return numbers


def all_benchmarks(folder: str, data: Path) -> dict[str, float]:
    """The stage's seconds with every benchmark, and those of each."""
    with FakeServer(judge_or_answer, keep=False) as server:
        command = stage_command(data, server.url, f"{folder}/all/07_results.json")
        judge = ["--judge-model", "j", "--judge-base-url", server.url]
        whole = timed("all benchmarks", [*command, *judge, "--allow-gaps"], "not run")
    numbers = {"all benchmarks seconds": whole}
    for row in json.loads(Path(folder, "all/07_results.json").read_text()):
        if "seconds" in row:
            print(f"{row['benchmark']}: {row['seconds']:.1f} s, n {row['n']:,}")
            numbers[f"{row['benchmark']} of all seconds"] = row["seconds"]
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="the owners' files (default: made up here)")
    parser.add_argument("--ifeval-only", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_dir
        if data is None:
            data = Path(folder, "data")
            make_data(data)
        numbers = against_lm_eval(folder, data.resolve())
        if not args.ifeval_only:
            numbers |= all_benchmarks(folder, data.resolve())
    if args.json:
        save(args.json, numbers)


if __name__ == "__main__":
    main()
