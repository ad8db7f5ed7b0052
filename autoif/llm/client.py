"""Completions from any OpenAI-compatible server, each stored on disk and never asked for twice.

    async with llm.Client(args, "02_verifiers") as client:
        samples = await client.ask("Write a haiku", k=8)

When the store holds every sample, neither endpoint, key nor network is needed.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoif.files import UserError
from autoif.flags import Count, NonNegative, Positive, PositiveShare, Share
from autoif.llm import reply
from autoif.llm.store import Store
from autoif.models import fingerprint, stop_strings
from autoif.stage import bar_interval

SAMPLING = ("temperature", "max_tokens", "top_p", "seed")
AHEAD = 16  # prompts under way, times the concurrency: until then a straggler holds up nobody
ALIKE = 8  # prompts, each with k equal samples: the server does not sample
LONG = 40  # characters: shorter answers ("Yes") may well be drawn k times


def variable(name: str) -> Any:
    """A flag's default: an environment variable, read when the command starts."""
    return field(default_factory=lambda: os.environ.get(name))


@dataclass(kw_only=True)
class Flags:
    """The flags of a stage that asks a model; the stage gives the defaults of the sampling."""

    model: str  # name the server knows, or the checkpoint directory it serves
    base_url: str | None = variable("OPENAI_BASE_URL")  # http://HOST/v1 (or $OPENAI_BASE_URL)
    k: Count  # samples a prompt
    temperature: NonNegative  # of the sampling; 0 is greedy
    top_p: PositiveShare = 1.0  # sample from the likeliest tokens that make up this share
    max_tokens: Count  # of one sample
    concurrency: Count = 64  # requests in flight
    timeout: Positive = 600.0  # seconds until a request is given up and retried
    store: str | None = None  # completions file (default: completions/STAGE.jsonl beside --out)
    keep_think: bool = False  # leave thoughts at the head of the answers
    think_tags: tuple[str, str] | None = None  # OPEN CLOSE of thoughts, besides those known
    batch_out: str | None = None  # ask no server: write the requests as a batch, and end
    batch_in: str | None = None  # results of such a batch, into the store
    max_failed: Share = 0.05  # share of prompts that may keep failing before it is an error


def key(model: str, messages: list[dict], temperature: float, max_tokens: int, **more) -> str:
    """The store's name of a request: a digest of what shapes its samples, but for their index."""
    more.pop("response_format", None)
    temperature = float(temperature)
    if temperature == 0:  # greedy: nothing is drawn, so another seed would buy the same answer
        more = {name: value for name, value in more.items() if name not in ("top_p", "seed")}
    request = [model, messages, temperature, max_tokens, more]
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Client:
    """A model behind a server and the store of its completions; use it in an `async with` block.

    `args` has the fields of `Flags`, and `seed` and `out` where the stage has them. `keep_empty`:
    an answer without text counts.
    """

    def __init__(self, args: Flags, stage: str, keep_empty: bool = False):
        self.args, self.name, self.keep_empty = args, stage, keep_empty
        self.ahead = AHEAD * args.concurrency  # prompts that a stage may have under way
        # what every request carries, but for what it says itself; not every command has a seed
        self.sampling = {name: getattr(args, name, 0) for name in SAMPLING}
        if stop := stop_strings(args.model):  # a base model's template has no end token of its own
            self.sampling["stop"] = stop
        # without a server to ask again, what has no text stays as an earlier run left it
        path = args.store or Path(args.out).parent / "completions" / f"{stage}.jsonl"
        self.store = Store(path, keep_empty or not args.base_url)
        self._refused = set()  # parameters, in a batch
        if args.batch_in:
            from autoif.llm import batch

            self._refused = batch.read(args.batch_in, self.store)
        # prompts, and of these failed (a rerun asks again) and refused (for good); samples, and of
        # these stored (before), answered, truncated, empty; prompt_tokens and completion_tokens
        # that this run was billed, and the samples whose tokens were uncounted
        self.counts = Counter()
        self._model_id = fingerprint(args.model)
        self._turns = weakref.WeakValueDictionary()  # a lock for all equal requests under way
        self._endpoint = None  # until the first completion that the store lacks
        self._waiting = set()  # tasks that wait for the endpoint
        self._error = None  # what ended the run
        self._asked, self._failed = Counter(), Counter()  # prompts of each part of a stage
        self._alike = 0  # prompts with equal samples; None: the server samples

    async def __aenter__(self) -> "Client":
        often = {"mininterval": bar_interval(), "dynamic_ncols": True}
        self._bar = tqdm(desc=self.name, unit=" prompts", file=sys.stderr, **often)
        return self

    async def __aexit__(self, kind, error, trace) -> None:
        """Cancel what is in flight, close the store, print the run's last line, judge the run."""
        tasks = list(self._waiting)
        if self._endpoint:
            tasks.append(self._ticking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._endpoint:
            await self._endpoint.close()
        self.store.close()
        self._bar.close()
        print(self._last_line(), file=sys.stderr)
        if error is None:
            self._check_failed()

    async def ask(
        self, prompt: str | list[dict], k: int = 1, first: int = 0, part: str = "answers", **more
    ) -> list[dict]:
        """Samples `first` .. `first + k - 1` of a user's text, or of a list of messages.

        {"index": 0, "text": "...", "finish_reason": "stop"}, or "length" of one that was cut off;
        what failed or has no text (unless `keep_empty`) is only in `counts`. `more` is of this
        request alone: any parameter of the server. `max_failed` is a share of each `part`.
        """
        request, name = self._request(prompt, more)
        with self._ending_together():
            self.counts["prompts"] += 1
            self._asked[part] += 1
            failure = await self._fetch(request, name, first, k)
            self._failed[part] += failure is not None and not failure.refused
            self._bar.update()
            samples = self._samples(name, first, k)
            self._check_sampling(request, name, first + k)
        return samples

    def lacks(self, prompt: str | list[dict], k: int = 1, first: int = 0, **more) -> bool:
        """Whether a sample that `ask` would give is not in the store yet."""
        return bool(self.store.missing(self._request(prompt, more)[1], first, k))

    def _request(self, prompt: str | list[dict], more: dict) -> tuple[dict, str]:
        """(the request, its name in the store)"""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request = {"messages": messages, **self.sampling, **more}
        return request, key(self._model_id, **request)

    @contextlib.contextmanager
    def _ending_together(self) -> Iterator[None]:
        """An error of one that is inside is raised in all that are: the run has ended."""
        if self._error:
            raise self._error.with_traceback(None)
        task = asyncio.current_task()
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._error is None or task.uncancel():  # cancelled by the stage
                raise
            raise self._error.with_traceback(None) from None
        except Exception as error:
            self._error = self._error or error
            for other in self._waiting - {task}:
                other.cancel()
            raise
        finally:
            self._waiting.discard(task)

    async def _fetch(self, request: dict, name: str, first: int, k: int) -> Exception | None:
        """Ask the endpoint for the samples that the store lacks; why some stay away."""
        if not self.store.missing(name, first, k):
            self.counts["stored"] += k
            return None
        if self._endpoint is None:
            # here, as the openai library takes most of the second that --help has
            from autoif.llm import batch, endpoint

            if self.args.batch_out:
                self._endpoint = batch.Batch(self.args, self.counts, self._refused)
            else:
                self._endpoint = endpoint.Endpoint(self.args, self.store, self.counts)
            self._began = time.monotonic()
            self._ticking = asyncio.create_task(self._each_second())
        # what an equal request before this one gets is not asked for again
        async with self._turns.setdefault((name, first), asyncio.Lock()):
            missing = self.store.missing(name, first, k)
            self.counts["stored"] += k - len(missing)
            failure = await self._endpoint.answer(request, name, missing)
        # in two turns of the loop the next request takes this one's place and is sent, before the
        # stage works on the answer
        for _ in range(2):
            await asyncio.sleep(0)
        return failure

    async def _each_second(self) -> None:
        """Show the speed, and sync the store: a power cut may cost the answers of a second."""
        with self._ending_together():
            while True:
                await asyncio.sleep(1)
                speed = self.counts["completion_tokens"] / (time.monotonic() - self._began)
                words = f"{self._least()}{speed:,.0f} tok/s, {self.counts['failed']:,} failed"
                self._bar.set_postfix_str(words, refresh=False)
                await asyncio.to_thread(self.store.sync)

    def _samples(self, name: str, first: int, k: int) -> list[dict]:
        """The stored samples as the stages see them."""
        samples = []
        for index, record in self.store.get(name, first, k).items():
            text, finish_reason = record["text"] or "", reply.finish_reason(record["finish_reason"])
            if not self.args.keep_think:
                text = reply.strip_think(text, self.args.think_tags)
            self.counts["samples"] += 1
            self.counts["truncated"] += finish_reason == "length"
            if text.strip() or self.keep_empty:
                samples.append({"index": index, "text": text, "finish_reason": finish_reason})
            else:  # a model that spent all its tokens on thinking, or refused
                self.counts["empty"] += 1
        return samples

    def _check_sampling(self, request: dict, name: str, k: int) -> None:
        """UserError when each of the first prompts has equal samples at a temperature above 0."""
        temperature = request["temperature"]
        if self._alike is None or not temperature or k == 1:
            return
        records = self.store.get(name, 0, k)
        if 0 not in records:  # a judge that is asked again, for words that could not be read
            return
        texts = [record["text"] or "" for record in records.values()]
        if len(set(texts)) > 1:
            self._alike = None
        elif len(texts) > 1 and len(texts[0]) >= LONG:
            self._alike += 1
        if self._alike == ALIKE:
            raise UserError(
                f"{self.args.base_url or self.store.path}: each of the first {ALIKE} prompts has "
                f"{len(texts)} equal samples at temperature {temperature}: {self.args.model} is "
                "not sampled. Its server may ignore `temperature`, or take do_sample: false from "
                "the checkpoint's generation_config.json; mend that and run with another --seed, "
                f"since the equal samples stay in {self.store.path}"
            )

    def _check_failed(self) -> None:
        """UserError when too many prompts failed, or none has an answer at all."""
        counts, last = self.counts, self._endpoint and self._endpoint.last_failure
        if self.args.batch_out and last:
            raise UserError(
                f"{counts['failed']:,} requests are in {self.args.batch_out}; send them, and run "
                "the same command with --batch-in and the results"
            )
        for part, prompts in self._asked.items():
            failed = self._failed[part]
            if failed > self.args.max_failed * prompts:
                raise UserError(
                    f"{failed:,} of {prompts:,} prompts kept failing, more than --max-failed "
                    f"{self.args.max_failed} of the {part}; the last with: {last}; run the same "
                    "command to ask for these again, all other answers are stored"
                )
        refused = counts["refused"]
        answered = counts["answered"] or counts["stored"]
        if refused and not answered and (refused > 1 or not last.of_prompt):
            raise UserError(
                f"no prompt is answered and {refused:,} are refused, so it is the settings: "
                f"{last.advised}"
            )

    def _least(self) -> str:
        """Said before a number of tokens: not every server counts those of all samples."""
        return "at least " if self.counts["uncounted"] else ""

    def _last_line(self) -> str:
        counts = self.counts
        line = (
            f"{self.name}: {counts['prompts']:,} prompts, {counts['samples']:,} samples "
            f"({counts['stored']:,} were stored; {counts['truncated']:,} truncated, "
            f"{counts['empty']:,} empty), {counts['failed']:,} prompts failed, "
            f"{counts['refused']:,} refused; {self._least()}{counts['prompt_tokens']:,} tokens in, "
            f"{counts['completion_tokens']:,} out"
        )
        if counts["uncounted"]:
            line += f" (the server did not count the tokens of {counts['uncounted']:,} samples)"
        return line
