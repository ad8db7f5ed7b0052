"""MMLU (arXiv 2009.03300): 14,042 test questions of 57 subjects, the share answered right.

All questions weigh the same. Zero-shot, by generation; the original is 5-shot, by log-likelihood.
"""

from collections.abc import Iterator

from autoif.evaluation.benchmarks import Settings, choice
from autoif.files import UserError

SETTINGS = Settings(temperature=0.0, max_tokens=512, columns=("MMLU",), multiple_choice=True)

PROMPT = '{lines}\n\nWhich choice is right? End with a line "Answer: X", where X is A, B, C or D.'
# of .csv files, with a header or, as their owners have them, without
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
# an answer is a letter there, on the hub its place
TARGETS = {**dict(zip("ABCD", "ABCD")), **dict(zip("0123", "ABCD"))}


def load(source) -> Iterator[dict]:
    file = "all/test-00000-of-00001.parquet"
    for number, row in enumerate(source.rows("mmlu/test", "cais/mmlu", file, COLUMNS)):
        choices = row.get("choices") or [row.get(name) for name in COLUMNS[1:5]]
        target = TARGETS.get(str(row.get("answer")).strip())
        four_texts = len(choices) == 4 and None not in choices
        if not (row.get("question") and four_texts and target):
            raise UserError(
                f"{source.used[-1]} has a row of another form than a question, four choices and an "
                f"answer (A to D, or 0 to 3): {str(row)[:200]}; a .csv file has the columns "
                f"{','.join(COLUMNS)}, or these six without a header"
            )
        lines = choice.lines(row["question"], choices)
        item = {"id": str(number), "cluster": str(number), "prompt": PROMPT.format(lines=lines)}
        item |= {"text": lines, "subject": row.get("subject") or row["file"].removesuffix("_test")}
        item |= {"question": row["question"], "choices": list(choices), "target": target}
        yield item


def score(attempt: dict) -> dict:
    return choice.score(attempt, "MMLU", stratum="")
