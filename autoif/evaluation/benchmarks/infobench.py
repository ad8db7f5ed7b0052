"""InfoBench (arXiv 2401.03601): DRFR, the share of the instructions' decomposed questions that a judge affirms.

500 instructions, 2,250 questions. As in the official script, the questions of an item are asked in one growing
conversation. Departures:
 1. The judge's rules say the same in our words; its answer is YES or NO, as theirs.
 2. Theirs stops an item at the first unreadable answer, and the questions never asked leave the denominator. Here
    the judge is asked again, a question that stays unreadable is left out and counted, and the others are asked.
"""

import re

from autoif.evaluation.benchmarks import Conversation, ask_judge, assistant, user
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface

JUDGE_PROMPT = """Read the generated text below, and the input if there is one. Then answer each question about the \
generated text with YES or NO.

- YES: the generated text meets the condition of the question completely. A small flaw is enough for a NO: when the \
question is whether every sentence is in the second person, one sentence that is not makes the answer NO.
- NO: the generated text does not meet the condition, or it holds nothing from which the question could be answered: \
when the question is about the second sentence and there is only one, the answer is NO.

{input}Generated Text:
"{answer}"

Question:
{question}
"""


def load(source, args) -> list[dict]:
    rows = source.rows("infobench/InfoBench.json", "kqsong/InFoBench", "InfoBench.json")
    return [
        {
            "id": str(row["id"]),
            "cluster": str(row["id"]),
            "input": row["input"],
            "questions": row["decomposed_questions"],
            "prompt": f"{row['instruction']}\n\n{row['input']}"
            if row["input"]
            else row["instruction"],
        }
        for row in rows
    ]


def read_judgement(text: str) -> bool | None:
    """By its first word, else by the one of YES and NO that occurs."""
    if first := re.match(r"\W*(yes|no)\b", text, re.IGNORECASE):
        return first.group(1).lower() == "yes"
    said = set(re.findall(r"\b(YES|NO)\b", text))
    return said == {"YES"} if len(said) == 1 else None


def judge(item: dict, answers: list[dict]) -> Conversation:
    given = f'Input:\n"{item["input"]}"\n\n' if item["input"] else ""
    messages, verdicts = [], []
    for question in item["questions"]:
        messages.append(
            user(
                question + "\n"
                if messages
                else JUDGE_PROMPT.format(input=given, answer=answers[0]["text"], question=question)
            )
        )
        verdict, words = yield from ask_judge(messages, read_judgement)
        messages = [*messages, assistant(words)]
        verdicts.append(verdict)
    return verdicts


def score(works: list[dict], args) -> list[dict]:
    return [scored(work["item"], work["judged"]) for work in works]


def scored(item: dict, verdicts: list[bool | None] | None) -> dict:
    if verdicts is None:
        return {
            "verdict": None,
            "reason": "the judge did not answer",
            "unparsable": True,
            "points": {},
        }
    read = [verdict for verdict in verdicts if verdict is not None]
    missed = [
        question for question, verdict in zip(item["questions"], verdicts) if verdict is False
    ]
    points = {"InfoBench": [("", item["cluster"], sum(read), len(read))]} if read else {}
    return {
        "verdict": not missed if len(read) == len(verdicts) else None,
        "reason": " | ".join(missed),
        "verdicts": verdicts,
        "unparsable": len(read) < len(verdicts),
        "points": points,
    }
