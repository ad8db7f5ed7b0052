"""autoif.training.arithmetic: against what PyTorch counts, and the figures that README shows."""

import re

import pytest
import tiny_models
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from autoif import models
from autoif.files import UserError
from autoif.training import arithmetic, engine, packed

QWEN2_7B = transformers.AutoConfig.for_model(
    "qwen2",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
LLAMA3_70B = transformers.AutoConfig.for_model(
    "llama",
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


@pytest.mark.parametrize("shape, billions", [(QWEN2_7B, 7.6), (LLAMA3_70B, 70.6)])
def test_parameters_are_the_published_ones(shape, billions):
    assert models.parameters(shape) / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize("responses", [1, 2])
def test_the_operations_of_matrices_are_those_that_pytorch_counts(responses, monkeypatch):
    def additions(queries, keys, values, *_):
        """In attention's place, which PyTorch would count with its masked half."""
        return queries + (keys + values)[: len(queries)].repeat_interleave(2, dim=1)

    monkeypatch.setattr(packed, "kernel", lambda *_: (additions, "none"))
    model, rows = tiny_models.model(attention="packed"), tiny_models.random_rows(responses, 6)
    batch = packed.pack(rows)
    with FlopCounterMode(display=False) as counter:
        packed.ResponseLogprobs(model)(**batch).sum().backward()
    monkeypatch.setattr(arithmetic, "attention_pairs", lambda row: 0)
    expected = arithmetic.step_flops(model.config, rows)
    # PyTorch counts the output layer's logits twice, since the backward pass makes them again, and
    # does not count addmm_, its weight's gradient; both are the same number
    assert counter.get_total_flops() == pytest.approx(expected)


def test_tokens_attend_to_what_the_picture_of_segments_shows():
    """Row PPP aa bb: 15 pairs of the first segment, 4 + 5 of the second."""
    row = {"prompt": [1] * 3, "responses": [[2] * 3, [3] * 3]}
    assert arithmetic.attention_pairs(row) == 15 + 4 + 5


def kernel(queries, keys, values, *_):
    """In the place of FlashAttention: it keeps queries, keys, values and its output."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, queries, keys, values):
            output = torch.empty_like(queries)
            ctx.save_for_backward(queries, keys, values, output)
            return output

    return Kernel.apply(queries, keys, values)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_layers_keep_the_bytes_that_autograd_saves(model_type, monkeypatch):
    monkeypatch.setattr(packed, "kernel", lambda *_: (kernel, "none"))
    model = tiny_models.model(model_type, "packed").bfloat16()
    batch = packed.pack(tiny_models.random_rows(1, 40))
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedded = model.get_input_embeddings()(batch["input_ids"])
        hidden = embedded.detach().requires_grad_()
        kept = {"segments": batch["segments"], "position_ids": batch["position_ids"]}
        out = model.base_model(inputs_embeds=hidden, use_cache=False, **kept).last_hidden_state
    length = batch["input_ids"].shape[1]
    assert out.requires_grad
    layers = model.config.num_hidden_layers * arithmetic.kept_bytes(model.config)
    last_norm = 6 * model.config.hidden_size
    assert sum(saved.values()) == pytest.approx((layers + last_norm) * length, rel=0.04)


QWEN2_1B = transformers.AutoConfig.for_model(
    "qwen2",
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.fixture
def counted(monkeypatch):
    """The parameters of models as they are published: to count 70B takes seconds."""
    published = {1536: 1.54e9, 3584: 7.62e9, 8192: 70.6e9}
    monkeypatch.setattr(arithmetic, "parameters", lambda shape: published[shape.hidden_size])


# README's table, and what it says of a run that takes more than is there
@pytest.mark.parametrize(
    "shape, gpus, gigabytes, flags, words",
    [
        (QWEN2_7B, 8, 80, {}, "ZeRO-2, packs of 4,096 tokens, 0 of 28 layers .* = 60.7 of"),
        (
            QWEN2_7B,
            8,
            80,
            {"zero": 3, "activation_checkpointing": "on"},
            "ZeRO-3, packs of 16,384 tokens, 28 of 28 layers recomputed: states 17.1 .* = 33.2 of",
        ),
        (
            QWEN2_7B,
            1,
            80,
            {"offload": True},
            "ZeRO-3, packs of 4,096 .* = 47.4 of 80 GB, and 152 GB of CPU memory$",
        ),
        (LLAMA3_70B, 64, 80, {}, "ZeRO-3, packs of 16,384 tokens, 78 of 80 .* = 67.6 of 80 GB$"),
        (
            QWEN2_1B,
            1,
            24,
            {"offload": True},
            "3, packs of 4,096 .* = 19.5 of 24 GB, and 31 GB of CPU",
        ),
        (QWEN2_1B, 1, 80, {}, "ZeRO-1, packs of 8,192 tokens, 0 of 28 .* = 54.5 of 80 GB$"),
        # nothing of it fits
        (QWEN2_1B, 1, 24, {}, "ZeRO-1, packs of 4,096 .* 2[78] of 28 .* = 31.1 of 24 GB$"),
    ],
)
def test_a_layout_is_what_readme_says(counted, shape, gpus, gigabytes, flags, words):
    found = arithmetic.layout(shape, engine.Flags(**flags), 2000, gpus, 1e9 * gigabytes)
    assert re.search(words, str(found)), str(found)


def test_what_is_left_to_auto_is_as_much_as_fits_and_what_is_named_stays(counted):
    """Packs are halved first, then layers recomputed one by one, on 7B and one offloading GPU."""
    found = {}
    for gigabytes in (160, 130, 80, 40, 28):
        layout = arithmetic.layout(QWEN2_7B, engine.Flags(offload=True), 2000, 1, 1e9 * gigabytes)
        found[gigabytes] = layout.tokens, layout.recomputed
        assert layout.bytes <= 0.9 * 1e9 * gigabytes
    packs = {160: (16384, 0), 130: (8192, 0), 80: (4096, 0), 40: (4096, 13), 28: (4096, 25)}
    assert found == packs
    # a longer row is a pack of its own, and bounds the halving
    assert arithmetic.layout(QWEN2_7B, engine.Flags(), 9000, 8, 80e9).tokens == 16384
    named = engine.Flags(zero=3, activation_checkpointing="off", micro_tokens=9)
    layout = arithmetic.layout(QWEN2_7B, named, 7, 1, 1e9)
    assert (layout.zero, layout.tokens, layout.recomputed) == (3, 9, 0)


def test_a_model_that_no_layout_fits_is_refused_with_the_way_out(counted):
    layout = arithmetic.layout(QWEN2_1B, engine.Flags(), 2000, 1, 24e9)
    with pytest.raises(UserError, match=r"base .* 31.1 of 24 GB; pass fewer .*, --offload, or"):
        arithmetic.refuse_too_large("base", layout, 64e9)
    layout = arithmetic.layout(QWEN2_1B, engine.Flags(offload=True), 2000, 1, 24e9)
    arithmetic.refuse_too_large("base", layout, 64e9)
    with pytest.raises(UserError, match="--offload takes 31 GB of CPU memory a GPU, and 16 GB"):
        arithmetic.refuse_too_large("base", layout, 16e9)


def test_the_demos_model_needs_neither_smaller_packs_nor_recomputed_layers_on_a_laptop():
    small = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    layout = arithmetic.layout(small, engine.Flags(), 2000, 1, 24e9)
    assert (layout.tokens, layout.recomputed) == (16384, 0)
    # the live run's process had 5.3 GB at most, that of coder-0.5b 19.8
    fp32 = engine.Flags(precision="fp32", micro_tokens=1024)
    assert 5.0e9 < arithmetic.layout(small, fp32, 512, 1, 24e9).bytes < 5.6e9
