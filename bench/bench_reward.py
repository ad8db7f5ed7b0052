"""Verifiers as rewards: a thousand calls of one text each beside one call of a thousand texts.

    python bench/bench_reward.py                        64 constraints of four generated functions
    python bench/bench_reward.py --verifiers out/demo/03_instructions.jsonl

The ways to call take turns, all with the same processes, and the best of --repeats counts.
"""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import compare  # this folder's, and the checkout on the path
from bench_sandbox import functions

from autoif.flags import Count, Natural, cli
from autoif.reward import KEEP_MB, Score, Verifiers

WORDS = "one two three. Four, important! 7 however: lists - and\n\nmore".split(" ")
BATCHED = "one call of all texts"


def generated(**options) -> Verifiers:
    """64 constraints of four functions each, as bench_sandbox.py has them."""
    rows = {}
    codes = [f"{code}# {copy}\n" for copy in range(2) for code in functions(None)]
    for number in range(64):
        few = codes[4 * number : 4 * number + 4]
        rows[f"c{number}"] = {"id": f"c{number}", "verifiers": [{"code": code} for code in few]}
    return Verifiers(rows, "generated", **options)


def ways(verifiers: Verifiers, ids: list[str], texts: list[str]) -> dict[str, Callable]:
    """{name: a function that scores all texts in that way}."""

    def one(pair: tuple[str, str]) -> Score:
        return verifiers.score([pair[0]], [pair[1]])[0]

    def one_by_one() -> list[Score]:
        return [one(pair) for pair in zip(ids, texts)]

    async def gathered() -> list[Score]:
        calls = [verifiers.score_async([each], [text]) for each, text in zip(ids, texts)]
        return [score for [score] in await asyncio.gather(*calls)]

    def threads() -> list[Score]:
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(one, zip(ids, texts)))

    return {
        BATCHED: lambda: verifiers.score(ids, texts),
        "a call a text, in one event loop": lambda: asyncio.run(gathered()),
        "a call a text, from 32 threads": threads,
        "a call a text, one after the other": one_by_one,
    }


@dataclass(kw_only=True)
class Flags(compare.Flags):
    verifiers: str | None = None  # 03_instructions.jsonl of any run (default: generated ones)
    texts: Count = 1000  # to score
    repeats: Count = 3  # turns, of which the best counts
    keep_mb: Natural = KEEP_MB  # of processes that stay


def main(args: Flags) -> None:
    load = partial(Verifiers.load, args.verifiers) if args.verifiers else generated
    verifiers = load(keep_mb=args.keep_mb)
    rng = random.Random(0)
    ids = rng.choices(list(verifiers.rows), k=args.texts)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 80))) for _ in ids]
    wanted = verifiers.score(ids, texts)  # the processes start outside of the clock

    def checked(call: Callable[[], list[Score]]) -> None:
        assert call() == wanted

    works = {name: partial(checked, call) for name, call in ways(verifiers, ids, texts).items()}
    least, numbers = compare.best(works, args.repeats), {}
    verifiers.close()
    for name, seconds in least.items():
        rate, ratio = args.texts / seconds.clock, least[BATCHED].clock / seconds.clock
        print(f"{name}: {rate:,.0f} texts/s, {1e6 / rate:,.0f} us each, {ratio:.0%} of one call")
        numbers[f"{name} texts_per_second"] = rate
        if name != BATCHED:
            numbers[f"{name} ratio"] = ratio
    compare.save(args.json, numbers)


if __name__ == "__main__":
    cli(main, __doc__)
