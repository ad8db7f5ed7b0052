"""Requests a second of autoif.llm, storing included, beside the shortest loop over its library.

    python bench/bench_llm.py
    python bench/bench_llm.py --distilabel /tmp/distilabel/bin/python    # and beside distilabel

Then how long a million stored completions take to open.

The server answers at once (or after 200 ms) from a process of its own; each client runs in a fresh
process, in turn, and the best of `--repeats` counts. There are two shortest loops: openai's default
transport, and its aiohttp transport, which is the one that autoif.llm uses. --json writes the
numbers for bench/compare.py.
"""

import argparse
import asyncio
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import save

ROOT = Path(__file__).resolve().parent.parent


def conversation(number: int) -> list[dict]:
    text = f"Write a Python function that checks constraint number {number}. " * 10
    return [{"role": "user", "content": text}]


def ours(url: str, requests: int, concurrency: int) -> float:
    sys.path.insert(0, str(ROOT))
    import autoif.llm.endpoint  # noqa: F401  before the clock starts, as for the other clients
    from autoif.llm import LLM

    conversations = map(conversation, range(requests))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.jsonl"
        with LLM("m", url, store, temperature=0, max_tokens=64, concurrency=concurrency) as client:
            began = time.perf_counter()
            answers = sum(map(len, client.complete(conversations)))
            seconds = time.perf_counter() - began
    assert answers == requests
    return seconds


def loop(url: str, requests: int, concurrency: int, aiohttp: bool = False) -> float:
    """The shortest loop that keeps `concurrency` requests in flight; it stores nothing."""
    import openai

    async def main() -> float:
        http = None
        if aiohttp:
            import httpx2

            http = openai.DefaultAioHttpClient(limits=httpx2.Limits(max_connections=concurrency))
        async with openai.AsyncOpenAI(api_key="none", base_url=url, http_client=http) as client:
            slots = asyncio.Semaphore(concurrency)

            async def ask(number: int) -> str:
                async with slots:
                    reply = await client.chat.completions.create(
                        model="m", messages=conversation(number), temperature=0, max_tokens=64
                    )
                    return reply.choices[0].message.content

            began = time.perf_counter()
            await asyncio.gather(*(ask(number) for number in range(requests)))
            return time.perf_counter() - began

    return asyncio.run(main())


def loop_aiohttp(url: str, requests: int, concurrency: int) -> float:
    return loop(url, requests, concurrency, aiohttp=True)


def distilabel(url: str, requests: int, concurrency: int) -> float:
    """Its text generation task over its OpenAI client, without the pipeline's start-up."""
    from distilabel.models import OpenAILLM
    from distilabel.steps.tasks import TextGeneration

    task = TextGeneration(
        llm=OpenAILLM(
            model="m",
            base_url=url,
            api_key="none",
            generation_kwargs={"temperature": 0, "max_new_tokens": 64},
        )
    )
    task.load()
    rows = [{"instruction": conversation(number)[0]["content"]} for number in range(requests)]
    began = time.perf_counter()
    for start in range(0, requests, concurrency):
        next(task.process(rows[start : start + concurrency]))
    return time.perf_counter() - began


CLIENTS = {"ours": ours, "loop": loop, "loop_aiohttp": loop_aiohttp, "distilabel": distilabel}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(python: str, name: str, url: str, requests: int, concurrency: int) -> list[float]:
    """[seconds of the requests, CPU seconds in all] of one client in a process of its own."""
    arguments = ["--one", name, url, str(requests), str(concurrency)]
    run = subprocess.run([python, __file__, *arguments], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def compare(clients: dict, delay: float, concurrency: int, requests: int, repeats: int) -> dict:
    """What each of {name: interpreter} reaches against a server with this delay, printed too."""
    command = [sys.executable, str(ROOT / "tests" / "fake_server.py"), "--port", "0"]
    command += ["--delay", str(delay)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rates, busy, cpu = {}, {}, {}
    try:
        url = server.stdout.readline().strip()
        for _ in range(repeats):
            for name, python in clients.items():
                before = cpu_seconds(server.pid)
                seconds, worked = measure(python, name, url, requests, concurrency)
                if requests / seconds > rates.get(name, 0):
                    rates[name] = requests / seconds
                    busy[name] = (cpu_seconds(server.pid) - before) / seconds
                cpu[name] = min(worked, cpu.get(name, worked))
    finally:
        server.terminate()
        server.wait()
    line = f"server {delay * 1000:.0f} ms, concurrency {concurrency}, {requests:,} requests"
    if delay:
        line += f" (the server allows {concurrency / delay:,.0f}/s)"
    print(line)
    numbers, where = {}, f"server {delay * 1000:.0f} ms"
    for name, rate in rates.items():
        numbers[f"{where} {name} requests_per_second"] = rate
        numbers[f"{where} {name} cpu_seconds"] = cpu[name]
        if name != "ours":
            numbers[f"{where} ratio to {name}"] = rates["ours"] / rate
        print(
            f"  {name:13} {rate:7,.0f} requests/s | ours is {rates['ours'] / rate:5.2f} of it | "
            f"{cpu[name] / requests * 1000:.2f} ms CPU a request with start-up | "
            f"server's core {busy[name]:4.0%} busy"
        )
    return numbers


def open_store(completions: int) -> dict[str, float]:
    """The time and memory that it takes to open a store of so many completions, printed too."""
    sys.path.insert(0, str(ROOT))
    from autoif.llm.store import Store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.jsonl"
        with open(path, "w") as file:
            for number in range(completions):
                record = {
                    "key": hashlib.sha256(b"%d" % number).hexdigest(),
                    "index": 0,
                    "text": "x" * 1000,
                    "finish_reason": "stop",
                    "prompt_tokens": 9,
                    "completion_tokens": 250,
                }
                file.write(json.dumps(record) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        Store(path)
        seconds = time.perf_counter() - began
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        size = path.stat().st_size / 1e6
    print(
        f"{completions:,} stored completions, {size:,.0f} MB: open in {seconds:.1f} s, "
        f"{memory:.0f} MB more memory"
    )
    return {"store open_seconds": seconds, "store memory_gb": memory / 1024}


def has_distilabel(python: str) -> bool:
    command = [python, "-c", "import distilabel.models"]
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:  # no such interpreter
        return False


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--completions", type=int, default=1_000_000, help="in the store that is opened"
    )
    parser.add_argument(
        "--distilabel", metavar="PYTHON", help="interpreter of an environment with distilabel"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        name, url, requests, concurrency = args.one
        seconds = CLIENTS[name](url, int(requests), int(concurrency))
        print(json.dumps([seconds, time.process_time()]))
        return
    clients = dict.fromkeys(["ours", "loop", "loop_aiohttp"], sys.executable)
    if args.distilabel:
        if not has_distilabel(args.distilabel):
            parser.error(
                f"{args.distilabel} has no distilabel; make an environment for it: python -m venv "
                "/tmp/distilabel && /tmp/distilabel/bin/pip install 'distilabel[openai]==1.5.3'"
            )
        clients["distilabel"] = args.distilabel
    numbers = compare(clients, 0.0, 64, args.requests, args.repeats)
    numbers |= compare(clients, 0.2, 512, args.requests, args.repeats)
    numbers |= open_store(args.completions)
    if args.json:
        save(args.json, numbers)


if __name__ == "__main__":
    main()
