"""Verifiers as rewards: a thousand calls of one text each beside one call of a thousand texts.

python bench/bench_reward.py --verifiers out/demo/03_instructions.jsonl
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
from autoif.reward import Score, Verifiers  # noqa: E402

WORDS = "one two three. Four, important! 7 however: lists - and\n\nmore".split(" ")


def timed(name: str, batched: float | None, call: Callable[[], list[Score]]) -> tuple[float, list]:
    began = time.perf_counter()
    scores = call()
    seconds = time.perf_counter() - began
    beside = "" if batched is None else f", {batched / seconds:.0%} of the batched speed"
    print(f"{name}: {seconds:.2f} s{beside}", flush=True)
    return seconds, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verifiers", required=True, help="03_instructions.jsonl of any run")
    parser.add_argument("--texts", type=int, default=1000)
    args = parser.parse_args()
    verifiers, rng = Verifiers.load(args.verifiers), random.Random(0)
    ids = rng.choices(list(verifiers.rows), k=args.texts)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 80))) for _ in ids]
    verifiers.score(ids[:50], texts[:50])  # the workers start outside of the clock

    def one(pair: tuple[str, str]) -> Score:
        return verifiers.score([pair[0]], [pair[1]])[0]

    async def gathered() -> list[Score]:
        calls = [verifiers.score_async([each], [text]) for each, text in zip(ids, texts)]
        return [score for [score] in await asyncio.gather(*calls)]

    def threads() -> list[Score]:
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(one, zip(ids, texts)))

    batched, wanted = timed("one call of all texts", None, lambda: verifiers.score(ids, texts))
    for name, call in [
        ("a call a text, in one event loop", lambda: asyncio.run(gathered())),
        ("a call a text, from 32 threads", threads),
        ("a call a text, one after the other", lambda: [one(each) for each in zip(ids, texts)]),
    ]:
        _, scores = timed(name, batched, call)
        assert scores == wanted
    verifiers.close()


if __name__ == "__main__":
    main()
