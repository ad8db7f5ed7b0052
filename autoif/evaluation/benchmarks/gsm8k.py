"""GSM8K (arXiv 2110.14168), zero-shot: 1,319 problems, the answer's number compared as a number.

The number is the one after the last "####", "\\boxed{" or "answer is"; else the one that follows
"answer:" at once; else the last number of the answer. The official script compares strings.
"""

import re
from collections.abc import Iterator
from decimal import Decimal

from autoif.evaluation.benchmarks import Settings, right_or_wrong

SETTINGS = Settings(temperature=0.0, max_tokens=1024, columns=("GSM8K",))

PROMPT = """{question}

Think step by step, then end with a line "The answer is N.", where N is a number without a unit."""

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<![\w.])-?\.\d+")
STRONG = re.compile(r"####(?=[\s*]*[-$€£\\]*\s*\d)|\\boxed\s*\{|answer[\s*_]*is", re.IGNORECASE)
WEAK = re.compile(r"answer[\s*_]*[:=](?=[\s*_$€£\\(-]*\d)", re.IGNORECASE)
# what the answer is not
DENIED = re.compile(r"(?:\bnot|n['’]t)[\s*_$€£\\(]+-?\d[\d,]*(?:\.\d+)?")
# where a base model runs on
NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|Problem)\s*\d*\s*[:.]")
# what stands around a number and is no part of it
AROUND = re.compile(r"[$€£*]|\\[,!;$]|\\text\w*|\\mathbf|_+(?=\d)|(?<=\d)_+(?!\d)")
# 1 200, 1'200
THOUSANDS = re.compile(r"(?<![\w.])\d{1,3}(?:[ \u00a0\u2009\u202f'’]\d{3})+(?!\d)")
# an equation's sign, but for a variable's: "18 at x = 2"
EQUALS = re.compile(r"(?:[^\sA-Za-z]|[A-Za-z]{2})\s*=|\bi\.\s?e\.|\bequals\b")


def load(source) -> Iterator[dict]:
    rows = source.rows("gsm8k/test.jsonl", "openai/gsm8k", "main/test-00000-of-00001.parquet")
    for number, row in enumerate(rows):
        yield {
            "id": str(number),
            "cluster": str(number),
            "prompt": PROMPT.format(question=row["question"]),
            "text": row["question"],
            "target": row["answer"].split("####")[-1].strip(),
        }


def numbers(text: str) -> list[Decimal]:
    """The numbers of a text, without thousands separators, currency signs and LaTeX around them."""
    text = re.sub(r"\\[,!](?=\d)", "", text.replace("{,}", ","))
    text = THOUSANDS.sub(lambda found: re.sub(r"\D", "", found.group()), text)
    plain = AROUND.sub(" ", text).replace("−", "-")
    if plain.lstrip().startswith("-"):  # "-$5" has become "- 5"
        plain = re.sub(r"-\s+(?=\d)", "-", plain)
    return [Decimal(found.replace(",", "")) for found in NUMBER.findall(plain)]


def read_answer(text: str) -> Decimal | None:
    """The number that the text gives as its answer, None when it holds no number."""
    answered = NEXT_QUESTION.split(text)[0]
    if numbers(answered):  # else the text restates its question under such a heading
        text = answered
    text = DENIED.sub("", text)
    for marker in reversed([*WEAK.finditer(text), *STRONG.finditer(text)]):
        line = text[marker.end() :].lstrip(" *:\n").split("\n")[0]
        if re.match(r"(?:not|n['’]t)\b", line):  # "The answer is not simply 20. It is 18."
            continue
        line = re.sub(r"^(?:minus|negative)\s+", "-", line)
        if marker.group().startswith("\\boxed"):
            line = line.replace("{,}", ",").split("}")[0]
        sentence = re.split(r"(?<!\bi\.e)[.!?](?:\s|$)", line)[0]
        # 5 + 13 = 18, not 18 (at rate = 2); LaTeX's brackets are none
        equation = re.sub(r"(?<!\\)\([^()]*\)", "", sentence)
        result = EQUALS.split(equation)[-1]
        if found := numbers(result) or numbers(sentence) or numbers(line):
            return found[0]
    found = numbers(text)
    return found[-1] if found else None


def score(attempt: dict) -> dict:
    item, number = attempt["item"], read_answer(attempt["answers"][0]["text"])
    right = number is not None and number == Decimal(item["target"].replace(",", ""))
    reason = f"{number}, expected {item['target']}"
    return right_or_wrong(attempt, "GSM8K", right, reason, unparsable=number is None)
