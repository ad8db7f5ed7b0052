import asyncio

import pytest
from shared_data import DATA, Scripted, needs, rows

from autoif.evaluation import contamination
from autoif.evaluation.benchmarks import gsm8k, humaneval
from autoif.evaluation.benchmarks.source import Source
from autoif.files import UserError
from autoif.flags import call

TEST = (
    "A robe takes two bolts of blue fiber and half that much white fiber; "
    "how many bolts in total does it take?"
)
COPY = f"Answer briefly. {TEST.upper()} Three."
PARAPHRASE = (
    "A garment needs 2 bolts of blue fibre and half of that in white. "
    "What is the number of bolts altogether?"
)
OTHER = (
    "Write a poem about tea in the rain, please, and do not forget the cat "
    "on the roof of the old red house."
)


def test_a_copy_shares_13_words_in_a_row_and_a_paraphrase_does_not():
    assert contamination.overlapping([TEST], [OTHER, COPY]) == {0: 1}
    assert contamination.overlapping([TEST], [OTHER, PARAPHRASE]) == {}


def test_thirteen_words_are_enough_and_twelve_are_not():
    words = TEST.split()
    assert contamination.overlapping([TEST], [" ".join(words[2:15])]) == {0: 0}
    assert contamination.overlapping([TEST], [" ".join(words[2:14])]) == {}


def test_a_short_test_must_be_there_as_a_whole():
    assert contamination.overlapping(["What is tea?"], ["what is TEA really"]) == {0: 0}
    assert contamination.overlapping(["What is tea?", ""], ["what is a cup of tea"]) == {}


HAN = "妈妈去市场买了三斤苹果和两斤梨一共付了二十八元请问苹果每斤多少钱"


def test_a_language_without_blanks_has_a_word_a_character():
    copied = "请回答：" + HAN[3:16] + "？谢谢。"
    assert contamination.overlapping([HAN], ["今天天气很好我们去公园散步吧", copied]) == {0: 1}
    assert contamination.overlapping([HAN], [HAN[3:15]]) == {}
    assert contamination.overlapping(
        ["みかんを三つ買いました"], ["昨日みかんを三つ買いました。"]
    ) == {0: 0}


def test_the_nearest_text_is_found_in_a_language_without_blanks():
    other = "今天天气很好我们去公园散步吧然后回家吃饭"
    near = "妈妈买了苹果三斤、梨两斤，付了二十八元。苹果一斤多少钱？"
    [[(place, cosine)]] = contamination.nearest([HAN], [other, near], 1)
    assert place == 1 and cosine > 0.3


def test_a_check_of_nothing_is_an_error_that_says_why(tmp_path, monkeypatch):
    training = tmp_path / "sft.jsonl"
    training.write_text('{"text": "What is tea?"}\n')
    monkeypatch.setattr(Source, "unreachable", "no network in tests")
    for name, reason in (("gsm8k", "gsm8k: no data"), ("heldout", "heldout is of the same run")):
        with pytest.raises(UserError, match=f"nothing to check .*{reason}.*--data-dir"):
            flags = ["--benchmarks", name, "--data-dir", str(tmp_path)]
            call(contamination.main, [str(training), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["sft.jsonl"]


def test_the_pairs_are_written_beside_the_file_that_is_checked(tmp_path, capsys):
    (tmp_path / "data/gsm8k").mkdir(parents=True)
    row = '{"question": "What is 1 + 1?", "answer": "#### 2"}\n'
    (tmp_path / "data/gsm8k/test.jsonl").write_text(row)
    training = tmp_path / "mine" / "sft.jsonl"
    training.parent.mkdir()
    training.write_text('{"text": "What is tea?"}\n')
    flags = ["--benchmarks", "gsm8k", "--data-dir", str(tmp_path / "data")]
    call(contamination.main, [str(training), *flags])
    written = training.with_name("07_contamination.json")
    assert written.is_file() and str(written) in capsys.readouterr().out


def test_a_file_without_training_text_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    for content in ('{"code": "x"}\n', ""):
        path.write_text(content)
        with pytest.raises(
            UserError,
            match="rows.jsonl holds no training text; its rows need one of prompt, messages",
        ):
            contamination.read_training(str(path))


def test_training_rows_of_every_stage_are_read():
    assert (
        contamination.training_text({"prompt": "p", "responses": [{"text": "a"}, {"text": "b"}]})
        == "p\na\nb"
    )
    assert (
        contamination.training_text(
            {"conversations": [{"from": "human", "value": "v"}], "output": "o"}
        )
        == "v\no"
    )
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]
    assert contamination.training_text({"id": 1, "messages": turns}) == "ask\ntell"
    assert (
        contamination.training_text({"prompt": turns[:1], "chosen": turns[1:], "rejected": []})
        == "ask\ntell"
    )


def says(verdict):
    return Scripted(lambda request: verdict)


def check(*values) -> dict:
    return asyncio.run(contamination.check(*values))


TESTS = [{"id": "7", "prompt": TEST}]


def test_the_judge_decides_on_the_nearest_text():
    judge = says("True")
    found = check("gsm8k", TESTS, [OTHER, PARAPHRASE], judge)
    assert (found["overlap"], found["rephrased"], found["undecided"]) == (0, 1, 0)
    assert PARAPHRASE in judge.requests[0]["messages"][0]["content"]
    assert found["pairs"][0]["nearest row"] == 2 and found["pairs"][0]["rephrased"] is True


def test_an_unreadable_judge_decides_nothing():
    found = check("gsm8k", TESTS, [OTHER, PARAPHRASE], says("True or False, who knows"))
    assert (found["rephrased"], found["undecided"]) == (0, 1)


def test_without_a_judge_the_pairs_are_listed_and_nothing_is_claimed():
    found = check("gsm8k", TESTS, [OTHER, PARAPHRASE], None)
    assert found["rephrased"] is None and found["pairs"][0]["nearest row"] == 2


@needs(
    "llm_decontaminator/rephrase_gsm8k.jsonl",
    "llm_decontaminator/humaneval_python.jsonl",
    "gsm8k/test.jsonl",
    "humaneval/HumanEval.jsonl.gz",
)
@pytest.mark.parametrize(
    "benchmark, file, copied, rephrased",
    [(gsm8k, "rephrase_gsm8k.jsonl", 0, 0.98), (humaneval, "humaneval_python.jsonl", 0.02, 0.85)],
)
def test_lm_syss_rephrased_sets_are_found_by_retrieval_and_a_judge_and_not_by_13_grams(
    benchmark, file, copied, rephrased
):
    items = list(benchmark.load(Source(str(DATA))))
    path = DATA / "llm_decontaminator" / file
    sources = {row["text"]: number for number, row in enumerate(rows(f"llm_decontaminator/{file}"))}
    texts = {item["text"]: number for number, item in enumerate(items)}

    def knows(
        request,
    ):  # a judge that recognises exactly the pairs that are known to be rephrasings
        _, first, second = (
            request["messages"][0]["content"].replace("[Second]\n", "[First]\n").split("[First]\n")
        )
        return str(texts[first.removesuffix("\n\n")] == sources[second])

    name, training = benchmark.__name__.split(".")[-1], contamination.read_training(str(path))
    found = check(name, items, training, Scripted(knows))
    assert found["overlap"] <= copied * len(items)
    assert found["rephrased"] >= rephrased * len(items) and found["undecided"] == 0
