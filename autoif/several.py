"""Prompts of several constraints: how many a prompt has, and which (the paper joins one).

They are of different families (`autoif.families`): siblings, such as "at most 20 words" and "at
most 18 words", would ask for one thing twice. What else contradicts each other is found by asking.
"""

import argparse
import random
from collections import defaultdict

from autoif import families
from autoif.files import UserError
from autoif.stage import positive_int


def span(text: str) -> tuple[int, int]:
    """A `type` for argparse: "3" -> (3, 3), "1-3" -> (1, 3)."""
    low, dash, high = text.partition("-")
    numbers = positive_int(low), positive_int(high if dash else low)
    if numbers[0] > numbers[1]:
        raise argparse.ArgumentTypeError(f"must be a number or LOW-HIGH, such as 1-3, not {text}")
    return numbers


def family(row: dict) -> str:
    """The family of a constraint; one that was written by hand may have none but its wording."""
    return row.get("family") or families.form(row["instruction"])


def by_family(rows: list[dict], most: int, path: str) -> dict[str, list[dict]]:
    """{family: its constraints}; UserError where a prompt of `most` constraints cannot be had."""
    found = defaultdict(list)
    for row in rows:
        found[family(row)].append(row)
    if most > len(found):
        raise UserError(
            f"--constraints: a prompt of {most} needs so many families, and the train constraints "
            f"of {path} are of {len(found)} only; ask for fewer"
        )
    return found


def companions(
    row: dict, rng: random.Random, of_family: dict[str, list[dict]], numbers: tuple[int, int]
) -> list[dict]:
    """The constraints that join `row` in a prompt, each of a family of its own.

    With `numbers` (1, 3) none, one or two, with equal chances.
    """
    wanted = rng.randint(*numbers) - 1
    # one more than wanted, since the family of the row itself may be drawn
    others = [name for name in rng.sample(list(of_family), wanted + 1) if name != family(row)]
    return [rng.choice(of_family[name]) for name in others[:wanted]]
