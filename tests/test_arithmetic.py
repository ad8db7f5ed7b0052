"""autoif.training.arithmetic: against what PyTorch counts, and the figures that README shows."""

import pytest
import tiny_models
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from autoif import models
from autoif.training import arithmetic, packed

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


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_layers_keep_the_bytes_that_autograd_saves(model_type):
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
    expected = model.config.num_hidden_layers * arithmetic.kept_bytes(model.config) * length
    assert sum(saved.values()) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    "shape, gpus, tokens, zero, offload, states, rest, cpu",
    [
        (QWEN2_7B, 8, 16384, 3, False, 17, 18, 0),
        (QWEN2_7B, 8, 32768, 3, False, 17, 30, 0),
        (QWEN2_7B, 8, 16384, 2, False, 30, 16, 0),
        (QWEN2_7B, 8, 16384, 1, False, 57, 16, 0),
        (QWEN2_7B, 1, 16384, 3, True, 15, 18, 122),
        (LLAMA3_70B, 64, 16384, 3, False, 20, 45, 0),
    ],
)
def test_memory_is_what_readme_says(shape, gpus, tokens, zero, offload, states, rest, cpu):
    found = arithmetic.memory(shape, tokens, gpus, zero, offload)
    others = found["gathered"] + found["activations"] + found["output"]
    rounded = [round(number / 1e9) for number in (found["states"], others, found["cpu"])]
    assert rounded == [states, rest, cpu]


def test_a_7b_model_must_recompute_and_a_small_one_need_not():
    """On 80 GB in packs of --micro-tokens' default; the demo's model on a laptop."""
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
    large = arithmetic.memory(QWEN2_7B, 16384, 8, recompute=False)
    assert sum(large.values()) > 80e9
    assert sum(arithmetic.memory(small, 16384, 1, recompute=False).values()) < 0.9 * 24e9
