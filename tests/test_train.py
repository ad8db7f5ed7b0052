"""autoif.training: what both training stages rest on."""

import argparse
import errno
import inspect
import math
import sys
from types import SimpleNamespace

import pytest
import tiny_models
import torch
import transformers

from autoif.files import UserError
from autoif.training import arithmetic, packed, rows
from autoif.training import engine as train
from autoif.training.checkpoints import Checkpoints, binding
from autoif.training.log import Log

ASK = [{"role": "user", "content": "Say hi."}]


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("responses", [1, 2, 3])
@pytest.mark.parametrize("model_type", train.MODELS)
def test_packed_rows_have_the_logprobs_and_gradients_of_single_rows(
    model_type, responses, monkeypatch
):
    monkeypatch.setattr(packed, "LOGIT_TOKENS", 7)
    made = tiny_models.random_rows(responses, 4)
    plain, model = tiny_models.model(model_type), tiny_models.model(model_type, "packed")
    expected = tiny_models.plain_logprobs(plain, made)
    found = packed.ResponseLogprobs(model)(**packed.pack(made))
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
    monkeypatch.setattr(packed, "LOGIT_TOKENS", 8)
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


def plain_varlen(q, k, v, q_ends, k_ends, q_max, k_max, *, scale, window_size, enable_gqa):
    """What PyTorch's varlen_attn is documented to compute, shapes (T, H, D)."""
    assert window_size == (-1, 0) and enable_gqa and q_ends.dtype == k_ends.dtype == torch.int32
    assert q_max == q_ends.diff().max() and k_max == k_ends.diff().max()
    assert q_ends[-1] == len(q) and k_ends[-1] == len(k) == len(v) and q_ends.diff().min() > 0
    group, out = q.shape[1] // k.shape[1], []
    for a, b, c, d in zip(q_ends[:-1], q_ends[1:], k_ends[:-1], k_ends[1:]):
        keys, values = (each[c:d].repeat_interleave(group, dim=1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scale
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril((d - c) - (b - a))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(out)


def plain_flash_attn(q, k, v, q_ends, k_ends, q_max, k_max, *, softmax_scale, causal):
    """flash_attn_varlen_func's form of the same arguments."""
    assert causal
    settings = {"scale": softmax_scale, "window_size": (-1, 0), "enable_gqa": True}
    return plain_varlen(q, k, v, q_ends, k_ends, q_max, k_max, **settings)


def states(responses):
    """A pack's segments, and random query, key and value states of it."""
    batch = packed.pack(tiny_models.random_rows(responses, 3))
    length = batch["input_ids"].shape[1]
    shapes = [(1, 4, length, 8), (1, 2, length, 8), (1, 2, length, 8)]
    return batch["segments"], [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", ["varlen", "flash_attn"])
@pytest.mark.parametrize("responses", [1, 2, 3])
def test_flash_attention_gets_the_segments_that_sdpa_computes(responses, name, monkeypatch):
    """Both kernels need a GPU; a plain one shows that our arguments describe the segments."""
    monkeypatch.setattr(packed, "varlen_attn", plain_varlen)
    module = SimpleNamespace(flash_attn_varlen_func=plain_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    segments, inputs = states(responses)
    expected, _ = packed.attention(None, *inputs, None, 0.3, segments=segments)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    monkeypatch.setattr(packed, "kernel", lambda *_: (getattr(packed, name), name))
    found, _ = packed.attention(None, *inputs, None, 0.3, segments=segments)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found.square().sum(), inputs), expected_grads):
        torch.testing.assert_close(ours, theirs)


def test_varlen_attn_takes_the_arguments_that_are_checked_above():
    """PyTorch's own signature, so that a renamed argument is found without a GPU."""
    names = inspect.signature(packed.varlen_attn).parameters
    assert [*inspect.signature(plain_varlen).parameters.values()][6].name == "k_max"
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("responses", [1, 2])
def test_flash_attention_on_a_gpu_computes_what_sdpa_does(responses):
    segments, inputs = states(responses)
    expected = packed.attention(None, *inputs, None, 0.3, segments=segments)[0]
    for name in ("query_ends", "key_ends", "key_index"):
        if getattr(segments, name) is not None:
            setattr(segments, name, getattr(segments, name).cuda())
    on_gpu = [each.detach().cuda().bfloat16() for each in inputs]
    found = packed.attention(None, *on_gpu, None, 0.3, segments=segments)[0]
    torch.testing.assert_close(found.cpu().float(), expected, rtol=2e-2, atol=2e-2)


def test_the_cpu_and_float32_compute_with_sdpa():
    assert packed.kernel("cpu", torch.bfloat16)[0] is packed.sdpa
    assert packed.kernel("cuda", torch.float32)[0] is packed.sdpa


@pytest.mark.parametrize(
    "capability, installed, name",
    [
        ((9, 0), {"flash_attn_interface", "flash_attn"}, "FlashAttention-3"),
        ((8, 0), {"flash_attn_interface", "flash_attn"}, "FlashAttention-2 (flash-attn)"),
        ((8, 0), set(), "FlashAttention-2 (PyTorch's varlen_attn)"),
    ],
)
def test_the_log_names_the_best_attention_that_is_installed(
    capability, installed, name, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(packed.importlib.util, "find_spec", lambda name: name in installed)
    monkeypatch.setattr(packed, "activate_flash_attention_impl", lambda name: None)
    packed.kernel.cache_clear()
    assert name in packed.kernel("cuda", torch.bfloat16)[1]
    packed.kernel.cache_clear()


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
        ("base", None, "Hi!</s>"),
    ],
)
def test_rows_go_through_the_chat_template_and_end_with_its_end_token(
    kind, prompt, response, tmp_path
):
    folder = tiny_models.checkpoint(tmp_path, kind)
    tokenizer = rows.load_tokenizer(folder, None)
    row = rows.encode(tokenizer, ASK, [answer("Hi!")], "here")
    if prompt is None:  # the fallback template's own words are tested below
        asked = {"tokenize": False, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(ASK, **asked)
    assert tokenizer.decode(row["prompt"]) == prompt
    assert tokenizer.decode(row["responses"][0]).lstrip() == response


def test_a_tokenizer_without_end_token_is_an_error(tmp_path):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token"):
        rows.load_tokenizer(str(tmp_path), None)


@pytest.mark.parametrize(
    "prompt, response, message",
    [
        ([{"role": "wizard", "content": "x"}], answer("Hi"), "unknown role 'wizard'"),
        ([], answer("Hi"), "must end with the user's message"),
        (ASK, answer("  "), "empty response"),
        (ASK, answer(None), "a response has a message without role and text"),
        ("Say hi.", answer("Hi"), "the prompt must be a list of messages"),
        (ASK, "Hi", "a response must be a list of messages"),
        (["Say hi."], answer("Hi"), "the prompt has a message without role and text: 'Say hi.'"),
        (ASK, ASK, "must be one assistant message"),
    ],
)
def test_bad_messages_are_errors_that_name_the_row(prompt, response, message):
    with pytest.raises(UserError, match=f"rows.jsonl:7: .*{message}"):
        rows.encode(tiny_models.tokenizer("smollm2"), prompt, [response], "rows.jsonl:7")


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{% if"])
def test_what_a_chat_template_refuses_is_named_with_its_row(template):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="rows.jsonl:7: the chat template says: "):
        rows.encode(tokenizer, ASK, [answer("Hi")], "rows.jsonl:7")


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_no_end_token_is_put_behind_a_response_that_was_cut_off(kind, tmp_path):
    tokenizer = rows.load_tokenizer(tiny_models.checkpoint(tmp_path, kind), None)
    both = [answer("Hi!"), answer("Hi!")]
    ended, cut = rows.encode(tokenizer, ASK, both, "here", truncated=[1])["responses"]
    assert ended[:-1] == cut and ended[-1] in tokenizer.all_special_ids
    assert rows.end_tokens([{"responses": [ended, cut]}], tokenizer) == {ended[-1]}


def test_long_rows_and_special_tokens_in_a_response_are_counted_not_cut(tmp_path, capsys):
    tokenizer = tiny_models.tokenizer("smollm2")
    texts = {"good": "Hi!", "long": "Hi" * 90, "stops": "Hi <|im_end|> there"}
    made = [
        {"id": name, **rows.encode(tokenizer, ASK, [answer(text)], name)}
        for name, text in texts.items()
    ]
    kept = rows.usable("05_sft", made, tokenizer, 100, "x", str(tmp_path / "model"), rank=0)
    assert [row["id"] for row in kept] == ["good"]
    assert (
        "3 in -> 1 kept (longer than 100 tokens 1, special token inside a response 1)"
        in capsys.readouterr().out
    )


def test_every_step_has_the_global_batch_and_every_row_comes_once_an_epoch():
    plan = rows.batches(rows=10, batch=4, epochs=3, seed=0)
    assert [len(batch) for batch in plan] == [4] * 8
    order = [row for batch in plan for row in batch]
    assert all(sorted(order[epoch * 10 : epoch * 10 + 10]) == list(range(10)) for epoch in range(3))
    assert plan == rows.batches(10, 4, 3, 0) != rows.batches(10, 4, 3, 1)


def row_of(tokens):
    return {"id": str(tokens), "prompt": [0] * tokens, "responses": [[0]]}


def ids(packs):
    return [[int(row["id"]) for row in pack] for pack in packs]


def test_packs_are_filled_longest_row_first_and_are_a_multiple_of_the_processes():
    five = [row_of(tokens) for tokens in (7, 6, 4, 3, 2)]
    assert ids(rows.share_out(five, 12, 2)) == [[7, 3, 2], [6, 4]]
    assert ids(rows.share_out(five, 11, 2)) == [[7], [6], [3, 2], [4]]
    assert ids(rows.share_out(five, 100, 1)) == [[7, 6, 4, 3, 2]]


def test_a_row_longer_than_the_tokens_of_a_pack_is_a_pack_of_its_own():
    packs = ids(rows.share_out([row_of(tokens) for tokens in (50, 6, 4)], 10, 1))
    assert packs == [[50], [6, 4]]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 7, 24])
def test_the_ranks_share_a_batch_in_equally_many_packs(batch, world):
    made = tiny_models.random_rows(2, batch)
    shares = [list(rows.micro_steps(made, 60, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    found = [row["id"] for share in shares for pack, weight, _ in share for row in pack if weight]
    assert sorted(found) == sorted(row["id"] for row in made)
    for share in shares:
        assert [last for _, _, last in share] == [False] * (len(share) - 1) + [True]
        for pack, weight, _ in share:
            assert pack and sum(map(rows.packed_tokens, pack)) <= 60 and weight in (0, 1)


def test_a_pack_spends_the_tokens_that_its_rows_were_counted_with():
    made = tiny_models.random_rows(3, 5)
    length = packed.pack(made)["input_ids"].shape[1]
    assert length == sum(map(rows.packed_tokens, made))


def test_flags_fill_the_deepspeed_settings():
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    args = parser.parse_args(["--precision", "fp32", "--offload", "--zero", "2"])
    config = train.deepspeed_config(args.ds_config, args.zero, args.precision, args.offload)
    assert config["bf16"] == {"enabled": False} and config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize("text", ["", "[]", '{"bf16": {}}'])
def test_a_deepspeed_configuration_that_is_none_is_named(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match="ds.json is no DeepSpeed configuration"):
        train.deepspeed_config(tmp_path / "ds.json", 3, "bf16", False)


def test_every_schedule_that_is_offered_can_be_made():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in train.SCHEDULES:
        transformers.get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=9)


def test_models_that_packing_was_not_checked_for_are_refused(tmp_path):
    transformers.AutoConfig.for_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'gemma2' model"):
        train.check_shape(str(tmp_path), 8192)
    transformers.AutoConfig.for_model("mistral", sliding_window=4096).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--max-length 4096 or less"):
        train.check_shape(str(tmp_path), 8192)
    transformers.AutoConfig.for_model("llama", attention_dropout=0.1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="attention_dropout 0.1"):
        train.check_shape(str(tmp_path), 8192)


def checkpoints(folder, world=1, data=None, **changes):
    flags = {"model": "no/such", "lr": 1.0, "wandb": None, **changes}
    settings = binding(flags, data or tiny_models.random_rows(1, 2), world)
    return Checkpoints(str(folder / "model"), settings, rank=0, keep=False)


@pytest.fixture
def alone(monkeypatch):
    """A process group of one, without making one."""
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)


def test_other_settings_do_not_resume_a_begun_run(tmp_path, alone):
    checkpoints(tmp_path).restore(engine=None)
    (tmp_path / "model.state" / "step-1").mkdir()
    checkpoints(tmp_path, wandb="project")
    with pytest.raises(UserError, match="lr was 1.0, is 2.0"):
        checkpoints(tmp_path, lr=2.0)
    with pytest.raises(UserError, match="processes was 1, is 2"):
        checkpoints(tmp_path, world=2)


def test_settings_without_a_resume_point_bind_nobody(tmp_path, alone):
    checkpoints(tmp_path).restore(engine=None)
    assert checkpoints(tmp_path, lr=2.0).restore(engine=None) == 0
    (tmp_path / "model.state" / "step-1").mkdir()
    checkpoints(tmp_path, lr=2.0)


def test_a_finished_model_is_not_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    checkpoints(tmp_path)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(UserError, match="exists; delete it"):
        checkpoints(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_in_a_checkpoint_is_named(tmp_path, alone, error):
    def save_checkpoint(*_, **__):
        raise error

    engine = SimpleNamespace(save_checkpoint=save_checkpoint)
    with pytest.raises(UserError, match="partial cannot be written, the disk is full"):
        checkpoints(tmp_path).save(engine, 3)


def log(folder, done=0, total=50):
    (folder / "model.state").mkdir(exist_ok=True)
    model = packed.ResponseLogprobs(tiny_models.model(attention="packed"))
    engine = SimpleNamespace(module=model, device="cpu")
    return Log(str(folder / "model"), engine, total, done, divergence=10.0)


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (1.0, math.inf), (1.0, 11.0)])
def test_a_diverging_step_stops_with_its_number_and_the_batch_ids(tmp_path, alone, loss, norm):
    made, batch = log(tmp_path), tiny_models.random_rows(1, 2)
    for step in range(1, 21):
        made.step(step, {"loss": 1.0}, 1e-6, 1.0, batch)
    with pytest.raises(UserError, match=r"stopped at step 21: .*\(0, 1\)"):
        made.step(21, {"loss": loss}, 1e-6, norm, batch)


def test_steps_after_the_resume_point_are_logged_once(tmp_path, alone):
    for done, last in ((0, 5), (3, 4)):
        made = log(tmp_path, done, total=6)
        for step in range(done + 1, last + 1):
            made.step(step, {"loss": 1.0}, 1e-6, 1.0, tiny_models.random_rows(1, 2))
    steps = [row["step"] for row in tiny_models.metrics(str(tmp_path / "model.state"))]
    assert steps == [1, 2, 3, 4]


def test_every_step_says_how_far_from_the_hardware_it_is(tmp_path, alone, capsys):
    batch = [{"id": "a", "prompt": [1] * 50, "responses": [[2] * 5, [3] * 5]}]
    made = log(tmp_path)
    made.step(1, {"loss": 1.0}, 1e-6, 1.0, batch)
    [row] = tiny_models.metrics(str(tmp_path / "model.state"))
    once, repeated = row["tokens_per_second"], row["tokens_per_second_prompt_repeated"]
    assert repeated / once == pytest.approx(110 / 60)
    flops = arithmetic.step_flops(made.shape, batch)
    assert row["tflops"] == pytest.approx(flops / 60 * once / 1e12)
    assert row["mfu"] == pytest.approx(row["tflops"] * 1e12 / made.peak)
    printed = capsys.readouterr().out
    assert "peak: " in printed and "measured by a product of 1024 x 1024 matrices" in printed
    assert " prompt repeated) | " in printed and "TFLOP/s | MFU " in printed
