"""Verifiers as rewards: a thousand calls of one text each beside one call of a thousand texts.

    python bench/bench_reward.py                        64 constraints of four generated functions
    python bench/bench_reward.py --verifiers out/demo/03_instructions.jsonl

The ways to call take turns, all with the same processes, and the best of --repeats counts. --json
writes the numbers for bench/compare.py.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_sandbox import functions  # noqa: E402
from compare import save  # noqa: E402

from autoif.reward import Score, Verifiers  # noqa: E402

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verifiers", help="03_instructions.jsonl of any run")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--keep-mb", type=int, help="of processes that stay (default: the reward's)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    options = {} if args.keep_mb is None else {"keep_mb": args.keep_mb}
    if args.verifiers:
        verifiers = Verifiers.load(args.verifiers, **options)
    else:
        verifiers = generated(**options)
    rng = random.Random(0)
    ids = rng.choices(list(verifiers.rows), k=args.texts)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 80))) for _ in ids]
    wanted, best = verifiers.score(ids, texts), {}  # the processes start outside of the clock
    for _ in range(args.repeats):
        for name, call in ways(verifiers, ids, texts).items():
            began = time.perf_counter()
            scores = call()
            seconds = time.perf_counter() - began
            assert scores == wanted
            best[name] = min(seconds, best.get(name, seconds))
    verifiers.close()
    numbers = {}
    for name, seconds in best.items():
        rate, ratio = args.texts / seconds, best[BATCHED] / seconds
        print(f"{name}: {rate:,.0f} texts/s, {1e6 / rate:,.0f} us each, {ratio:.0%} of one call")
        numbers[f"{name} texts_per_second"] = rate
        if name != BATCHED:
            numbers[f"{name} ratio"] = ratio
    if args.json:
        save(args.json, numbers)


if __name__ == "__main__":
    main()
