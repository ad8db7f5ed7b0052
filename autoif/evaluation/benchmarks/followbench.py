"""FollowBench (arXiv 2310.20410, English): HSR, SSR by level and CSL over six categories of constraints.

Each group of items adds one constraint a level, 1 to 5. 470 items are judged by a model, 350 by rules. HSR: share of
items with every constraint met; SSR: mean share of constraints met; both for a level are the mean over the
categories, and "FB HSR", "FB SSR" the mean over the levels too. CSL: consecutive levels met, counted from 1, 0 to 5.
A rule gives one verdict, which counts as both hard and soft. Departures:
 1. The judge's prompt asks the same question in our words; its answer format, a list of YES and NO in the last line,
    is theirs.
 2. Where theirs scores an unreadable judgement as -1, the judge is asked again, then the item is left out and
    counted.
 3. Items are known by category, example and level, not by the text of the instruction, which occurs twice in places.
"""

import ast
import re
import string
from collections.abc import Callable

from autoif.evaluation.benchmarks import Conversation, ask_judge, user
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface

CATEGORIES = ["content", "situation", "style", "format", "mixed", "example"]
LEVELS = range(1, 6)

JUDGE_PROMPT = """An initial instruction was extended with {kind} {times}; the final instruction has {count}.

{history}#Answer to the final instruction#
{answer}

#Task#
1) Name each added constraint.
2) For each of them, decide whether the answer to the final instruction satisfies it.
3) End with a line that holds nothing but a Python list of {level} element(s), each 'YES' or 'NO', in the order in \
which the constraints were added."""

KINDS = {
    "content": "a content constraint",
    "style": "a style constraint",
    "format": "a format constraint",
    "situation": "a situation constraint (information that describes a particular situation or background)",
    "mixed": "a constraint",
}


def load(source, args) -> list[dict]:
    items = []
    for category in CATEGORIES:
        rows = source.rows(
            f"followbench/data/{category}_constraints.json",
            "YuxinJiang/FollowBench",
            f"data_en/{category}_constraints.json",
        )
        history: dict[int, list[str]] = {}
        for row in rows:
            history.setdefault(row["example_id"], []).append(row["instruction"])
            if row["level"] > 0:
                group = f"{category}-{row['example_id']}"
                items.append(
                    {
                        "id": f"{group}-{row['level']}",
                        "cluster": group,
                        "prompt": row["instruction"],
                        "category": category,
                        "level": row["level"],
                        "source": row["source"],
                        "example_id": row["example_id"],
                        "target": row["target"],
                        "history": list(history[row["example_id"]]),
                    }
                )
    return items


# Rules. Those of a summary are cumulative: level n asks the first n.


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"[.!?]", text) if part]


def has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def nth_has_word(text: str, n: int, word: str) -> bool:
    return len(sentences(text)) >= n and has_word(sentences(text)[n - 1], word)


def punctuation(text: str) -> int:
    return sum(char in string.punctuation for char in text)


SUMMARY_RULES: dict[str, list[Callable[[str], bool]]] = {
    "cnn_dailymail": [
        lambda text: len(sentences(text)) == 3,
        lambda text: all(len(sentence.split()) < 15 for sentence in sentences(text)),
        lambda text: all(
            nth_has_word(text, n, word) for n, word in enumerate(["Potter", "actor", "films"], 1)
        ),
        lambda text: not nth_has_word(text, 2, "lavish"),
        lambda text: (
            len(sentences(text)) >= 3
            and re.search(r"\b(has|have)\s+\w+", sentences(text)[2]) is not None
        ),
    ],
    "xsum": [
        lambda text: len(sentences(text)) == 1,
        lambda text: len(text.split(" ")) < 20,
        lambda text: not has_word(text, "Newton Stewart"),
        lambda text: re.search(r"\b(am|is|are)\s+\w+ing\b", text) is not None,
        lambda text: has_word(text, "operation"),
    ],
    "samsum": [
        lambda text: len(sentences(text)) == 1,
        lambda text: len(text.split(" ")) < 15,
        lambda text: has_word(text, "stuff"),
        lambda text: "procrast" not in text.lower(),
        lambda text: punctuation(text) == 1,
    ],
    "gigaword": [
        lambda text: len(text.split(" ")) == 8,
        lambda text: punctuation(text) == 0,
        str.islower,
        lambda text: not has_word(text, "bus"),
        lambda text: has_word(text, "in"),
    ],
    "arxiv": [
        lambda text: len(sentences(text)) == 1,
        lambda text: len(text.split(" ")) <= 20,
        lambda text: text.startswith("We"),
        lambda text: has_word(text, "activations"),
        lambda text: not has_word(text, "transformer"),
    ],
}


def last_match(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1] if found else None


# Rules that compare with the item's target, the same at every level.
TARGET_RULES: dict[str, Callable[[str, str], bool]] = {
    "E2E": lambda text, target: text == target,
    "text_editing": lambda text, target: text == target,
    "WIKIEVENTS": lambda text, target: set(text.split("\n")) <= set(target.split("\n")),
    "CONLL2003": lambda text, target: text in ast.literal_eval(target),
    "BBH_logical": lambda text, target: last_match(r"\([A-Z]\)", text) == target,
    "BBH_time": lambda text, target: last_match(r"\d{2}/\d{2}/\d{4}", text) == target,
    "gsm_8k": lambda text, target: last_match(r"\$\d+", text) == target,
    "self_made_space": lambda text, target: target in text,
}


def advice_rule(text: str, level: int) -> bool:
    """Format example 22: paragraphs (one more at level 5), short, of long sentences, numbered, a closing phrase."""
    paragraphs = text.split("\n\n")
    rules = [
        lambda: len(paragraphs) == (4 if level == 5 else 3),
        lambda: all(len(sentences(paragraph)) < 3 for paragraph in paragraphs[:3]),
        lambda: all(len(sentence.split()) > 20 for sentence in sentences(text)),
        lambda: all(
            re.match(r"\d+\.", paragraph.lstrip()) for paragraph in paragraphs if paragraph.strip()
        ),
        lambda: text.endswith("Those are suggestions"),
    ]
    return all(rule() for rule in rules[:level])


def outline_rule(text: str, level: int) -> bool:
    """Format example 30: bold markers, five numbered keywords, short points, 10 to 15 words a sentence, no '-ly'."""
    parts = re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", text)
    numbered = [part for part in parts if any(f"{n}." in part for n in LEVELS)]
    rules = [
        lambda: "**" in text,
        lambda: len(re.findall(r"\*\*[\d].+?:", text)) == 5,
        lambda: all(len(part.split(".")) < 3 for part in numbered),
        lambda: all(10 <= len(part.split()) <= 15 for part in parts),
        lambda: not any(word.endswith("-ly") for word in text.split()),
    ]
    return all(rule() for rule in rules[:level])


FORMAT_RULES = {22: advice_rule, 30: outline_rule}


def matches_template(text: str, target: str) -> bool:
    """The example category: the answer has the form of the target, whose {answer} stands for one line of anything."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    return (
        re.fullmatch(".*".join(re.escape(part) for part in template.split("{answer}")), text)
        is not None
    )


def rule(item: dict) -> Callable[[str], bool] | None:
    """The rule that decides the item, None when a judge does."""
    level, target = item["level"], item["target"]
    if item["category"] == "example":
        return lambda text: matches_template(text, target)
    if item["source"] in SUMMARY_RULES:
        return lambda text: all(asks(text) for asks in SUMMARY_RULES[item["source"]][:level])
    if item["source"] in TARGET_RULES:
        return lambda text: TARGET_RULES[item["source"]](text, target)
    if item["category"] == "format" and item["example_id"] in FORMAT_RULES:
        return lambda text: FORMAT_RULES[item["example_id"]](text, level)
    return None


# The judge.


def judge_prompt(item: dict, text: str) -> str:
    def plural(n: int) -> str:
        return f"{n} added constraint{'s' if n > 1 else ''}"

    level = item["level"]
    history = f"#Initial instruction#\n{item['history'][0]}\n\n"
    history += "".join(
        f"#Instruction with {plural(n)}#\n{item['history'][n]}\n\n" for n in range(1, level + 1)
    )
    times = "once" if level == 1 else f"{level} times, one at a time"
    return JUDGE_PROMPT.format(
        kind=KINDS[item["category"]],
        times=times,
        count=plural(level),
        history=history,
        answer=text,
        level=level,
    )


WORDS = (
    "YES",
    "NO",
    "PARTIAL",
    "MAYBE",
    "UNKNOWN",
    "N/A",
)  # as the owners take them: all but YES are not met


def read_judgement(text: str, level: int) -> list[bool] | None:
    """The YES and NO of the last line, None unless there are exactly `level`; judge text is parsed, never run."""
    last = text.strip().strip("`").strip().split("\n")[-1]
    if level == 1:
        return [True] if "YES" in last else [False] if "NO" in last else None
    found = re.search(r"\[.*\]", last)
    try:
        verdicts = ast.literal_eval(found.group()) if found else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if (
        isinstance(verdicts, list)
        and len(verdicts) == level
        and all(verdict in WORDS for verdict in verdicts)
    ):
        return [verdict == "YES" for verdict in verdicts]
    return None


def judge(item: dict, answers: list[dict]) -> Conversation | None:
    """A conversation that returns {verdicts, words}; None for items that a rule decides."""
    return None if rule(item) else judged(item, answers)


def judged(item: dict, answers: list[dict]) -> Conversation:
    verdicts, words = yield from ask_judge(
        [user(judge_prompt(item, answers[0]["text"]))],
        lambda text: read_judgement(text, item["level"]),
    )
    return {"verdicts": verdicts, "words": words}


def score(works: list[dict], args) -> list[dict]:
    rows = [scored(work) for work in works]
    groups: dict[tuple, dict[int, dict]] = {}
    for work, row in zip(works, rows):
        groups.setdefault((work["item"]["cluster"], work["sample"]), {})[work["item"]["level"]] = (
            row
        )
    for (cluster, _), by_level in groups.items():
        levels = consecutive(
            [by_level[level]["verdict"] if level in by_level else None for level in LEVELS]
        )
        if levels is not None:
            by_level[max(by_level)]["points"]["FB CSL"] = [
                (cluster.split("-")[0], cluster, levels, 1)
            ]
    return rows


def consecutive(verdicts: list[bool | None]) -> int | None:
    """Levels met in a row from the first; None when the row is broken by a verdict that is missing."""
    for count, verdict in enumerate(verdicts):
        if verdict is None:
            return None
        if not verdict:
            return count
    return len(verdicts)


def scored(work: dict) -> dict:
    item, text = work["item"], work["answers"][0]["text"]
    decide = rule(item)
    if decide:
        soft, reason = float(decide(text)), "rule"
    elif work["judged"] is None or work["judged"]["verdicts"] is None:
        words = "the judge did not answer" if work["judged"] is None else work["judged"]["words"]
        return {"verdict": None, "reason": words, "unparsable": True, "points": {}}
    else:
        verdicts = work["judged"]["verdicts"]
        soft, reason = sum(verdicts) / len(verdicts), work["judged"]["words"]
    category, level, cluster = item["category"], item["level"], item["cluster"]
    hard = soft == 1
    points = {
        f"FB L{level}": [(category, cluster, soft, 1)],
        "FB SSR": [(f"{category} {level}", cluster, soft, 1)],
        "FB HSR": [(f"{category} {level}", cluster, hard, 1)],
        f"FB HSR L{level}": [(category, cluster, hard, 1)],
    }
    return {"verdict": hard, "soft": soft, "reason": reason, "points": points}
