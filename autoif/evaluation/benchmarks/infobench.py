"""InfoBench (arXiv 2401.03601): DRFR, the share of decomposed questions that a judge affirms.

500 instructions, 2,250 questions. As in the official script, the questions of an item are asked in
one growing conversation. Departures:
 1. The judge's rules say the same in our words; its answer is YES or NO, as theirs.
 2. Theirs stops an item at the first unreadable answer, and the questions never asked leave the
    denominator. Here the judge is asked again, a question that stays unreadable is left out and
    counted, and the others are asked.
"""

import re

from autoif.evaluation.benchmarks import Settings, undecided
from autoif.evaluation.conversation import Conversation, ask_judge, assistant, user

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=1024,
    usual_tokens=300,
    columns=("InfoBench",),
    judge="gpt-4-0314",
    judge_max_tokens=512,
    judge_calls=4.5,  # 2,250 questions of 500 items
)

JUDGE_PROMPT = """Read the generated text below, and the input if there is one. Then answer each \
question about the generated text with YES or NO.

- YES: the generated text meets the condition of the question completely. A small flaw is enough \
for a NO: when the question is whether every sentence is in the second person, one sentence that \
is not makes the answer NO.
- NO: the generated text does not meet the condition, or it holds nothing from which the question \
could be answered: when the question is about the second sentence and there is only one, the \
answer is NO.

{input}Generated Text:
"{answer}"

Question:
{question}
"""


def load(source, args) -> list[dict]:
    rows = source.rows("infobench/InfoBench.json", "kqsong/InFoBench", "InfoBench.json")
    items = []
    for row in rows:
        prompt = row["instruction"]
        if row["input"]:
            prompt += f"\n\n{row['input']}"
        items.append(
            {
                "id": str(row["id"]),
                "cluster": str(row["id"]),
                "input": row["input"],
                "questions": row["decomposed_questions"],
                "prompt": prompt,
            }
        )
    return items


def read_judgement(text: str) -> bool | None:
    """By its first word, else by the one of YES and NO that occurs."""
    if first := re.match(r"\W*(yes|no)\b", text, re.IGNORECASE):
        return first.group(1).lower() == "yes"
    said = set(re.findall(r"\b(YES|NO)\b", text))
    return said == {"YES"} if len(said) == 1 else None


def judge(item: dict, answers: list[dict]) -> Conversation:
    """Return the verdict on each question, None where it stayed unreadable."""
    given = f'Input:\n"{item["input"]}"\n\n' if item["input"] else ""
    messages, verdicts = [], []
    for question in item["questions"]:
        asked = f"{question}\n"
        if not messages:  # the rules and the text come with the first question
            text = answers[0]["text"]
            asked = JUDGE_PROMPT.format(input=given, answer=text, question=question)
        messages = [*messages, user(asked)]
        verdict, words = yield from ask_judge(messages, read_judgement)
        messages = [*messages, assistant(words)]
        verdicts.append(verdict)
    return verdicts


def score(works: list[dict], args) -> list[dict]:
    return [scored(work["item"], work["judged"]) for work in works]


def scored(item: dict, verdicts: list[bool | None] | None) -> dict:
    if verdicts is None:
        return undecided()
    read = [verdict for verdict in verdicts if verdict is not None]
    pairs = zip(item["questions"], verdicts)
    missed = [question for question, verdict in pairs if verdict is False]
    points = {}
    if read:
        points["InfoBench"] = [("", item["cluster"], sum(read), len(read))]
    return {
        "verdict": not missed if len(read) == len(verdicts) else None,
        "reason": " | ".join(missed),
        "verdicts": verdicts,
        "unparsable": len(read) < len(verdicts),
        "points": points,
    }
