"""autoif.training: what both training stages rest on."""

import argparse
import datetime
import errno
import inspect
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import tiny_models
import torch
import transformers

from autoif import models
from autoif.files import UserError
from autoif.training import arithmetic, packed, rows
from autoif.training import engine as train
from autoif.training.checkpoints import Checkpoints, binding
from autoif.training.log import Log
from autoif.training.ranks import from_first

DAY = "2026-01-31"
ASK = [{"role": "user", "content": "Say hi."}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def assert_equal_but_rounded(found, expected):
    """Each tensor as a whole: an entry near zero, a sum of others, keeps few digits of float32."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 3e-6 * other.norm()


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
    gradients, expected = ([each.grad for each in one.parameters()] for one in (model, plain))
    assert_equal_but_rounded(gradients, expected)


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


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_compiled_step_has_the_loss_and_gradients_of_a_plain_one(model_type, monkeypatch):
    """In packs of four lengths, for which no kernel is made again."""
    monkeypatch.setattr(packed, "LOGIT_TOKENS", 7)
    model = packed.ResponseLogprobs(tiny_models.model(model_type, "packed"))
    batches = [packed.pack(tiny_models.random_rows(2, count, seed=count)) for count in (3, 5, 8, 9)]

    def step(batch):
        loss = (model(**batch) * torch.linspace(-1, 2, batch["count"])).sum()
        return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))

    expected, layer = list(map(step, batches)), model.layers[0]
    replaced = [
        (type(layer.input_layernorm), "forward"),
        (type(layer.mlp), "forward"),
        (sys.modules[type(layer).__module__], "apply_rotary_pos_emb"),
        (packed, "target_logprobs"),
        (packed, "logit_slopes"),
    ]
    plain = [getattr(owner, name) for owner, name in replaced]
    for (owner, name), function in zip(replaced, plain):
        monkeypatch.setattr(owner, name, function)  # put back at the end
    packed.fuse(model)
    assert all(getattr(*each) is not before for each, before in zip(replaced, plain))
    torch.compiler.reset()
    found, graphs = [], []
    for batch in batches:
        found.append(step(batch))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    for (loss, gradients), (plain_loss, plain_gradients) in zip(found, expected):
        assert_equal_but_rounded((loss, *gradients), (plain_loss, *plain_gradients))
    assert graphs[0] == graphs[-1] and graphs[0] > 0


def test_without_a_compiler_a_compiled_training_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs a C.. compiler and Python's headers"):
        train.fuse(None)


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
    signature = inspect.signature(packed.varlen_attn)
    bound = signature.bind(*range(7), scale=1.0, window_size=(-1, 0), enable_gqa=True)
    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(bound.arguments)[:7] == names


def test_the_varlen_attn_of_pytorch_2_11_is_not_told_of_fewer_key_heads(monkeypatch):
    def varlen_2_11(q, k, v, *bounds, scale, window_size):
        return plain_varlen(q, k, v, *bounds, scale=scale, window_size=window_size, enable_gqa=True)

    segments, inputs = states(2)
    expected, _ = packed.attention(None, *inputs, None, 0.3, segments=segments)
    monkeypatch.setattr(packed, "varlen_attn", varlen_2_11)
    monkeypatch.setattr(packed, "kernel", lambda *_: (packed.varlen, "varlen"))
    found, _ = packed.attention(None, *inputs, None, 0.3, segments=segments)
    torch.testing.assert_close(found, expected)


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


def test_a_row_beyond_a_sliding_window_is_an_error_with_both_numbers():
    segments, inputs = states(1)
    longest = max(segments.key_sizes)
    packed.attention(None, *inputs, None, 0.3, segments=segments, sliding_window=longest)
    with pytest.raises(UserError, match=f"attends to 3 tokens only, and a row has {longest}"):
        packed.attention(None, *inputs, None, 0.3, segments=segments, sliding_window=3)


def test_the_cpu_and_float32_compute_with_sdpa():
    assert packed.kernel("cpu", torch.bfloat16)[0] is packed.sdpa
    assert packed.kernel("cuda", torch.float32)[0] is packed.sdpa


@pytest.mark.parametrize(
    "capability, installed, name",
    [
        ((9, 0), {"flash_attn_interface": "a.py", "flash_attn": "a.py"}, "FlashAttention-3"),
        (
            (8, 0),
            {"flash_attn_interface": "a.py", "flash_attn": "a.py"},
            "FlashAttention-2 (flash-attn)",
        ),
        ((8, 0), {}, "FlashAttention-2 (PyTorch's varlen_attn)"),
        # FlashAttention-4 alone: a folder flash_attn with no code of its own
        ((8, 0), {"flash_attn": None}, "FlashAttention-2 (PyTorch's varlen_attn)"),
        ((7, 5), {"flash_attn": "a.py"}, "PyTorch's SDPA"),
        ((7, 0), {}, "PyTorch's SDPA"),
    ],
)
def test_the_log_names_the_best_attention_that_is_installed(
    capability, installed, name, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = {name: SimpleNamespace(origin=origin) for name, origin in installed.items()}
    monkeypatch.setattr(packed.importlib.util, "find_spec", found.get)
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
    tokenizer = rows.load_tokenizer(folder, None, DAY)
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
        rows.load_tokenizer(str(tmp_path), None, DAY)


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
        (ASK, answer("Hi \ud83d"), "a text is no Unicode"),
    ],
)
def test_bad_messages_are_errors_that_name_the_row(prompt, response, message):
    with pytest.raises(UserError, match=f"rows.jsonl:7: .*{message}"):
        rows.encode(tiny_models.tokenizer("smollm2"), prompt, [response], "rows.jsonl:7")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system') }}", "{% if", "{{ messages + 1 }}"]
)
def test_what_a_chat_template_refuses_is_named_with_its_row(template):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="rows.jsonl:7: the chat template says: "):
        rows.encode(tokenizer, ASK, [answer("Hi")], "rows.jsonl:7")


IN_PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] if part['text'] is defined %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_SYSTEM = tiny_models.CHATML.replace(
    "in messages %}", "in messages if message['role'] != 'system' %}"
)


@pytest.mark.parametrize(
    "template, prompt, words",
    [
        (IN_PARTS, ASK, "the user says, 'Say hi.'"),
        (WITHOUT_SYSTEM, [{"role": "system", "content": "Be brief."}, *ASK], "the system says"),
        (tiny_models.CHATML.replace("+ message['content']", "+ 'x'"), ASK, "the user says"),
    ],
)
def test_a_template_that_leaves_out_a_text_is_an_error(template, prompt, words):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"rows.jsonl:7: the chat template leaves out what {words}"):
        rows.encode(tokenizer, prompt, [answer("Hi")], "rows.jsonl:7")


def test_a_template_that_leaves_out_the_answer_is_an_error():
    tokenizer = tiny_models.tokenizer("smollm2")
    whole = "(message['content'] if message['role'] == 'user' else '')"
    tokenizer.chat_template = tiny_models.CHATML.replace("message['content']", whole)
    with pytest.raises(UserError, match="leaves out what the assistant says, 'Hi'"):
        rows.encode(tokenizer, ASK, [answer("Hi")], "rows.jsonl:7")


def test_text_parts_are_joined():
    tokenizer = tiny_models.tokenizer("smollm2")
    parts = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Say ", "hi.")]}]
    whole = rows.encode(tokenizer, ASK, [answer("Hi")], "here")
    assert rows.encode(tokenizer, parts, [answer([{"text": "Hi"}])], "here") == whole
    picture = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    with pytest.raises(UserError, match="here: the prompt has a part that is no text"):
        rows.encode(tokenizer, picture, [answer("Hi")], "here")


TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tool_calls_and_their_results_are_context():
    """As OpenAI writes them, with a null text and arguments as JSON in a text."""
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.chat_template = TOOLS
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "now", "arguments": '{"zone": "Z"}'},
    }
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    tools = [{"type": "function", "function": {"name": "now"}}]
    row = rows.encode(tokenizer, turns, [answer("Hi")], "here", tools=tools)
    text = tokenizer.decode(row["prompt"])
    assert '{"name": "now", "arguments": {"zone": "Z"}}' in text and "tool\nnoon" in text
    assert text.startswith('[{"type": "function"')
    assert tokenizer.decode(row["responses"][0]) == "Hi<|im_end|>"
    # a template that knows nothing of calls would train on answers to nothing
    with pytest.raises(UserError, match="here: the chat template leaves out .*'now'"):
        rows.encode(tiny_models.tokenizer("smollm2"), turns, [answer("Hi")], "here")
    call["function"] = "now()"
    with pytest.raises(UserError, match="here: a tool call has no function with name"):
        rows.encode(tokenizer, turns, [answer("Hi")], "here")


def unnamed_llama3(folder):
    """Llama 3's tokenizer as it is published: its control tokens are added ones without a name."""
    core = tiny_models.tokenizer("llama3").backend_tokenizer
    core.add_special_tokens(["<|end_of_text|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    tokenizer.chat_template = tiny_models.LLAMA3
    tokenizer.save_pretrained(folder)
    return rows.load_tokenizer(str(folder), None, DAY)


def test_control_tokens_without_a_name_are_special(tmp_path, capsys):
    tokenizer = unnamed_llama3(tmp_path / "model")
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end not in tokenizer.all_special_ids
    opens = "Hi!<|start_header_id|>user<|end_header_id|>And you?"
    made = [
        {"id": text, **rows.encode(tokenizer, ASK, [answer(text)], "here")}
        for text in ("Hi!", opens)
    ]
    kept = tiny_models.usable("05_sft", made, tokenizer, tmp_path / "out")
    assert [row["id"] for row in kept] == ["Hi!"]
    assert "special token inside a response 1" in capsys.readouterr().out
    assert tokenizer.decode(kept[0]["responses"][0]) == "Hi!<|eot_id|>"
    assert rows.end_tokens(kept, tokenizer) == {end} and models.end_of_turn(tokenizer) == end


DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '.' }}" + tiny_models.CHATML


def test_the_date_in_a_template_is_the_day_on_which_the_run_was_begun(tmp_path, alone):
    tokenizer = tiny_models.tokenizer("smollm2")
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path / "base")
    model = tiny_models.model().save_pretrained(tmp_path / "base") or str(tmp_path / "base")
    out = str(tmp_path / "model")
    assert rows.first_day(out) == datetime.date.today().isoformat()
    checkpoints(tmp_path, date=DAY).restore(engine=None)
    (tmp_path / "model.state" / "step-1").mkdir()
    assert rows.first_day(out) == DAY
    tokenizer = rows.load_tokenizer(model, None, rows.first_day(out))
    row = rows.encode(tokenizer, ASK, [answer("Hi")], "here")
    assert tokenizer.decode(row["prompt"]).startswith("Today: 31 Jan 2026.")
    # a template of the run's own, and the checkpoint keeps its own words
    (tmp_path / "own.jinja").write_text(DATED.replace("Today", "Now"))
    tokenizer = rows.load_tokenizer(model, str(tmp_path / "own.jinja"), DAY)
    row = rows.encode(tokenizer, ASK, [answer("Hi")], "here")
    assert tokenizer.decode(row["prompt"]).startswith("Now: 31 Jan 2026.")
    assert "strftime_now" in tokenizer.chat_template
    checkpoints(tmp_path, date="2026-02-01")  # which a state without a date would have: no refusal


def test_a_broken_template_is_named_before_any_row_is_read(tmp_path):
    folder = tiny_models.checkpoint(tmp_path / "base")
    (tmp_path / "own.jinja").write_text("{% if")
    with pytest.raises(UserError, match="the chat template of .*own.jinja says: "):
        rows.load_tokenizer(folder, str(tmp_path / "own.jinja"), DAY)


def test_a_folder_that_is_not_there_is_not_said_to_lack_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="there is no folder .*no-such, and no tokenizer of that"):
        models.chat_tokenizer(str(tmp_path / "no-such"))
    with pytest.raises(UserError, match="no-such is no folder here, and no model that was found"):
        models.read_config(str(tmp_path / "no-such"))
    tiny_models.model().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="model .*model has no tokenizer"):
        models.chat_tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_no_end_token_is_put_behind_a_response_that_was_cut_off(kind, tmp_path):
    tokenizer = rows.load_tokenizer(tiny_models.checkpoint(tmp_path, kind), None, DAY)
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
    kept = tiny_models.usable("05_sft", made, tokenizer, tmp_path / "model", max_length=100)
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
    args = train.Flags(precision="fp32", offload=True, zero=2)
    config = train.deepspeed_config(args.ds_config, args.zero, args.precision, args.offload)
    assert config["bf16"] == {"enabled": False, "immediate_grad_update": True}
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    config = train.deepspeed_config(args.ds_config, 2, "bf16", True, unpinned=True)
    assert not config["zero_optimization"]["offload_optimizer"]["pin_memory"]


def test_gradients_travel_in_fp32_and_no_timer_waits_for_the_device():
    config = json.loads((tiny_models.ROOT / "ds_config.json").read_text())
    assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize("gigabytes, words", [(24, "does not fit its GPU: .*--offload"), (80, "")])
def test_a_model_too_large_for_the_card_is_told_before_it_is_read(
    gigabytes, words, monkeypatch, tmp_path, capsys
):
    """And where it fits, a continuation is bound to the stage of ZeRO that was chosen."""
    monkeypatch.setattr(train.gpu, "memory", lambda: [1e9 * gigabytes])
    folder = tiny_models.qwen2(tmp_path, "1.5B")
    args = argparse.Namespace(model=folder, **vars(train.Flags()))
    begun = SimpleNamespace(settings={"zero": "auto"}, world=1, rank=0)
    made = tiny_models.random_rows(1, 2)
    if words:
        with pytest.raises(UserError, match=words):
            train.laid_out(args, made, begun)
        return
    assert train.laid_out(args, made, begun).zero == begun.settings["zero"] == 1
    assert "by arithmetic: ZeRO-1, packs of 8,192 tokens" in capsys.readouterr().out


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


def tensors(folder, change):
    """Write the checkpoint's tensors as `change` makes them of {name: tensor}."""
    file = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, {"format": "pt"})


def without(part):
    return lambda weights: {name: w for name, w in weights.items() if part not in name}


def smaller_embedding(weights):
    name = "model.embed_tokens.weight"
    return {**weights, name: weights[name][:200].clone()}


def as_shards(folder):
    """Two shards in the index, the first of which is there."""
    file = folder / "model.safetensors"
    names = list(safetensors.torch.load_file(file))
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: shards[number % 2] for number, name in enumerate(names)}
    file.rename(folder / shards[0])
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
BROKEN = {
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "model.safetensors is a Git LFS pointer, not the file; run `git lfs pull`",
    ),
    "cut": (cut, "model.safetensors is cut off or damaged"),
    "shard": (as_shards, "model-00002-of-00002.safetensors is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "quantized": (quantized, "is quantized, and cannot be trained"),
    "layer": (
        lambda folder: tensors(folder, without(".layers.1.")),
        r"lacks tensors .*: model.layers.1.self_attn.q_proj.weight, .* and 7 more",
    ),
    "output": (
        lambda folder: tensors(folder, without("lm_head")),
        "lacks tensors .*: lm_head.weight; they would be random",
    ),
    "shape": (
        lambda folder: tensors(folder, smaller_embedding),
        r"model.embed_tokens.weight \(\[200, 32\], not \[264, 32\]\)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused_by_its_headers(kind, tmp_path):
    damage, words = BROKEN[kind]
    tiny_models.model("qwen2").save_pretrained(tmp_path)
    train.check_shape(str(tmp_path), 8192)
    damage(tmp_path)
    with pytest.raises(UserError, match=words):
        train.check_shape(str(tmp_path), 8192)


def test_a_tied_output_layer_and_names_without_a_prefix_lack_nothing(tmp_path):
    tiny_models.model("llama").save_pretrained(tmp_path)  # tied
    tensors(tmp_path, lambda weights: {n.removeprefix("model."): w for n, w in weights.items()})
    train.check_shape(str(tmp_path), 8192)


@pytest.mark.parametrize(
    "damage, words",
    [
        (
            lambda weights, file: torch.save(without("lm_head")(weights), file),
            "lacks tensors .*: lm_head.weight; they would be random",
        ),
        (
            lambda weights, file: torch.save(smaller_embedding(weights), file),
            "cannot be loaded: .*mismatched_sizes",
        ),
        (lambda weights, file: file.write_bytes(b"no archive"), "cannot be loaded: "),
    ],
)
def test_pytorchs_own_files_are_checked_as_they_are_loaded(damage, words, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    model = tiny_models.model("qwen2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    damage(model.state_dict(), tmp_path / "pytorch_model.bin")
    settings = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1}
    with pytest.raises(UserError, match=words):
        train.load_model(str(tmp_path), settings, "fp32", tiny_models.random_rows(1, 2))


def test_a_pointer_in_the_tokenizers_place_is_named(tmp_path):
    folder = tiny_models.checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(UserError, match="tokenizer.json is a Git LFS pointer"):
        models.chat_tokenizer(folder)


def test_a_token_beyond_the_embedding_is_an_error_with_both_numbers(tmp_path):
    folder = tiny_models.checkpoint(tmp_path)
    row = {"id": "r7", "prompt": [5, 263], "responses": [[7], [0]]}
    train.check_ids(folder, [row])
    row["responses"][1] = [264]
    with pytest.raises(UserError, match="row r7 has the token 264, .* embedding of 264 tokens"):
        train.check_ids(folder, [row])


@pytest.mark.parametrize(
    "steps, warmup, taken, words",
    [
        (100, 20, 20, ""),
        (21, 20, 20, ""),
        (20, 20, 20, "20 steps end before 20 of warm-up do: .* reaches 6.7e-06, not 7.0e-06"),
        (5, 20, 20, "5 steps end before 20 of warm-up do: .* reaches 1.4e-06, not 7.0e-06"),
        (1, 1, 0, "there is one step: it is taken at the full learning rate, 7.0e-06"),
        (1, 0, 0, ""),
    ],
)
def test_a_warm_up_that_leaves_no_step_at_the_full_rate_is_said(
    steps, warmup, taken, words, alone, capsys
):
    assert train.room_for_warmup(steps, warmup, 7e-6) == taken
    printed = capsys.readouterr().out
    assert re.search(words, printed) and bool(printed) == bool(words)


def checkpoints(folder, world=1, date=DAY, rank=0, **changes):
    flags = {"model": "no/such", "lr": 1.0, "wandb": None, "keep_checkpoints": False, **changes}
    args = SimpleNamespace(out=str(folder / "model"), **flags)
    return Checkpoints(args, tiny_models.random_rows(1, 2), date, rank=rank, world=world)


@pytest.fixture
def alone(monkeypatch):
    """A process group of one, without making one."""
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)


# settings.json of version 815f9fb, for rows of one prompt [1, 2] and one response [3, 4]
BOUND = {
    "05_sft": """{"batch": 128, "epochs": 3, "max_length": 8192, "lr": 7e-06,
        "schedule": "linear", "warmup_steps": 20, "weight_decay": 0.1, "betas": [0.9, 0.95],
        "precision": "bf16", "zero": 3, "offload": false, "seed": 0, "model": "m",
        "data": "a199c5d1d6c7b0ff", "processes": 2}""",
    "06_dpo": """{"batch": 64, "epochs": 2, "max_length": 4096, "beta": 0.3, "sft_weight": 0.0,
        "lr": 5e-07, "schedule": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0,
        "betas": [0.9, 0.999], "precision": "bf16", "zero": 3, "offload": false, "seed": 0,
        "model": "m", "reference": "r", "data": "a199c5d1d6c7b0ff", "processes": 2}""",
}


@pytest.mark.parametrize("stage", BOUND)
def test_a_run_begun_by_an_earlier_version_is_bound_to_the_same_settings(stage):
    module, required = tiny_models.stage(stage), {"input": "x", "model": "m", "out": "o"}
    if stage == "05_sft":
        args = module.Flags(**required)
    else:
        args = module.Train(**required, reference="r")
    made = [{"id": "0", "prompt": [1, 2], "responses": [[3, 4]]}]
    # whatever fits now, a resume point goes on in the stage of ZeRO that it was written in
    assert args.zero == "auto"
    args.zero = 3
    assert binding(vars(args), made, world=2) == json.loads(BOUND[stage])


def test_other_settings_do_not_resume_a_begun_run(tmp_path, alone):
    checkpoints(tmp_path).restore(engine=None)
    (tmp_path / "model.state" / "step-1").mkdir()
    checkpoints(tmp_path, wandb="project")
    with pytest.raises(UserError, match="lr was 1.0, is 2.0"):
        checkpoints(tmp_path, lr=2.0)
    with pytest.raises(UserError, match="processes was 1, is 2"):
        checkpoints(tmp_path, world=2)


def test_a_begun_run_keeps_its_reference_where_the_flag_is_left_out(tmp_path, alone):
    checkpoints(tmp_path, reference="sft").restore(engine=None)
    (tmp_path / "model.state" / "step-1").mkdir()
    checkpoints(tmp_path, reference="sft")
    with pytest.raises(UserError, match="reference was sft, is None"):
        checkpoints(tmp_path, reference=None)


def test_a_run_goes_on_in_its_own_stage_of_zero_though_another_would_be_chosen_now(tmp_path, alone):
    checkpoints(tmp_path, zero=3).restore(engine=None)
    (tmp_path / "model.state" / "step-1").mkdir()
    assert checkpoints(tmp_path, zero="auto").settings["zero"] == 3
    with pytest.raises(UserError, match="zero was 3, is 1"):
        checkpoints(tmp_path, zero=1)


def test_where_a_shared_disk_shows_its_files_late_the_first_rank_says_what_is_there(
    tmp_path, monkeypatch
):
    told = iter([(4, {"model": "no/such", "lr": 1.0}), "2026-01-31", [0.5, 0.6]])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(
        torch.distributed, "broadcast_object_list", lambda said: said.__setitem__(0, next(told))
    )
    with pytest.raises(UserError, match="data was None"):  # the settings that it was told
        checkpoints(tmp_path, rank=1)
    assert rows.first_day(str(tmp_path / "model")) == "2026-01-31"
    assert from_first(lambda: "what is here") == [0.5, 0.6]


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


def test_a_second_training_into_the_same_folder_is_refused_until_the_first_has_ended(tmp_path):
    first = checkpoints(tmp_path)
    with pytest.raises(UserError, match="another training is at work on .*model; wait for it"):
        checkpoints(tmp_path)
    checkpoints(tmp_path, rank=1)  # a process of the same training
    del first
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
    printed = capsys.readouterr().out
    assert " prompt repeated) | " in printed and "TFLOP/s | " in printed
    # the peak of a CPU is measured beside its other work, and shares of it went beyond 1
    assert "mfu" not in row and "MFU" not in printed
    made.peak = 1e15
    made.step(2, {"loss": 1.0}, 1e-6, 1.0, batch)
    row = tiny_models.metrics(str(tmp_path / "model.state"))[1]
    assert row["mfu"] == pytest.approx(row["tflops"] / 1e3)
    assert "TFLOP/s | MFU 0.0% | " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, dtype, peak",
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.float32, None),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, None),
    ],
)
def test_a_peak_is_a_data_sheets_or_none(name, dtype, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert arithmetic.peak_flops("cuda", dtype) == peak
    assert arithmetic.peak_flops("cpu", dtype) is None
