"""Completions from any OpenAI-compatible server, each stored on disk before it counts and never asked for twice.

    llm.add_flags(parser, temperature=0.7, max_tokens=1024, k=8)
    with llm.LLM.from_args(args, stage="02_verifiers") as client:
        for row, samples in zip(rows, client.complete(prompt(row) for row in rows)):
            ...

The store is asked before the network: when it holds every sample, neither endpoint, key nor network is needed.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import queue
import random
import re
import resource
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from autoif.files import UserError
from autoif.llm.store import Store
from autoif.models import fingerprint

CONCURRENCY = 64
TIMEOUT = 600.0
MAX_FAILED = 0.05
RETRIES = (
    6  # by openai of 429, 5xx, timeouts and lost connections; here, likewise, of unusable bodies
)
PAUSE = 0.5  # seconds before the first retry, doubling to 8, where the server names none
REFUSALS = 4  # with 400 before any answer: it is the settings, not the prompts
WINDOW = 16  # prompts read ahead, times the concurrency: a straggler at the head holds up nobody until it is full


def add_flags(
    parser: argparse.ArgumentParser,
    *,
    temperature: float,
    max_tokens: int,
    k: int,
    model_required: bool = True,
) -> None:
    """The flags of a stage that asks a model; the stage gives the defaults of the sampling."""
    group = parser.add_argument_group("completions")
    group.add_argument(
        "--model",
        required=model_required,
        help="name the server knows, or the checkpoint directory it serves",
    )
    group.add_argument(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="server, for example http://localhost:8000/v1 (default: $OPENAI_BASE_URL)",
    )
    group.add_argument("--k", type=int, default=k, help="samples a prompt (default: %(default)s)")
    group.add_argument(
        "--temperature", type=float, default=temperature, help="default: %(default)s"
    )
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, help="of one sample (default: %(default)s)"
    )
    group.add_argument(
        "--concurrency",
        type=int,
        default=CONCURRENCY,
        help="requests in flight (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        help="seconds until a request is given up and retried (default: %(default)s)",
    )
    group.add_argument(
        "--store", help="completions file (default: completions/STAGE.jsonl beside --out)"
    )
    group.add_argument(
        "--keep-think", action="store_true", help="leave <think> blocks in the answers"
    )
    group.add_argument(
        "--max-failed",
        type=float,
        default=MAX_FAILED,
        help="share of prompts that may keep failing before it is an error (default: %(default)s)",
    )
    group.add_argument(
        "--price-in", type=float, help="US$ a million prompt tokens, for the cost in the last line"
    )
    group.add_argument("--price-out", type=float, help="US$ a million completion tokens")


def key(model: str, messages: list[dict], temperature: float, max_tokens: int, **more) -> str:
    """The store's name of a request: SHA-256 of everything that shapes the answer, but for the sample's index."""
    request = [model, messages, float(temperature), max_tokens, more]
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def strip_think(text: str) -> str:
    """`text` without its <think> blocks, also where the chat template wrote the opening tag or none was closed."""
    head, close, rest = text.partition("</think>")
    if close and "<think>" not in head:
        text = rest.lstrip()
    return re.sub(r"<think>.*?(</think>\s*|\Z)", "", text, flags=re.DOTALL)


def _usable(reply) -> bool:
    """Whether it is a ChatCompletion with a choice, each a text, a list of parts or (refused, all thinking) neither."""
    choices = getattr(
        reply, "choices", None
    )  # openai hands on a body that is no JSON as str, and checks no field
    return bool(choices) and all(
        isinstance(getattr(getattr(choice, "message", None), "content", 0), str | list | None)
        for choice in choices
    )


def _text(content: str | list | None) -> str | None:
    """The text of a message; of one in parts (thoughts, text), its text parts."""
    if isinstance(content, list):
        return "".join(
            part.get("text", "")
            for part in content
            if isinstance(part, dict) and part.get("type") == "text"
        )
    return content


def _encodable(request: dict) -> dict:
    """The request with lone surrogates (models write them, no HTTP body takes them) replaced."""
    return json.loads(
        json.dumps(request, ensure_ascii=False)
        .encode("utf-16", "surrogatepass")
        .decode("utf-16", "replace")
    )


class Unusable(Exception):
    """A reply with status 200 that holds no completion: HTML from a proxy, an empty list of choices."""


@dataclasses.dataclass(eq=False, slots=True)
class Prompt:
    """One request on its way from `complete`'s window to its answer."""

    request: dict
    key: str
    first: int
    k: int
    missing: list[int] | None = (
        None  # samples to ask for; None: waits for an equal request before it
    )
    done: bool = False
    failed: bool = False
    tasks: set = dataclasses.field(default_factory=set)


class LLM:
    """A model behind a server and the store of its completions; use it in a `with` block, from synchronous code."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        store: str | Path,
        *,
        k: int = 1,
        temperature: float,
        max_tokens: int,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        keep_think: bool = False,
        max_failed: float = MAX_FAILED,
        price_in: float | None = None,
        price_out: float | None = None,
        name: str = "completions",
        keep_empty: bool = False,
    ):
        self.model, self.base_url, self.name = model, base_url, name
        self.k, self.temperature, self.max_tokens = k, temperature, max_tokens
        self.concurrency, self.timeout, self.keep_think = concurrency, timeout, keep_think
        self.max_failed, self.price_in, self.price_out = max_failed, price_in, price_out
        if concurrency < 1 or k < 1:
            raise UserError(f"--concurrency {concurrency} and --k {k} must be at least 1")
        self.keep_empty = (
            keep_empty  # 07_eval scores an answer without text, the other stages have no use for it
        )
        self.store = Store(store)
        # prompts, failed (prompts), and of these refused (with 400: a rerun will not help); samples, and of these stored
        # (before), truncated, empty; prompt_tokens and completion_tokens that this run was billed
        self.counts = Counter()
        self._model_id = fingerprint(model)
        self._secret = os.environ.get("OPENAI_API_KEY", "").strip()
        self._asked = set()  # (key, first) in the window: a twin waits for the first of them
        self._unsent = []  # prompts on their way to the event loop
        self._open = set()  # prompts with requests waiting or in flight
        self._ready = []  # prompts that have ended since the stage was woken
        self._finished = queue.SimpleQueue()  # of lists of prompts, to the stage's thread
        self._loop = None  # until the first completion that the store lacks
        self._began = None
        self._bar = None
        self._one_by_one = False  # set when the server turns out not to take `n`
        self._length_name = "max_tokens"  # or max_completion_tokens, where a server insists
        self._one_temperature = False  # set when the model turns out to take no other than its own
        self._failed_in_a_row = self._refused = 0
        self._answered = False  # a request of this run
        self._last_error = ""
        self._stopped = None  # the error that ended the run

    @classmethod
    def from_args(cls, args: argparse.Namespace, stage: str, **more) -> "LLM":
        """The client that the flags of `add_flags` describe."""
        store = args.store or Path(args.out).parent / "completions" / f"{stage}.jsonl"
        names = [
            "k",
            "temperature",
            "max_tokens",
            "concurrency",
            "timeout",
            "keep_think",
            "max_failed",
            "price_in",
            "price_out",
        ]
        return cls(
            args.model,
            args.base_url,
            store,
            name=stage,
            **{name: getattr(args, name) for name in names},
            **more,
        )

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    @property
    def failed(self) -> int:
        """Prompts with samples that kept failing; a rerun asks for these again."""
        return self.counts["failed"]

    def complete(self, requests: Iterable[list[dict] | dict]) -> Iterator[list[dict]]:
        """Yield the samples of each request, in order; requests are read at most `WINDOW * concurrency` ahead.

        A request is a message list, or `{"messages": [...]}` with its own `k`, `temperature`, `max_tokens`, `first`
        (index of the first sample) or any other parameter of the server. A sample is `{"index", "text",
        "finish_reason"}`; one that kept failing, or has no text (unless `keep_empty`), is not in the list, only in
        `counts`.
        """
        total = len(requests) if hasattr(requests, "__len__") else None
        requests, window, more = iter(requests), deque(), True
        limit, ended, failed = WINDOW * self.concurrency, 0, 0
        if (
            self._stopped and self._thread.is_alive()
        ):  # what ended an earlier call need not end this one
            self._stopped, self._failed_in_a_row, self._refused = None, 0, 0
        with self._progress(total):
            try:
                while True:
                    if (
                        more and len(window) <= limit * 3 // 4
                    ):  # seldom and many at once: waking a thread is not free
                        for request in itertools.islice(requests, limit - len(window)):
                            window.append(self._start(request))
                        more = len(window) == limit
                        self._hand_over()
                    if not window:
                        return
                    self._wait_for(window[0])
                    prompt = window.popleft()
                    ended, failed = ended + 1, failed + prompt.failed
                    self._asked.discard((prompt.key, prompt.first))
                    samples = self._samples(prompt)
                    if not more and not window:
                        self._check_failed(failed, ended)
                    yield samples
            finally:
                self._asked -= {(prompt.key, prompt.first) for prompt in window}
                self._unsent = []
                if self._loop:
                    self._loop.call_soon_threadsafe(self._cancel, window)

    def lacks(self, request: list[dict] | dict) -> bool:
        """Whether a sample of the request is not in the store yet."""
        prompt = self._prompt(request)
        return bool(self.store.missing(prompt.key, prompt.first, prompt.k))

    def _start(self, request: list[dict] | dict) -> Prompt:
        """Look the request up in the store and send what is missing."""
        prompt = self._prompt(request)
        self.counts["prompts"] += 1
        if (prompt.key, prompt.first) not in self._asked:
            self._submit(prompt)
        return prompt

    def _prompt(self, request: list[dict] | dict) -> Prompt:
        request = dict(request) if isinstance(request, dict) else {"messages": request}
        k, first = request.pop("k", self.k), request.pop("first", 0)
        request = {"temperature": self.temperature, "max_tokens": self.max_tokens, **request}
        return Prompt(request, key(self._model_id, **request), first, k)

    def _submit(self, prompt: Prompt) -> None:
        prompt.missing = self.store.missing(prompt.key, prompt.first, prompt.k)
        self.counts["stored"] += prompt.k - len(prompt.missing)
        if not prompt.missing:
            prompt.done = True
            self._bar.update()
            return
        if self._loop is None:
            self._connect()
        self._asked.add((prompt.key, prompt.first))
        self._unsent.append(prompt)
        if len(self._unsent) == 64:
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the submitted prompts to the event loop."""
        if self._stopped:
            raise self._stopped
        if self._unsent:
            self._loop.call_soon_threadsafe(self._send_all, self._unsent)
            self._unsent = []

    def _wait_for(self, prompt: Prompt) -> None:
        if prompt.missing is None:  # its twin was before it in line and so has ended by now
            self._submit(prompt)
            self._hand_over()
        while not prompt.done:
            batch = self._finished.get()
            if self._stopped:
                raise self._stopped
            self.counts["failed"] += sum(ended.failed for ended in batch)
            for ended in batch:
                ended.done = True
            speed = self.counts["completion_tokens"] / (time.monotonic() - self._began)
            self._bar.set_postfix_str(
                f"{speed:,.0f} tok/s, {self.counts['failed']:,} failed", refresh=False
            )
            self._bar.update(len(batch))

    def _samples(self, prompt: Prompt) -> list[dict]:
        """The stored samples as the stages see them."""
        samples = []
        for index, record in self.store.get(prompt.key, prompt.first, prompt.k).items():
            text, finish_reason = record["text"] or "", record["finish_reason"]
            text = text if self.keep_think else strip_think(text)
            self.counts["samples"] += 1
            self.counts["truncated"] += finish_reason == "length"
            if text.strip() or self.keep_empty:
                samples.append({"index": index, "text": text, "finish_reason": finish_reason})
            else:  # a model that spent all its tokens on thinking, or refused
                self.counts["empty"] += 1
        return samples

    def _check_failed(self, failed: int, prompts: int) -> None:
        if failed > self.max_failed * prompts:
            raise UserError(
                f"{failed:,} of {prompts:,} prompts kept failing, more than "
                f"--max-failed {self.max_failed}; the last with: {self._last_error}; run the same command "
                "to ask for these again, all other answers are stored"
            )

    @contextlib.contextmanager
    def _progress(self, total: int | None):
        with tqdm(
            total=total,
            desc=self.name,
            unit=" prompts",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as self._bar:
            yield

    def close(self) -> None:
        """Cancel what is in flight, close the store and print the run's last line."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
            self._loop = None
        self.store.close()
        counts = self.counts
        line = (
            f"{self.name}: {counts['prompts']:,} prompts, {counts['samples']:,} samples ({counts['stored']:,} were "
            f"stored; {counts['truncated']:,} truncated, {counts['empty']:,} empty), {counts['failed']:,} prompts "
            f"failed; {counts['prompt_tokens']:,} tokens in, {counts['completion_tokens']:,} out"
        )
        if self.price_in is not None or self.price_out is not None:
            cost = counts["prompt_tokens"] * (self.price_in or 0) + counts["completion_tokens"] * (
                self.price_out or 0
            )
            line += f", ${cost / 1e6:,.2f}"
        print(line, file=sys.stderr)

    # The event loop runs in a thread of its own, so that requests go on while the stage works on what it got.

    def _connect(self) -> None:
        if not self.base_url:
            raise UserError(
                f"{self.store.path} lacks a completion of {self.model!r} and there is no server to ask: "
                "set OPENAI_BASE_URL or give --base-url, for example http://localhost:8000/v1"
            )
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise UserError(
                "$OPENAI_API_KEY has a character that no HTTP header takes; set it again"
            )
        if "@" in self.base_url or not re.match("https?://", self.base_url):
            raise UserError(
                "--base-url must begin with http:// or https:// and hold no password (that goes into "
                "$OPENAI_API_KEY), for example http://localhost:8000/v1"
            )
        self.store.lock()
        import aiohttp  # here, as these take most of the second that --help has
        import httpx2
        import openai

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < self.concurrency + 256:  # every request in flight holds a socket
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, self.concurrency + 256), hard))
        self._openai = openai
        self._garbled = (ValueError, aiohttp.ClientError)  # no JSON, no HTTP
        # The aiohttp transport sends twice as many requests a second. uvicorn closes connections that idle for 5 s.
        limits = httpx2.Limits(max_connections=self.concurrency, keepalive_expiry=3)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=self.base_url,
            max_retries=RETRIES,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 30)),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )
        self._slots = asyncio.Semaphore(self.concurrency)
        self._began = time.monotonic()
        started = threading.Event()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(started),), daemon=True
        )
        self._thread.start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        """Keep the event loop and the connections until cancelled."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        started.set()
        try:
            while True:
                await asyncio.sleep(1)
                await asyncio.to_thread(
                    self.store.sync
                )  # a power cut may cost the answers of a second
        except asyncio.CancelledError:
            self._cancel(self._open)
            await self._client.close()
        except Exception as error:  # for whoever waits, who would wait for ever
            self._stop(error)

    def _send_all(self, prompts: list[Prompt]) -> None:
        for prompt in prompts:
            self._open.add(prompt)
            self._send(prompt, prompt.missing)

    def _send(self, prompt: Prompt, indices: list[int]) -> None:
        """Ask for the samples `indices` of a prompt: in one request where the server takes `n`, else in one each."""
        if self._stopped:
            return
        groups = [[index] for index in indices] if self._one_by_one else [indices]
        for group in groups:
            task = self._loop.create_task(self._ask(prompt, group))
            prompt.tasks.add(task)
            task.add_done_callback(functools.partial(self._ended, prompt))

    def _ended(self, prompt: Prompt, task: asyncio.Task) -> None:
        prompt.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._stop(task.exception())
        if not prompt.tasks:
            self._open.discard(prompt)
            if not self._ready:
                self._loop.call_later(0.005, self._report)
            self._ready.append(prompt)

    def _report(self) -> None:
        """Wake the stage, once for all prompts of some milliseconds."""
        self._finished.put(self._ready)
        self._ready = []

    def _stop(self, error: BaseException) -> None:
        """End the run: who waits for a prompt raises `error`."""
        self._stopped = self._stopped or error
        self._cancel(self._open)
        self._finished.put([])

    def _cancel(self, prompts: Iterable[Prompt]) -> None:
        for task in [task for prompt in prompts for task in prompt.tasks]:
            task.cancel()

    async def _ask(self, prompt: Prompt, indices: list[int]) -> None:
        """One request; what it returns is stored, what it lacks is asked one by one, what fails is noted."""
        api = self._openai
        async with self._slots:
            if self._one_by_one and len(indices) > 1:
                return self._send(prompt, indices)
            try:
                reply, asked = await self._answer(prompt.request, indices)
            except api.APIStatusError as error:
                heals = error.status_code in (408, 409, 429) or error.status_code >= 500
                refused = error.status_code in (
                    400,
                    413,
                    422,
                )  # a content filter, or too long: others may be taken
                self._refused += refused
                wrong_settings = self._refused >= REFUSALS and not (
                    self._answered or self.counts["stored"]
                )
                if not (heals or refused) or wrong_settings or error.code == "insufficient_quota":
                    raise UserError(self._words(error)) from None
                self.counts["refused"] += refused and not prompt.failed
                return self._fail(prompt, error)
            except (api.APIConnectionError, Unusable) as error:
                return self._fail(prompt, error)
        self._failed_in_a_row, self._answered = 0, True
        choices = reply.choices[: len(asked)]
        usage = reply.usage
        prompt_tokens, completion_tokens = (
            (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        )
        self.counts.update(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        share, rest = divmod(completion_tokens, len(choices))
        # a request's tokens are split over its samples, so that the store's sums are what was billed
        self.store.put(
            [
                {
                    "key": prompt.key,
                    "index": index,
                    "text": _text(choice.message.content),
                    "finish_reason": choice.finish_reason or "unknown",
                    "prompt_tokens": 0 if place else prompt_tokens,
                    "completion_tokens": share + (place < rest),
                }
                for place, (index, choice) in enumerate(zip(indices, choices))
            ]
        )
        if len(choices) < len(indices):
            if len(choices) == 1:
                self._fall_back(f"returned 1 sample for n={len(indices)}")
            self._send(prompt, indices[len(choices) :])

    async def _answer(self, request: dict, indices: list[int]) -> tuple:
        """(reply, the samples it was asked for): `indices`, or the first of them alone where the server refuses `n`."""
        try:
            return await self._reply(request, indices), indices
        except self._openai.APIStatusError as error:
            if len(indices) == 1 or error.status_code not in (400, 422, 501):
                raise
            words = self._words(error)
        reply = await self._reply(request, indices[:1])  # refused as well if it was the prompt
        self._fall_back(f"refuses n={len(indices)} ({words})")
        return reply, indices[:1]

    async def _reply(self, request: dict, indices: list[int]):
        """The server's ChatCompletion, with at least one choice; openai retries, here only bodies it takes for good."""
        request = dict(request)
        if len(indices) > 1:
            request["n"] = len(indices)
        if request.get("seed") is not None:
            request["seed"] += indices[
                0
            ]  # or each of the requests that make up k samples would return the same one
        if self._one_temperature:
            request.pop("temperature", None)
        length = request.pop("max_tokens")
        for attempt in range(RETRIES + 1):
            limit = {self._length_name: length} if length is not None else {}
            try:
                # as extra_body it passes openai's walk over every field of every message, a third of the work of a
                # request, and a server's own parameters pass as well
                reply = await self._client.chat.completions.create(
                    model=self.model, messages=[], extra_body={**limit, **request}
                )
                if _usable(reply):
                    return reply
                problem = f"a reply without choices: {self._clean(str(reply))[:200]!r}"
            except UnicodeEncodeError:
                request = _encodable(request)
                continue
            except self._garbled as error:
                problem = f"a reply that is no completion: {self._clean(repr(error))[:200]}"
            except self._openai.BadRequestError as error:
                words = str(error).lower()
                if "max_completion_tokens" in words and "max_tokens" in limit:
                    self._length_name = "max_completion_tokens"
                elif (
                    "unsupported" in words and "'temperature'" in words and "temperature" in request
                ):
                    del request["temperature"]
                    if not self._one_temperature:
                        self._one_temperature = True
                        tqdm.write(
                            f"{self.name}: {self.model} takes no temperature but its own, which is used",
                            file=sys.stderr,
                        )
                else:
                    raise
                continue
            await asyncio.sleep(min(PAUSE * 2**attempt, 8) * random.uniform(0.75, 1))
        raise Unusable(problem)

    def _fall_back(self, reason: str) -> None:
        if not self._one_by_one:
            self._one_by_one = True
            tqdm.write(
                f"{self.name}: {self.base_url} {reason}; going on with one request a sample",
                file=sys.stderr,
            )

    def _fail(self, prompt: Prompt, error: Exception) -> None:
        prompt.failed = True
        self._last_error = f"{self._words(error)} (prompt: {str(prompt.request['messages'][-1]['content'])[:80]!r})"
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(20, 2 * self.concurrency):
            raise UserError(
                f"{self._failed_in_a_row} requests in a row failed; the last with: {self._last_error}; "
                "run the same command when the server is well, all answers are stored"
            )

    def _words(self, error: Exception) -> str:
        """The server's words, its request id and what to do."""
        if isinstance(error, self._openai.APIConnectionError) and error.__cause__:
            error = (
                error.__cause__
            )  # says more, and the transport calls a refused connection a timeout
        said = str(error) or repr(error)
        if isinstance(error, self._openai.APIStatusError) and " - " not in said:
            said += f" - {error.response.text}"  # openai looks for words in one field only; FastAPI's are in another
        words = f"{self.base_url}: {self._clean(said)[:1000]}"
        if isinstance(error, self._openai.APIStatusError):
            words += f" (request {error.request_id})" if error.request_id else ""
            words += {
                401: "; check $OPENAI_API_KEY",
                403: "; check $OPENAI_API_KEY",
                404: "; check --model, and --base-url, which usually ends in /v1",
            }.get(error.status_code, "")
        return words

    def _clean(self, text: str) -> str:
        """`text` without the key, which some servers repeat."""
        return text.replace(self._secret, "***") if self._secret else text
