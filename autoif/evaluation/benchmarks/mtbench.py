"""MT-Bench (arXiv 2306.05685), single-answer grading: 80 questions of two turns, rated 1 to 10.

The judge sees the question and the answer; for turn 2 the whole conversation; for math, reasoning
and coding GPT-4's reference answers too. A rating that stays unreadable is left out and counted.
The judge's prompts are the benchmark's own judge_prompts.jsonl, where it is beside the questions,
else those below, which ask the same in our words.
"""

import re
from collections.abc import Awaitable, Callable, Iterator

from autoif.evaluation.benchmarks import Settings, undecided
from autoif.evaluation.judge import assistant, system, user, verdict
from autoif.files import NotSetUp

SETTINGS = Settings(
    temperature="by category",
    max_tokens=1024,
    columns=("MT turn 1", "MT turn 2", "MT-Bench"),
    ratings=("MT turn 1", "MT turn 2", "MT-Bench"),
    judge="gpt-4",
    judge_max_tokens=2048,
)

# As FastChat generates: free text warm, facts nearly cold, the rest greedy.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
REFERENCED = {"math", "reasoning", "coding"}

ASK = """You grade an answer of an AI assistant{about}, impartially. {criteria} Explain your grade \
in a few sentences first. Then rate the answer on a scale from 1 to 10, in exactly this form: \
"[[rating]]", for example: "Rating: [[5]]"."""
QUALITY = "Weigh how helpful, relevant, correct, deep, original and detailed it is."
CORRECTNESS = (
    "Weigh how correct and helpful it is: compare it with the reference answer, name its mistakes "
    "and correct them."
)
SECOND = " to the second question of a conversation"
ONE_TURN = (
    "[Question]\n{question}\n\n{reference}[Start of the answer]\n{answer}\n[End of the answer]"
)
ONE_REFERENCE = "[Start of the reference answer]\n{ref_answer_1}\n[End of the reference answer]\n\n"
TWO_TURNS = (
    "### User:\n{question_1}\n\n### Assistant:\n{answer_1}\n\n"
    "### User:\n{question_2}\n\n### Assistant:\n{answer_2}"
)
TWO_REFERENCES = (
    "[Start of the reference answers]\n"
    "### User:\n{question_1}\n\n### Reference:\n{ref_answer_1}\n\n"
    "### User:\n{question_2}\n\n### Reference:\n{ref_answer_2}\n[End of the reference answers]\n\n"
)

# name: (system prompt, template), by the names of the benchmark's own file
OUR_PROMPTS = {}
for name, criteria, one, two in (
    ("single-v1", QUALITY, "", ""),
    ("single-math-v1", CORRECTNESS, ONE_REFERENCE, TWO_REFERENCES),
):
    first = f"{ASK.format(about='', criteria=criteria)}\n\n{ONE_TURN.replace('{reference}', one)}"
    OUR_PROMPTS[name] = "You are a helpful assistant.", first
    second = ASK.format(about=SECOND, criteria=criteria)
    OUR_PROMPTS[f"{name}-multi-turn"] = second, two + TWO_TURNS


def load(source) -> Iterator[dict]:
    hub, answers = "lighteval/mt-bench", "mt_bench/reference_answer/gpt-4.jsonl"
    if not source.has(answers):  # what questions have as "reference" are hints of a few words
        raise NotSetUp(
            f"no data: {answers} is not in --data-dir; it is fastchat/llm_judge/data/{answers} of "
            "https://github.com/lm-sys/FastChat"
        )
    questions = source.rows("mt_bench/question.jsonl", hub)
    references = {}
    for row in source.rows(answers, hub):
        references[row["question_id"]] = row["choices"][0]["turns"]
    prompts = OUR_PROMPTS
    if source.has("mt_bench/judge_prompts.jsonl"):
        prompts = {}
        for row in source.rows("mt_bench/judge_prompts.jsonl", hub):
            prompts[row["name"]] = row["system_prompt"], row["prompt_template"]
    for row in questions:
        reference = None
        if row["category"] in REFERENCED:
            reference = references.get(row["question_id"])
        kind = "single-math-v1" if reference else "single-v1"
        yield {
            "id": str(row["question_id"]),
            "cluster": str(row["question_id"]),
            "category": row["category"],
            "prompt": row["turns"][0],
            "turns": row["turns"],
            "reference": reference,
            "judge_prompts": [prompts[kind], prompts[f"{kind}-multi-turn"]],
        }


def temperature(item: dict) -> float:
    return TEMPERATURES.get(item["category"], 0.0)


async def answer(item: dict, say: Callable[[list[dict]], Awaitable[dict]]) -> list[dict]:
    """The answers to both turns, the second asked with the first and its answer before it."""
    messages, answers = [], []
    for turn in item["turns"]:
        messages = [*messages, user(turn)]
        answers.append(await say(messages))
        messages = [*messages, assistant(answers[-1]["text"])]
    return answers


def read_rating(text: str) -> float | None:
    """The first number in double brackets, else in single ones."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    return float(found.group(1)) if found else None


async def judge(item: dict, answers: list[dict], client) -> list[tuple[float | None, str]]:
    """[(rating or None, the judge's words)] of the two turns."""
    fields = {"question": item["turns"][0], "answer": answers[0]["text"]}
    for number, (question, sample) in enumerate(zip(item["turns"], answers), 1):
        fields |= {f"question_{number}": question, f"answer_{number}": sample["text"]}
        if item["reference"]:
            fields[f"ref_answer_{number}"] = item["reference"][number - 1]
    ratings = []
    for rules, template in item["judge_prompts"]:
        messages = [system(rules), user(template.format(**fields))]
        ratings.append(await verdict(client, messages, read_rating, SETTINGS.judge_max_tokens))
    return ratings


def score(attempt: dict) -> dict:
    item, ratings = attempt["item"], attempt["judgement"]
    if ratings is None:
        return undecided()
    points: dict[str, list] = {}
    for turn, (rating, _) in enumerate(ratings, 1):
        if rating is not None:
            point = ("", item["cluster"], rating, 1)
            points[f"MT turn {turn}"] = [point]
            points.setdefault("MT-Bench", []).append(point)
    numbers = [rating for rating, _ in ratings]
    return {
        "verdict": numbers,
        "reason": "\n---\n".join(words for _, words in ratings),
        "category": item["category"],
        "unparsable": None in numbers,
        "points": points,
    }
