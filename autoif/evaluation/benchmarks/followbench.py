"""FollowBench (arXiv 2310.20410, English): HSR, SSR by level, CSL.

Each group of items adds one constraint a level, 1 to 5. 470 items are judged by a model, 350 by
rules. A rule gives one verdict, which counts as both hard and soft.

    HSR   share of items with every constraint met
    SSR   mean share of constraints met
    CSL   consecutive levels met, counted from 1: 0 to 5

HSR and SSR of a level are the mean over categories, "FB HSR" and "FB SSR" over levels too, as in
the paper; the repository's aggregator.py weighs a level by its number and leaves `example` out.
Departures:
 1. The judge's prompt asks the same in our words; its answer's form, a last line of YES and NO, is
    theirs.
 2. An unreadable judgement, theirs' -1, is asked for again, then the item is left out and counted.
 3. Items are known by category, example and level: the instruction's text occurs twice in places.
"""

import ast
import functools
import re
import string
from collections.abc import Callable, Iterator

from autoif.evaluation.benchmarks import Settings, undecided
from autoif.evaluation.judge import user, verdict

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=2048,
    columns=("FB L1", "FB L2", "FB L3", "FB L4", "FB L5", "FB SSR", "FB HSR", "FB CSL"),
    ratings=("FB CSL",),
    judge="gpt-4-0613",
    judge_max_tokens=1024,
)

CATEGORIES = ["content", "situation", "style", "format", "mixed", "example"]
LEVELS = range(1, 6)

JUDGE_PROMPT = """An initial instruction was extended with {kind} {times}; the final instruction \
has {count}.

{history}#Answer to the final instruction#
{answer}

#Task#
1) Name each added constraint.
2) For each of them, decide whether the answer to the final instruction satisfies it.
3) End with a line that holds nothing but a Python list of {level} element(s), each 'YES' or \
'NO', in the order in which the constraints were added."""

# what else is added is "a content constraint", or another category's
KINDS = {
    "situation": "a situation constraint "
    "(information that describes a particular situation or background)",
    "mixed": "a constraint",
}


def load(source) -> Iterator[dict]:
    for category in CATEGORIES:
        file = f"{category}_constraints.json"
        rows = source.rows(f"followbench/data/{file}", "YuxinJiang/FollowBench", f"data_en/{file}")
        history: dict[int, list[str]] = {}  # an example's instructions up to the level, from 0
        for row in rows:
            history.setdefault(row["example_id"], []).append(row["instruction"])
            group = f"{category}-{row['example_id']}"
            if row["level"] > 0:
                item = {"id": f"{group}-{row['level']}", "cluster": group}
                item |= {"prompt": row["instruction"], "category": category, "level": row["level"]}
                item |= {"source": row["source"], "example_id": row["example_id"]}
                item["target"] = row["target"]
                yield {**item, "history": list(history[row["example_id"]])}


# ---- rules; those of a summary are cumulative: level n asks the first n ----


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"[.!?]", text) if part]


def has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def nth(text: str, n: int) -> str:
    """The n-th sentence, "" where there are fewer."""
    return "".join(sentences(text)[n - 1 : n])


def punctuation(text: str) -> int:
    return sum(char in string.punctuation for char in text)


NAMED = ("Potter", "actor", "films")  # in the first, second and third sentence
SUMMARY_RULES: dict[str, list[Callable[[str], bool]]] = {
    "cnn_dailymail": [
        lambda text: len(sentences(text)) == 3,
        lambda text: all(len(sentence.split()) < 15 for sentence in sentences(text)),
        lambda text: all(map(has_word, map(nth, [text] * 3, (1, 2, 3)), NAMED)),
        lambda text: not has_word(nth(text, 2), "lavish"),
        lambda text: re.search(r"\b(has|have)\s+\w+", nth(text, 3)) is not None,
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
    """Format example 22: paragraphs, short, of long sentences, numbered, with a closing phrase."""
    paragraphs = text.split("\n\n")
    verdicts = [
        len(paragraphs) == 3 + (level == 5),  # the closing phrase is a paragraph of its own
        all(len(sentences(paragraph)) < 3 for paragraph in paragraphs[:3]),
        all(len(sentence.split()) > 20 for sentence in sentences(text)),
        all(re.match(r"\s*\d+\.|\s*$", paragraph) for paragraph in paragraphs),
        text.endswith("Those are suggestions"),
    ]
    return all(verdicts[:level])


def outline_rule(text: str, level: int) -> bool:
    """Format example 30: bold, five keywords, short points, 10 to 15 words a sentence, no "-ly"."""
    parts = re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", text)
    numbered = [part for part in parts if re.search(r"[1-5]\.", part)]
    verdicts = [
        "**" in text,
        len(re.findall(r"\*\*[\d].+?:", text)) == 5,
        all(len(part.split(".")) < 3 for part in numbered),
        all(10 <= len(part.split()) <= 15 for part in parts),
        not any(word.endswith("-ly") for word in text.split()),
    ]
    return all(verdicts[:level])


FORMAT_RULES = {22: advice_rule, 30: outline_rule}


def matches_template(text: str, target: str) -> bool:
    """The example category: the target's form, where {answer} stands for one line of anything."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    pattern = ".*".join(map(re.escape, template.split("{answer}")))
    return re.fullmatch(pattern, text) is not None


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


def added(level: int) -> str:
    return "1 added constraint" if level == 1 else f"{level} added constraints"


def judge_prompt(item: dict, text: str) -> str:
    level, instructions = item["level"], item["history"]
    history = f"#Initial instruction#\n{instructions[0]}\n\n"
    for n in range(1, level + 1):
        history += f"#Instruction with {added(n)}#\n{instructions[n]}\n\n"
    return JUDGE_PROMPT.format(
        kind=KINDS.get(item["category"], f"a {item['category']} constraint"),
        times="once" if level == 1 else f"{level} times, one at a time",
        count=added(level),
        history=history,
        answer=text,
        level=level,
    )


# As the owners take them: all but YES are not met.
WORDS = ("YES", "NO", "PARTIAL", "MAYBE", "UNKNOWN", "N/A")


def read_judgement(text: str, level: int) -> list[bool] | None:
    """The YES and NO of the last line, None unless there are exactly `level`."""
    last = text.strip().strip("`").strip().split("\n")[-1]
    if level == 1:
        if "YES" in last:
            return [True]
        return [False] if "NO" in last else None
    found = re.search(r"\[.*\]", last)
    try:
        verdicts = ast.literal_eval(found.group()) if found else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(verdicts, list) or len(verdicts) != level:
        return None
    if not all(verdict in WORDS for verdict in verdicts):
        return None
    return [verdict == "YES" for verdict in verdicts]


async def judge(item: dict, answers: list[dict], client) -> dict | None:
    """{"verdicts": [True, False], "words"}; None for items that a rule decides."""
    if rule(item):
        return None
    read = functools.partial(read_judgement, level=item["level"])
    messages = [user(judge_prompt(item, answers[0]["text"]))]
    verdicts, words = await verdict(client, messages, read, SETTINGS.judge_max_tokens)
    return {"verdicts": verdicts, "words": words}


def score(attempt: dict) -> dict:
    item, text, judgement = attempt["item"], attempt["answers"][0]["text"], attempt["judgement"]
    if decide := rule(item):
        soft, reason = float(decide(text)), "rule"
    elif judgement is None:
        return undecided()
    elif judgement["verdicts"] is None:
        return undecided(judgement["words"])
    else:
        verdicts, reason = judgement["verdicts"], judgement["words"]
        soft = sum(verdicts) / len(verdicts)
    category, level, hard, points = item["category"], item["level"], soft == 1, {}
    for metric, met in ((f"FB L{level}", soft), (f"FB HSR L{level}", hard)):
        points[metric] = [(category, item["cluster"], met, 1)]
    for metric, met in (("FB SSR", soft), ("FB HSR", hard)):
        points[metric] = [(f"{category} {level}", item["cluster"], met, 1)]
    return {"verdict": hard, "soft": soft, "reason": reason, "points": points}


def add_levels(attempts: list[dict], rows: list[dict]) -> None:
    """Add to the row of each group's highest level the group's CSL."""
    groups: dict[tuple, dict[int, dict]] = {}
    for attempt, row in zip(attempts, rows):
        item = attempt["item"]
        groups.setdefault((item["cluster"], attempt["sample"]), {})[item["level"]] = row
    for (cluster, _), by_level in groups.items():
        levels = consecutive([by_level.get(level, {}).get("verdict") for level in LEVELS])
        if levels is not None:
            point = (cluster.split("-")[0], cluster, levels, 1)
            by_level[max(by_level)]["points"]["FB CSL"] = [point]


def consecutive(verdicts: list[bool | None]) -> int | None:
    """Levels met in a row from the first; None when a missing verdict breaks the row."""
    for count, met in enumerate(verdicts):
        if met is None:
            return None
        if not met:
            return count
    return len(verdicts)
