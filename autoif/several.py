"""Rows of several constraints in one: a response then has to pass each (the paper asks for one).

    python -m autoif.several out/03_instructions.jsonl --constraints 1-3 --out out/03_several.jsonl
    python 04_responses.py --in out/03_several.jsonl ...

Each constraint draws how many it is joined with, and which: of its split, all of different families
(siblings would ask for one thing twice). What else contradicts each other falls out in stage 04.
One that draws none stays as it is; of others comes, with their instructions line by line,

    {"id": "i00002+i00007", "instruction": "Use no commas\\nUse 3 words", "split": "train",
     "family": "use no commas + use n words",
     "verifiers": [{"code": ..., "of": "i00002"}, {"code": ..., "of": "i00007"}]}

Its accuracy is the lowest of the constraints that its functions are of. `--draws 16`, with
`--queries-per-instruction 1` of stage 04, gives each query constraints of its own.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import tyro

from autoif import families, files, verifiers
from autoif.files import UserError
from autoif.flags import Count, cli
from autoif.settings import write_settings
from autoif.stage import wrote


@dataclass(kw_only=True)
class Flags:
    file: tyro.conf.Positional[str]  # 03_instructions.jsonl
    out: str  # the rows of several constraints
    constraints: str  # of a row, as 2 or 1-3 (each draw says how many)
    draws: Count = 1  # rows a constraint, each with others
    seed: int = 0  # of the draws

    def __post_init__(self):
        span(self.constraints)


def span(text: str) -> tuple[int, int]:
    """ "3" -> (3, 3), "1-3" -> (1, 3)"""
    low, dash, high = text.partition("-")
    try:
        numbers = int(low), int(high if dash else low)
    except ValueError:
        numbers = 0, 0
    if not 1 <= numbers[0] <= numbers[1]:
        raise UserError(f"--constraints must be a number or LOW-HIGH, such as 1-3, not {text}")
    return numbers


def family(row: dict) -> str:
    """The family of a constraint; one that was written by hand may have none but its wording."""
    return row.get("family") or families.form(row["instruction"])


def companions(
    row: dict, rng: random.Random, of_family: dict[str, list[dict]], numbers: tuple[int, int]
) -> list[dict]:
    """The constraints that join `row`, each of a family of its own.

    With `numbers` (1, 3) none, one or two, with equal chances.
    """
    wanted = rng.randint(*numbers) - 1
    # one more than wanted, since the family of the row itself may be drawn
    others = [name for name in rng.sample(list(of_family), wanted + 1) if name != family(row)]
    return [rng.choice(of_family[name]) for name in others[:wanted]]


def joined(constraints: list[dict]) -> dict:
    """Several constraints as one row; a single one stays as it is."""
    if len(constraints) == 1:
        return constraints[0]
    functions = []
    for constraint in constraints:
        functions += [{**each, "of": constraint["id"]} for each in constraint["verifiers"]]
    return {
        "id": "+".join(constraint["id"] for constraint in constraints),
        "instruction": "\n".join(constraint["instruction"].strip() for constraint in constraints),
        "verifiers": functions,
        "family": " + ".join(map(family, constraints)),
        "split": constraints[0]["split"],
    }


def draw(rows: list[dict], args: Flags) -> list[dict]:
    """The rows of one split, each joined with others `--draws` times; equal ones come once."""
    (low, high), of_family, drawn = span(args.constraints), defaultdict(list), {}
    for row in rows:
        of_family[family(row)].append(row)
    if high > len(of_family) and rows[0]["split"] == "train":
        raise UserError(
            f"--constraints: a prompt of {high} needs so many families, and the train constraints "
            f"of {args.file} are of {len(of_family)} only; ask for fewer"
        )
    # few families may be held out: their rows are of as many constraints as they have
    numbers = min(low, len(of_family)), min(high, len(of_family))
    for row in rows:
        for number in range(args.draws):
            # a generator of its own: a draw stays when others come or go
            rng = random.Random(f"{args.seed} {row['id']}.{number}")
            several = joined([row, *companions(row, rng, of_family, numbers)])
            drawn.setdefault(several["id"], several)
    return list(drawn.values())


def main(args: Flags) -> None:
    form = {**verifiers.ROW, "split": {"train", "heldout"}}
    rows = files.read_all(args.file, form, "03_backtranslate.py")
    with files.writer(args.out) as write:
        # what is held out stays apart: no row has constraints of both splits
        for split in dict.fromkeys(row["split"] for row in rows):
            for row in draw([row for row in rows if row["split"] == split], args):
                write(row)
        write_settings(args, args.out)
    wrote(args.out, then=f"python 04_responses.py --model NAME --queries FILE --in {args.out}")


if __name__ == "__main__":
    cli(main, __doc__)
