"""Packed log-probabilities: many rows in one sequence, without padding, without whole logits, each prompt computed once.

A row is `{"prompt": [ids], "responses": [[ids], ...]}`: one response for SFT, two for DPO. `pack` lays rows end to end,
`attention` keeps them apart, and `ResponseLogprobs` turns a causal model into log p(response | prompt).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

CHUNK = 1024  # tokens whose logits exist at one time: 1024 x 152,000 x 4 bytes = 0.6 GB


def pack(rows: list[dict], device: str | torch.device = "cpu") -> dict:
    """Lay `rows` end to end as prompt, response 1, response 2, ...; the keyword arguments of ResponseLogprobs.

    A later response takes up the positions after its prompt and sees the prompt, not its siblings, so that its
    log-probability is that of prompt + response alone. The last token of a response predicts nothing and is left out.
    `places` are the positions whose next token belongs to a response, `targets` those tokens, and `owner` the number of
    their response, counted over all rows.
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
    tensor = lambda values: torch.tensor(values, dtype=torch.long, device=device)
    shapes = [
        (len(row["prompt"]), [len(response) - 1 for response in row["responses"]]) for row in rows
    ]
    return {
        "input_ids": tensor([tokens]),
        "position_ids": tensor([positions]),
        "segments": Segments(shapes, device),
        "places": tensor(places),
        "targets": tensor(targets),
        "owner": tensor(owner),
        "count": count,
    }


class Segments:
    """Who sees whom: each query segment attends, causally from its end, to a few key pieces laid side by side.

    The first response of a row shares its prompt's segment; another one is a segment of its own behind the prompt's keys.
    """

    def __init__(self, shapes: list[tuple[int, list[int]]], device: str | torch.device):
        self.query_sizes, self.key_sizes, self.key_pieces = [], [], []
        for prompt, (first, *others) in shapes:
            self.key_pieces.append([len(self.key_sizes), len(self.key_sizes) + 1])
            self.query_sizes.append(prompt + first)
            self.key_pieces += [
                [len(self.key_sizes), len(self.key_sizes) + 2 + at] for at in range(len(others))
            ]
            self.query_sizes += others
            self.key_sizes += [prompt, first, *others]
        self.key_totals = [
            sum(self.key_sizes[piece] for piece in pieces) for pieces in self.key_pieces
        ]
        ends = lambda sizes: torch.tensor(
            [0, *itertools.accumulate(sizes)], dtype=torch.int32, device=device
        )
        self.query_ends, self.key_ends = ends(self.query_sizes), ends(self.key_totals)

    def keys(self, states: torch.Tensor) -> list[torch.Tensor]:
        """The keys (or values) of each segment, from (..., T, size)."""
        pieces = states.split(
            self.key_sizes, dim=-2
        )  # split, not slices: its backward pass fills no zeros
        return [torch.cat([pieces[piece] for piece in each], dim=-2) for each in self.key_pieces]


def _flash(query, key, value, segments, scaling, dropout):
    """All segments in one call of FlashAttention-2, which aligns queries with the end of longer keys as we do."""
    queries = query[0].transpose(0, 1)
    keys, values = (
        torch.cat(segments.keys(states[0]), dim=1).transpose(0, 1) for states in (key, value)
    )
    return flash_attn_varlen_func(
        queries,
        keys,
        values,
        segments.query_ends,
        segments.key_ends,
        max(segments.query_sizes),
        max(segments.key_totals),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )[None]


def attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    segments=None,
    sliding_window=None,
    **_,
):
    """Attention within each segment; query (1, heads, T, size), result (1, T, heads, size) as transformers expects.

    Without flash-attn each segment is one call of SDPA's causal kernel: a mask over the whole pack would be dense.
    """
    if sliding_window is not None and max(segments.key_totals) > sliding_window:
        raise NotImplementedError(
            f"packed attention has no sliding window ({sliding_window} tokens)"
        )
    if flash_attn_varlen_func is not None and query.is_cuda:
        return _flash(query, key, value, segments, scaling, dropout), None
    outputs = []
    for queries, keys, values in zip(
        query.split(segments.query_sizes, dim=2), segments.keys(key), segments.keys(value)
    ):
        length, seen = queries.shape[2], keys.shape[2]
        if length:
            mask = causal_lower_right(length, seen) if seen > length else None
            outputs.append(
                F.scaled_dot_product_attention(
                    queries,
                    keys,
                    values,
                    attn_mask=mask,
                    is_causal=mask is None,
                    dropout_p=dropout,
                    scale=scaling,
                    enable_gqa=True,
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register("packed", attention)


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] in float32, CHUNK tokens at a time; the backward pass makes the logits again."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        logprobs, norms = [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK)):
            logits = F.linear(h, weight).float()
            norms.append(logits.logsumexp(-1))
            logprobs.append(logits.gather(1, t[:, None])[:, 0] - norms[-1])
        ctx.save_for_backward(hidden, weight, targets, torch.cat(norms))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets, norms = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for at in range(0, len(hidden), CHUNK):
            part = slice(at, at + CHUNK)
            probs = (F.linear(hidden[part], weight).float() - norms[part, None]).exp_()
            probs.scatter_add_(1, targets[part, None], torch.full_like(grad[part, None], -1))
            slope = probs.mul_(-grad[part, None]).to(weight.dtype)
            grad_hidden[part] = slope @ weight
            grad_weight.addmm_(slope.T, hidden[part])
        return grad_hidden, grad_weight, None


class Head(nn.Module):
    """The model's output layer under its old name; a module of its own so that ZeRO-3 gathers the weight around it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, hidden, targets):
        return _TargetLogprobs.apply(hidden, self.weight, targets)


class ResponseLogprobs(nn.Module):
    """A causal model as the function packed batch -> summed log-probability of each response, in nats, shape (count,)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        model.set_output_embeddings(Head(model.get_output_embeddings()))
        self.model = model

    def forward(self, input_ids, position_ids, segments, places, targets, owner, count):
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, segments=segments, use_cache=False
        ).last_hidden_state[0]
        logprobs = self.model.get_output_embeddings()(hidden[places], targets)
        return torch.zeros(count, dtype=torch.float32, device=hidden.device).index_add(
            0, owner, logprobs
        )
