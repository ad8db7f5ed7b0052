"""C-Eval (arXiv 2305.08322): the mean over 52 subjects of the share of validation questions answered right.

1,346 questions, zero-shot, answer only, in both modes: what its authors advise for chat models. The data's licence
is CC BY-NC-SA 4.0: it is read from where it lies and never copied.
"""

from autoif.evaluation.benchmarks import choice
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface

PROMPT = (
    "下面是一道单项选择题。请选出正确的选项，最后一行只写“答案：X”，X 为 A、B、C 或 D。\n\n{lines}"
)


def load(source, args) -> list[dict]:
    items = []
    for row in source.rows("ceval/val", "ceval/ceval-exam", "ceval-exam.zip"):
        subject = row["file"].removesuffix("_val")
        item = {
            "id": f"{subject}-{row['id']}",
            "cluster": f"{subject}-{row['id']}",
            "subject": subject,
            "question": row["question"],
            "choices": [row[letter] for letter in choice.LETTERS],
            "target": row["answer"],
        }
        items.append(
            {
                **item,
                "text": choice.lines(item),
                "prompt": PROMPT.format(lines=choice.lines(item)),
                "context": choice.lines(item) + "\n答案：",
            }
        )
    return items


def score(works: list[dict], args) -> list[dict]:
    return choice.score(works, "C-Eval", by_subject=True)
