import importlib
import json

import pytest
from fake_server import FakeServer

from autoif import files
from autoif.files import UserError

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
        stage.main(
            [
                "--model",
                "m",
                "--base-url",
                server.url,
                "--in",
                str(source),
                "--out",
                str(out),
                "--nli",
                "llm",
                *flags,
            ]
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


def test_a_constraint_without_a_label_is_a_counted_drop_not_a_verdict(tmp_path):
    assert run(tmp_path, verified(), lambda hypothesis: "I cannot say") == []
    assert json.loads((tmp_path / "stats.json").read_text())["03_backtranslate"]["dropped"] == {
        "no NLI label": 1
    }


def test_the_split_hangs_on_the_constraint_and_the_seed_alone(tmp_path):
    rows = run(tmp_path, verified(300), lambda hypothesis: "entailment", "--heldout", "0.1")
    heldout = {row["instruction"] for row in rows if row["split"] == "heldout"}
    assert 15 < len(heldout) < 50
    fewer = run(tmp_path, verified(300)[::2], lambda hypothesis: "entailment", "--heldout", "0.1")
    assert {row["instruction"] for row in fewer if row["split"] == "heldout"} == heldout & {
        row["instruction"] for row in fewer
    }
    assert stage.is_heldout("a", 1.0, 0) and not stage.is_heldout("a", 0.0, 0)


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
    labels = list(stage.nli_model(pairs, model, 8))
    assert labels == list(stage.nli_model(iter(pairs), model, 1)) and len(set(labels)) > 1
    swap = {"entailment": "contradiction", "contradiction": "entailment", "neutral": "neutral"}
    assert [swap[label] for label in labels] == list(stage.nli_model(pairs, turned, 8))


def test_a_classifier_with_other_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match="has the labels"):
        list(stage.nli_model([("a", "b")], classifier(tmp_path / "m", ["good", "bad"]), 1))


def test_a_model_that_cannot_be_loaded_is_named_with_the_way_out():
    with pytest.raises(UserError, match="--nli no/such-model cannot be loaded.*--nli llm"):
        list(stage.nli_model([("a", "b")], "no/such-model", 1))
