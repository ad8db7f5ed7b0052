"""Is a benchmark's test in the training data? The paper's table 4 for any training file.

    python -m autoif.evaluation.contamination out/04_sft.jsonl --benchmarks ifeval,followbench \\
        --data-dir DIR --judge-model NAME

Prints, for each benchmark, how many of its tests overlap with the training texts and how many are
rephrased there, and writes the pairs to look at into --out; without a judge these are only listed.

Overlap: any 13 words in a row of a test (all of a shorter one) stand in one training text; words
are runs of letters and digits in lower case, and single characters of Chinese and Japanese.
Rephrased, as LM-Sys's decontaminator finds it (arXiv 2311.04850): a judge says it of the training
texts nearest to a test (here by TF-IDF of words and pairs of words, theirs by a sentence encoder).
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from autoif import files
from autoif.evaluation import benchmarks, judge, table
from autoif.evaluation.judge import Unanswered, user
from autoif.files import UserError, write_whole
from autoif.flags import cli
from autoif.settings import write_settings
from autoif.stage import in_order

WORDS = 13
# kana and Han, whose words no blanks part
CJK = (
    r"\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# On LM-Sys's sets the nearest text is the source of a rephrased problem in 98 % of cases, of a
# rephrased program in 76 % (one of the five nearest: 87 %).
NEAREST, NEAREST_CODE = 1, 5
BLOCK = 256  # tests compared at a time: the similarities of all would be gigabytes

QUESTIONS = {
    "code": "Two programs follow. Is the second the first one rewritten, that is, do both solve "
    "the same task in the same way, whatever the names, comments and order of lines?",
    "text": "Two texts follow. Does the second ask or say the same as the first in other words, so "
    "that whoever has seen the one knows the answer to the other? A shared subject alone is not "
    "enough; the same problem with other numbers is.",
}
JUDGE_PROMPT = """{question} Answer with exactly one word, True or False.

[First]
{test}

[Second]
{candidate}"""

# What a training row may say something in.
FIELDS = (
    "prompt messages conversations chosen rejected text query instruction input output response "
    "responses"
).split()


@dataclass(kw_only=True)
class Flags(benchmarks.Flags, judge.Flags):
    training: tyro.conf.Positional[str]  # JSONL that is trained on, of any stage
    out: str | None = None  # (default: 07_contamination.json beside the training file)

    def __post_init__(self):
        super().__post_init__()
        self.out = self.out or str(Path(self.training).with_name("07_contamination.json"))


def training_text(row: dict) -> str:
    """All the words of a training row: of its messages, its pair, its responses or its `text`."""
    texts = []
    for field in FIELDS:
        turns = row.get(field)
        for turn in turns if isinstance(turns, list) else [turns]:
            if isinstance(turn, dict):
                turn = turn.get("content") or turn.get("value") or turn.get("text")
            if isinstance(turn, str):
                texts.append(turn)
    return "\n".join(texts)


def read_training(path: str) -> list[str]:
    training = list(map(training_text, files.read(path)))
    if not any(map(words, training)):
        raise UserError(f"{path} holds no training text; its rows need one of {', '.join(FIELDS)}")
    return training


def words(text: str) -> list[str]:
    return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def grams(tokens: list[str]) -> set[str]:
    """All runs of WORDS words; of fewer words, the one run there is."""
    if not tokens:
        return set()
    starts = range(max(1, len(tokens) - WORDS + 1))
    return {" ".join(tokens[start : start + WORDS]) for start in starts}


def overlapping(tests: list[str], training: Iterable[str]) -> dict[int, int]:
    """{test: first training text that shares a 13-gram with it}; only the tests' grams are held."""
    owners: dict[str, list[int]] = {}
    for number, test in enumerate(tests):
        for gram in grams(words(test)):
            owners.setdefault(gram, []).append(number)
    lengths = sorted({gram.count(" ") + 1 for gram in owners})
    first: dict[int, int] = {}
    for place, text in enumerate(training):
        tokens = words(text)
        for length in lengths:
            for start in range(len(tokens) - length + 1):
                gram = " ".join(tokens[start : start + length])
                for number in owners.get(gram, ()):
                    first.setdefault(number, place)
    return first


def nearest(tests: list[str], training: list[str], top: int) -> list[list[tuple[int, float]]]:
    """For each test its `top` nearest training texts as (index, cosine), nearest first."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    # the vectorizer's own words of two letters and more, and CJK by characters
    token = rf"[{CJK}]|[^\W{CJK}]{{2,}}"
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=token)
    corpus = vectorizer.fit_transform(training)
    neighbours = []
    for start in range(0, len(tests), BLOCK):
        block = vectorizer.transform(tests[start : start + BLOCK])
        for similar in (block @ corpus.T).toarray():
            best = np.argsort(-similar)[:top]
            neighbours.append([(int(place), float(similar[place])) for place in best])
    return neighbours


def read_judgement(text: str) -> bool | None:
    verdicts = set(re.findall(r"\b(true|false)\b", text.lower()))
    return verdicts == {"true"} if len(verdicts) == 1 else None


async def rephrased(pair: tuple[str, list[str]], kind: str, client) -> bool | None:
    """Whether a candidate rephrases the test; None where none does and a judgement is lacking."""
    test, candidates = pair
    outcome = False
    for candidate in candidates:
        prompt = JUDGE_PROMPT.format(question=QUESTIONS[kind], test=test, candidate=candidate)
        try:
            same, _ = await judge.verdict(client, [user(prompt)], read_judgement, max_tokens=512)
        except Unanswered:
            return None
        if same:
            return True
        if same is None:
            outcome = None
    return outcome


async def check(name: str, items: list[dict], training: list[str], judging) -> dict:
    """What both detectors find of a benchmark in the training texts."""
    tests = [item.get("text", item["prompt"]) for item in items]
    kind, top = ("code", NEAREST_CODE) if name == "humaneval" else ("text", NEAREST)
    copied, near = overlapping(tests, training), nearest(tests, training, top)
    verdicts, counts = [None] * len(tests), {"overlap": len(copied), "rephrased": None}
    if judging:
        pairs = []
        for test, places in zip(tests, near):
            pairs.append((test, [training[place] for place, _ in places]))
        work = partial(rephrased, kind=kind, client=judging)
        verdicts = [verdict async for verdict in in_order(work, pairs, judging.ahead)]
        counts |= {"rephrased": verdicts.count(True), "undecided": verdicts.count(None)}
    report = {"tests": len(tests), "training rows": len(training), "undecided": None, **counts}
    for name in ("overlap", "rephrased"):
        report[f"{name} share"] = None if counts[name] is None else counts[name] / len(tests)
    report["pairs"] = []
    for number, (item, verdict, [(place, cosine), *_]) in enumerate(zip(items, verdicts, near)):
        pair = {"test": item["id"], "nearest row": place + 1, "cosine": round(cosine, 3)}
        row = copied.get(number, -1) + 1 or None
        report["pairs"].append({**pair, "rephrased": verdict, "overlap in row": row})
    return report


def markdown(reports: dict[str, dict]) -> str:
    """Table 4's columns: a count and, in per cent, the share of the tests."""
    header, lines = ["tests", "training rows", "overlap", "rephrased", "undecided"], []
    for name, report in reports.items():
        lines.append([name])
        for column in header:
            cell = report[column]
            if cell is None:
                cell = "no judge"
            elif f"{column} share" in report:
                cell = f"{cell} ({report[f'{column} share']:.1%})"
            lines[-1].append(cell)
    return table.markdown(["benchmark", *header], lines)


async def main(args: Flags) -> None:
    # the held-out constraints are made of the same run: what is to be found there is known
    names = [name for name in args.benchmarks if name != "heldout"]
    files.refuse_unwritable(args.out)
    training = read_training(args.training)
    loaded, gaps = benchmarks.load(names, args)
    if not loaded:
        reasons = "; ".join(f"{name}: {gap}" for name, gap in gaps.items())
        raise UserError(
            f"nothing to check {args.training} against "
            f"({reasons or 'heldout is of the same run'}); give --data-dir and --benchmarks"
        )
    reports = {}
    async with judge.client(args) as judging:
        for name, data in loaded.items():
            reports[name] = await check(name, data.items, training, judging)
    report = {"file": args.training, "judge": args.judge_model, "benchmarks": reports}
    report["not checked"] = dict(zip(gaps, map(str, gaps.values())))
    write_settings(args, args.out)
    write_whole(args.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(markdown(reports))
    for name, gap in gaps.items():
        print(f"{name}: not checked: {gap}", file=sys.stderr)
    print(f"the pairs to look at: {args.out}")


if __name__ == "__main__":
    cli(main, __doc__)
