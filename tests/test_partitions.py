"""ZeRO with weights really apart: two processes, nothing persistent, against a plain loop."""

import json

import partitions
import pytest
import tiny_models
import torch
import transformers

from autoif.training.rows import batches, encode

# five rows a step on two processes in packs of 60 tokens: one pack too few, so that one is empty
BATCH, LR, WARMUP, DECAY, BETAS = 5, 1e-2, 2, 0.1, (0.9, 0.95)


def messages(number):
    return [
        {"role": "user", "content": f"Count to {number}."},
        {"role": "assistant", "content": " ".join(map(str, range(number + 1)))},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    tiny_models.checkpoint(folder / "base", "qwen2")
    rows = [{"id": str(number), "messages": messages(number)} for number in range(8)]
    config = json.loads((tiny_models.ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
    }
    (folder / "ds.json").write_text(json.dumps(config))
    output = tiny_models.finish(
        tiny_models.start(
            "tests/partitions.py",
            str(folder),
            *("--in", tiny_models.write(folder / "rows.jsonl", rows)),
            *("--model", str(folder / "base"), "--ds-config", str(folder / "ds.json")),
            *("--batch", str(BATCH), "--epochs", "2", "--micro-tokens", "60", "--lr", str(LR)),
            *("--warmup-steps", str(WARMUP)),
            processes=2,
        ),
        timeout=600,
    )
    assert "persistent weights: 0" in output
    assert "open in folders that are removed: []" in output
    assert "gradients beside their sums: 0" in output
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """Losses, gradient norms and model of an ordinary loop without DeepSpeed and packs."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    tokenizer = tiny_models.tokenizer("qwen2")
    rows = [encode(tokenizer, both[:1], [both[1:]], "here") for both in map(messages, range(8))]
    matrices = [each for each in model.parameters() if each.dim() > 1]
    vectors = [each for each in model.parameters() if each.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=1e-8)
    plan = batches(len(rows), BATCH, 2, 0)
    schedule = transformers.get_scheduler("linear", optimizer, WARMUP, len(plan))
    losses, norms = [], []
    for step in plan:
        batch = [rows[number] for number in step]
        tokens = sum(len(row["responses"][0]) for row in batch)
        loss = -tiny_models.plain_logprobs(model, batch).sum() / tokens
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses, norms, model


@pytest.mark.parametrize("form", partitions.FORMS)
def test_every_form_of_zero_trains_as_a_plain_loop_does(folder, plain, form):
    losses, norms, model = plain
    rows = tiny_models.metrics(folder / form)
    in_bf16 = form.endswith("bf16")
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=0.05 if in_bf16 else 1e-5)
    if not in_bf16:
        assert [row["norm"] for row in rows] == pytest.approx(norms, rel=1e-3)
        trained = transformers.AutoModelForCausalLM.from_pretrained(folder / form)
        for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
