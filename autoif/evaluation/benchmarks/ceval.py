"""C-Eval (arXiv 2305.08322): the mean over 52 subjects of the share answered right.

1,346 questions, zero-shot, answer only: what its authors advise for chat models. The data's licence
is CC BY-NC-SA 4.0: it is read from where it lies and never copied.
"""

from collections.abc import Iterator

from autoif.evaluation.benchmarks import Settings, choice

SETTINGS = Settings(temperature=0.0, max_tokens=512, columns=("C-Eval",), multiple_choice=True)

PROMPT = """\
下面是一道单项选择题。请选出正确的选项，最后一行只写“答案：X”，X 为 A、B、C 或 D。

{lines}"""


def load(source) -> Iterator[dict]:
    for row in source.rows("ceval/val", "ceval/ceval-exam", "ceval-exam.zip"):
        subject = row["file"].removesuffix("_val")
        choices = [row[letter] for letter in choice.LETTERS]
        lines = choice.lines(row["question"], choices)
        yield {
            "id": f"{subject}-{row['id']}",
            "cluster": f"{subject}-{row['id']}",
            "subject": subject,
            "question": row["question"],
            "choices": choices,
            "target": row["answer"],
            "text": lines,
            "prompt": PROMPT.format(lines=lines),
        }


def score(attempt: dict) -> dict:
    return choice.score(attempt, "C-Eval", stratum=attempt["item"]["subject"])
