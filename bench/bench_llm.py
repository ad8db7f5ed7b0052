"""Requests a second of autoif.llm, storing included, beside the shortest loop over its library.

    python bench/bench_llm.py

Then how long a million stored completions take to open. The server answers at once (or after
200 ms) from a process of its own; each client runs in a fresh process, in turn, and the best of
`--repeats` counts. There are two shortest loops: openai's default transport, and its aiohttp
transport, which is the one that autoif.llm uses.
"""

import asyncio
import functools
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import compare
from compare import ROOT, Time, alone, hand_over, save

from autoif.flags import Count, cli


@dataclass(kw_only=True)
class Flags(compare.Flags):
    requests: Count = 3000
    repeats: Count = 3
    completions: Count = 1_000_000  # in the store that is opened
    one: tuple[str, str, Count, Count] | None = None  # internal: one client in its own process


def conversation(number: int) -> list[dict]:
    text = f"Write a Python function that checks constraint number {number}. " * 10
    return [{"role": "user", "content": text}]


async def ours(url: str, requests: int, concurrency: int) -> float:
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
        slots, settings = asyncio.Semaphore(concurrency), {"temperature": 0, "max_tokens": 64}

        async def ask(number: int) -> str:
            async with slots:
                reply = await client.chat.completions.create(
                    model="m", messages=conversation(number), **settings
                )
                return reply.choices[0].message.content

        began = time.perf_counter()
        await asyncio.gather(*map(ask, range(requests)))
        return time.perf_counter() - began


async def loop_aiohttp(url: str, requests: int, concurrency: int) -> float:
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=concurrency)
    return await loop(url, requests, concurrency, openai.DefaultAioHttpClient(limits=limits))


CLIENTS = {"ours": ours, "loop": loop, "loop_aiohttp": loop_aiohttp}


def memory_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def compare_clients(delay: float, concurrency: int, args: Flags) -> dict[str, float]:
    """What each client reaches against a server with this delay."""
    command = [sys.executable, str(ROOT / "tests" / "fake_server.py"), "--port", "0"]
    command += ["--delay", str(delay)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url, memory = server.stdout.readline().strip(), {}

    def run(name: str) -> Time:
        words = [name, url, str(args.requests), str(concurrency)]
        clock, cpu, memory[name] = alone(__file__, "--one", *words)
        return Time(clock, cpu)

    where = f"server {delay * 1000:.0f} ms"
    print(f"{where}, concurrency {concurrency}, {args.requests:,} requests; CPU with start-up")
    try:
        contestants = {name: functools.partial(run, name) for name in CLIENTS}
        amounts = dict.fromkeys(CLIENTS, args.requests)
        numbers, per_request = compare.race(contestants, args.repeats, "requests", amounts)
    finally:
        server.terminate()
        server.wait()
    for name in CLIENTS:
        numbers[f"{name} cpu_seconds"] = per_request[name].cpu * args.requests
        numbers[f"{name} memory_gb"] = memory[name]
    return {f"{where} {name}": number for name, number in numbers.items()}


def open_store(completions: int) -> dict[str, float]:
    """The time and memory that it takes to open a store of so many completions, printed too."""
    from autoif.llm.store import Store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.jsonl"
        with open(path, "w") as file:
            for number in range(completions):
                key = hashlib.sha256(b"%d" % number).hexdigest()
                record = {"key": key, "index": 0, "text": "x" * 1000, "finish_reason": "stop"}
                record |= {"prompt_tokens": 9, "completion_tokens": 250}
                file.write(json.dumps(record) + "\n")
        before = memory_gb()
        seconds = compare.timed(lambda: Store(path)).clock
        memory = memory_gb() - before
    opened = f"open in {seconds:.1f} s, {memory * 1024:.0f} MB more memory"
    print(f"{completions:,} stored completions: {opened}")
    return {"store open_seconds": seconds, "store memory_gb": memory}


def main(args: Flags) -> None:
    if args.one:
        name, url, requests, concurrency = args.one
        seconds = asyncio.run(CLIENTS[name](url, requests, concurrency))
        return hand_over([seconds, time.process_time(), memory_gb()])
    numbers = compare_clients(0.0, 64, args) | compare_clients(0.2, 512, args)
    save(args.json, numbers | open_store(args.completions))


if __name__ == "__main__":
    cli(main, __doc__)
