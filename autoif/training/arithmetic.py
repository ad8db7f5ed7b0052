"""What a model costs by arithmetic: operations of a step, the peak of a device, bytes of memory.

`shape` is the transformers config of a dense decoder (llama, mistral, qwen2, qwen3), `rows` are
`{"prompt": [ids], "responses": [[ids], ...]}`. Nothing here is measured.
"""

from autoif.models import parameters
from autoif.training.rows import packed_tokens

# Dense bf16 TFLOP/s from NVIDIA's data sheets; the first name that a device's name contains counts.
PEAKS = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "H800": 989,
    "B200": 2250,
    "A100": 312,
    "A800": 312,
}

LOGIT_TOKENS = 1024  # tokens whose logits exist at one time (packed.py)
GATHERED = 2e9  # bytes of ZeRO-3's gathered layers: stage3_max_live_parameters x 2


def attention_widths(shape) -> tuple[int, int]:
    """Columns of all query heads, and of all key heads."""
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return shape.num_attention_heads * size, shape.num_key_value_heads * size


def layer_weights(shape) -> int:
    """Weights of one decoder layer's matrices: query and output, key and value, gate, up, down."""
    queries, keys = attention_widths(shape)
    return shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)


def attention_pairs(row: dict) -> float:
    """Pairs of a token and one that it sees, as packed.Segments pictures them."""
    prompt = len(row["prompt"])
    pairs = prompt * (prompt + 1) / 2
    for response in row["responses"]:
        computed = len(response) - 1
        pairs += computed * prompt + computed * (computed + 1) / 2
    return pairs


def step_flops(shape, rows: list[dict]) -> float:
    """Operations of forward and backward pass: 6 a weight and token, 12 a query column and pair.

    A prompt counts once, the output layer only where a token of a response is predicted, and what
    is computed again in the backward pass not at all.
    """
    tokens = sum(map(packed_tokens, rows))
    targets = sum(len(response) for row in rows for response in row["responses"])
    pairs = sum(map(attention_pairs, rows))
    matrices = shape.num_hidden_layers * layer_weights(shape) * tokens
    output = shape.hidden_size * shape.vocab_size * targets
    columns = shape.num_hidden_layers * attention_widths(shape)[0]
    return 6 * (matrices + output) + 12 * columns * pairs


def peak_flops(device, dtype) -> float | None:
    """Operations a second that a device can reach by its data sheet; None where PEAKS has none.

    Measured, a peak is that of the machine's other work: shares of it went beyond 1.
    """
    import torch

    if torch.device(device).type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for known, peak in PEAKS.items() if known in name), None)


def kept_bytes(shape) -> int:
    """Bytes a token that one layer in bf16 keeps for its backward pass.

    Two norms keep their input in float32, the normed value and the scaled one (2 x 12 a column);
    queries and keys are kept before and after their rotation, and the output (8 a query column, 8 a
    key column with the values); gate, up, their activation and product (8 a column).
    """
    queries, keys = attention_widths(shape)
    return 24 * shape.hidden_size + 8 * (queries + keys) + 8 * shape.intermediate_size


def memory(
    shape, tokens: int, processes: int, zero: int = 3, offload: bool = False, recompute: bool = True
) -> dict[str, float]:
    """Bytes that one of `processes` GPUs holds while it trains packs of `tokens` in bf16.

    `states`: bf16 weights 2 a parameter, fp32 gradients 4, fp32 master weights and two moments 12,
    each shared out over the GPUs from ZeRO stage 3, 2 and 1 on. `cpu`: what --offload moves to the
    host. `activations`: a layer's input (2 a column) of all layers and twice one layer when layers
    are recomputed, else all that all layers keep. `output`: logits and their gradient, 1,024 tokens
    at a time, and the output layer's weight and gradient.
    """
    count = parameters(shape)
    # every stage of ZeRO shares out one more of the three
    weights, gradients, optimizer, gathered = 2 * count, 4 * count, 12 * count / processes, 0
    if zero >= 2:
        gradients /= processes
    if zero == 3:
        gathered = min(GATHERED, weights)
        weights /= processes
    moved = 0
    if offload:
        moved = gradients + optimizer
    if recompute:
        kept = 2 * shape.hidden_size * shape.num_hidden_layers + 2 * kept_bytes(shape)
    else:
        kept = (shape.num_hidden_layers + 1) * kept_bytes(shape)
    output = 8 * LOGIT_TOKENS * shape.vocab_size + 4 * shape.vocab_size * shape.hidden_size
    return {
        "states": weights + gradients + optimizer - moved,
        "gathered": gathered,
        "activations": kept * tokens,
        "output": output,
        "cpu": moved,
    }
