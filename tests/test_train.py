"""autoif.train, packed, checkpoints, metrics: what both training stages rest on."""

import argparse
import math
from types import SimpleNamespace

import pytest
import tiny_models
import torch
import transformers

from autoif.files import UserError
from autoif.training import engine as train
from autoif.training import packed
from autoif.training.checkpoints import Checkpoints
from autoif.training.log import Log

ASK = [{"role": "user", "content": "Say hi."}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def plain_logprobs(model, rows):
    """Summed log-probability of each response by one unpacked forward pass each."""
    found = []
    for row in rows:
        for response in row["responses"]:
            ids = torch.tensor([row["prompt"] + response])
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(each[len(row["prompt"]) - 1 :].sum())
    return torch.stack(found)


@pytest.mark.parametrize("responses", [1, 2, 3])
@pytest.mark.parametrize("model_type", train.MODELS)
def test_packed_rows_have_the_logprobs_and_gradients_of_single_rows(
    model_type, responses, monkeypatch
):
    monkeypatch.setattr(packed, "CHUNK", 7)
    rows = tiny_models.random_rows(responses, 4)
    plain, model = tiny_models.model(model_type), tiny_models.model(model_type, "packed")
    expected, found = (
        plain_logprobs(plain, rows),
        packed.ResponseLogprobs(model)(**packed.pack(rows)),
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 2, len(found))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_the_prompt_of_two_responses_is_computed_once():
    rows = [{"prompt": [1] * 50, "responses": [[2] * 5, [3] * 6]}]
    assert packed.pack(rows)["input_ids"].shape[1] == 50 + 4 + 5


def test_prompt_tokens_are_no_targets_and_the_end_token_is_one():
    batch = packed.pack(
        [{"prompt": [5, 6, 7], "responses": [[8, 9, 0]]}, {"prompt": [5, 6], "responses": [[9, 0]]}]
    )
    assert batch["targets"].tolist() == [8, 9, 0, 9, 0]
    assert batch["owner"].tolist() == [0, 0, 0, 1, 1]


def test_no_more_than_a_chunk_of_logits_exists_at_one_time(monkeypatch):
    monkeypatch.setattr(packed, "CHUNK", 8)
    sizes, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(
        packed.F,
        "linear",
        lambda hidden, weight: sizes.append(len(hidden)) or linear(hidden, weight),
    )
    hidden, weight = torch.randn(50, 4, requires_grad=True), torch.randn(30, 4, requires_grad=True)
    packed.Head(SimpleNamespace(weight=torch.nn.Parameter(weight.detach())))(
        hidden, torch.arange(50) % 30
    ).sum().backward()
    assert max(sizes) == 8 and sum(sizes) == 2 * 50


def test_flash_attention_is_called_with_the_same_segments(monkeypatch):
    """flash-attn needs a GPU; a stand-in with its documented meaning shows that our arguments describe the segments."""

    def stand_in(q, k, v, q_ends, k_ends, q_max, k_max, dropout_p, softmax_scale, causal):
        assert causal and q_max == q_ends.diff().max() and k_max == k_ends.diff().max()
        out = []
        for a, b, c, d in zip(q_ends[:-1], q_ends[1:], k_ends[:-1], k_ends[1:]):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril((d - c) - (b - a))
            keys, values = (
                each[c:d].repeat_interleave(2, dim=1).transpose(0, 1) for each in (k, v)
            )
            out.append(
                torch.nn.functional.scaled_dot_product_attention(
                    q[a:b].transpose(0, 1), keys, values, mask, scale=softmax_scale
                ).transpose(0, 1)
            )
        return torch.cat(out)

    monkeypatch.setattr(packed, "flash_attn_varlen_func", stand_in)
    batch = packed.pack(tiny_models.random_rows(2, 3))
    length, segments = batch["input_ids"].shape[1], batch["segments"]
    query, key, value = (
        torch.randn(1, 4, length, 8),
        torch.randn(1, 2, length, 8),
        torch.randn(1, 2, length, 8),
    )
    expected, _ = packed.attention(None, query, key, value, None, 0.3, segments=segments)
    torch.testing.assert_close(packed._flash(query, key, value, segments, 0.3, 0.0), expected)


@pytest.mark.parametrize(
    "kind, prompt, response",
    [
        (
            "smollm2",
            "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n",
            "Hi!<|im_end|>",
        ),
        ("qwen2", "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n", "Hi!<|im_end|>"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSay hi.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "Hi!<|eot_id|>",
        ),
        ("base", "User: Say hi.\nAssistant: ", "Hi!</s>"),
    ],
)
def test_rows_go_through_the_chat_template_and_end_with_its_end_token(
    kind, prompt, response, tmp_path
):
    folder = tiny_models.checkpoint(tmp_path, kind)
    tokenizer = train.load_tokenizer(argparse.Namespace(model=folder, chat_template=None))
    row = train.encode(tokenizer, ASK, [answer("Hi!")], "here")
    assert (tokenizer.decode(row["prompt"]), tokenizer.decode(row["responses"][0])) == (
        prompt,
        response,
    )


def test_a_tokenizer_without_end_token_is_an_error(tmp_path):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token"):
        train.load_tokenizer(argparse.Namespace(model=str(tmp_path), chat_template=None))


@pytest.mark.parametrize(
    "prompt, response, message",
    [
        ([{"role": "wizard", "content": "x"}], answer("Hi"), "unknown role 'wizard'"),
        ([], answer("Hi"), "must end with the user's message"),
        (ASK, answer("  "), "empty response"),
        (ASK, answer(None), "empty response"),
        (ASK, ASK, "must be one assistant message"),
    ],
)
def test_bad_messages_are_errors_that_name_the_row(prompt, response, message):
    with pytest.raises(UserError, match=f"rows.jsonl:7: .*{message}"):
        train.encode(tiny_models.tokenizer("smollm2"), prompt, [response], "rows.jsonl:7")


def test_long_rows_and_special_tokens_in_a_response_are_counted_not_cut(tmp_path, capsys):
    tokenizer = tiny_models.tokenizer("smollm2")
    texts = {"good": "Hi!", "long": "Hi" * 90, "stops": "Hi <|im_end|> there"}
    rows = [
        {"id": name, **train.encode(tokenizer, ASK, [answer(text)], name)}
        for name, text in texts.items()
    ]
    args = argparse.Namespace(max_length=100, out=str(tmp_path / "model"), input="x")
    assert [row["id"] for row in train.usable("05_sft", rows, tokenizer, args, 0)] == ["good"]
    assert (
        "3 in -> 1 kept (longer than 100 tokens 1, special token inside a response 1)"
        in capsys.readouterr().out
    )


def test_every_step_has_the_global_batch_and_every_row_comes_once_an_epoch():
    plan = train.plan(rows=10, batch=4, epochs=3, seed=0)
    assert [len(batch) for batch in plan] == [4] * 8
    order = [row for batch in plan for row in batch]
    assert all(sorted(order[epoch * 10 : epoch * 10 + 10]) == list(range(10)) for epoch in range(3))
    assert plan == train.plan(10, 4, 3, 0) != train.plan(10, 4, 3, 1)


def test_the_ranks_share_a_batch_without_loss_or_repetition():
    rows = tiny_models.random_rows(2, 24)
    shares = [
        [row["id"] for micro in train.micro_batches(rows, 2, rank, 3) for row in micro]
        for rank in range(3)
    ]
    assert sorted(sum(shares, [])) == sorted(row["id"] for row in rows) and {
        len(share) for share in shares
    } == {8}


def test_accumulation_keeps_the_batch_and_shows_the_arithmetic_when_it_cannot():
    assert train.accumulation(128, 2, 8) == 8
    with pytest.raises(
        UserError,
        match=r"--batch 128 is no multiple of --micro-batch 3 x 8 processes = 24.*128 / 8 = 16",
    ):
        train.accumulation(128, 3, 8)


def test_flags_fill_the_deepspeed_settings():
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    args = parser.parse_args(["--micro-batch", "4", "--precision", "fp32", "--offload"])
    args.batch = 64
    config = train.deepspeed_config(args, world=8)
    assert (
        config["train_batch_size"],
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
    ) == (64, 4, 2)
    assert config["bf16"] == {"enabled": False} and config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_models_that_packing_was_not_checked_for_are_refused(tmp_path):
    args = argparse.Namespace(max_length=8192)
    transformers.AutoConfig.for_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'gemma2' model"):
        train.load_model(str(tmp_path), args, {})
    transformers.AutoConfig.for_model("mistral", sliding_window=4096).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--max-length 4096 or less"):
        train.load_model(str(tmp_path), args, {})


def run_args(folder, **changes):
    return argparse.Namespace(
        **{
            "out": str(folder / "model"),
            "model": "no/such",
            "keep_checkpoints": False,
            "lr": 1.0,
            "divergence": 10.0,
            "wandb": None,
            **changes,
        }
    )


def test_other_settings_do_not_resume_a_begun_run(tmp_path):
    rows = tiny_models.random_rows(1, 2)
    Checkpoints(run_args(tmp_path), rows, 1, 0)
    Checkpoints(run_args(tmp_path, wandb="project"), rows, 1, 0)
    with pytest.raises(UserError, match="lr was 1.0, is 2.0"):
        Checkpoints(run_args(tmp_path, lr=2.0), rows, 1, 0)
    with pytest.raises(UserError, match="processes was 1, is 2"):
        Checkpoints(run_args(tmp_path), rows, 2, 0)


def test_a_finished_model_is_not_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    Checkpoints(run_args(tmp_path), tiny_models.random_rows(1, 2), 1, 0)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(UserError, match="exists; delete it"):
        Checkpoints(run_args(tmp_path), tiny_models.random_rows(1, 2), 1, 0)


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (1.0, math.inf), (1.0, 11.0)])
def test_a_diverging_step_stops_with_its_number_and_the_batch_ids(tmp_path, loss, norm):
    (tmp_path / "model.state").mkdir()
    log = Log(run_args(tmp_path), total=50, done=0, rank=0)
    for step in range(1, 21):
        log.step(step, {"loss": 1.0}, 1e-6, 1.0, 100, ["a"])
    with pytest.raises(UserError, match=r"stopped at step 21: .*\(row-3, row-9\)"):
        log.step(21, {"loss": loss}, 1e-6, norm, 100, ["row-3", "row-9"])


def test_steps_after_the_resume_point_are_logged_once(tmp_path):
    (tmp_path / "model.state").mkdir()
    for done, last in ((0, 5), (3, 4)):
        log = Log(run_args(tmp_path), total=6, done=done, rank=0)
        for step in range(done + 1, last + 1):
            log.step(step, {"loss": 1.0}, 1e-6, 1.0, 100, ["a"])
    assert [row["step"] for row in tiny_models.metrics(str(tmp_path / "model.state"))] == [
        1,
        2,
        3,
        4,
    ]
