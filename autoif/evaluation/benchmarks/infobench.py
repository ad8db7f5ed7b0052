"""InfoBench (arXiv 2401.03601): DRFR, the share of decomposed questions that a judge affirms.

500 instructions, 2,250 questions. As in the official script, the questions of an item are asked in
one growing conversation. Departures:
 1. The judge's rules say the same in our words; its answer is YES or NO, as theirs.
 2. Theirs stops an item at the first unreadable answer. Here the judge is asked again, a question
    that stays unreadable is left out and counted, and the others are asked.
"""

import re
from collections.abc import Iterator

from autoif.evaluation.benchmarks import Settings, undecided
from autoif.evaluation.judge import assistant, user, verdict

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=1024,
    columns=("InfoBench",),
    judge="gpt-4-0314",
    judge_max_tokens=512,
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


def load(source) -> Iterator[dict]:
    for row in source.rows("infobench/InfoBench.json", "kqsong/InFoBench", "InfoBench.json"):
        prompt = row["instruction"]
        if row["input"]:
            prompt += f"\n\n{row['input']}"
        yield {
            "id": str(row["id"]),
            "cluster": str(row["id"]),
            "input": row["input"],
            "questions": row["decomposed_questions"],
            "prompt": prompt,
        }


def read_judgement(text: str) -> bool | None:
    """By how it begins ("None of them"), else by the one of YES and NO that occurs."""
    if first := re.match(r"\W*(yes|no)", text, re.IGNORECASE):
        return first.group(1).lower() == "yes"
    said = set(re.findall(r"\b(YES|NO)\b", text))
    return said == {"YES"} if len(said) == 1 else None


async def judge(item: dict, answers: list[dict], client) -> list[bool | None]:
    """The verdict on each question, None where it stayed unreadable."""
    around = f'Input:\n"{item["input"]}"\n\n' if item["input"] else ""
    messages, verdicts = [], []
    for question in item["questions"]:
        prompt = f"{question}\n"
        if not messages:  # the rules and the text come with the first question
            text = answers[0]["text"]
            prompt = JUDGE_PROMPT.format(input=around, answer=text, question=question)
        messages = [*messages, user(prompt)]
        met, words = await verdict(client, messages, read_judgement, SETTINGS.judge_max_tokens)
        messages = [*messages, assistant(words)]
        verdicts.append(met)
    return verdicts


def score(attempt: dict) -> dict:
    item, verdicts = attempt["item"], attempt["judgement"]
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
