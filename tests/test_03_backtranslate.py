import importlib
import json

import pytest
from fake_server import FakeServer, command

from autoif import files, nli, replies
from autoif.files import UserError
from autoif.flags import call

stage = importlib.import_module("03_backtranslate")


def verified(count=1, functions=2):
    return [
        {
            "id": f"i{n}",
            "instruction": f"Use exactly {n} words",
            "source": "seed",
            "cases": [],
            "verifiers": [
                {"code": f"def evaluate(response): return {n}  # {f}", "accuracy": 1.0}
                for f in range(functions)
            ],
        }
        for n in range(count)
    ]


def run(tmp_path, rows, labels, *flags):
    """Rows that stage 03 keeps when the supervisor judges as `labels(hypothesis)` says."""
    source, out = tmp_path / "02.jsonl", tmp_path / "03.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(messages, request):
        text = messages[0]["content"]
        return (
            labels(text.split("Hypothesis: ")[1].splitlines()[0])
            if "Hypothesis: " in text
            else "**Answer in " + text.split("return ")[1].splitlines()[0] + "**"
        )

    with FakeServer(answer) as server:
        call(
            stage.main,
            command(*flags, model="m", base_url=server.url, in_=source, out=out, nli="llm"),
        )
    return list(files.read(out))


def test_each_function_is_translated_back_and_judged_against_the_original(tmp_path):
    [row] = run(tmp_path, verified(), lambda hypothesis: "Entailment.")
    assert (
        row["back_translations"] == ["Answer in 0 # 0", "Answer in 0 # 1"]
        and row["nli"] == ["entailment"] * 2
    )


def test_only_contradiction_drops(tmp_path):
    labels = {
        "Answer in 0 # 0": "neutral",
        "Answer in 0 # 1": "entailment",
        "Answer in 1 # 0": "entailment",
        "Answer in 1 # 1": "This is a contradiction",
    }
    rows = run(tmp_path, verified(2), labels.get)
    assert [row["id"] for row in rows] == ["i0"]
    stats = json.loads((tmp_path / "stats.json").read_text())["03_backtranslate"]
    assert stats["dropped"] == {"contradiction": 1} and stats["neutral"] == 1


@pytest.mark.parametrize(
    "text, label",
    [
        ("Entailed.", "entailment"),
        ("The premise entails the hypothesis.", "entailment"),
        ("Contradictory", "contradiction"),
        ("The two contradict each other.", "contradiction"),
        ("Neutral, since this would be a contradiction only in part", "neutral"),
        ("neutral - there is no contradiction, and no entailment either", "neutral"),
        ("It does not contradict the premise and isn't an entailment: neutral", "neutral"),
        ("Not neutral but contradiction", "contradiction"),
        ("I call it neutral rather than a contradiction", "neutral"),
        ("The two are non-contradictory", None),
        (
            "Entailment, neutral and contradiction\nAnswer: **neutral** (no contradiction)",
            "neutral",
        ),
        ('{"label": "contradiction", "reason": "no entailment"}', "contradiction"),
        ("It may be neutral. The relation is entailment, as it is no contradiction", "entailment"),
        ("entailment, neutral or contradiction", None),
        ("Neutral or contradiction", None),
        ("It is no contradiction", None),
    ],
)
def test_the_label_is_the_one_that_a_reply_means(text, label):
    assert replies.label(text, stage.WORDS) == label


def test_a_contradiction_that_is_denied_drops_no_constraint(tmp_path):
    texts = {"Answer in 0 # 0": "Neutral. It is no contradiction, since both can be obeyed."}
    rows = run(tmp_path, verified(1), lambda hypothesis: texts.get(hypothesis, "Entailed"))
    assert [row["nli"] for row in rows] == [["neutral", "entailment"]]


def test_a_judge_that_calls_nearly_all_a_contradiction_is_doubted(tmp_path, capsys):
    labels = {f"Answer in 0 # {number}": "neutral" for number in range(2)}
    rows = run(tmp_path, verified(3), lambda hypothesis: labels.get(hypothesis, "contradiction"))
    assert [row["id"] for row in rows] == ["i0"]
    assert "warning: most labels are contradictions" in capsys.readouterr().out
    (tmp_path / "all").mkdir()
    with pytest.raises(UserError, match="contradiction 2.*--no-back-translation"):
        run(tmp_path / "all", verified(2), lambda hypothesis: "contradiction")


def test_an_nli_model_that_cannot_be_loaded_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    source = tmp_path / "02.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in verified(2)))
    flags = command(model="m", in_=source, out=tmp_path / "03.jsonl", nli="no/such-model")
    words = "--nli no/such-model cannot be loaded.*--nli llm"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no minute of retries
    with FakeServer() as server, pytest.raises(UserError, match=words):
        call(stage.main, [*flags, "--base-url", server.url])
    assert server.requests == []


def test_a_constraint_without_a_label_is_a_counted_drop_not_a_verdict(tmp_path):
    labels = {"Answer in 0 # 0": "I cannot say"}
    rows = run(tmp_path, verified(2), lambda hypothesis: labels.get(hypothesis, "neutral"))
    assert [row["id"] for row in rows] == ["i1"]
    stats = json.loads((tmp_path / "stats.json").read_text())["03_backtranslate"]
    assert stats["dropped"] == {"no NLI label": 1} and stats["no label"] == 1


def test_three_functions_of_a_constraint_are_translated_back(tmp_path):
    [row] = run(tmp_path, verified(functions=5), lambda hypothesis: "entailment")
    assert len(row["back_translations"]) == len(row["nli"]) == 3 and len(row["verifiers"]) == 5


def test_without_back_translation_nothing_is_asked_or_dropped_but_all_is_split(tmp_path):
    source, out = tmp_path / "02.jsonl", tmp_path / "03.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in verified(3)))
    call(stage.main, command("--no-back-translation", in_=source, out=out))
    rows = list(files.read(out))
    assert len(rows) == 3 and {"family", "split"} <= set(rows[0]) and rows[0]["nli"] == []


def test_it_says_how_the_split_fell_what_it_wrote_and_what_comes_next(tmp_path, capsys):
    source, out = tmp_path / "02.jsonl", tmp_path / "03.jsonl"
    tiny = json.dumps(verified(1)[0])
    source.write_text(tiny + "\n")
    call(stage.main, command("--no-back-translation", in_=source, out=out))
    *_, split, nothing, last = capsys.readouterr().out.splitlines()
    assert split == "03_backtranslate: 1 to train on, 0 held out, of 1 families"
    assert "nothing is held out" in nothing
    assert last.startswith(f"wrote {out}; next: python 04_responses.py") and f"--in {out}" in last


def test_another_runs_split_is_taken_over_in_whole_families(tmp_path):
    main = tmp_path / "main.jsonl"
    with files.writer(main) as write:
        write({"id": "i9", "instruction": "Use at most 9 words", "split": "heldout"})
        write({"id": "i8", "instruction": "Use no commas", "split": "train"})
    code = [{"code": "def evaluate(response):\n    return True"}]
    texts = ["Use no commas", "Use at most 5 words", "Use at most 9 words"]
    rows = [{"id": f"i{n}", "instruction": text, "verifiers": code} for n, text in enumerate(texts)]
    given, out = tmp_path / "02.jsonl", tmp_path / "03.jsonl"
    given.write_text("".join(files.dump(row) + "\n" for row in rows))
    flags = command("--no-back-translation", in_=given, out=out, split_of=main)
    call(stage.main, flags)
    assert [row["split"] for row in files.read(out)] == ["train", "heldout", "heldout"]
    main.write_text('{"instruction": "x", "split": "test"}\n')
    with pytest.raises(UserError, match="main.jsonl:1: 'split'"):
        call(stage.main, flags)


def test_when_all_is_contradicted_no_file_is_left_and_the_funnel_says_why(tmp_path):
    with pytest.raises(UserError, match="nothing was kept.*2 in -> 0 kept .contradiction 2"):
        run(tmp_path, verified(2), lambda hypothesis: "contradiction")
    assert not (tmp_path / "03.jsonl").exists() and not (tmp_path / "stats.json").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"verifiers": []}, "02.jsonl:1: 'verifiers' must be a list with at least one element"),
        ({"verifiers": "def"}, "02.jsonl:1: 'verifiers' must be a list"),
        ({"verifiers": [{"accuracy": 1}]}, "02.jsonl:1: 'verifiers' must have 'code'"),
        ({"instruction": 5}, "02.jsonl:1: 'instruction' must be a text, but is 5"),
        ({"id": "i1"}, "02.jsonl:2 has the id 'i1' of line 1"),
    ],
)
def test_a_row_of_the_wrong_form_is_named_before_anything_is_asked(tmp_path, change, words):
    rows = verified(2)
    rows[0].update(change)
    with pytest.raises(UserError, match=words):
        run(tmp_path, rows, lambda hypothesis: pytest.fail("the supervisor was asked"))


def classifier(folder, labels):
    """A random NLI model with a tokenizer, in the format of mDeBERTa's checkpoint."""
    import torch
    from tiny_models import tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=264,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    return str(folder)


def test_the_nli_model_reads_its_labels_from_its_config_and_batches_change_nothing(tmp_path):
    pairs = [(f"Use {n} words", f"Answer in {n * n} words") for n in range(30)]
    order = ["entailment", "neutral", "contradiction"]
    model, turned = (
        classifier(tmp_path / str(n), labels) for n, labels in enumerate([order, order[::-1]])
    )
    labels = nli.load(model, 8)(pairs)
    assert labels == nli.load(model, 1)(pairs) and len(set(labels)) > 1
    assert nli.load(model, 8)([("Use no \ud83d", "a")]) == nli.load(model, 8)([("Use no ?", "a")])
    assert nli.load(model, 8)([]) == []  # where no back-translation has a text
    swap = {"entailment": "contradiction", "contradiction": "entailment", "neutral": "neutral"}
    assert [swap[label] for label in labels] == nli.load(turned, 8)(pairs)


def test_a_classifier_with_other_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match="has the labels"):
        nli.load(classifier(tmp_path / "m", ["good", "bad"]), 1)
