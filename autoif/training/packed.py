"""Packed log-probabilities: many rows in a sequence, no padding, no whole logits, prompts once.

A row is `{"prompt": [ids], "responses": [[ids], ...]}`: one response for SFT, two for DPO. `pack`
lays rows end to end, `attention` keeps them apart, and `ResponseLogprobs` turns a causal model into
log p(response | prompt).

Shapes: T tokens of a pack, K keys of all segments, H query heads, G key heads, D columns of a head,
C columns of a hidden state, V words of the vocabulary, P places that predict a token of a response,
R responses, S segments.
"""

import functools
import importlib.util
import inspect
import itertools
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from autoif.files import UserError
from autoif.training.arithmetic import LOGIT_TOKENS
from autoif.training.rows import micro_steps


def pack(rows: list[dict], device: str | torch.device = "cpu") -> dict:
    """Lay `rows` end to end as prompt, response 1, response 2, ...: the input of ResponseLogprobs.

    A row of the prompt P P P and the responses a a A and b b B, whose last tokens predict nothing:

        index        0 1 2 3 4 5 6
        input_ids    P P P a a b b
        position_ids 0 1 2 3 4 3 4      b stands behind the prompt, as a does
        places           2 3 4          their next tokens are a a A
                         2     5 6      ... and b b B: the prompt's end predicts both first tokens
        targets      a a A b b B
        owner        0 0 0 1 1 1        the response that a target belongs to, counted over all rows
    """
    tokens, positions, places, targets, owner, count = [], [], [], [], [], 0
    for row in rows:
        prompt, last_of_prompt = row["prompt"], len(tokens) + len(row["prompt"]) - 1
        tokens += prompt
        positions += range(len(prompt))
        for response in row["responses"]:
            places += [last_of_prompt, *range(len(tokens), len(tokens) + len(response) - 1)]
            targets += response
            owner += [count] * len(response)
            tokens += response[:-1]
            positions += range(len(prompt), len(prompt) + len(response) - 1)
            count += 1

    return {
        "input_ids": placed([tokens], device),
        "position_ids": placed([positions], device),
        "segments": Segments(rows, device),
        "places": placed(places, device),
        "targets": placed(targets, device),
        "owner": placed(owner, device),
        "count": count,
    }


def placed(values: list, device: str | torch.device, dtype=torch.long) -> torch.Tensor:
    """A tensor on the device that is sent behind the passes under way, and waits for none."""
    tensor = torch.tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        # from memory that may be swapped a copy waits for all work before it
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Segments:
    """Who sees whom: each segment's queries attend to keys of their own, causally from the end.

    The first response shares its prompt's segment; another one is a segment behind the prompt's
    keys:

        index    0 1 2 3 4 5 6
                 P P P a a b b
        0 P      x
        1 P      x x
        2 P      x x x                  segment 0: queries 0 to 4, keys 0 to 4
        3 a      x x x x
        4 a      x x x x x
        5 b      x x x     x            segment 1: queries 5 and 6, keys 0 1 2 5 6
        6 b      x x x     x x

        query_sizes 5 2    query_ends 0 5 7     key_sizes 5 5    key_ends 0 5 10
        key_index   0 1 2 3 4 0 1 2 5 6         (None where the keys are the pack itself)
    """

    def __init__(self, rows: list[dict], device: str | torch.device):
        self.query_sizes, self.key_sizes, key_index, at = [], [], [], 0
        for row in rows:
            prompt, behind = range(at, at + len(row["prompt"])), []
            for number, response in enumerate(row["responses"]):
                size = len(response) - 1
                if number == 0:
                    size += len(prompt)
                else:
                    behind = prompt
                own = range(at, at + size)
                at += size
                if size:  # a response of one token asks nothing
                    self.query_sizes.append(size)
                    self.key_sizes.append(len(behind) + size)
                    key_index += [*behind, *own]

        tensor = functools.partial(placed, device=device, dtype=torch.int32)
        self.query_ends = tensor([0, *itertools.accumulate(self.query_sizes)])
        self.key_ends = tensor([0, *itertools.accumulate(self.key_sizes)])
        self.key_index = tensor(key_index) if len(key_index) > at else None

    def keys(self, states_TGD: torch.Tensor) -> torch.Tensor:
        """The keys (or values) of all segments end to end, shape (K, G, D)."""
        if self.key_index is None:
            return states_TGD
        return states_TGD.index_select(0, self.key_index)

    def bounds(self) -> tuple:
        """Where segments end and the longest of them, as the kernels of FlashAttention ask."""
        sizes = (max(self.query_sizes), max(self.key_sizes))
        return self.query_ends, self.key_ends, *sizes


def sdpa(queries_THD, keys_KGD, values_KGD, segments: Segments, scaling: float) -> torch.Tensor:
    """A call of PyTorch's causal kernel a segment: one mask over the whole pack would be dense."""
    outputs = []
    for queries, keys, values in zip(
        queries_THD.split(segments.query_sizes),
        keys_KGD.split(segments.key_sizes),
        values_KGD.split(segments.key_sizes),
    ):
        behind = len(keys) > len(queries)
        mask = causal_lower_right(len(queries), len(keys)) if behind else None
        output_1HTD = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output_1HTD[0].transpose(0, 1))
    return torch.cat(outputs)


def varlen(queries_THD, keys_KGD, values_KGD, segments: Segments, scaling: float) -> torch.Tensor:
    """One call of PyTorch's FlashAttention, which aligns queries with the end of longer keys."""
    states, options = (queries_THD, keys_KGD, values_KGD), {"window_size": (-1, 0)}
    # PyTorch 2.11 takes fewer key heads without being told
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    return varlen_attn(*states, *segments.bounds(), scale=scaling, **options)


def flash_attn(queries_THD, keys_KGD, values_KGD, segments: Segments, scaling: float):
    """The same by the user's flash-attn."""
    from flash_attn import flash_attn_varlen_func

    states = (queries_THD, keys_KGD, values_KGD)
    return flash_attn_varlen_func(*states, *segments.bounds(), softmax_scale=scaling, causal=True)


def has_flash_attn() -> bool:
    """Whether FlashAttention-2 is installed; FlashAttention-4 alone has its name and no code."""
    found = importlib.util.find_spec("flash_attn")
    return found is not None and found.origin is not None


@functools.cache
def kernel(device_type: str, dtype: torch.dtype):
    """The attention of a device and its name for the log.

    FlashAttention is for half precision on Ampere and later: a T4 and a V100 have SDPA.
    """
    flash = device_type == "cuda" and dtype != torch.float32
    if not flash or torch.cuda.get_device_capability() < (8, 0):
        return sdpa, "PyTorch's SDPA, one causal call a segment"
    on_hopper = torch.cuda.get_device_capability() == (9, 0)
    if on_hopper and importlib.util.find_spec("flash_attn_interface"):
        activate_flash_attention_impl("FA3")  # varlen_attn computes with it from now on
        return varlen, "FlashAttention-3 (flash_attn_interface, through PyTorch's varlen_attn)"
    if has_flash_attn():
        return flash_attn, "FlashAttention-2 (flash-attn)"
    return varlen, "FlashAttention-2 (PyTorch's varlen_attn)"


def attention(module, query_1HTD, key_1GTD, value_1GTD, attention_mask, scaling, **more):
    """Attention within each segment; result (1, T, H, D), as transformers expects."""
    segments, window = more["segments"], more.get("sliding_window")
    if window is not None and max(segments.key_sizes) > window:
        raise UserError(
            f"the model attends to {window} tokens only, and a row has {max(segments.key_sizes)}; "
            f"leave out rows of more than {window} tokens"
        )
    compute, _name = kernel(query_1HTD.device.type, query_1HTD.dtype)
    keys_KGD = segments.keys(key_1GTD[0].transpose(0, 1))
    values_KGD = segments.keys(value_1GTD[0].transpose(0, 1))
    output_THD = compute(query_1HTD[0].transpose(0, 1), keys_KGD, values_KGD, segments, scaling)
    return output_THD[None], None


ATTENTION = "packed"  # its name in transformers, in every process that imports this file
AttentionInterface.register(ATTENTION, attention)


def target_logprobs(logits_PV, targets_P):
    """log softmax(logits)[target] in float32, shape (P,)."""
    return logits_PV.log_softmax(-1, dtype=torch.float32).gather(1, targets_P[:, None])[:, 0]


def logit_slopes(logits_PV, targets_P, grad_P):
    """The logits' gradient: (1[target] - softmax) x that of the log-probability, shape (P, V)."""
    at, slopes_PV = targets_P[:, None], logits_PV.softmax(-1, dtype=torch.float32)
    # by itself: of a probability near 1 little would be left in a sum of rounded numbers
    of_target = (1 - slopes_PV.gather(1, at)) * grad_P[:, None]
    slopes_PV = slopes_PV.mul_(-grad_P[:, None]).to(logits_PV.dtype)
    return slopes_PV.scatter_(1, at, of_target.to(logits_PV.dtype))


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] in float32, LOGIT_TOKENS at a time.

    The backward pass makes the logits again: kept, they would be the largest tensor of all.
    """

    @staticmethod
    def forward(ctx, hidden_PC, weight_VC, targets_P):
        ctx.save_for_backward(hidden_PC, weight_VC, targets_P)
        chunks = zip(hidden_PC.split(LOGIT_TOKENS), targets_P.split(LOGIT_TOKENS))
        return torch.cat([target_logprobs(F.linear(h, weight_VC), t) for h, t in chunks])

    @staticmethod
    def backward(ctx, grad_P):
        hidden_PC, weight_VC, targets_P = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden_PC), torch.zeros_like(weight_VC)
        for at in range(0, len(hidden_PC), LOGIT_TOKENS):
            part = slice(at, at + LOGIT_TOKENS)
            logits = F.linear(hidden_PC[part], weight_VC)
            slopes = logit_slopes(logits, targets_P[part], grad_P[part])
            grad_hidden[part] = slopes @ weight_VC
            grad_weight.addmm_(slopes.T, hidden_PC[part])
            del logits, slopes  # the next chunk's take their place
        return grad_hidden, grad_weight, None


class Head(nn.Module):
    """The model's output layer under its old name; a module, so that ZeRO-3 gathers its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, hidden_PC, targets_P):
        return _TargetLogprobs.apply(hidden_PC, self.weight, targets_P)


class ResponseLogprobs(nn.Module):
    """A causal model as the function pack -> summed log-probability a response, shape (R,)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        model.set_output_embeddings(Head(model.get_output_embeddings()))
        self.model = model

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.base_model.layers

    def forward(self, input_ids, position_ids, segments, places, targets, owner, count):
        hidden_TC = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, segments=segments, use_cache=False
        ).last_hidden_state[0]
        logprobs_P = self.model.get_output_embeddings()(hidden_TC[places], targets)
        empty_R = torch.zeros(count, dtype=torch.float32, device=hidden_TC.device)
        return empty_R.index_add(0, owner, logprobs_P)


def fuse(model: ResponseLogprobs) -> None:
    """Make one kernel of each step between matrices: norms, rotary, SwiGLU, the logits' two parts.

    No matrix is in them: ZeRO-3 could not empty one that a kernel keeps. It is for good, and for
    every model of this kind in the process.
    """
    # packs have all lengths: else a kernel would be made for each
    compiled = functools.partial(torch.compile, dynamic=True)
    layer, here = model.layers[0], sys.modules[__name__]
    modeling = sys.modules[type(layer).__module__]
    for owner, name in (
        (type(layer.input_layernorm), "forward"),
        (modeling, "apply_rotary_pos_emb"),
        (here, "target_logprobs"),
        (here, "logit_slopes"),
    ):
        setattr(owner, name, compiled(getattr(owner, name)))

    @compiled
    def gated(activation, gate, up):
        return activation(gate) * up

    def swiglu(mlp, hidden):
        return mlp.down_proj(gated(mlp.act_fn, mlp.gate_proj(hidden), mlp.up_proj(hidden)))

    type(layer.mlp).forward = swiglu


def frozen_logprobs(model, rows: list[dict], capacity: int, device, rank: int = 0, world: int = 1):
    """Log-probabilities of the rows' responses, shape (rows, responses), without gradient.

    Those of this rank's rows, in nats; where another rank computes a row, it is 0.
    """
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    table = torch.zeros(len(rows), len(rows[0]["responses"]), device=device)
    for micro, weight, _last in micro_steps(numbered, capacity, rank, world):
        with torch.no_grad():
            sums = model(**pack(micro, device)).view(len(micro), -1)
        table[[row["number"] for row in micro]] += weight * sums
    return table
