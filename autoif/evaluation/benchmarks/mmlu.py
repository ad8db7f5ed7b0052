"""MMLU (arXiv 2009.03300): 14,042 test questions of 57 subjects, the share answered right.

All questions weigh the same. By generation it is zero-shot, by log-likelihood 5-shot with the dev
questions, as in the original.
"""

from autoif.evaluation.benchmarks import Settings, choice

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=512,
    usual_tokens=30,
    columns=("MMLU",),
    multiple_choice=True,
)

PROMPT = '{lines}\n\nWhich choice is right? End with a line "Answer: X", where X is A, B, C or D.'
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


def read(source, split: str) -> list[dict]:
    rows = source.rows(f"mmlu/{split}", "cais/mmlu", f"all/{split}-00000-of-00001.parquet")
    questions = []
    for row in rows:
        choices = row.get("choices")  # the hub's rows have a list, those of the .csv files columns
        if choices is None:
            choices = [row[f"choice{i}"] for i in range(len(choice.LETTERS))]
        questions.append(
            {
                "subject": row.get("subject") or row["file"].removesuffix(f"_{split}"),
                "question": row["question"],
                "choices": list(choices),
                "target": choice.LETTERS[int(row["answer"])],
            }
        )
    return questions


def load(source, args) -> list[dict]:
    shots: dict[str, list[str]] = {}
    if args.mc_mode == "loglik":
        for row in read(source, "dev"):
            shot = f"{choice.lines(row['question'], row['choices'])}\nAnswer: {row['target']}\n\n"
            shots.setdefault(row["subject"], []).append(shot)
    items = []
    for number, row in enumerate(read(source, "test")):
        lines = choice.lines(row["question"], row["choices"])
        header = HEADER.format(subject=row["subject"].replace("_", " "))
        examples = "".join(shots.get(row["subject"], [])[:5])
        items.append(
            {
                "id": str(number),
                "cluster": str(number),
                "prompt": PROMPT.format(lines=lines),
                "text": lines,
                **row,
                "context": f"{header}{examples}{lines}\nAnswer:",
            }
        )
    return items


def score(works: list[dict], args) -> list[dict]:
    return choice.score(works, "MMLU", by_subject=False)
