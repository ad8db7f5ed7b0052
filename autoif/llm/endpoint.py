"""What runs on the event loop: one prompt to its stored samples, with retries and fall-backs.

The loop has a thread of its own, so that requests go on while the stage works on what it got. The
stage's thread calls `send`, waits for the future that it returns, and watches `stopped`.
"""

import asyncio
import json
import os
import random
import re
import resource
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from operator import attrgetter

import aiohttp
import httpx2
import openai
from tqdm import tqdm

from autoif.files import UserError
from autoif.llm.store import Store

SEED_STRIDE = 1000  # else --seed 1 would draw all but one of the samples of --seed 0 again
RETRIES = 6  # by openai of 429, 5xx, timeouts, lost connections; here, likewise, of unusable bodies
PAUSE = 0.5  # seconds before the first retry, doubling to 8, where the server names none
REFUSALS = 4  # prompts, or as many as are in flight, without one answer: it is the settings
ADVICE = {
    401: "check $OPENAI_API_KEY",
    403: "check $OPENAI_API_KEY",
    404: "check --model, and --base-url, which usually ends in /v1",
}
FORMAT_WORDS = "response.?format|json.?(?:schema|object)|structured|grammar|guided"
INSTEAD = {"n": "with one request a sample", "max_tokens": "with max_completion_tokens"}


class Unanswered(Exception):
    """Why a prompt stays without an answer: the server refused it for good, or kept failing."""

    def __init__(self, words: str, refused: bool):
        super().__init__(words)
        self.refused = refused


class Unusable(Exception):
    """A reply with status 200 that holds no completion: HTML from a proxy, no choices."""


class Endpoint:
    """An OpenAI-compatible server; what it answers goes into `store`, what it bills in `counts`."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        store: Store,
        counts: Counter,
        concurrency: int,
        timeout: float,
    ):
        self._model, self._base_url, self._store, self._counts = model, base_url, store, counts
        self._secret = os.environ.get("OPENAI_API_KEY", "").strip()
        self._check()
        store.lock()
        self._most_in_a_row = max(20, 2 * concurrency)  # failures, until the server is given up
        self._most_refused = max(REFUSALS, concurrency)
        self.resume()
        self._without = set()  # parameters that the server turned out not to take
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < concurrency + 256:  # every request in flight holds a socket
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, concurrency + 256), hard))
        # The aiohttp transport sends twice as many requests a second. uvicorn closes connections
        # that idle for 5 s.
        limits = httpx2.Limits(max_connections=concurrency, keepalive_expiry=3)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=base_url,
            max_retries=RETRIES,
            timeout=openai.Timeout(timeout, connect=min(timeout, 30)),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._submit(self._sync())

    def _check(self) -> None:
        """UserError where there is no server to ask, or no way to ask it."""
        if not self._base_url:
            raise UserError(
                f"{self._store.path} lacks a completion of {self._model!r} and there is no server "
                "to ask: set OPENAI_BASE_URL or give --base-url, for example "
                "http://localhost:8000/v1"
            )
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise UserError(
                "$OPENAI_API_KEY has a character that no HTTP header takes; set it again"
            )
        if "@" in self._base_url or not re.match("https?://", self._base_url):
            raise UserError(
                "--base-url must begin with http:// or https:// and hold no password (that goes "
                "into $OPENAI_API_KEY), for example http://localhost:8000/v1"
            )

    # What the stage's thread calls

    def resume(self) -> None:
        """Begin a call: what ended an earlier one need not end this one."""
        self.stopped = Future()  # holds the error that ends the run
        self._failed_in_a_row = self._refused = 0

    def send(self, request: dict, key: str, indices: list[int]) -> Future:
        """Ask for the samples `indices`; the future's result is None, or why it is `Unanswered`."""
        return self._submit(self._answer(request, key, indices))

    def close(self) -> None:
        """Cancel what is in flight and end the thread."""
        self._submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # What runs on the loop

    async def _sync(self) -> None:
        """A power cut may cost the answers of a second."""
        try:
            while True:
                await asyncio.sleep(1)
                await asyncio.to_thread(self._store.sync)
        except OSError as error:
            self._stop(error)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _stop(self, error: Exception) -> None:
        """End the run: whoever waits for a prompt raises `error`."""
        if not self.stopped.done():
            self.stopped.set_exception(error)

    async def _answer(self, request: dict, key: str, indices: list[int]) -> Unanswered | None:
        """All samples in one request where the server takes `n`, else in one request each."""
        try:
            while len(indices) == 1 or (indices and "n" not in self._without):
                indices = await self._ask(request, key, indices)
        except Unanswered as failure:
            failures = [failure]
        else:
            asked = [self._ask(request, key, [index]) for index in indices]
            results = await asyncio.gather(*asked, return_exceptions=True)
            failures = [result for result in results if isinstance(result, Unanswered)]
        # a sample that failed may heal in a rerun, so it decides about its prompt
        failures.sort(key=attrgetter("refused"))
        failure = failures[0] if failures else None
        if failure and failure.refused:
            self._note_refusal(failure)
        return failure

    async def _ask(self, request: dict, key: str, indices: list[int]) -> list[int]:
        """One request for some samples, stored; returns those that are still to be asked for."""
        async with self._slots:
            if len(indices) > 1 and "n" in self._without:  # found out while this one waited
                return indices
            try:
                if self.stopped.done():
                    raise self.stopped.exception()
                answered = self._put(key, indices, await self._first_reply(request, indices))
            except (openai.APIStatusError, openai.APIConnectionError, Unusable) as error:
                raise self._unanswered(error, request) from None
            except Exception as error:
                self._stop(error)
                raise
        self._failed_in_a_row = 0
        if answered == 1 < len(indices):
            self._leave_out("n", f"returned 1 sample for n={len(indices)}")
        return indices[answered:]

    def _put(self, key: str, indices: list[int], reply) -> int:
        """Store the choices of a reply; how many these are."""
        choices = reply.choices[: len(indices)]
        prompt_tokens, tokens = billed(reply, len(choices))
        known = [count for count in tokens if count is not None]
        self._counts.update(
            answered=len(choices),
            prompt_tokens=prompt_tokens or 0,
            completion_tokens=sum(known),
            uncounted=len(tokens) - len(known),
        )
        records = []
        for index, choice, count in zip(indices, choices, tokens):
            record = {
                "key": key,
                "index": index,
                "text": text_of(choice.message.content),
                "finish_reason": choice.finish_reason or "unknown",
                "prompt_tokens": 0 if records else prompt_tokens,
                "completion_tokens": count,
            }
            records.append(record)
        self._store.put(records)
        return len(choices)

    async def _first_reply(self, request: dict, indices: list[int]):
        """The reply to `n` samples, or to one alone where the server refuses `n`."""
        try:
            return await self._reply(request, indices)
        except openai.APIStatusError as error:
            if len(indices) == 1 or error.status_code not in (400, 422, 501):
                raise
            words = self._words(error)
        reply = await self._reply(request, indices[:1])  # refused as well if it was the prompt
        self._leave_out("n", f"refuses n={len(indices)} ({words})")
        return reply

    async def _reply(self, request: dict, indices: list[int]):
        """The reply to a request, without the parameters that the server turns out to refuse."""
        body, refused = self._body(request, indices), {}
        while True:
            try:
                reply = await self._usable_reply(body)
                break
            except UnicodeEncodeError:
                body = encodable(body)
            except openai.APIStatusError as error:
                words = self._words(error)
                name = refused_parameter(words, body)
                if name is None or error.status_code not in (400, 422):
                    raise
                value = body.pop(name)
                if name == "max_tokens":
                    body["max_completion_tokens"] = value
                refused[name] = words
        for name, words in refused.items():  # that was the reason, then, and not the prompt
            self._leave_out(name, f"takes no {name} from {self._model} ({words})")
        return reply

    def _body(self, request: dict, indices: list[int]) -> dict:
        body = {}
        for name, value in request.items():
            if value is not None and name not in self._without:
                body[name] = value
        if "max_tokens" in self._without:
            body["max_completion_tokens"] = request["max_tokens"]
        if "seed" in body:
            # llama.cpp and vLLM add 0 .. n-1 to it for the n samples
            body["seed"] = body["seed"] * SEED_STRIDE + indices[0]
        if len(indices) > 1:
            body["n"] = len(indices)
        return body

    async def _usable_reply(self, body: dict):
        """The reply with at least one choice; openai retries, here only what it takes for good."""
        for attempt in range(RETRIES + 1):
            try:
                # as extra_body it passes openai's walk over every field of every message, a third
                # of the work of a request, and a server's own parameters pass as well
                reply = await self._client.chat.completions.create(
                    model=self._model, messages=[], extra_body=body
                )
                if usable(reply):
                    return reply
                problem = f"a reply without choices: {self._clean(str(reply))[:200]!r}"
            except UnicodeEncodeError:
                raise
            except (ValueError, aiohttp.ClientError) as error:  # no JSON, no HTTP
                problem = f"a reply that is no completion: {self._clean(repr(error))[:200]}"
            await asyncio.sleep(min(PAUSE * 2**attempt, 8) * random.uniform(0.75, 1))
        raise Unusable(problem)

    def _leave_out(self, name: str, reason: str) -> None:
        """From now on send requests without a parameter; say so once."""
        if name not in self._without:
            self._without.add(name)
            instead = INSTEAD.get(name, "without it")
            tqdm.write(f"{self._base_url} {reason}; going on {instead}", file=sys.stderr)

    def _unanswered(self, error: Exception, request: dict) -> Unanswered:
        """What an error means for its prompt; UserError where it ends the run."""
        words, status = self._words(error), getattr(error, "status_code", None)
        said = f"{words} (prompt: {str(request['messages'][-1]['content'])[:80]!r})"
        if status in (400, 413, 422):  # too long, or a content filter: others may be taken
            return Unanswered(said, refused=True)
        heals = status is None or status in (408, 409, 429) or status >= 500
        self._failed_in_a_row += 1
        if not heals or getattr(error, "code", None) == "insufficient_quota":
            self._stop(UserError(words))
        elif self._failed_in_a_row >= self._most_in_a_row:
            text = (
                f"{self._failed_in_a_row} requests in a row failed; the last with: {said}; "
                "run the same command when the server is well, all answers are stored"
            )
            self._stop(UserError(text))
        return Unanswered(said, refused=False)

    def _note_refusal(self, failure: Unanswered) -> None:
        """Say the first refusal; UserError when so many are refused that it is the settings."""
        self._refused += 1
        answered = self._counts["answered"] or self._counts["stored"]
        if self._refused >= self._most_refused and not answered:
            text = (
                f"the first {self._refused} prompts are refused, so it is the settings: {failure}"
            )
            self._stop(UserError(text))
        elif self._refused == 1:
            tqdm.write(f"refused for good, a dropped prompt: {failure}", file=sys.stderr)

    def _words(self, error: Exception) -> str:
        """The server's words, its request id and what to do."""
        if isinstance(error, openai.APIConnectionError) and error.__cause__:
            # says more, and the transport calls a refused connection a timeout
            error = error.__cause__
        said = str(error) or repr(error)
        if not isinstance(error, openai.APIStatusError):
            return f"{self._base_url}: {self._clean(said)[:1000]}"
        if " - " not in said:  # openai looks for words in one field only; FastAPI's are in another
            said += f" - {error.response.text}"
        words = f"{self._base_url}: {self._clean(said)[:1000]}"
        if error.request_id:
            words += f" (request {error.request_id})"
        if error.status_code in ADVICE:
            words += f"; {ADVICE[error.status_code]}"
        return words

    def _clean(self, text: str) -> str:
        """`text` without the key, which some servers repeat."""
        return text.replace(self._secret, "***") if self._secret else text


def usable(reply) -> bool:
    """Whether it is a ChatCompletion with choices, each a text, parts or (all thinking) neither."""
    # openai hands on a body that is no JSON as str, and checks no field
    choices = getattr(reply, "choices", None)
    for choice in choices or []:
        message = getattr(choice, "message", None)
        if not isinstance(getattr(message, "content", 0), str | list | None):
            return False
    return bool(choices)


def text_of(content: str | list | None) -> str | None:
    """The text of a message; of one in parts (thoughts, text), its text parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "text":
            texts.append(part.get("text", ""))
    return "".join(texts)


def billed(reply, choices: int) -> tuple[int | None, list[int | None]]:
    """(prompt tokens, completion tokens of each choice); None is what the server did not count.

    The completion's tokens are split over its choices, so that the store's sums are what was
    billed. llama.cpp counts the first of `n` samples alone: it reports the same number as what its
    slot predicted. Of any other server that does so, more than eight characters a token tell.
    """
    usage = getattr(reply, "usage", None)
    if usage is None:
        return None, [None] * choices
    total = usage.completion_tokens or 0
    if choices > 1:
        predicted = (getattr(reply, "timings", None) or {}).get("predicted_n")
        texts = [text_of(choice.message.content) or "" for choice in reply.choices]
        if predicted == total or len("".join(texts)) > 8 * total:
            return usage.prompt_tokens, [total] + [None] * (choices - 1)
    share, rest = divmod(total, choices)
    return usage.prompt_tokens, [share + (place < rest) for place in range(choices)]


def refused_parameter(words: str, body: dict) -> str | None:
    """The parameter of `body` that a refusal is about and that can be left out."""
    words = words.lower()
    if "max_completion_tokens" in words and "max_tokens" in body:
        return "max_tokens"
    for name in ("top_p", "seed"):
        if name in body and re.search(rf"\b{name}\b", words):
            return name
    # servers call it by many names; it was that only if the request is taken without it
    if "response_format" in body and re.search(FORMAT_WORDS, words):
        return "response_format"
    # one out of range must be mended; left out is one where the model takes none but its own
    if "temperature" in body and "unsupported" in words and "'temperature'" in words:
        return "temperature"
    return None


def encodable(body: dict) -> dict:
    """The body with lone surrogates (models write them, no HTTP body takes them) replaced."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(data.decode("utf-16", "replace"))
