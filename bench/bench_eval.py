"""What scoring costs: IFEval against lm-eval, and all benchmarks, each with a server that answers at once.

    pip install "lm-eval[api]==0.4.13"    # for lm-eval's side of it only
    python bench/bench_eval.py --data-dir DIR [--ifeval-only]

Both programs start cold, ask the same loopback server for the same 541 published GPT-4 answers and print their numbers.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from fake_server import FakeServer  # noqa: E402

from autoif.evaluation.benchmarks import punkt  # noqa: E402

TASK = """include: {library}
task: ifeval_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}}}}}
"""


def timed(name: str, command: list[str], wanted: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    print(
        f"{name}: {seconds:.1f} s\n"
        + "\n".join(line for line in done.stdout.splitlines() if re.search(wanted, line))
    )
    return seconds


def judge_or_answer(messages: list[dict], request: dict) -> str:
    text = messages[-1]["content"] + messages[0]["content"]
    for mark, answer in (
        ("Python list", "['YES']"),
        ("[[rating]]", "[[6]]"),
        ("[[A>>B]]", "[[A=B]]"),
        ("Generated Text", "YES"),
    ):
        if mark in text:
            return (
                answer if mark != "Python list" else str(["YES"] * text.count("#Instruction with "))
            )
    return "A short answer of a few words. The answer is 18."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--ifeval-only", action="store_true")
    args = parser.parse_args()
    data = Path(args.data_dir).resolve()
    with open(data / "ifeval/gpt4_answers.jsonl", encoding="utf-8") as file:
        answers = {row["prompt"]: row["response"] for row in map(json.loads, file)}
    import importlib.util

    library = (
        Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
        / "tasks/ifeval/ifeval.yaml"
    )
    punkt.install()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "task.yaml").write_text(
            TASK.format(library=library, data=data / "ifeval/input_data.jsonl")
        )
        with FakeServer(
            lambda messages, request: answers.get(messages[-1]["content"], "None."), keep=False
        ) as server:
            theirs = timed(
                "lm_eval",
                [
                    sys.executable,
                    "-m",
                    "lm_eval",
                    "--model",
                    "local-chat-completions",
                    "--model_args",
                    f"model=m,base_url={server.url}/chat/completions,num_concurrent=64",
                    "--tasks",
                    "ifeval_local",
                    "--include_path",
                    folder,
                    "--apply_chat_template",
                ],
                r"_acc",
            )
            ours = timed(
                "07_eval",
                [
                    sys.executable,
                    str(ROOT / "07_eval.py"),
                    "--model",
                    "m",
                    "--base-url",
                    server.url,
                    "--benchmarks",
                    "ifeval",
                    "--data-dir",
                    str(data),
                    "--out",
                    f"{folder}/ours/07_results.json",
                ],
                r"^\| \*\*m",
            )
        print(f"ratio: {theirs / ours:.1f}")
        if args.ifeval_only:
            return
        with FakeServer(judge_or_answer, keep=False) as server:
            timed(
                "all benchmarks",
                [
                    sys.executable,
                    str(ROOT / "07_eval.py"),
                    "--model",
                    "m",
                    "--base-url",
                    server.url,
                    "--data-dir",
                    str(data),
                    "--judge-model",
                    "j",
                    "--judge-base-url",
                    server.url,
                    "--allow-gaps",
                    "--out",
                    f"{folder}/all/07_results.json",
                ],
                "not run",
            )
        for row in json.loads(Path(folder, "all/07_results.json").read_text()):
            print(
                f"{row['benchmark']}: {row['seconds']:.1f} s, n {row['n']:,}"
                if "seconds" in row
                else f"{row['benchmark']}: not run"
            )


if __name__ == "__main__":
    main()
