"""Arena-Hard v0.1 (arXiv 2406.11939): win rate against gpt-4-0314, judged in both orders.

The verdict is the last [[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]; a strong win counts three
times, a tie half: for one model and one baseline what the official Bradley-Terry fit gives.
Departures:
 1. The judge's prompt asks the same in our words, with the official verdicts.
 2. A question with an unreadable verdict is asked again, then left out (as there) and counted.
 3. The interval resamples questions; theirs resamples tripled games, which is too narrow.
"""

import re
from collections.abc import Iterator

from autoif.evaluation.benchmarks import Settings, undecided
from autoif.evaluation.judge import system, user, verdict

SETTINGS = Settings(
    temperature=0.0,
    max_tokens=4096,
    columns=("Arena-Hard",),
    judge="gpt-4-1106-preview",
    judge_max_tokens=4096,
)

SYSTEM_PROMPT = """You are an impartial judge of two AI assistants, A and B, who answered the same \
user prompt. Decide which answer is better.

First write your own answer to the prompt, and only then look at theirs. Compare both with yours, \
and name and correct what is wrong or inaccurate in them. Judge whether each answer is helpful (it \
does what was asked; where the prompt is ambiguous, it asks or covers the readings), relevant \
(nothing that was not asked for) and concise (no needless length). Then consider originality and \
what is missing that the user would have needed.

After your explanation give exactly one of these verdicts:
1. Assistant A is significantly better: [[A>>B]]
2. Assistant A is slightly better: [[A>B]]
3. Tie, relatively the same: [[A=B]]
4. Assistant B is slightly better: [[B>A]]
5. Assistant B is significantly better: [[B>>A]]

For example: "My final verdict is tie: [[A=B]]"."""

PAIR_PROMPT = """<|User prompt|>
{prompt}

<|Start of assistant A's answer|>
{first}
<|End of assistant A's answer|>

<|Start of assistant B's answer|>
{second}
<|End of assistant B's answer|>"""

# verdict: (share of the win that goes to A, times the game counts)
OUTCOMES = {"A>>B": (1, 3), "A>B": (1, 1), "A=B": (0.5, 1), "B>A": (0, 1), "B>>A": (0, 3)}
OUTCOMES |= {"B<<A": (1, 3), "B<A": (1, 1), "B=A": (0.5, 1), "A<B": (0, 1), "A<<B": (0, 3)}


def load(source) -> Iterator[dict]:
    def rows(file: str) -> list[dict]:
        here, hub = f"arena_hard/v0.1/{file}", f"data/arena-hard-v0.1/{file}"
        return source.rows(here, "lmarena-ai/arena-hard-auto", hub)

    baseline = {}
    for row in rows("model_answer/gpt-4-0314.jsonl"):
        baseline[row["uid"]] = row["messages"][-1]["content"]["answer"]
    for row in rows("question.jsonl"):
        uid = row["uid"]
        yield {"id": uid, "cluster": uid, "prompt": row["prompt"], "baseline": baseline[uid]}


def read_verdict(text: str) -> str | None:
    """The last verdict in double brackets, else the last in single ones."""
    text = text.upper()
    found = re.findall(r"\[\[([AB<>=]+)\]\]", text) or re.findall(r"\[([AB<>=]+)\]", text)
    return found[-1] if found and found[-1] in OUTCOMES else None


async def judge(item: dict, answers: list[dict], client) -> list[tuple[str | None, str]]:
    """[(verdict or None, the judge's words)] of both games: the baseline is A, then B."""
    baseline, model = item["baseline"], answers[0]["text"]
    games = []
    for first, second in [(baseline, model), (model, baseline)]:
        prompt = PAIR_PROMPT.format(prompt=item["prompt"], first=first, second=second)
        messages = [system(SYSTEM_PROMPT), user(prompt)]
        games.append(await verdict(client, messages, read_verdict, SETTINGS.judge_max_tokens))
    return games


def score(attempt: dict) -> dict:
    games = attempt["judgement"]
    if games is None:
        return undecided()
    verdicts = [verdict for verdict, _ in games]
    reason = "\n---\n".join(words for _, words in games)
    if None in verdicts:
        return undecided(reason)
    (for_baseline, first), (for_model, second) = map(OUTCOMES.get, verdicts)  # who is A
    won, weight = first * (1 - for_baseline) + second * for_model, first + second
    points = {"Arena-Hard": [("", attempt["item"]["cluster"], won, weight)]}
    return {"verdict": verdicts, "reason": reason, "points": points}
