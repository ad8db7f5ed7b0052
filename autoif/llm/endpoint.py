"""One request to its stored samples: a server's dialect, retries, pauses, and errors in words."""

import asyncio
import json
import os
import random
import re
import resource
import sys
import time
from collections import Counter
from operator import attrgetter

import aiohttp
import httpx2
import openai
from tqdm import tqdm

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


class ErrorInReply(openai.APIStatusError):
    """An error that came with status 200; it has the status of its own code, or 500."""


class Endpoint:
    """An OpenAI-compatible server; what it answers goes into `store`, what it bills in `counts`.

    UserError, out of any of its requests, ends the run.
    """

    def __init__(self, args, store: Store, counts: Counter):
        self._model, self._store, self._counts = args.model, store, counts
        if not args.base_url:
            raise UserError(
                f"{store.path} lacks a completion of {args.model!r} and there is no server to ask: "
                "set OPENAI_BASE_URL or give --base-url, for example http://localhost:8000/v1"
            )
        self._base_url, self._secret = address(args.base_url), secret()
        store.lock()
        self._most_in_a_row = max(20, 2 * args.concurrency)  # failures, until it is given up
        self._most_refused = max(REFUSALS, args.concurrency)
        self._failed_in_a_row = self._refused = self._refused_in_a_row = 0
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

    async def answer(self, request: dict, key: str, indices: list[int]) -> Unanswered | None:
        """Store samples: all in one request where the server takes `n`, else in one each.

        What is returned is why some are not stored.
        """
        try:
            while len(indices) == 1 or (indices and "n" not in self._without):
                indices = await self._ask(request, key, indices)
            failure = await self._one_by_one(request, key, indices)
        except Unanswered as error:
            failure = error
        if failure and failure.refused:
            self._note_refusal(failure)
        return failure

    async def _one_by_one(self, request, key: str, indices: list[int]) -> Unanswered | None:
        """A request for each sample."""

        async def attempt(index: int) -> Unanswered | None:
            try:
                await self._ask(request, key, [index])
            except Unanswered as failure:
                return failure

        tasks = [asyncio.ensure_future(attempt(index)) for index in indices]
        try:
            failures = [failure for failure in await asyncio.gather(*tasks) if failure]
        finally:  # where one has ended the run
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
                answered = self._put(key, indices, await self._first_reply(request, indices))
            except (openai.APIStatusError, openai.APIConnectionError, Unusable) as error:
                raise self._unanswered(error, request) from None
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
                reply = await self._healed_reply(body)
                break
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

    async def _healed_reply(self, body: dict):
        """A completion; what may heal is tried again, and all requests wait out a 429 together."""
        began, attempt = None, 0  # since when this request meets 429; its other failures
        while True:
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            try:
                reply = await self._completion(body)
            except (openai.APIStatusError, openai.APIConnectionError, Unusable) as error:
                status = getattr(error, "status_code", 500)
                if status == 429:
                    began = began or time.monotonic()
                    if error.code == "insufficient_quota" or not self._pause(error, began):
                        raise
                    continue
                if not heals(status) or attempt == RETRIES:
                    raise
                seconds = retry_after(error)
                if not 0 < seconds <= LONGEST:
                    seconds = min(PAUSE * 2**attempt, 8) * random.uniform(0.75, 1)
                attempt += 1
                await asyncio.sleep(seconds)
            else:
                self._pauses, self._limited_since = 0, None
                return reply

    async def _completion(self, body: dict):
        """The reply to one request, with at least one choice."""
        try:
            # as extra_body it passes openai's walk over every field of every message, a third
            # of the work of a request, and a server's own parameters pass as well
            reply = await self._client.chat.completions.create(
                model=self._model, messages=[], extra_body=body
            )
            raise_error_in(reply)
        except UnicodeEncodeError:
            return await self._completion(encodable(body))
        except (ValueError, aiohttp.ClientError) as error:  # no JSON, no HTTP
            words = self._clean(repr(error))[:200]
            raise Unusable(f"a reply that is no completion: {words}") from None
        if not replies.usable(reply):
            raise Unusable(f"a reply without choices: {self._clean(str(reply))[:200]!r}")
        return reply

    def _pause(self, error: openai.APIStatusError, began: float) -> bool:
        """Let all requests wait after a 429; False when this one, or all, met it for too long."""
        now = time.monotonic()
        if now < self._paused_until:  # sent before the pause began
            return True
        self._limited_since = self._limited_since or now
        seconds = retry_after(error) or min(PAUSE * 2 ** min(self._pauses, 10), LONGEST)
        if now + seconds > min(began, self._limited_since) + PATIENCE:
            return False
        self._paused_until = now + seconds
        self._pauses += 1
        self._say_once(
            "429", f"{self._words(error)}; all requests pause, for {PATIENCE / 60:g} min at most"
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
            raise UserError(failure.advised)
        if not failure.refused:
            self._failed_in_a_row += 1
            self._refuse_after(self._failed_in_a_row, "requests in a row failed", failure)
        return failure

    def _note_refusal(self, failure: Unanswered) -> None:
        """Say the first refusal; UserError when so many are refused that it is the settings."""
        self._refused += 1
        self._refused_in_a_row += not failure.of_prompt
        answered = self._counts["answered"] or self._counts["stored"]
        if self._refused >= self._most_refused and not answered:
            raise UserError(
                f"the first {self._refused} prompts are refused, so it is the settings: "
                f"{failure.advised}"
            )
        if not failure.of_prompt:  # credit that is used up, a key that was withdrawn
            self._refuse_after(self._refused_in_a_row, "prompts in a row are refused", failure)
        self._say_once("refused", f"refused for good, a dropped prompt: {failure}")

    def _refuse_after(self, count: int, what: str, failure: Unanswered) -> None:
        """UserError when as many as end the run fared alike, one after the other."""
        if count >= self._most_in_a_row:
            raise UserError(
                f"{count} {what}; the last with: {failure.advised}; "
                "run the same command when the server is well, all answers are stored"
            )

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


def address(base_url: str) -> str:
    """The server's address without the white space around it; UserError where it is none."""
    base_url = base_url.strip()
    wanted = (
        "$OPENAI_BASE_URL or --base-url must begin with http:// or https:// and hold no password "
        "(that goes into $OPENAI_API_KEY), for example http://localhost:8000/v1"
    )
    if "@" in base_url:
        raise UserError(wanted)
    if not re.match(r"https?://[^/\s]", base_url, re.IGNORECASE):
        raise UserError(f"{wanted}; it is {base_url!r}")
    try:
        port = httpx2.URL(base_url).port
    except httpx2.InvalidURL as error:
        raise UserError(f"$OPENAI_BASE_URL or --base-url {base_url!r}: {error}") from None
    if port is not None and not 0 < port < 65536:
        raise UserError(f"$OPENAI_BASE_URL or --base-url {base_url!r}: there is no port {port}")
    return base_url


def secret() -> str:
    """$OPENAI_API_KEY without the white space around it; UserError where no header takes it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("$OPENAI_API_KEY has a character that no HTTP header takes; set it again")
    return key


def heals(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in HEALING or status >= 500


def retry_after(error: Exception) -> float:
    """Seconds until the server wants to be asked again, 0 where it names none or a date."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except (AttributeError, ValueError):
        return 0.0


def raise_error_in(reply) -> None:
    """Raise the error that a reply with status 200 holds instead of choices."""
    error = getattr(reply, "error", None)
    if not error:
        return
    body = error if isinstance(error, dict) else {"message": error}
    code = str(body.get("code"))
    status = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
    response = httpx2.Response(status, request=httpx2.Request("POST", "http://server"))
    raise ErrorInReply(f"Error code: {status} - {error}", response=response, body=body)


def refused_parameter(words: str, status: int, body: dict) -> str | None:
    """The parameter of `body` that a refusal is about and that can be left out."""
    words = words.lower()
    template = "system" in words and "role" in words or "roles must alternate" in words
    # some servers make a 500 of what a chat template raises
    if template and status in (400, 422, 500) and has_system_role(body):
        return "system role"
    if status not in (400, 422):
        return None
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
    # but for the 0 of judgements, which no flag changes
    if body.get("temperature") in (0, SMALLEST) and "temperature" in words:
        return "temperature" if body["temperature"] else "temperature 0"
    return None


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
    elif name in body:
        value = body.pop(name)
        if name == "max_tokens":
            body["max_completion_tokens"] = value


def encodable(body: dict) -> dict:
    """The body with lone surrogates (models write them, no HTTP body takes them) replaced."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(data.decode("utf-16", "replace"))
