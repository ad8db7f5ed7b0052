"""The benchmarks of 07_eval.py. A new one is a module in this folder and its name in NAMES.

A benchmark's module has
    SETTINGS                  a `Settings`: how its owners run it, and its columns in the table
    load(source, args)        its items, each with `id`, `prompt` and `cluster` (what is resampled
                              together); `text`, where the prompt has a frame around the test
    score(works, args)        one row for each work {item, sample, answers, judged}:
                              {verdict, reason, points}; with "unparsable": True where the answer or
                              the judgement had no readable form. Points are those of
                              autoif.evaluation.intervals:
                              {metric: [(stratum, cluster, above, below)]}
and where it needs them
    answer(item)              a conversation that returns the item's answers, other than one turn
    judge(item, answers)      a conversation with the judge, or None where a rule decides; what it
                              returns is the work's `judged`
    conditions(args)          further settings to be recorded with the results
"""

import argparse
import hashlib
import importlib
from dataclasses import dataclass
from types import ModuleType

from autoif.evaluation.benchmarks.source import NotSetUp, Source
from autoif.evaluation.conversation import Conversation, single_turn
from autoif.files import UserError, dump
from autoif.stage import positive_int

# In the order of the table's columns.
NAMES = [
    "heldout",
    "ifeval",
    "followbench",
    "infobench",
    "mtbench",
    "arenahard",
    "ceval",
    "mmlu",
    "gsm8k",
    "humaneval",
    "ifbench",
]


@dataclass(frozen=True)
class Settings:
    """How a benchmark's owners run it; 07_eval.py's flags override temperature and max_tokens."""

    temperature: float | str  # a word where each item has its own
    max_tokens: int  # of the longest answer
    usual_tokens: int  # of an ordinary answer, for the estimate
    columns: tuple[str, ...]  # its metrics in the table; the others are in the results file
    ratings: tuple[str, ...] = ()  # metrics that are no share, and so not in per cent
    judge: str | None = None  # the owners' own
    judge_max_tokens: int = 0  # of the longest judgement
    judge_calls: float = 0  # judgements of an item, on average
    samples_flag: str = "seeds"  # which flag says how many answers an item gets
    multiple_choice: bool = False  # also by log-likelihood (--mc-mode)


@dataclass(frozen=True)
class Data:
    """A benchmark's items, the files that they are from, and whether they are a part of it."""

    items: list[dict]
    used: list[str]
    partial: bool

    def sha256(self) -> str:
        """Equal for two models that met the same items."""
        lines = "\n".join(map(dump, self.items))
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def module(name: str) -> ModuleType:
    return importlib.import_module(f"autoif.evaluation.benchmarks.{name}")


def settings(name: str) -> Settings:
    return module(name).SETTINGS


def conversation(name: str, item: dict) -> Conversation:
    """The conversation that gets an item's answers: one turn for most benchmarks."""
    return getattr(module(name), "answer", single_turn)(item)


def undecided(reason: str = "the judge did not answer") -> dict:
    """The row of a work without a verdict: counted as unparsable, and in no metric."""
    return {"verdict": None, "reason": reason, "unparsable": True, "points": {}}


def chosen(text: str) -> list[str]:
    """The benchmarks that a --benchmarks flag names: `all`, or some with commas between them."""
    names = NAMES if text == "all" else text.split(",")
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none; choose from {','.join(NAMES)}")
    return list(names)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which tests are read, and from where."""
    parser.add_argument(
        "--benchmarks", type=chosen, default="all", help=f"all, or some of {','.join(NAMES)}"
    )
    parser.add_argument(
        "--data-dir", help="folder with the benchmarks' data; what it lacks is asked from the hub"
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="only N items of each benchmark, spread evenly over it; marked as partial",
    )


def load(names: list[str], args) -> tuple[dict[str, Data], dict[str, NotSetUp]]:
    """The data of the benchmarks that have some, and why the others have none.

    What is absent is a gap; what is there and broken is an error.
    """
    loaded: dict[str, Data] = {}
    gaps: dict[str, NotSetUp] = {}
    for name in names:
        source = Source(args.data_dir)
        try:
            every = module(name).load(source, args)
        except NotSetUp as gap:
            gaps[name] = gap
            continue
        except KeyError as field:
            raise UserError(
                f"{source.used[-1]} has a row without {field}; fetch it again"
            ) from None
        items = spread(every, args.limit)
        loaded[name] = Data(items, source.used, partial=len(items) < len(every))
    return loaded, gaps


def spread(items: list[dict], limit: int | None) -> list[dict]:
    """About `limit` items in whole clusters, evenly over the benchmark.

    Its first ones may all be of one subject.
    """
    clusters = list(dict.fromkeys(item["cluster"] for item in items))
    if limit is None or limit >= len(items):
        return items
    take = max(1, round(limit * len(clusters) / len(items)))
    kept = {clusters[i * len(clusters) // take] for i in range(take)}
    return [item for item in items if item["cluster"] in kept]
