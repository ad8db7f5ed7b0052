"""Completions from any OpenAI-compatible server, each stored on disk and never asked for twice.

    llm.add_flags(parser, temperature=0.7, max_tokens=1024, k=8)
    with llm.LLM.from_args(args, stage="02_verifiers") as client:
        for row, samples in zip(rows, client.complete(prompt(row) for row in rows)):
            ...

The store is asked before the network: when it holds every sample, neither endpoint, key nor network
is needed. A sample is stored before it counts.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from autoif.files import UserError
from autoif.llm import reply
from autoif.llm.client import SAMPLING, key
from autoif.llm.store import Store
from autoif.models import fingerprint, stop_strings
from autoif.stage import non_negative, positive, positive_int, positive_share, share

CONCURRENCY = 64
TIMEOUT = 600.0
MAX_FAILED = 0.05
WINDOW = (
    16  # prompts read ahead, times the concurrency: a straggler holds up nobody until it is full
)
ALIKE = 8  # prompts, each with k equal samples: the server does not sample
LONG = 40  # characters: shorter answers ("Yes") may well be drawn k times
SETTINGS = {*SAMPLING, "k", "concurrency", "timeout", "keep_think"}
SETTINGS |= {"think_tags", "max_failed", "price_in", "price_out"}


def add_flags(
    parser: argparse.ArgumentParser,
    *,
    temperature: float,
    max_tokens: int,
    k: int,
    model_required: bool = True,
) -> None:
    """The flags of a stage that asks a model; the stage gives the defaults of the sampling."""
    add = parser.add_argument_group("completions").add_argument
    add(
        "--model",
        required=model_required,
        help="name the server knows, or the checkpoint directory it serves",
    )
    add(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="server, for example http://localhost:8000/v1 (default: $OPENAI_BASE_URL)",
    )
    add("--k", type=positive_int, default=k, help="samples a prompt (default: %(default)s)")
    add("--temperature", type=non_negative, default=temperature, help="default: %(default)s")
    add(
        "--top-p",
        type=positive_share,
        default=1.0,
        help="sample from the likeliest tokens that make up this share (default: %(default)s, all)",
    )
    add(
        "--max-tokens",
        type=positive_int,
        default=max_tokens,
        help="of one sample (default: %(default)s)",
    )
    add(
        "--concurrency",
        type=positive_int,
        default=CONCURRENCY,
        help="requests in flight (default: %(default)s)",
    )
    add(
        "--timeout",
        type=positive,
        default=TIMEOUT,
        help="seconds until a request is given up and retried (default: %(default)s)",
    )
    add("--store", help="completions file (default: completions/STAGE.jsonl beside --out)")
    add("--keep-think", action="store_true", help="leave thoughts at the head of the answers")
    add(
        "--think-tags",
        nargs=2,
        metavar=("OPEN", "CLOSE"),
        help="of thoughts, besides <think>, [THINK] and others that are known",
    )
    add(
        "--max-failed",
        type=share,
        default=MAX_FAILED,
        help="share of prompts that may keep failing before it is an error (default: %(default)s)",
    )
    add(
        "--price-in",
        type=non_negative,
        help="US$ a million prompt tokens, for the cost in the last line",
    )
    add("--price-out", type=non_negative, help="US$ a million completion tokens")


def moved(bar: tqdm, answer: concurrent.futures.Future) -> None:
    """Count an ended prompt, from the event loop's thread: the stage may wait for another one."""
    if not answer.cancelled():
        bar.update()


@dataclasses.dataclass(eq=False, slots=True)
class Prompt:
    """One request on its way from `complete`'s window to its samples."""

    request: dict
    key: str
    first: int
    k: int
    sent: bool = False  # or stored already; a prompt that is not waits for an equal one before it
    answer: concurrent.futures.Future | None = None  # of the endpoint, for what was not stored


class LLM:
    """A model behind a server and the store of its completions; use it in a `with` block."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        store: str | Path,
        *,
        k: int = 1,
        temperature: float,
        max_tokens: int,
        top_p: float = 1.0,
        seed: int = 0,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        keep_think: bool = False,
        think_tags: Sequence[str] | None = None,
        max_failed: float = MAX_FAILED,
        price_in: float | None = None,
        price_out: float | None = None,
        name: str = "completions",
        keep_empty: bool = False,
    ):
        self.model, self.base_url, self.name, self.k = model, base_url, name, k
        # what every request carries, but for what it says itself
        self.sampling = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "seed": seed,
        }
        if stop := stop_strings(model):  # a base model's template has no end token of its own
            self.sampling["stop"] = stop
        self.concurrency, self.timeout = concurrency, timeout
        self.keep_think, self.think_tags = keep_think, think_tags
        self.max_failed, self.price_in, self.price_out = max_failed, price_in, price_out
        # 07_eval scores an answer without text, the other stages have no use for it
        self.keep_empty = keep_empty
        # without a server to ask again, what has no text stays as an earlier run left it
        self.store = Store(store, keep_empty or not base_url)
        # prompts, and of these failed (a rerun asks again) and refused (for good); samples, and of
        # these stored (before), answered, truncated, empty; prompt_tokens and completion_tokens
        # that this run was billed, and the samples whose tokens were uncounted
        self.counts = Counter()
        self._model_id = fingerprint(model)
        self._asked = set()  # (key, first) in the window: a twin waits for the first of them
        self._endpoint = None  # until the first completion that the store lacks
        self._began = None
        self._bar = None
        self._alike = 0  # prompts with equal samples; None: the server samples
        self._last_failure = None

    @classmethod
    def from_args(cls, args: argparse.Namespace, stage: str, **more) -> "LLM":
        """The client that the flags of `add_flags`, and --seed where there is one, describe."""
        store = args.store or Path(args.out).parent / "completions" / f"{stage}.jsonl"
        settings = {name: value for name, value in vars(args).items() if name in SETTINGS}
        return cls(args.model, args.base_url, store, name=stage, **settings, **more)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def complete(self, requests: Iterable[list[dict] | dict]) -> Iterator[list[dict]]:
        """Yield the samples of each request, in order, reading `WINDOW * concurrency` ahead.

        A request is a message list, or `{"messages": [...]}` with its own `k`, `temperature`,
        `max_tokens`, `first` (index of the first sample) or any other parameter of the server. A
        sample is `{"index", "text", "finish_reason"}`, where the reason is "stop" or, of an answer
        that was cut off, "length"; one that failed, or has no text (unless `keep_empty`), is not in
        the list, only in `counts`.
        """
        total = len(requests) if hasattr(requests, "__len__") else None
        requests, window, more = iter(requests), deque(), True
        limit, before = WINDOW * self.concurrency, self.counts.copy()
        self._alike = 0
        if self._endpoint:
            self._endpoint.resume()
        with self._progress(total) as self._bar:
            try:
                while more or window:
                    # read ahead, seldom and many at once: waking a thread is not free
                    if more and len(window) <= limit * 3 // 4:
                        for request in itertools.islice(requests, limit - len(window)):
                            window.append(self._start(request))
                        more = len(window) == limit
                        continue
                    # hand out the first prompt's samples once all of them are stored or given up
                    prompt = window[0]
                    self._finish(prompt)
                    window.popleft()
                    self._asked.discard((prompt.key, prompt.first))
                    samples = self._samples(prompt)
                    self._check_sampling(prompt)
                    if not (more or window):
                        self._check_failed(before)
                    yield samples
            finally:
                for prompt in window:
                    self._asked.discard((prompt.key, prompt.first))
                    if prompt.answer:
                        prompt.answer.cancel()

    def lacks(self, request: list[dict] | dict) -> bool:
        """Whether a sample of the request is not in the store yet."""
        prompt = self._prompt(request)
        return bool(self.store.missing(prompt.key, prompt.first, prompt.k))

    def close(self) -> None:
        """Cancel what is in flight, close the store and print the run's last line."""
        if self._endpoint:
            self._endpoint.close()
            self._endpoint = None
        self.store.close()
        print(self._last_line(), file=sys.stderr)

    def _progress(self, total: int | None) -> tqdm:
        return tqdm(
            total=total,
            desc=self.name,
            unit=" prompts",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def _start(self, request: list[dict] | dict) -> Prompt:
        """Look the request up in the store and send what is missing."""
        prompt = self._prompt(request)
        self.counts["prompts"] += 1
        if (prompt.key, prompt.first) not in self._asked:
            self._send(prompt)
        return prompt

    def _prompt(self, request: list[dict] | dict) -> Prompt:
        request = dict(request) if isinstance(request, dict) else {"messages": request}
        k, first = request.pop("k", self.k), request.pop("first", 0)
        request = {**self.sampling, **request}
        return Prompt(request, key(self._model_id, **request), first, k)

    def _send(self, prompt: Prompt) -> None:
        """Ask the endpoint for the samples that the store lacks."""
        prompt.sent = True
        missing = self.store.missing(prompt.key, prompt.first, prompt.k)
        self.counts["stored"] += prompt.k - len(missing)
        if not missing:
            self._bar.update()
            return
        if self._endpoint is None:
            self._connect()
        self._asked.add((prompt.key, prompt.first))
        prompt.answer = self._endpoint.send(prompt.request, prompt.key, missing)
        prompt.answer.add_done_callback(functools.partial(moved, self._bar))

    def _connect(self) -> None:
        # here, as the openai library takes most of the second that --help has
        from autoif.llm.sync_endpoint import Endpoint

        self._endpoint = Endpoint(
            self.model, self.base_url, self.store, self.counts, self.concurrency, self.timeout
        )
        self._began = time.monotonic()

    def _finish(self, prompt: Prompt) -> None:
        """Wait until the prompt has its samples or is given up; UserError where the run ends."""
        if not prompt.sent:  # its twin was before it in line and so has ended by now
            self._send(prompt)
        if prompt.answer is None:
            return
        stopped = self._endpoint.stopped
        while not (prompt.answer.done() or stopped.done()):
            self._show_speed()
            # a second at most: the bar is to move while a long answer is waited for
            concurrent.futures.wait([prompt.answer, stopped], 1, concurrent.futures.FIRST_COMPLETED)
        if stopped.done():
            raise stopped.exception()
        if failure := prompt.answer.result():
            self.counts["refused" if failure.refused else "failed"] += 1
            self._last_failure = failure

    def _show_speed(self) -> None:
        speed = self.counts["completion_tokens"] / (time.monotonic() - self._began)
        least = "at least " if self.counts["uncounted"] else ""
        said = f"{least}{speed:,.0f} tok/s, {self.counts['failed']:,} failed"
        self._bar.set_postfix_str(said, refresh=False)

    def _samples(self, prompt: Prompt) -> list[dict]:
        """The stored samples as the stages see them."""
        samples = []
        for index, record in self.store.get(prompt.key, prompt.first, prompt.k).items():
            text, finish_reason = record["text"] or "", reply.finish_reason(record["finish_reason"])
            text = text if self.keep_think else reply.strip_think(text, self.think_tags)
            self.counts["samples"] += 1
            self.counts["truncated"] += finish_reason == "length"
            if text.strip() or self.keep_empty:
                samples.append({"index": index, "text": text, "finish_reason": finish_reason})
            else:  # a model that spent all its tokens on thinking, or refused
                self.counts["empty"] += 1
        return samples

    def _check_sampling(self, prompt: Prompt) -> None:
        """UserError when all samples of each of the first prompts are equal at a temperature > 0.

        Looks at the samples before `first` too: 07_eval asks for a prompt's samples one by one.
        """
        if self._alike is None or not prompt.request["temperature"]:
            return
        records = self.store.get(prompt.key, 0, prompt.first + prompt.k)
        texts = [record["text"] or "" for record in records.values()]
        if len(set(texts)) > 1:
            self._alike = None
        elif len(texts) > 1 and len(texts[0]) >= LONG:
            self._alike += 1
        if self._alike == ALIKE:
            raise UserError(
                f"{self.base_url or self.store.path}: each of the first {ALIKE} prompts has "
                f"{len(texts)} equal samples at temperature {prompt.request['temperature']}: "
                f"{self.model} is not sampled. Its server may ignore `temperature`, or take "
                "do_sample: false from the checkpoint's generation_config.json; mend that and run "
                f"with another --seed, since the equal samples stay in {self.store.path}"
            )

    def _check_failed(self, before: Counter) -> None:
        """UserError when too many prompts failed since `before`, or none has an answer at all."""
        here = self.counts - before
        prompts, failed, refused = here["prompts"], here["failed"], here["refused"]
        if failed > self.max_failed * prompts:
            raise UserError(
                f"{failed:,} of {prompts:,} prompts kept failing, more than "
                f"--max-failed {self.max_failed}; the last with: {self._last_failure}; run the "
                "same command to ask for these again, all other answers are stored"
            )
        answered = self.counts["answered"] or self.counts["stored"]
        if refused and not answered and (refused > 1 or not self._last_failure.of_prompt):
            raise UserError(
                f"no prompt is answered and {refused:,} are refused, so it is the settings: "
                f"{self._last_failure.advised}"
            )

    def _last_line(self) -> str:
        counts = self.counts
        line = (
            f"{self.name}: {counts['prompts']:,} prompts, {counts['samples']:,} samples "
            f"({counts['stored']:,} were stored; {counts['truncated']:,} truncated, "
            f"{counts['empty']:,} empty), {counts['failed']:,} prompts failed, "
            f"{counts['refused']:,} refused; "
        )
        if counts["uncounted"]:
            line += "at least "
        line += f"{counts['prompt_tokens']:,} tokens in, {counts['completion_tokens']:,} out"
        if self.price_in is not None or self.price_out is not None:
            dollars_in = counts["prompt_tokens"] * (self.price_in or 0)
            dollars_out = counts["completion_tokens"] * (self.price_out or 0)
            line += f", ${(dollars_in + dollars_out) / 1e6:,.2f}"
        if counts["uncounted"]:
            line += f" (the server did not count the tokens of {counts['uncounted']:,} samples)"
        return line
