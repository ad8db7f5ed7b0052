"""What runs on the event loop: one prompt to its stored samples, with retries and fall-backs.

The loop has a thread of its own, so that requests go on while the stage works on what it got. The
stage's thread calls `send`, waits for the future that it returns, and watches `stopped`.
"""

import asyncio
import random
import resource
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from operator import attrgetter

import aiohttp
import httpx2
import openai
from tqdm import tqdm

from autoif.files import UserError
from autoif.llm import endpoint as shared
from autoif.llm import reply as replies
from autoif.llm.endpoint import (
    ADVICE,
    HEALING,
    INSTEAD,
    OF_PROMPT,
    ErrorInReply,
    address,
    encodable,
    heals,
    leave_out,
    raise_error_in,
    refused_parameter,
    secret,
)
from autoif.llm.store import Store

SEED_STRIDE, LONGEST, REFUSALS = shared.SEED_STRIDE, shared.LONGEST, shared.REFUSALS


class Unanswered(Exception):
    """Why a prompt stays without an answer: the server refused it for good, or kept failing."""

    def __init__(self, words: str, status: int | None):
        super().__init__(words)
        self.refused = status is not None and not heals(status)
        # other refusals (403, 404) are of the settings, or of the prompt where others are answered
        self.of_prompt = status in OF_PROMPT
        self.advised = f"{words}; {ADVICE[status]}" if status in ADVICE else words


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
        self._model, self._store, self._counts = model, store, counts
        if not base_url:
            raise UserError(
                f"{store.path} lacks a completion of {model!r} and there is no server to ask: set "
                "OPENAI_BASE_URL or give --base-url, for example http://localhost:8000/v1"
            )
        self._base_url, self._secret = address(base_url), secret()
        store.lock()
        self._most_in_a_row = max(20, 2 * concurrency)  # failures, until the server is given up
        self._most_refused = max(REFUSALS, concurrency)
        self.resume()
        self._without = set()  # parameters that the server turned out not to take
        self._said = set()  # what is said once
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < concurrency + 256:  # every request in flight holds a socket
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, concurrency + 256), hard))
        # The aiohttp transport sends twice as many requests a second. uvicorn closes connections
        # that idle for 5 s.
        limits = httpx2.Limits(max_connections=concurrency, keepalive_expiry=3)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=self._base_url,
            max_retries=shared.RETRIES,
            timeout=openai.Timeout(timeout, connect=min(timeout, 30)),
            http_client=openai.DefaultAioHttpClient(
                limits=limits, event_hooks={"response": [advise_retry]}
            ),
        )
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._submit(self._sync())

    # What the stage's thread calls

    def resume(self) -> None:
        """Begin a call: what ended an earlier one need not end this one."""
        self.stopped = Future()  # holds the error that ends the run
        self._failed_in_a_row = self._refused = self._refused_in_a_row = 0
        # after a 429: when all requests go on, how many pauses there were, and since when
        self._paused_until, self._pauses, self._limited_since = 0.0, 0, None

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
        self._failed_in_a_row = self._refused_in_a_row = 0
        if answered == 1 < len(indices):
            self._leave_out("n", f"returned 1 sample for n={len(indices)}")
        return indices[answered:]

    def _put(self, key: str, indices: list[int], reply) -> int:
        """Store the choices of a reply; how many these are."""
        choices = reply.choices[: len(indices)]
        prompt_tokens, tokens = replies.billed(reply, len(choices))
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
                "text": replies.text_of(choice.message.content),
                "finish_reason": choice.finish_reason or "unknown",
                "prompt_tokens": 0 if records else prompt_tokens,
                "completion_tokens": count,
            }
            records.append(record)
            if not replies.is_answer(record):
                self._note_empty(choice.message)
        unstored = len(records) - self._store.put(records)
        self._counts.update(samples=unstored, empty=unstored)
        return len(choices)

    def _note_empty(self, message) -> None:
        """Say the first answer without text, and where the text may be."""
        text = f"{self._base_url}: an answer of {self._model} has no text"
        if fields := replies.fields(message):
            text += (
                f", but {' and '.join(fields)}; if that is the answer, start the server without "
                "parsing thoughts (vLLM: no --reasoning-parser, llama.cpp: --reasoning-format none)"
            )
        if self._store.keep_empty:
            text += f"; it stays in {self._store.path} as an empty answer"
        else:
            text += "; it is not stored, a rerun asks again"
        self._say_once("empty", text)

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
                name = refused_parameter(words, error.status_code, body)
                if name is None:
                    raise
                leave_out(name, body)
                refused[name] = words
        for name, words in refused.items():  # that was the reason, then, and not the prompt
            self._leave_out(name, f"takes no {name} from {self._model} ({words})")
        return reply

    def _body(self, request: dict, indices: list[int]) -> dict:
        body = {name: value for name, value in request.items() if value is not None}
        if "seed" in body:
            # llama.cpp and vLLM add 0 .. n-1 to it for the n samples
            body["seed"] = body["seed"] * SEED_STRIDE + indices[0]
        if len(indices) > 1:
            body["n"] = len(indices)
        for name in self._without:
            leave_out(name, body)
        return body

    async def _usable_reply(self, body: dict):
        """The reply with at least one choice; openai retries, here only what it takes for good."""
        for attempt in range(shared.RETRIES + 1):
            try:
                reply = await self._unlimited_reply(body)
                if replies.usable(reply):
                    return reply
                problem = Unusable(f"a reply without choices: {self._clean(str(reply))[:200]!r}")
            except UnicodeEncodeError:
                raise
            except ErrorInReply as error:
                if not heals(error.status_code) or error.status_code == 429:
                    raise
                problem = error
            except (ValueError, aiohttp.ClientError) as error:  # no JSON, no HTTP
                words = self._clean(repr(error))[:200]
                problem = Unusable(f"a reply that is no completion: {words}")
            await asyncio.sleep(min(shared.PAUSE * 2**attempt, 8) * random.uniform(0.75, 1))
        raise problem

    async def _unlimited_reply(self, body: dict):
        """The reply to one request; the 429 of a server that limits them is waited out."""
        began = None  # since when this request meets 429
        while True:
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            try:
                # as extra_body it passes openai's walk over every field of every message, a third
                # of the work of a request, and a server's own parameters pass as well
                reply = await self._client.chat.completions.create(
                    model=self._model, messages=[], extra_body=body
                )
                raise_error_in(reply)
            except openai.APIStatusError as error:
                began = began or time.monotonic()
                limited = error.status_code == 429 and error.code != "insufficient_quota"
                if not (limited and self._pause(error, began)):
                    raise
            else:
                self._pauses, self._limited_since = 0, None
                return reply

    def _pause(self, error: openai.APIStatusError, began: float) -> bool:
        """Let all requests wait after a 429; False when this one, or all, met it for too long."""
        now = time.monotonic()
        if now < self._paused_until:  # sent before the pause began
            return True
        self._limited_since = self._limited_since or now
        try:
            seconds = float(error.response.headers.get("retry-after", 0))
        except ValueError:  # a date
            seconds = 0
        if not seconds > 0:
            seconds = min(shared.PAUSE * 2 ** min(self._pauses, 10), LONGEST)
        if now + seconds > min(began, self._limited_since) + shared.PATIENCE:
            return False
        self._paused_until = now + seconds
        self._pauses += 1
        self._say_once(
            "429",
            f"{self._words(error)}; all requests pause, for {shared.PATIENCE / 60:g} min at most",
        )
        return True

    def _leave_out(self, name: str, reason: str) -> None:
        """From now on send requests without a parameter; say so once."""
        self._without.add(name)
        instead = INSTEAD.get(name, "without it")
        self._say_once(name, f"{self._base_url} {reason}; going on {instead}")

    def _say_once(self, name: str, text: str) -> None:
        if name not in self._said:
            self._said.add(name)
            tqdm.write(text, file=sys.stderr)

    def _unanswered(self, error: Exception, request: dict) -> Unanswered:
        """What an error means for its prompt; UserError where it ends the run."""
        status = getattr(error, "status_code", None)
        prompt = str(request["messages"][-1]["content"])[:80]
        failure = Unanswered(f"{self._words(error)} (prompt: {prompt!r})", status)
        if status == 401 or getattr(error, "code", None) == "insufficient_quota":
            self._stop(UserError(failure.advised))
        elif not failure.refused:
            self._failed_in_a_row += 1
            self._stop_after(self._failed_in_a_row, "requests in a row failed", failure)
        return failure

    def _note_refusal(self, failure: Unanswered) -> None:
        """Say the first refusal; UserError when so many are refused that it is the settings."""
        self._refused += 1
        self._refused_in_a_row += not failure.of_prompt
        answered = self._counts["answered"] or self._counts["stored"]
        if self._refused >= self._most_refused and not answered:
            text = (
                f"the first {self._refused} prompts are refused, so it is the settings: "
                f"{failure.advised}"
            )
            self._stop(UserError(text))
        elif not failure.of_prompt:  # credit that is used up, a key that was withdrawn
            self._stop_after(self._refused_in_a_row, "prompts in a row are refused", failure)
        self._say_once("refused", f"refused for good, a dropped prompt: {failure}")

    def _stop_after(self, count: int, what: str, failure: Unanswered) -> None:
        """UserError when as many as end the run fared alike, one after the other."""
        if count >= self._most_in_a_row:
            text = (
                f"{count} {what}; the last with: {failure.advised}; "
                "run the same command when the server is well, all answers are stored"
            )
            self._stop(UserError(text))

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
        return words

    def _clean(self, text: str) -> str:
        """`text` without the key, which some servers repeat."""
        return text.replace(self._secret, "***") if self._secret else text


async def advise_retry(response: httpx2.Response) -> None:
    """Tell openai which statuses to retry that it does not know, and to leave 429 to us."""
    if response.status_code == 429:
        response.headers["x-should-retry"] = "false"
    elif response.status_code in HEALING:
        response.headers["x-should-retry"] = "true"
