"""MMLU (arXiv 2009.03300): 14,042 test questions of 57 subjects, the share answered right.

All questions weigh the same. By generation it is zero-shot, by log-likelihood 5-shot with the dev questions, as in
the original.
"""

from autoif.evaluation.benchmarks import choice
from autoif.evaluation.benchmarks import single_turn as answer  # noqa: F401  part of the benchmark's interface

PROMPT = '{lines}\n\nWhich choice is right? End with a line "Answer: X", where X is A, B, C or D.'
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


def read(source, split: str) -> list[dict]:
    rows = source.rows(f"mmlu/{split}", "cais/mmlu", f"all/{split}-00000-of-00001.parquet")
    return [
        {
            "subject": row.get("subject") or row["file"].removesuffix(f"_{split}"),
            "question": row["question"],
            "choices": list(row["choices"])
            if "choices" in row
            else [row[f"choice{i}"] for i in range(4)],
            "target": choice.LETTERS[int(row["answer"])],
        }
        for row in rows
    ]


def load(source, args) -> list[dict]:
    shots: dict[str, list[str]] = {}
    if args.mc_mode == "loglik":
        for row in read(source, "dev"):
            shots.setdefault(row["subject"], []).append(
                f"{choice.lines(row)}\nAnswer: {row['target']}\n\n"
            )
    items = []
    for number, row in enumerate(read(source, "test")):
        header = HEADER.format(subject=row["subject"].replace("_", " "))
        items.append(
            {
                "id": str(number),
                "cluster": str(number),
                "prompt": PROMPT.format(lines=choice.lines(row)),
                "text": choice.lines(row),
                **row,
                "context": header
                + "".join(shots.get(row["subject"], [])[:5])
                + choice.lines(row)
                + "\nAnswer:",
            }
        )
    return items


def score(works: list[dict], args) -> list[dict]:
    return choice.score(works, "MMLU", by_subject=False)
