import asyncio
import contextlib

import pytest
from shared_data import DATA, Scripted, needs, sample, values

from autoif.evaluation.benchmarks import followbench
from autoif.evaluation.benchmarks.source import Source
from autoif.evaluation.judge import JUDGE_ATTEMPTS, Unanswered


def item(level: int, category="style", source="quora", target="", example_id=1) -> dict:
    return {
        "id": f"{category}-{example_id}-{level}",
        "cluster": f"{category}-{example_id}",
        "prompt": f"level {level}",
        "category": category,
        "level": level,
        "source": source,
        "example_id": example_id,
        "target": target,
        "history": [f"level {n}" for n in range(level + 1)],
    }


def run(items: list[dict], say, answer="An answer.") -> tuple[list[dict], Scripted]:
    """Judge and score one answer to every item."""
    client, attempts = Scripted(say), []
    for one in items:
        attempt = {"item": one, "sample": 0, "answers": sample(answer), "judgement": None}
        with contextlib.suppress(Unanswered):
            attempt["judgement"] = asyncio.run(followbench.judge(one, attempt["answers"], client))
        attempts.append(attempt)
    rows = [followbench.score(attempt) for attempt in attempts]
    followbench.add_levels(attempts, rows)
    return rows, client


def level_of(request: dict) -> int:
    return request["messages"][0]["content"].count("#Instruction with ")


def always(word: str):
    return lambda request: f"I looked at it.\n{[word] * level_of(request)}"


GROUP = [item(level) for level in range(1, 6)]


def test_a_judge_that_says_yes_gives_full_marks_at_every_level():
    rows, client = run(GROUP, always("YES"))
    found = values(rows)
    assert found["FB SSR"] == found["FB HSR"] == 1 and found["FB CSL"] == 5
    assert [found[f"FB L{level}"] for level in range(1, 6)] == [1] * 5
    assert len(client.requests) == 5


def test_a_judge_that_says_no_gives_zero():
    found = values(run(GROUP, always("NO"))[0])
    assert found["FB SSR"] == found["FB HSR"] == found["FB CSL"] == 0


def test_soft_counts_each_constraint_and_hard_only_all_of_them():
    rows, _ = run([item(4)], lambda request: "['YES', 'YES', 'YES', 'NO']")
    assert values(rows) == {
        "FB L4": 0.75,
        "FB SSR": 0.75,
        "FB HSR": 0,
        "FB HSR L4": 0,
        "FB CSL": 0,
    } or values(rows) == {"FB L4": 0.75, "FB SSR": 0.75, "FB HSR": 0, "FB HSR L4": 0}


def test_csl_ends_at_the_first_level_that_fails():
    rows, _ = run(
        GROUP, lambda request: str(["NO" if level_of(request) == 3 else "YES"] * level_of(request))
    )
    assert values(rows)["FB CSL"] == 2


def test_an_unreadable_judge_is_asked_again_then_left_out_and_counted_never_negative():
    rows, client = run(GROUP, lambda request: "Well, it depends.")
    assert len(client.requests) == 5 * JUDGE_ATTEMPTS
    assert all(row["unparsable"] and row["verdict"] is None and row["points"] == {} for row in rows)


def test_one_readable_retry_is_enough():
    rows, client = run(
        [item(2)], lambda request: "['YES', 'NO']" if request["first"] == 1 else "hm"
    )
    assert rows[0]["soft"] == 0.5 and [request["first"] for request in client.requests] == [0, 1]


def test_a_judge_that_could_not_be_reached_is_no_verdict():
    rows, _ = run([item(1)], lambda request: None)
    assert rows[0]["verdict"] is None and rows[0]["points"] == {}


@pytest.mark.parametrize(
    "words",
    [
        "__import__('os').system('touch /tmp/owned')",
        "[__import__('os')]",
        "['YES']",
        "[" * 9999,
        "[{{'YES'}}, 'NO']",
        "['YES', 'PERHAPS']",
        "('YES', 'NO')",
        "",
    ],
)
def test_judge_text_is_parsed_and_never_run(words):
    assert followbench.read_judgement(f"so\n{words}", 2) is None


def test_a_fenced_list_and_the_owners_other_words_are_read():
    assert followbench.read_judgement("so\n```\n['YES', 'PARTIAL']\n```", 2) == [True, False]


@pytest.mark.parametrize(
    "source, target, good, bad",
    [
        ("E2E", "name: Bibimbap", "name: Bibimbap", "Name: Bibimbap"),
        ("CONLL2003", "['Rome', 'Rome, Italy']", "Rome, Italy", "Italy"),
        ("WIKIEVENTS", "a\nb", "b", "b\nc"),
        ("BBH_logical", "(B)", "Not (A), so (B)", "(A)"),
        ("BBH_time", "01/02/2003", "It is 01/02/2003.", "02/01/2003"),
        ("gsm_8k", "$18", "$5 + $13 = $18", "$1800"),
        ("self_made_space", "left", "turn left here", "right"),
        (
            "gigaword",
            "",
            "one two three four five six seven eight",
            "one two three four five six seven",
        ),
    ],
)
def test_rule_items_are_decided_without_a_judge(source, target, good, bad):
    one = item(1, "content", source, target)
    assert asyncio.run(followbench.judge(one, sample(good), None)) is None
    assert followbench.rule(one)(good) and not followbench.rule(one)(bad)


def test_summary_rules_add_up_with_the_level():
    text = "The stuff he puts off is for the winter."
    verdicts = [followbench.rule(item(level, "content", "samsum"))(text) for level in range(1, 6)]
    assert verdicts == [True] * 5
    assert not followbench.rule(item(4, "content", "samsum"))("His stuff is procrastination.")


def test_an_example_must_have_the_form_of_its_template_on_one_line():
    one = item(1, "example", "aeslc", "{instruction}\n{{'subject': '{answer}'}}")
    assert followbench.rule(one)("{'subject': 'Update on Monday'}")
    assert not followbench.rule(one)("{'subject': 'Update'} Bye") and not followbench.rule(one)(
        "{'subject': 'Up\ndate'}"
    )


@needs("followbench/data/content_constraints.json")
def test_470_items_are_judged_and_350_follow_rules():
    items = list(followbench.load(Source(str(DATA))))
    assert (len(items), sum(followbench.rule(one) is None for one in items)) == (820, 470)
    for say, lowest, highest in ((always("YES"), 0.5, 0.9), (always("NO"), 0.0, 0.05)):
        found = values(run(items, say)[0])
        assert lowest <= found["FB SSR"] <= highest and 0 <= found["FB CSL"] <= 5
    rows, _ = run(items, lambda request: "no list here")
    assert sum(bool(row.get("unparsable")) for row in rows) == 470
    assert all(value >= 0 for value in values(rows).values())
