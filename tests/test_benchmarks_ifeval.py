import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import DATA, needs, rows, sample, values

from autoif.evaluation.benchmarks import ifbench, ifeval, punkt
from autoif.evaluation.benchmarks.source import Source
from autoif.files import UserError

ROOT = Path(__file__).resolve().parents[1]


def item(*instructions: tuple[str, dict], key: int = 7) -> dict:
    return ifeval.items(
        [
            {
                "key": key,
                "prompt": "Say something.",
                "instruction_id_list": [name for name, _ in instructions],
                "kwargs": [kwargs for _, kwargs in instructions],
            }
        ]
    )[0]


NO_COMMA = ("punctuation:no_comma", {})
LOWER = ("change_case:english_lowercase", {"num_words": None})


def score(an_item: dict, text: str) -> dict:
    return ifeval.score({"item": an_item, "sample": 0, "answers": sample(text)})


ROW = {
    "key": 12,
    "prompt": "Say something.",
    "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
    "kwargs": [{"num_words": 3, "relation": "at least", "letter": None}, {}],
}


def load(tmp_path, **fields) -> list[dict]:
    path = tmp_path / "ifeval/input_data.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**ROW, **fields}) + "\n")
    return ifeval.load(Source(str(tmp_path)))


@pytest.mark.parametrize("dumped", [json.dumps, lambda kwargs: list(map(json.dumps, kwargs))])
def test_ids_and_kwargs_may_be_json_text(tmp_path, dumped):
    assert load(tmp_path, kwargs=dumped(ROW["kwargs"])) == load(tmp_path)
    ids = json.dumps(ROW["instruction_id_list"])
    assert load(tmp_path, instruction_id_list=ids) == load(tmp_path)
    assert load(tmp_path)[0]["kwargs"] == [{"num_words": 3, "relation": "at least"}, {}]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"kwargs": [{}]}, "an object of kwargs for each of its 2 instructions"),
        ({"kwargs": "[{}, "}, "an object of kwargs for each of its 2 instructions"),
        ({"kwargs": [None, {}]}, "an object of kwargs for each of its 2 instructions"),
        ({"instruction_id_list": "a:b"}, "an object of kwargs for each of its 0 instructions"),
        ({"instruction_id_list": [], "kwargs": []}, "each of its 0 instructions"),
        ({"instruction_id_list": ["a:b", "c:d"]}, "the unknown instruction 'a:b'"),
        ({"kwargs": [{"words": 3}, {}]}, "number_words does not take {'words': 3}"),
    ],
)
def test_a_row_that_no_checker_fits_is_named_before_it_is_asked(tmp_path, fields, words):
    state = random.getstate()
    with pytest.raises(
        UserError, match=f"input_data.jsonl: the row with the key '?12'? ?.*{words}"
    ):
        load(tmp_path, **fields)
    assert random.getstate() == state


def test_an_instruction_that_is_missed_fails_the_prompt_and_is_named():
    row = score(item(NO_COMMA, LOWER), "I like tea and the other hot drinks of this world")
    assert row["strict"] == [True, False] and row["verdict"] is False
    assert row["reason"] == "misses change_case:english_lowercase"
    assert row["points"]["Ins(S)"] == [("", "7", 1, 2)]


def test_loose_forgives_a_first_line_and_strict_does_not():
    row = score(item(NO_COMMA), "Sure, here it is:\nI like tea")
    assert row["strict"] == [False] and row["loose"] == [True]


def test_an_empty_answer_fails_everything():
    row = score(item(NO_COMMA), " \n")
    assert row["strict"] == [False] and row["loose"] == [False]


def test_a_letter_left_to_chance_is_the_same_on_every_run():
    drawn = item(
        (
            "keywords:letter_frequency",
            {"letter": "#", "let_frequency": 3, "let_relation": "at least"},
        )
    )
    text = "a bb ccc dddd eeeee fff ggg hhh"
    verdicts = set()
    for seed in range(20):
        random.seed(seed)
        state = random.getstate()
        verdicts.add(str(score(drawn, text)["strict"]))
        assert random.getstate() == state, "the caller's random numbers were disturbed"
    assert len(verdicts) == 1


def test_sentences_are_counted_without_network_or_nltk_data(tmp_path):
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]);"
        "from autoif.evaluation.benchmarks import ifeval;"
        "registry = ifeval.checkers('lm_eval', 'lm_eval.tasks', 'lm_eval.tasks.ifeval');"
        "checker = registry['length_constraints:number_sentences']('x');"
        "checker.build_description(num_sentences=2, relation='less than');"
        "print(checker.check_following('Dr. Smith paid 3.50 dollars.'));"
        "print(checker.check_following('One. Two. Three.'))"
    )
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert "Downloaded" not in done.stdout and "Error" not in done.stderr


@needs("nltk_data/tokenizers/punkt_tab/english")
def test_the_sentence_model_from_the_package_is_nltks(tmp_path):
    punkt.write(tmp_path / "english")
    for file in (DATA / "nltk_data/tokenizers/punkt_tab/english").iterdir():
        ours = (tmp_path / "english" / file.name).read_text(encoding="utf-8")
        assert set(ours.split("\n")) - {""} == set(file.read_text(encoding="utf-8").split("\n")) - {
            ""
        }, file.name


def test_an_answer_that_a_checker_falls_over_follows_nothing():
    item = {"id": "0", "instruction_ids": ["detectable_format:json_format"], "kwargs": [{}]}
    item |= {"prompt": "Answer in JSON.", "cluster": "0"}
    row = ifeval.score({"item": item, "sample": 0, "answers": sample("[" * 100_000)})
    assert row["strict"] == row["loose"] == [False]


@pytest.fixture(scope="module")
def gpt4() -> list[dict]:
    answers = {row["prompt"].strip(): row["response"] for row in rows("ifeval/gpt4_answers.jsonl")}
    items = ifeval.load(Source(str(DATA)))
    return [
        {"item": one, "sample": 0, "answers": sample(answers.get(one["prompt"].strip(), ""))}
        for one in items
    ]


@needs("ifeval/input_data.jsonl", "ifeval/gpt4_answers.jsonl")
def test_the_published_gpt4_answers_score_as_published_within_one_prompt_twice_the_same(gpt4):
    found = values([ifeval.score(attempt) for attempt in gpt4])
    for name, published, prompt in (
        ("Pr(S)", 76.9, 541),
        ("Ins(S)", 83.6, 834),
        ("Pr(L)", 79.3, 541),
        ("Ins(L)", 85.4, 834),
    ):
        assert 100 * found[name] == pytest.approx(published, abs=100 / prompt + 0.05), name
    assert values([ifeval.score(attempt) for attempt in gpt4]) == found


@needs("ifeval/input_data.jsonl", "ifeval/gpt4_answers.jsonl")
def test_every_verdict_equals_lm_evals(gpt4):
    from langdetect import DetectorFactory

    scored = [ifeval.score(attempt) for attempt in gpt4]
    from lm_eval.tasks.ifeval import utils

    DetectorFactory.seed = 0
    for attempt, row in zip(gpt4, scored, strict=True):
        item = attempt["item"]
        theirs = utils.InputExample(
            item["id"], item["instruction_ids"], item["prompt"], item["kwargs"]
        )
        for name, test in (
            ("strict", utils.test_instruction_following_strict),
            ("loose", utils.test_instruction_following_loose),
        ):
            random.seed(item["id"])  # lm-eval seeds nothing: give both the same draw
            verdicts = test(theirs, attempt["answers"][0]["text"]).follow_instruction_list
            assert row[name] == verdicts, (item["id"], name)


def test_an_answer_that_a_checker_trips_over_has_failed(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)  # no network in tests
    (item,) = ifeval.items(
        [
            {
                "key": "5",
                "prompt": "Say.",
                "instruction_id_list": ["format:quote_unquote"],
                "kwargs": [{}],
            }
        ]
    )
    for text in ("...", "''", "---\n---"):
        row = ifbench.score({"item": item, "sample": 0, "answers": sample(text)})
        assert row["verdict"] is False


def test_ifbench_checks_its_own_constraints_and_counts_prompts_whose_nltk_data_is_missing(
    monkeypatch,
):
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)  # no network in tests
    monkeypatch.setattr(nltk.data, "path", [path for path in nltk.data.path if "autoif" in path])
    space, stop = ifeval.items(
        [
            {
                "key": "3",
                "prompt": "Say.",
                "instruction_id_list": ["format:no_whitespace"],
                "kwargs": [{"N": None}],
            },
            {
                "key": "4",
                "prompt": "Say.",
                "instruction_id_list": ["ratio:stop_words"],
                "kwargs": [{"percentage": 50, "N": None}],
            },
        ]
    )
    scored = []
    for item, text in ((space, "nospacehere"), (space, "two words"), (stop, "a b c")):
        scored.append(ifbench.score({"item": item, "sample": 0, "answers": sample(text)}))
    assert [row["verdict"] for row in scored] == [True, False, None]
    assert values(scored)["IFB Pr(S)"] == 0.5
    assert scored[2]["unparsable"] and "stopwords" in scored[2]["reason"]
