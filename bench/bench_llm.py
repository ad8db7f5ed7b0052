"""Requests a second of autoif.llm, storing included, beside the shortest loop over its library.

    python bench/bench_llm.py

Then how long a million stored completions take to open. The server answers at once (or after
200 ms) from a process of its own; each client runs in a fresh process, in turn, and the best of
`--repeats` counts. There are two shortest loops: openai's default transport, and its aiohttp
transport, which is the one that autoif.llm uses. --json writes the numbers for bench/compare.py.
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


async def ours(url: str, requests: int, concurrency: int) -> float:
    sys.path.insert(0, str(ROOT))
    import autoif.llm.endpoint  # noqa: F401  before the clock starts, as for the other clients
    from autoif import llm
    from autoif.stage import in_order

    with tempfile.TemporaryDirectory() as folder:
        sampling = {"k": 1, "temperature": 0, "max_tokens": 64, "concurrency": concurrency}
        args = llm.Flags(model="m", base_url=url, store=f"{folder}/store.jsonl", **sampling)
        async with llm.Client(args, "bench") as client:
            began, answers = time.perf_counter(), 0
            conversations = map(conversation, range(requests))
            async for samples in in_order(client.ask, conversations, client.ahead):
                answers += len(samples)
            seconds = time.perf_counter() - began
    assert answers == requests
    return seconds


async def loop(url: str, requests: int, concurrency: int, http=None) -> float:
    """The shortest loop that keeps `concurrency` requests in flight; it stores nothing."""
    import openai

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


async def loop_aiohttp(url: str, requests: int, concurrency: int) -> float:
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=concurrency)
    return await loop(url, requests, concurrency, openai.DefaultAioHttpClient(limits=limits))


CLIENTS = {"ours": ours, "loop": loop, "loop_aiohttp": loop_aiohttp}


def one(name: str, url: str, requests: str, concurrency: str) -> None:
    """What a client's own process prints: seconds of the requests, CPU seconds, peak memory."""
    seconds = asyncio.run(CLIENTS[name](url, int(requests), int(concurrency)))
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(json.dumps([seconds, time.process_time(), gigabytes]))


def measure(*arguments: object) -> list[float]:
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{arguments[0]} failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(delay: float, concurrency: int, requests: int, repeats: int) -> dict:
    """What each client reaches against a server with this delay, printed too."""
    command = [sys.executable, str(ROOT / "tests" / "fake_server.py"), "--port", "0"]
    command += ["--delay", str(delay)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    best = {}  # of each client: seconds, CPU seconds, peak memory, share of the server's core
    try:
        url = server.stdout.readline().strip()
        for _ in range(repeats):
            for name in CLIENTS:
                before = cpu_seconds(server.pid)
                seconds, *others = measure(name, url, requests, concurrency)
                busy = (cpu_seconds(server.pid) - before) / seconds
                run = seconds, *others, busy
                best[name] = min(run, best.get(name, run))
    finally:
        server.terminate()
        server.wait()
    line = f"server {delay * 1000:.0f} ms, concurrency {concurrency}, {requests:,} requests"
    if delay:
        line += f" (the server allows {concurrency / delay:,.0f}/s)"
    print(line)
    numbers, where = {}, f"server {delay * 1000:.0f} ms"
    for name, (seconds, cpu, gigabytes, busy) in best.items():
        ratio = seconds / best["ours"][0]
        numbers[f"{where} {name} requests_per_second"] = requests / seconds
        numbers[f"{where} {name} cpu_seconds"] = cpu
        numbers[f"{where} {name} memory_gb"] = gigabytes
        if name != "ours":
            numbers[f"{where} ratio to {name}"] = ratio
        print(
            f"  {name:13} {requests / seconds:7,.0f} requests/s | ours is {ratio:5.2f} of it | "
            f"{cpu / requests * 1000:.2f} ms CPU a request with start-up | "
            f"{gigabytes * 1024:,.0f} MB | server's core {busy:4.0%} busy"
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--completions", type=int, default=1_000_000, help="in the store that is opened"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        one(*args.one)
        return
    numbers = compare(0.0, 64, args.requests, args.repeats)
    numbers |= compare(0.2, 512, args.requests, args.repeats)
    numbers |= open_store(args.completions)
    if args.json:
        save(args.json, numbers)


if __name__ == "__main__":
    main()
