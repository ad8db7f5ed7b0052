"""Is a benchmark's test in the training data? Two detectors: shared 13-grams, and retrieval followed by a judge.

13-grams (our definition): texts are lower-cased and cut into runs of letters and digits; a test is flagged when any
13 words in a row of it stand in one training text; a test of fewer words when all of it does. This sees copies, and
no paraphrase. Retrieval, as LM-Sys's decontaminator does (arXiv 2311.04850): the training texts nearest to a test
(here by TF-IDF of words and pairs of words, theirs by a sentence encoder) go to a judge, who says whether one of the
two is a rephrasing of the other.
"""

import re
from collections.abc import Iterable

from autoif import files
from autoif.evaluation.benchmarks import Conversation, ask_judge, converse, user
from autoif.files import UserError

WORDS = 13
# On LM-Sys's sets the nearest text is the source of a rephrased problem in 98 % of cases, of a rephrased program in
# 76 % (one of the five nearest: 87 %).
NEAREST, NEAREST_CODE = 1, 5

QUESTIONS = {
    "code": "Two programs follow. Is the second the first one rewritten, that is, do both solve the same task in the "
    "same way, whatever the names, comments and order of lines?",
    "text": "Two texts follow. Does the second ask or say the same as the first in other words, so that whoever has "
    "seen the one knows the answer to the other? A shared subject alone is not enough; the same problem with other "
    "numbers is.",
}
JUDGE_PROMPT = """{question} Answer with exactly one word, True or False.

[First]
{test}

[Second]
{candidate}"""


FIELDS = (
    "prompt",
    "messages",
    "conversations",
    "chosen",
    "rejected",
    "text",
    "query",
    "instruction",
    "input",
    "output",
    "response",
    "responses",
)


def training_text(row: dict) -> str:
    """All the words of a training row: of its messages, its pair, its responses or its `text`."""
    parts = [row[name] for name in FIELDS if name in row]
    turns = [turn for part in parts for turn in (part if isinstance(part, list) else [part])]
    said = (
        turn.get("content") or turn.get("value") or turn.get("text")
        if isinstance(turn, dict)
        else turn
        for turn in turns
    )
    return "\n".join(text for text in said if isinstance(text, str))


def read_training(path: str) -> list[str]:
    training = [training_text(row) for row in files.read(path)]
    if not any(words(text) for text in training):
        raise UserError(f"{path} holds no training text; its rows need one of {', '.join(FIELDS)}")
    return training


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def grams(tokens: list[str]) -> set[str]:
    """All runs of WORDS words; of fewer words, the one run there is."""
    return (
        {" ".join(tokens[i : i + WORDS]) for i in range(max(1, len(tokens) - WORDS + 1))}
        if tokens
        else set()
    )


def overlapping(tests: list[str], training: Iterable[str]) -> dict[int, int]:
    """{test: first training text that shares a 13-gram with it}. Only the tests' grams are held in memory."""
    owners: dict[str, list[int]] = {}
    for number, test in enumerate(tests):
        for gram in grams(words(test)):
            owners.setdefault(gram, []).append(number)
    lengths = sorted({gram.count(" ") + 1 for gram in owners})
    found: dict[int, int] = {}
    for place, text in enumerate(training):
        tokens = words(text)
        for length in lengths:
            for i in range(len(tokens) - length + 1):
                for number in owners.get(" ".join(tokens[i : i + length]), ()):
                    found.setdefault(number, place)
    return found


def nearest(tests: list[str], training: list[str], top: int) -> list[list[tuple[int, float]]]:
    """For each test its `top` nearest training texts as (index, cosine), nearest first."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    corpus = vectorizer.fit_transform(training)
    top, found = min(top, len(training)), []
    for start in range(
        0, len(tests), 256
    ):  # a block at a time: the similarities of all would be gigabytes
        similarity = (vectorizer.transform(tests[start : start + 256]) @ corpus.T).toarray()
        best = np.argsort(-similarity, axis=1)[:, :top]
        found += [[(int(i), float(row[i])) for i in order] for row, order in zip(similarity, best)]
    return found


def read_judgement(text: str) -> bool | None:
    said = set(re.findall(r"\b(true|false)\b", text.lower()))
    return said.pop() == "true" if len(said) == 1 else None


def judge(test: str, candidates: list[str], kind: str) -> Conversation:
    """Returns (True when a candidate is a rephrasing, None when none is and one stayed unreadable, the last words)."""
    outcome, said = False, ""
    for candidate in candidates:
        prompt = JUDGE_PROMPT.format(question=QUESTIONS[kind], test=test, candidate=candidate)
        verdict, said = yield from ask_judge([user(prompt)], read_judgement)
        if verdict:
            return True, said
        if verdict is None:
            outcome = None
    return outcome, said


def check(name: str, items: list[dict], path: str, judge_client) -> dict:
    """What both detectors find of a benchmark in a training file; without a judge the nearest pairs are only listed."""
    tests = [item.get("text", item["prompt"]) for item in items]
    training = read_training(path)
    copied = overlapping(tests, training)
    kind = "code" if name == "humaneval" else "text"
    near = nearest(tests, training, NEAREST_CODE if kind == "code" else NEAREST)
    found = [None] * len(tests)
    if judge_client is not None:
        conversations = [
            judge(test, [training[place] for place, _ in places], kind)
            for test, places in zip(tests, near)
        ]
        found = converse(judge_client, conversations, [{"max_tokens": 512}] * len(tests))
    verdicts = [None if outcome is None else outcome[0] for outcome in found]
    pairs = [
        {
            "test": item["id"],
            "nearest row": places[0][0] + 1,
            "cosine": round(places[0][1], 3),
            "rephrased": verdict,
            "13-gram in row": copied[number] + 1 if number in copied else None,
        }
        for number, (item, verdict, places) in enumerate(zip(items, verdicts, near))
    ]
    return {
        "tests": len(tests),
        "training rows": len(training),
        "13-gram": len(copied),
        "rephrased": None if judge_client is None else verdicts.count(True),
        "undecided": None if judge_client is None else verdicts.count(None),
        "pairs": pairs,
    }
