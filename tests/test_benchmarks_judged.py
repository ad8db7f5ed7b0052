import asyncio
import functools
import json
import random

import pytest
from shared_data import DATA, Scripted, needs, sample, values

from autoif.evaluation.benchmarks import arenahard, infobench, mtbench
from autoif.evaluation.benchmarks.source import Source
from autoif.evaluation.judge import JUDGE_ATTEMPTS, ask
from autoif.files import NotSetUp, UserError


def judged(benchmark, item: dict, answers: list[dict], say) -> tuple[dict, Scripted]:
    client = Scripted(say)
    judgement = asyncio.run(benchmark.judge(item, answers, client))
    attempt = {"item": item, "sample": 0, "answers": answers, "judgement": judgement}
    return benchmark.score(attempt), client


# InfoBench

INFO = {
    "id": "1",
    "cluster": "1",
    "input": "the input",
    "prompt": "x",
    "questions": ["Is it short?", "Is it polite?", "In English?"],
}


def test_infobench_asks_one_growing_conversation():
    row, client = judged(infobench, INFO, sample("Hello."), lambda request: "Yes")
    sizes = [len(request["messages"]) for request in client.requests]
    assert sizes == [1, 3, 5] and "the input" in client.requests[0]["messages"][0]["content"]
    assert client.requests[2]["messages"][-1]["content"] == "In English?\n"
    assert row["points"]["InfoBench"] == [("", "1", 3, 3)] and row["verdict"] is True


def test_infobench_leaves_an_unreadable_question_out_and_still_asks_the_others():
    row, client = judged(
        infobench,
        INFO,
        sample("Hello."),
        lambda request: (
            "Perhaps" if request["messages"][-1]["content"].startswith("Is it polite") else "NO."
        ),
    )
    assert (
        row["verdicts"] == [False, None, False]
        and row["unparsable"]
        and row["points"]["InfoBench"] == [("", "1", 0, 2)]
    )
    assert len(client.requests) == 2 + JUDGE_ATTEMPTS


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("Yes, it is", True),
        ("no", False),
        ("The answer is YES.", True),
        ("The answer: NO", False),
        ("Either YES or NO", None),
        ("None of the sentences does", False),
        ("Not sure", False),  # as the owners read it
        ("**No**, it is not", False),
        ("It depends", None),
        ("", None),
    ],
)
def test_infobench_reads_the_first_word_or_the_only_one(text, verdict):
    assert infobench.read_judgement(text) is verdict


def test_infobench_reads_rows_as_the_hub_has_them(tmp_path):
    (tmp_path / "infobench").mkdir()
    (tmp_path / "infobench/InfoBench.json").write_text(
        '{"id": "user_1", "input": "", "instruction": "Name a drink.", '
        '"decomposed_questions": ["Is it a drink?"]}\n'
        '{"id": "user_2", "input": "tea", "instruction": "Translate.", '
        '"decomposed_questions": ["German?", "One word?"]}\n'
    )
    items = list(infobench.load(Source(str(tmp_path))))
    assert [item["prompt"] for item in items] == ["Name a drink.", "Translate.\n\ntea"]


# MT-Bench


def question(category="writing", reference=None, prompts=mtbench.OUR_PROMPTS) -> dict:
    kind = "single-math-v1" if reference else "single-v1"
    return {
        "id": "81",
        "cluster": "81",
        "category": category,
        "prompt": "Q1?",
        "turns": ["Q1?", "Q2?"],
        "reference": reference,
        "judge_prompts": [prompts[kind], prompts[f"{kind}-multi-turn"]],
    }


def test_mtbench_asks_the_second_turn_after_the_first_answer_at_the_categorys_temperature():
    client = Scripted(lambda request: f"A{len(request['messages'])}")
    say = functools.partial(ask, client, temperature=mtbench.temperature(question()))
    answers = asyncio.run(mtbench.answer(question(), say))
    assert [answer["text"] for answer in answers] == ["A1", "A3"]
    assert client.requests[1]["messages"][1] == {"role": "assistant", "content": "A1"}
    assert {request["temperature"] for request in client.requests} == {0.7}


def test_mtbench_shows_turn_2_the_whole_conversation_and_math_its_reference():
    row, client = judged(
        mtbench,
        question("math", ["R1", "R2"]),
        sample("A1", "A2"),
        lambda request: "Fine. Rating: [[7]]",
    )
    first, second = (
        " ".join(turn["content"] for turn in request["messages"]) for request in client.requests
    )
    assert (
        "R1" in first
        and "A2" not in first
        and all(part in second for part in ("Q1?", "A1", "Q2?", "A2", "R1", "R2"))
    )
    assert values([row]) == {"MT turn 1": 7, "MT turn 2": 7, "MT-Bench": 7}


def test_mtbench_leaves_an_unreadable_rating_out_of_the_mean_and_counts_it():
    second = "second question"
    row, _ = judged(
        mtbench,
        question(),
        sample("A1", "A2"),
        lambda request: "no rating" if second in request["messages"][0]["content"] else "[[9]]",
    )
    assert (
        row["unparsable"]
        and row["verdict"] == [9, None]
        and values([row]) == {"MT turn 1": 9, "MT-Bench": 9}
    )


@pytest.mark.parametrize(
    "text, rating",
    [
        ("Rating: [[5]]", 5),
        ("[[8.5]]", 8.5),
        ("Rating: [7]", 7),
        ("[[11]]", 11),
        ("[[0]]", 0),
        ("5", None),
        ("see [1] ... Rating: [[3]]", 3),
        ("", None),
    ],
)
def test_mtbench_reads_ratings(text, rating):
    assert mtbench.read_rating(text) == rating


@needs("mt_bench/question.jsonl", "mt_bench/judge_prompts.jsonl")
def test_mtbench_uses_the_benchmarks_own_judge_prompts_where_they_are():
    items = list(mtbench.load(Source(str(DATA))))
    assert len(items) == 80 and sum(item["reference"] is not None for item in items) == 30
    assert items[0]["judge_prompts"] != [
        mtbench.OUR_PROMPTS["single-v1"],
        mtbench.OUR_PROMPTS["single-v1-multi-turn"],
    ]
    for item in items:
        row, client = judged(mtbench, item, sample("A1", "A2"), lambda request: "[[4]]")
        assert row["verdict"] == [4, 4] and len(client.requests) == 2


# Arena-Hard

PAIR = {"id": "q", "cluster": "q", "prompt": "Write a poem.", "baseline": "BASELINE"}


def test_arenahard_swaps_sides_and_counts_a_strong_win_three_times():
    def say(request):
        text = request["messages"][1]["content"]
        return "[[B>>A]]" if text.index("BASELINE") < text.index("MINE") else "[[A=B]]"

    row, client = judged(arenahard, PAIR, sample("MINE"), say)
    assert len(client.requests) == 2 and row["verdict"] == ["B>>A", "A=B"]
    assert row["points"]["Arena-Hard"] == [("", "q", 3.5, 4)]


def test_arenahard_drops_a_question_with_an_unreadable_verdict_and_counts_it():
    row, client = judged(
        arenahard,
        PAIR,
        sample("MINE"),
        lambda request: (
            "[[A>B]]"
            if "MINE" in request["messages"][1]["content"].split("assistant B")[0]
            else "?"
        ),
    )
    assert row["unparsable"] and row["points"] == {} and len(client.requests) == 1 + JUDGE_ATTEMPTS


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("[[A>B]] no, [[b>>a]]", "B>>A"),
        ("[[A>>>B]]", None),
        ("[[C]]", None),
        ("A>B", None),
        ("[B>A]", "B>A"),
        ("[[A<<B]]", "A<<B"),
    ],
)
def test_arenahard_reads_the_last_verdict(text, verdict):
    assert arenahard.read_verdict(text) == verdict


def test_arenahard_equals_bradley_terry_for_one_model():
    np, linear_model = pytest.importorskip("numpy"), pytest.importorskip("sklearn.linear_model")
    rng = random.Random(0)
    rows, features, outcomes = [], [], []
    for number in range(200):
        games = [(rng.choice(list(arenahard.OUTCOMES)), "") for _ in range(2)]
        item = {**PAIR, "cluster": str(number)}
        rows.append(arenahard.score({"item": item, "judgement": games}))
        for game, (verdict, _) in enumerate(games):
            for_a, times = arenahard.OUTCOMES[verdict]
            model = for_a if game == 1 else 1 - for_a
            # the official fit: strong wins three times; every battle doubled, a tie once each way
            for won in ([0, 1] if model == 0.5 else [model, model]) * times:
                features.append([1.0])
                outcomes.append(int(won))
    fit = linear_model.LogisticRegression(fit_intercept=False, C=1e9, tol=1e-10).fit(
        np.array(features), np.array(outcomes)
    )
    assert values(rows)["Arena-Hard"] == pytest.approx(1 / (1 + np.exp(-fit.coef_[0][0])), abs=1e-6)


@needs("arena_hard/v0.1/question.jsonl", "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl")
def test_every_arenahard_question_has_its_baseline_answer():
    items = list(arenahard.load(Source(str(DATA))))
    assert len(items) == 500 and all(item["baseline"].strip() for item in items)


def test_arenahard_takes_mirrored_verdicts_for_what_they_say():
    for verdict, mirrored in (
        ("A>>B", "B<<A"),
        ("A>B", "B<A"),
        ("A=B", "B=A"),
        ("B>A", "A<B"),
        ("B>>A", "A<<B"),
    ):
        assert arenahard.OUTCOMES[verdict] == arenahard.OUTCOMES[mirrored]


# Data that is not there


def test_mtbench_of_the_hub_is_graded_with_gpt_4s_answers_and_not_with_its_hints(
    monkeypatch, tmp_path
):
    import datasets

    rows = [
        {
            "question_id": 111,
            "category": "math",
            "turns": ["One?", "Two?"],
            "reference": ["1", "2"],
        },
        {"question_id": 81, "category": "writing", "turns": ["Write.", "More."], "reference": []},
    ]
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    monkeypatch.setattr(Source, "unreachable", "")  # whatever test found it so
    load = datasets.load_dataset  # a folder is loaded as a dataset of the hub is
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: load(str(tmp_path / "hub"), split=split)
    )
    with pytest.raises(NotSetUp, match="reference_answer/gpt-4.jsonl is not in --data-dir.*FastCh"):
        list(mtbench.load(Source(None)))
    answers = tmp_path / "data/mt_bench/reference_answer/gpt-4.jsonl"
    answers.parent.mkdir(parents=True)
    answer = {"question_id": 111, "choices": [{"turns": ["It is 1.", "It is 2."]}]}
    answers.write_text(json.dumps(answer) + "\n")
    math, writing = list(mtbench.load(Source(str(tmp_path / "data"))))
    assert (
        math["reference"] == ["It is 1.", "It is 2."]
        and writing["reference"] is None
        and math["turns"] == ["One?", "Two?"]
    )
    assert math["judge_prompts"][0] == mtbench.OUR_PROMPTS["single-math-v1"]


def test_missing_data_says_what_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(Source, "unreachable", "no network in tests")
    with pytest.raises(
        UserError, match="infobench/InfoBench.json does not exist.*kqsong/InFoBench"
    ):
        list(infobench.load(Source(str(tmp_path))))
