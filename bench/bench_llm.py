"""Requests a second of autoif.llm, storing included, beside the shortest loop over the same library and distilabel;
then how long a million stored completions take to open.

    python bench/bench_llm.py
    python bench/bench_llm.py --distilabel /tmp/distilabel/bin/python    # an interpreter with distilabel[openai]

The server answers at once (or after 200 ms) from a process of its own; each client runs in a fresh process, in turn,
and the best of `--repeats` counts. Two shortest loops: openai's default transport, and its aiohttp transport, which is
the one that autoif.llm uses.
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

ROOT = Path(__file__).resolve().parent.parent


def conversation(number: int) -> list[dict]:
    return [
        {
            "role": "user",
            "content": f"Write a Python function that checks constraint number {number}. " * 10,
        }
    ]


def ours(url: str, requests: int, concurrency: int) -> float:
    sys.path.insert(0, str(ROOT))
    import openai  # noqa: F401  the client would import them after the clock has started

    from autoif.llm import LLM

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.jsonl"
        with LLM("m", url, store, temperature=0, max_tokens=64, concurrency=concurrency) as client:
            began = time.perf_counter()
            answers = sum(
                len(samples)
                for samples in client.complete(conversation(i) for i in range(requests))
            )
            seconds = time.perf_counter() - began
    assert answers == requests
    return seconds


def loop(url: str, requests: int, concurrency: int, aiohttp: bool = False) -> float:
    """The shortest loop that keeps `concurrency` requests in flight; it retries nothing more and stores nothing."""
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
    """Its text generation task over its OpenAI client, without the pipeline's start-up and caches."""
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


def open_store(completions: int) -> None:
    sys.path.insert(0, str(ROOT))
    from autoif.llm.store import Store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.jsonl"
        with open(path, "w") as file:
            for number in range(completions):
                key = hashlib.sha256(b"%d" % number).hexdigest()
                file.write(
                    json.dumps(
                        {
                            "key": key,
                            "index": 0,
                            "text": "x" * 1000,
                            "finish_reason": "stop",
                            "prompt_tokens": 9,
                            "completion_tokens": 250,
                        }
                    )
                    + "\n"
                )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        Store(path)
        seconds = time.perf_counter() - began
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{completions:,} stored completions, {path.stat().st_size / 1e6:,.0f} MB: open in {seconds:.1f} s, "
            f"{memory:.0f} MB more memory"
        )


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
        "--distilabel",
        metavar="PYTHON",
        help="interpreter of an environment with distilabel[openai]",
    )
    parser.add_argument(
        "--one",
        nargs=4,
        metavar=("CLIENT", "URL", "REQUESTS", "CONCURRENCY"),
        help=argparse.SUPPRESS,
    )
    args = parser.parse_args(argv)
    if args.one:
        name, url, requests, concurrency = args.one
        seconds = CLIENTS[name](url, int(requests), int(concurrency))
        print(json.dumps([seconds, time.process_time()]))
        return
    clients = {name: sys.executable for name in CLIENTS if name != "distilabel"}
    if args.distilabel:
        clients["distilabel"] = args.distilabel
    for delay, concurrency in [(0.0, 64), (0.2, 512)]:
        server = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests" / "fake_server.py"),
                "--port",
                "0",
                "--delay",
                str(delay),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = server.stdout.readline().strip()
            rates, busy, cpu = {}, {}, {}
            for _ in range(args.repeats):
                for name, python in clients.items():
                    before = cpu_seconds(server.pid)
                    run = subprocess.run(
                        [
                            python,
                            __file__,
                            "--one",
                            name,
                            url,
                            str(args.requests),
                            str(concurrency),
                        ],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                        check=True,
                    )
                    seconds, worked = json.loads(run.stdout.splitlines()[-1])
                    if args.requests / seconds > rates.get(name, 0):
                        rates[name] = args.requests / seconds
                        busy[name] = (cpu_seconds(server.pid) - before) / seconds
                    cpu[name] = min(worked, cpu.get(name, worked))
        finally:
            server.terminate()
        print(
            f"server {delay * 1000:.0f} ms, concurrency {concurrency}, {args.requests:,} requests"
            + (f" (the server allows {concurrency / delay:,.0f}/s)" if delay else "")
        )
        for name, rate in rates.items():
            print(
                f"  {name:13} {rate:7,.0f} requests/s | ours is {rates['ours'] / rate:5.2f} of it | "
                f"{cpu[name] / args.requests * 1000:.2f} ms CPU a request with start-up | "
                f"server's core {busy[name]:4.0%} busy"
            )
    open_store(args.completions)


if __name__ == "__main__":
    main()
