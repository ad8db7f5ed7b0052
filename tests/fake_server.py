"""An OpenAI-compatible server for the tests: scripted answers, and the faults of real ones.

    python tests/fake_server.py --port 8001 --faults 0.3 --script answers.py

where answers.py has `answer(messages, request) -> text`, or in a test

    with FakeServer(lambda messages, request: "yes", faults=script("429", "html")) as server:
        llm.Client(Flags(model="m", base_url=server.url, ...), "stage")
"""

import argparse
import asyncio
import itertools
import json
import random
import runpy
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from aiohttp import web

# 402: OpenRouter's, with a time to wait; no text: a gateway's error inside a choice
FAULTS = ["429", "402", "500", "drop", "half", "html", "broken json", "no choices", "no text"]
FAULTS += ["error in a choice", "stall"]


def command(*words: object, **named: object) -> list[str]:
    """A command line: `command("--check", in_="a.jsonl", top_p=1)`

    -> ["--check", "--in", "a.jsonl", "--top-p", "1"]
    """
    found = list(map(str, words))
    for name, value in named.items():
        found += [f"--{name.rstrip('_').replace('_', '-')}", str(value)]
    return found


def echo(messages: list[dict], request: dict) -> str:
    """The default answer: it depends on the prompt alone, whatever the order of requests."""
    return "echo: " + messages[-1]["content"]


def script(*names: str | None) -> Callable[[dict], str | None]:
    """Faults for the first requests, one each (None: no fault); later requests are answered."""
    remaining = iter(names)
    return lambda request: next(remaining, None)


def always(name: str) -> Callable[[dict], str | None]:
    return lambda request: name


def at_random(
    share: float, names: Iterable[str] = FAULTS, seed: int = 0
) -> Callable[[dict], str | None]:
    """A fault in `share` of the requests."""
    rng, names = random.Random(seed), list(names)
    return lambda request: rng.choice(names) if rng.random() < share else None


def without(field: str, words: str) -> Callable[[dict], tuple[int, str] | None]:
    """`refuse` of a server that does not know a field of the request."""
    return lambda request: (400, words) if field in request else None


def but_not(part: str, words: str) -> Callable[[dict], tuple[int, str] | None]:
    """`refuse` of a server that takes no prompt with `part` in it."""
    return lambda request: (400, words) if part in request["messages"][0]["content"] else None


def value(setting, request: dict):
    """A setting, or what it says about this request where it is a function."""
    return setting(request) if callable(setting) else setting


async def _health(http: web.Request) -> web.Response:
    return web.Response()


async def _models(http: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "big", "object": "model"}]})


class FakeServer:
    """Serves in a thread of its own.

    `requests` holds the bodies received, `answered` the number of texts by prompt.

    answer(messages, request)  the text, a whole message (dict), or a list of texts, one a choice
    n                          "takes", "ignores" (some servers do) or "refuses" with 400
    refuse                     status and words (or the whole body) for every request, or a
                               function of the request that gives them or None
    delay                      seconds to an answer, or a function of the request that gives them
    counts                     usage of "all" samples, of the "first" alone, or "none"; "llama.cpp"
                               counts the first and says so in `timings`
    """

    def __init__(
        self,
        answer=echo,
        *,
        faults=None,
        n: str = "takes",
        refuse=None,
        delay=0.0,
        retry_after: float = 0.02,
        finish_reason: str = "stop",
        counts: str = "all",
        port: int = 0,
        keep: bool = True,
    ):
        self.answer, self.n, self.refuse, self.delay = answer, n, refuse, delay
        self.faults = faults or script()
        self.retry_after, self.finish_reason, self.counts = retry_after, finish_reason, counts
        self.port, self.keep = port, keep
        self.requests, self.answered, self.faulted, self.keys = [], Counter(), Counter(), set()
        self.in_flight = self.most_in_flight = 0
        self._number = itertools.count()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _chat(self, http: web.Request) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._reply(http, await http.json())
        finally:
            self.in_flight -= 1

    async def _reply(self, http: web.Request, request: dict) -> web.StreamResponse:
        headers = {"x-request-id": f"req-{next(self._number)}"}
        if self.keep:
            self.requests.append(request)
            self.keys.add(http.headers["authorization"].removeprefix("Bearer "))
        refusal = value(self.refuse, request)
        if request.get("n", 1) > 1 and self.n == "refuses":
            refusal = refusal or (400, f"n={request['n']} is not supported")
        if refusal:
            status, words = refusal
            if isinstance(words, str):
                words = {"error": {"message": words, "type": "refused"}}
            return web.json_response(words, status=status, headers=headers)
        if fault := self.faults(request):
            self.faulted[fault] += 1
            return await self._fault(http, fault, headers)
        if self.delay:
            await asyncio.sleep(value(self.delay, request))
        return web.json_response(self._completion(request), headers=headers)

    async def _fault(self, http: web.Request, fault: str, headers: dict) -> web.StreamResponse:
        if fault in ("429", "402", "500"):
            headers["retry-after"] = str(self.retry_after)
            body = {"error": {"message": "try later"}}
            return web.json_response(body, status=int(fault), headers=headers)
        if fault == "half":  # the headers promise more than the body holds
            promised = {"content-length": "1000", "content-type": "application/json"}
            response = web.StreamResponse(headers=promised)
            await response.prepare(http)
            await response.write(b'{"choices": [')
            http.transport.close()
            return response
        if fault == "drop":
            http.transport.abort()
            await asyncio.sleep(0)
        if fault == "stall":
            await asyncio.sleep(3600)
        text, kind = {
            "html": ("<html><h1>Bad gateway</h1></html>", "text/html"),
            "broken json": ('{"choices": [{"mess', "application/json"),
            "no choices": ('{"object": "chat.completion", "choices": []}', "application/json"),
            "no text": (
                '{"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}',
                "application/json",
            ),
            "error in a choice": (
                '{"choices": [{"message": {"content": "a"}, "error": {"code": 502}}]}',
                "application/json",
            ),
        }.get(fault, ("", "text/plain"))
        return web.Response(text=text, content_type=kind, headers=headers)

    def _completion(self, request: dict) -> dict:
        n = 1 if self.n == "ignores" else request.get("n", 1)
        text = self.answer(request["messages"], request)
        texts = text if isinstance(text, list) else [text] * n
        if self.keep:
            self.answered[json.dumps(request["messages"])] += len(texts)
        choices = []
        for index, text in enumerate(texts):
            message = text if isinstance(text, dict) else {"role": "assistant", "content": text}
            choice = {"index": index, "message": message, "finish_reason": self.finish_reason}
            choices.append(choice)
        completion = {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": choices,
        }
        if self.counts != "none":
            tokens = 5 * len(texts) if self.counts == "all" else 5
            completion["usage"] = {
                "prompt_tokens": 10,
                "completion_tokens": tokens,
                "total_tokens": 10 + tokens,
            }
        if self.counts == "llama.cpp":
            completion["timings"] = {"predicted_n": 5}
        return completion

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/health", _health)
        app.router.add_get("/v1/models", _models)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        ready()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def __enter__(self) -> "FakeServer":
        started = threading.Event()

        async def main():
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            try:
                await self.serve(started.set)
            except asyncio.CancelledError:
                pass

        self._thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *error) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=8001, help="0 takes a free one; the address is printed"
    )
    parser.add_argument(
        "--script", help="Python file with answer(messages, request) -> text (default: echo)"
    )
    parser.add_argument(
        "--faults", type=float, default=0.0, help="share of requests that meet a random fault"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds to an answer")
    parser.add_argument("--n", choices=["takes", "ignores", "refuses"], default="takes")
    args = parser.parse_args(argv)
    answer = runpy.run_path(args.script)["answer"] if args.script else echo
    server = FakeServer(
        answer,
        faults=at_random(args.faults, seed=args.seed),
        delay=args.delay,
        n=args.n,
        port=args.port,
        keep=False,
    )
    try:
        asyncio.run(server.serve(lambda: print(server.url, flush=True)))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
