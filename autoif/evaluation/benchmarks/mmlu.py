"""MMLU (arXiv 2009.03300): 14,042 test questions of 57 subjects, the share answered right.

All questions weigh the same. By generation it is zero-shot, by log-likelihood 5-shot with the dev
questions, as in the original.
"""

from autoif.evaluation.benchmarks import Settings, choice
from autoif.files import UserError

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=512,
    usual_tokens=30,
    columns=("MMLU",),
    multiple_choice=True,
)

PROMPT = '{lines}\n\nWhich choice is right? End with a line "Answer: X", where X is A, B, C or D.'
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


# of .csv files, with a header or, as their owners have them, without
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
# an answer is a letter there, on the hub its place
TARGETS = {**dict(zip("ABCD", "ABCD")), **dict(zip("0123", "ABCD"))}


def read(source, split: str) -> list[dict]:
    file = f"all/{split}-00000-of-00001.parquet"
    questions = []
    for row in source.rows(f"mmlu/{split}", "cais/mmlu", file, COLUMNS):
        choices = row.get("choices") or [row.get(name) for name in COLUMNS[1:5]]
        target = TARGETS.get(str(row.get("answer")).strip())
        four_texts = len(choices) == 4 and None not in choices
        if not (row.get("question") and four_texts and target):
            raise UserError(
                f"{source.used[-1]} has a row of another form than a question, four choices and an "
                f"answer (A to D, or 0 to 3): {str(row)[:200]}; a .csv file has the columns "
                f"{','.join(COLUMNS)}, or these six without a header"
            )
        questions.append(
            {
                "subject": row.get("subject") or row["file"].removesuffix(f"_{split}"),
                "question": row["question"],
                "choices": list(choices),
                "target": target,
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
