"""One request to its stored samples: a server's dialect, retries, pauses, and errors in words."""

import asyncio
import os
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

import aiohttp
import httpx2
import openai
from tqdm import tqdm

from autoif import files
from autoif.files import UserError
from autoif.llm import reply as replies
from autoif.llm.store import Store

SEED_STRIDE = 1000  # else --seed 1 would draw all but one of the samples of --seed 0 again
RETRIES = 6  # of 5xx, timeouts, lost connections, unusable bodies
PAUSE = 0.5  # seconds before the first retry, doubling to 8, where the server names none
LONGEST = 120  # seconds of a pause after 429, which doubles as well
PATIENCE = 600  # seconds of 429, until a request has failed
HEALING = (408, 409, 424, 425, 429, 498)  # and all from 500 on
OF_PROMPT = (400, 413, 422, 451)  # too long, or a content filter: others may be taken
# An account without credit, or a model that is gone, in the words of those that say so with a 400
SPENT = re.compile(
    r"credit balance|insufficient.(?:balance|credits|quota)|budget has been exceeded|spend.limit|"
    r"blocked_api_access|model_decommissioned",
    re.IGNORECASE,
)
SMALLEST = 0.01  # temperature of greedy requests, where a server takes no 0
REFUSALS = 4  # prompts, or as many as are in flight, without one answer: it is the settings
ADVICE = {
    401: "check $OPENAI_API_KEY",
    403: "check $OPENAI_API_KEY",
    404: "check --model, and --base-url, which usually ends in /v1",
}
# How servers call `response_format`, when they refuse it.
FORMAT_WORDS = "response.?format|json.?(?:schema|object)|structured|grammar|guided"
INSTEAD = {
    "n": "with one request a sample",
    "max_tokens": "with max_completion_tokens",
    "temperature 0": f"with {SMALLEST}",
    "system role": "with its words at the head of the user's",
}


class Failure(Exception):
    """A request without a completion: the server's words and its status, None where it has none."""

    def __init__(self, words: str, status: int | None = None, wait=0.0):
        super().__init__(words)
        self.status, self.wait = status, wait
        # OpenRouter's 402 with a time to wait is of too many requests in flight
        self.limited = status == 429 or status == 402 and wait > 0
        heals = status is None or status in HEALING or status >= 500 or self.limited
        self.refused = not heals  # for good
        # other refusals (403, 404) are of the settings, or of the prompt where others are answered
        self.of_prompt = status in OF_PROMPT
        spent = status in (400, 403, 429) and SPENT.search(words)
        self.ends_run = bool(spent) or status in (401, 402, 412) and self.refused

    @property
    def advised(self) -> str:
        return f"{self}; {ADVICE[self.status]}" if self.status in ADVICE else str(self)


class Endpoint:
    """A server; what it answers goes into `store`, what it bills into `counts`."""

    def __init__(self, args, store: Store, counts: Counter):
        self._model, self._store, self._counts = args.model, store, counts
        if not args.base_url:
            raise UserError(
                f"{store.path} lacks a completion of {args.model!r} and there is no server to ask: "
                "set OPENAI_BASE_URL or give --base-url, for example http://localhost:8000/v1"
            )
        self._base_url, self._secret = address(args.base_url), secret()
        store.lock()
        self.last_failure = None
        self._most_in_a_row = max(20, 2 * args.concurrency)  # failures, until it is given up
        self._most_refused = max(REFUSALS, args.concurrency)
        self._failed_in_a_row = self._refused_in_a_row = 0
        # after a 429: when all requests go on, how many pauses there were, and since when
        self._paused_until, self._pauses, self._limited_since = 0.0, 0, None
        self._without = set()  # parameters that the server turned out not to take
        self._said = set()  # what is said once
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < args.concurrency + 256:  # every request in flight holds a socket
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, args.concurrency + 256), hard))
        # The aiohttp transport sends twice as many requests a second. uvicorn closes connections
        # that idle for 5 s.
        limits = httpx2.Limits(max_connections=args.concurrency, keepalive_expiry=3)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=self._base_url,
            max_retries=0,
            timeout=openai.Timeout(args.timeout, connect=min(args.timeout, 30)),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )
        self._slots = asyncio.Semaphore(args.concurrency)

    async def close(self) -> None:
        await self._client.close()

    async def answer(self, request: dict, key: str, indices: list[int]) -> Failure | None:
        """Store samples; why a prompt stays without some, which is counted as failed or refused."""
        failure = await self._fetch(request, key, indices)
        if failure is not None:
            self.last_failure = failure
            self._counts["refused" if failure.refused else "failed"] += 1
            if failure.refused:
                self._check_refused(failure)
        return failure

    async def _fetch(self, request: dict, key: str, indices: list[int]) -> Failure | None:
        """All samples in one request where the server takes `n`, else in one request each.

        Those that are stored part the others: a server draws samples that follow on each other.
        """
        parts = in_a_row(indices)
        if len(parts) < 2:
            try:
                while len(indices) == 1 or (indices and "n" not in self._without):
                    indices = await self._ask(request, key, indices)
            except Failure as failure:
                return failure
            parts = [[index] for index in indices]
        tasks = [asyncio.ensure_future(self._fetch(request, key, part)) for part in parts]
        try:
            failures = [failure for failure in await asyncio.gather(*tasks) if failure]
        finally:  # none goes on where another has ended the run
            for task in tasks:
                task.cancel()
        # a sample that failed may heal in a rerun, so it decides about its prompt
        return min(failures, key=attrgetter("refused"), default=None)

    async def _ask(self, request: dict, key: str, indices: list[int]) -> list[int]:
        """One request for some samples, stored; returns those that are still to be asked for."""
        async with self._slots:
            if len(indices) > 1 and "n" in self._without:  # found out while this one waited
                return indices
            try:
                reply = await self._reply(request, indices)
            except Failure as failure:
                self._check_failed(failure, request)
                raise
            answered = self._put(key, indices, reply)
        self._failed_in_a_row = self._refused_in_a_row = 0
        if answered == 1 < len(indices):
            self._leave_out("n", f"returned 1 sample for n={len(indices)}")
        return indices[answered:]

    def _put(self, key: str, indices: list[int], reply) -> int:
        """Store the choices of a reply; how many these are."""
        records = replies.records(reply, key, indices)
        self._counts["answered"] += len(records)
        for choice, record in zip(reply.choices, records):
            self._counts["prompt_tokens"] += record["prompt_tokens"] or 0
            self._counts["completion_tokens"] += record["completion_tokens"] or 0
            self._counts["uncounted"] += record["completion_tokens"] is None
            if not replies.is_answer(record):
                self._note_empty(choice.message)
        unstored = len(records) - self._store.put(records)
        self._counts.update(samples=unstored, empty=unstored)
        return len(records)

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

    async def _reply(self, request: dict, indices: list[int]):
        """The reply to a request, without the parameters that the server turns out to refuse."""
        body, refused = body_of(request, indices), {}
        for name in self._without:
            leave_out(name, body)
        while True:
            try:
                reply = await self._healed_reply(body)
                break
            except Failure as failure:
                name = refused_parameter(str(failure), failure.status, body)
                if name is None:
                    raise
                leave_out(name, body)
                refused[name] = failure
        for name, failure in refused.items():  # that was the reason, then, and not the prompt
            self._leave_out(name, f"takes no {name} from {self._model} ({failure})")
        return reply

    async def _healed_reply(self, body: dict):
        """A completion; what may heal is tried again, and all requests wait out a 429 together."""
        attempt = 0
        while True:
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            try:
                reply = await self._completion(body)
                self._pauses, self._limited_since = 0, None
                return reply
            except Failure as failure:
                if failure.limited and not failure.ends_run:
                    if not self._pause(failure):
                        raise
                    continue
                if failure.refused or failure.ends_run or attempt == RETRIES:
                    raise
                seconds = min(PAUSE * 2**attempt, 8) * random.uniform(0.75, 1)
                if 0 < failure.wait <= LONGEST:
                    seconds = failure.wait
            attempt += 1
            await asyncio.sleep(seconds)

    async def _completion(self, body: dict):
        """The reply to one request, with at least one choice."""
        try:
            # as extra_body it passes openai's walk over every field of every message, a third
            # of the work of a request, and a server's own parameters pass as well
            reply = await self._client.chat.completions.create(
                model=self._model, messages=[], extra_body=body
            )
            raise_error_in(reply)
            if not replies.usable(reply):
                raise ValueError(f"no choices in {reply}")
            return reply
        except UnicodeEncodeError:
            # lone surrogates: models write them, and no HTTP body takes them
            return await self._completion(files.encodable(body))
        except (openai.APIError, ValueError, aiohttp.ClientError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Failure:
        """An error in the server's words, with its request id and without the key."""
        if isinstance(error, openai.APIConnectionError) and error.__cause__:
            # says more, and the transport calls a refused connection a timeout
            error = error.__cause__
            words = str(error) or repr(error)
        elif isinstance(error, openai.APIError):
            words = str(error)
        else:
            words = f"a reply that is no completion: {error!r}"
        known = isinstance(error, openai.APIStatusError)
        if known and " - " not in words:  # openai looks for them in one field, FastAPI has another
            words += f" - {error.response.text}"
        if known and error.code and str(error.code) not in words:
            words += f" ({error.code})"
        if self._secret:  # which some servers repeat
            words = words.replace(self._secret, "***")
        words = f"{self._base_url}: {words[:1000]}"
        if not known:
            return Failure(words)
        if error.request_id:
            words += f" (request {error.request_id})"
        wait = error.response.headers.get("retry-after", "")  # seconds, or a date
        seconds = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else 0.0
        # larger than what a minute allows: no pause mends that
        too_large = error.status_code == 429 and "request too large" in words.lower()
        return Failure(words, 413 if too_large else error.status_code, seconds)

    def _pause(self, failure: Failure) -> bool:
        """Let all requests wait after a 429; False when all have met it for too long."""
        now = time.monotonic()
        if now < self._paused_until:  # sent before the pause began
            return True
        self._limited_since = self._limited_since or now
        seconds = failure.wait or min(PAUSE * 2 ** min(self._pauses, 10), LONGEST)
        if now + seconds > self._limited_since + PATIENCE:
            return False
        self._paused_until = now + seconds
        self._pauses += 1
        self._say_once("429", f"{failure}; all requests pause, for {PATIENCE / 60:g} min at most")
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

    def _check_failed(self, failure: Failure, request: dict) -> None:
        """Add the prompt to the words; UserError where the failure of a request ends the run."""
        prompt = str(request["messages"][-1]["content"])[:80]
        failure.args = (f"{failure} (prompt: {prompt!r})",)
        if failure.ends_run:
            raise UserError(failure.advised)
        if not failure.refused:
            self._failed_in_a_row += 1
            self._end_after(self._failed_in_a_row, "requests in a row failed", failure)

    def _check_refused(self, failure: Failure) -> None:
        """Say the first refusal; UserError when so many are refused that it is the settings."""
        refused = self._counts["refused"]
        answered = self._counts["answered"] or self._counts["stored"]
        if refused >= self._most_refused and not answered:
            raise UserError(
                f"the first {refused} prompts are refused, so it is the settings: {failure.advised}"
            )
        if not failure.of_prompt:  # credit that is used up, a key that was withdrawn
            self._refused_in_a_row += 1
            self._end_after(self._refused_in_a_row, "prompts in a row are refused", failure)
        self._say_once("refused", f"refused for good, a dropped prompt: {failure}")

    def _end_after(self, count: int, what: str, failure: Failure) -> None:
        """UserError when as many as end the run fared alike, one after the other."""
        if count >= self._most_in_a_row:
            raise UserError(
                f"{count} {what}; the last with: {failure.advised}; "
                "run the same command when the server is well, all answers are stored"
            )


def address(base_url: str) -> str:
    """The server's address without the white space around it; UserError where it is none."""
    base_url, flag = base_url.strip(), "$OPENAI_BASE_URL or --base-url"
    wanted = (
        f"{flag} must begin with http:// or https:// and hold no password (that goes into "
        "$OPENAI_API_KEY), for example http://localhost:8000/v1"
    )
    if "@" in base_url:  # not repeated: it may be a password
        raise UserError(wanted)
    if not re.match(r"https?://[^/\s]", base_url, re.IGNORECASE):
        raise UserError(f"{wanted}; it is {base_url!r}")
    try:
        port = httpx2.URL(base_url).port
    except httpx2.InvalidURL as error:
        raise UserError(f"{flag} {base_url!r}: {error}") from None
    if port is not None and not 0 < port < 65536:
        raise UserError(f"{flag} {base_url!r}: there is no port {port}")
    return base_url


def secret() -> str:
    """$OPENAI_API_KEY without the white space around it; UserError where no header takes it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("$OPENAI_API_KEY has a character that no HTTP header takes; set it again")
    return key


def in_a_row(indices: Sequence[int]) -> list[list[int]]:
    """[2, 3, 5] -> [[2, 3], [5]]"""
    parts = []
    for index in indices:
        if not parts or parts[-1][-1] != index - 1:
            parts.append([])
        parts[-1].append(index)
    return parts


def body_of(request: dict, indices: Sequence[int]) -> dict:
    """What a server gets for these samples of a request, which follow on each other."""
    body = {name: value for name, value in request.items() if value is not None}
    if "seed" in body:
        # llama.cpp and vLLM add 0 .. n-1 to it for the n samples
        body["seed"] = body["seed"] * SEED_STRIDE + indices[0]
    if len(indices) > 1:
        body["n"] = len(indices)
    return body


def raise_error_in(reply) -> None:
    """Raise the error that a reply with status 200 holds, with the status of its code, or 500."""
    holders = [reply, *(getattr(reply, "choices", None) or [])]
    if error := next(filter(None, [getattr(each, "error", None) for each in holders]), None):
        body = error if isinstance(error, dict) else {"message": error}
        code = str(body.get("code"))
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
        response = httpx2.Response(status, request=httpx2.Request("POST", "http://server"))
        words = f"Error code: {status} - {error}"
        raise openai.APIStatusError(words, response=response, body=body)


def refused_parameter(words: str, status: int | None, body: dict) -> str | None:
    """The parameter that a refusal may be about: it is, if the request is taken without it."""
    words = words.lower()
    template = "system" in words and "role" in words or "roles must alternate" in words
    # some servers make a 500 of what a chat template raises
    if template and status in (400, 422, 500) and has_system_role(body):
        return "system role"
    if status not in (400, 422):
        return "n" if status == 501 and "n" in body else None
    if "output limit" in words:  # thoughts used up all tokens
        return None
    if "max_completion_tokens" in words and "max_tokens" in body:
        return "max_tokens"
    for name in ("top_p", "seed"):
        if name in body and re.search(rf"\b{name}\b", words):
            return name
    # servers call it by many names
    if "response_format" in body and re.search(FORMAT_WORDS, words):
        return "response_format"
    # one out of range must be mended; left out is one where the model takes none but its own
    if "temperature" in body and "unsupported" in words and "'temperature'" in words:
        return "temperature"
    # but for the 0 of judgements, which no flag changes
    if body.get("temperature") in (0, SMALLEST) and "temperature" in words:
        return "temperature" if body["temperature"] else "temperature 0"
    return "n" if "n" in body else None


def has_system_role(body: dict) -> bool:
    return [message["role"] for message in body["messages"][:2]] == ["system", "user"]


def leave_out(name: str, body: dict) -> None:
    """Take out of a body what its server refuses, or put in its place what it takes."""
    if name == "temperature 0":
        if body.get("temperature") == 0:
            body["temperature"] = SMALLEST
    elif name == "system role":
        if has_system_role(body):
            system, user, *others = body["messages"]
            user = {**user, "content": f"{system['content']}\n\n{user['content']}"}
            body["messages"] = [user, *others]
    elif name == "max_tokens" and name in body:
        body["max_completion_tokens"] = body.pop(name)
    else:
        body.pop(name, None)
