"""The benchmarks of 07_eval.py. A new one is a module in this folder and its name in NAMES.

A benchmark's module has
    SETTINGS            a `Settings`: how its owners run it, its columns in the table
    load(source)        its items, each with `id`, `prompt` and `cluster` (what is resampled
                        together); `text`, where the prompt has a frame around the test
    score(attempt)      the row of an attempt {item, sample, answers, judgement}: {verdict, reason,
                        points}, and "unparsable": True where the answer or the judgement had no
                        readable form; points as in autoif.evaluation.intervals:
                        {metric: [(stratum, cluster, above, below)]}
and where it needs them
    temperature(item)   where SETTINGS have a word for it
    async answer(item, say), async judge(item, answers, client)
                        the answers, other than one turn; the judgement
Those that run code score all attempts at once: `async score(attempts, box, ...)`.
"""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from autoif.evaluation.benchmarks.source import Source
from autoif.files import NotSetUp, UserError, dump
from autoif.flags import Count

# In the order of the table's columns.
NAMES = (
    "heldout ifeval followbench infobench mtbench arenahard ceval mmlu gsm8k humaneval ifbench"
).split()


@dataclass(frozen=True)
class Settings:
    """How a benchmark's owners run it; 07_eval.py's flags override temperature and max_tokens."""

    temperature: float | str  # a word where each item has its own
    max_tokens: int  # of the longest answer
    columns: tuple[str, ...]  # its metrics in the table; the others are in the results file
    ratings: tuple[str, ...] = ()  # metrics that are no share, and so not in per cent
    judge: str | None = None  # the owners' own
    judge_max_tokens: int = 0  # of the longest judgement
    samples_flag: str = "seeds"  # which flag says how many answers an item gets
    multiple_choice: bool = False  # by generation; published figures may be log-likelihoods


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


@dataclass(kw_only=True)
class Flags:
    benchmarks: str = "all"  # all, or some with commas between them; read as a list
    data_dir: str | None = None  # folder with the benchmarks' data; what it lacks is on the hub
    limit: Count | None = None  # only so many items of each, spread evenly over it; marked partial

    def __post_init__(self):
        if self.benchmarks == "all":
            self.benchmarks = list(NAMES)
        elif isinstance(self.benchmarks, str):
            self.benchmarks = self.benchmarks.split(",")
        for name in self.benchmarks:
            if name not in NAMES:
                names = ",".join(NAMES)
                raise UserError(f"--benchmarks: {name!r} is none; choose from {names}; see --help")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"autoif.evaluation.benchmarks.{name}")


def settings(name: str) -> Settings:
    return module(name).SETTINGS


def conditions(name: str, args) -> dict:
    """How a benchmark is run, as the results record it: as its owners do, or as a flag says."""
    owners = settings(name)
    # answers made elsewhere: how they were sampled is not known here
    if args.responses:
        return {"responses": Path(args.responses).name, "samples": args.seeds}
    recorded = {
        "temperature": owners.temperature,
        "top_p": args.top_p,
        "max_tokens": args.max_tokens or owners.max_tokens,
        "n": 1,
        "seed": args.seed,  # plus the sample's index
        "samples": getattr(args, owners.samples_flag),
    }
    # a word stands for temperatures of single items (MT-Bench): a flag does not flatten these
    if args.temperature is not None and not isinstance(owners.temperature, str):
        recorded["temperature"] = args.temperature
    if owners.multiple_choice:
        recorded["mode"] = "gen"
    return recorded


def attempts(name: str, items: list[dict], conditions: dict) -> list[dict]:
    """An attempt for each sample of each item; `sampling` is what all its requests say."""
    every = []
    for sample in range(conditions["samples"]):
        for item in items:
            # the sample's index, `first`, makes equal questions different ones in the store
            sampling = {"first": sample}
            for setting in conditions.keys() & {"temperature", "max_tokens"}:
                sampling[setting] = conditions[setting]
            if isinstance(sampling.get("temperature"), str):
                sampling["temperature"] = module(name).temperature(item)
            attempt = {"item": item, "sample": sample, "sampling": sampling}
            every.append({**attempt, "judgement": None, "open": False})
    return every


def right_or_wrong(
    attempt: dict, metric: str, right: bool, reason: str, stratum: str = "", **more
) -> dict:
    """The row of an answer that either is right or is not."""
    points = {metric: [(stratum, attempt["item"]["cluster"], right, 1)]}
    return {"verdict": right, "reason": reason, **more, "points": points}


def undecided(reason: str = "the judge did not answer") -> dict:
    """The row of an attempt without a verdict: counted as unparsable, and in no metric."""
    return {"verdict": None, "reason": reason, "unparsable": True, "points": {}}


def load(names: list[str], args: Flags) -> tuple[dict[str, Data], dict[str, NotSetUp]]:
    """The benchmarks that have data, and why others have none; what is broken is an error."""
    loaded: dict[str, Data] = {}
    gaps: dict[str, NotSetUp] = {}
    for name in names:
        values = [source := Source(args.data_dir)]
        if name == "heldout":  # it has no owners' files, but rows of this run
            values = [args.heldout, args.queries, args.queries_per_instruction, args.seed]
        try:
            every = list(module(name).load(*values))
        except NotSetUp as gap:
            gaps[name] = gap
            continue
        except KeyError as field:
            text = f"{source.used[-1]} has a row without {field}; fetch it again"
            raise UserError(text) from None
        if not every:
            raise UserError(f"{(source.used or [name])[-1]} holds no row; fetch it again")
        items = spread(every, args.limit)
        loaded[name] = Data(items, source.used, partial=len(items) < len(every))
    return loaded, gaps


def spread(items: list[dict], limit: int | None) -> list[dict]:
    """About `limit` items in whole clusters, evenly: the first ones may all be of one subject."""
    clusters = list(dict.fromkeys(item["cluster"] for item in items))
    if limit is None or limit >= len(items):
        return items
    take = max(1, round(limit * len(clusters) / len(items)))
    chosen = {clusters[i * len(clusters) // take] for i in range(take)}
    return [item for item in items if item["cluster"] in chosen]
