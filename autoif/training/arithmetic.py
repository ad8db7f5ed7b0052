"""What a model costs by arithmetic: operations of a step, the peak of a device, bytes of memory.

`shape` is the transformers config of a dense decoder (llama, mistral, qwen2, qwen3), `rows` are
`{"prompt": [ids], "responses": [[ids], ...]}`. Nothing here is measured.
"""

from typing import NamedTuple

from autoif.files import UserError
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
SMALL_PACK = 4096  # tokens of a pack that still fill a GPU
NODE = 8  # processes beyond which each pack's weights come over a network: large packs are cheaper
ROOM = 0.9  # of a device; a tenth stays free for what the allocator cannot place


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

    Two norms keep their input in float32, the normed value and the scaled one (2 x 8 a column);
    rotated queries and the output (4 a query column), keys and values (4 a key column); gate, up,
    their activation and product (8 a column).
    """
    queries, keys = attention_widths(shape)
    return 16 * shape.hidden_size + 4 * (queries + keys) + 8 * shape.intermediate_size


def memory(
    shape,
    count: int,
    tokens: int,
    processes: int,
    zero: int = 3,
    offload: bool = False,
    recomputed: int = 0,
    precision: str = "bf16",
) -> dict[str, float]:
    """Bytes that one of `processes` GPUs holds while it trains packs of `tokens`.

    `states`: of each of `count` parameters the bf16 weight 2, the fp32 gradient 4, the fp32 master
    weight and two moments 12, each shared out over the GPUs from ZeRO stage 3, 2 and 1 on; in fp32
    the weight is 4, and the gradient lies there twice. `cpu`: what --offload moves to the host,
    where gradients lie twice. `activations`: all that layers keep, and one layer's gradients; of
    the first `recomputed` layers their input alone (2 a column in bf16), and twice what a layer
    keeps while one of them runs again. `output`: logits and their gradient, 1,024 tokens at a time,
    and the output layer's weight and gradient.
    """
    # every stage of ZeRO shares out one more of the three
    wide = 2 if precision == "fp32" else 1
    weights, gradients = 2 * wide * count, 4 * wide * count
    optimizer, gathered = 12 * count / processes, 0
    if zero >= 2:
        gradients /= processes
    if zero == 3:
        gathered = min(GATHERED, weights)
        weights /= processes
    states, host = weights + gradients + optimizer, 0
    if offload:
        states, host = weights, 2 * gradients + optimizer
    whole = max(shape.num_hidden_layers - recomputed + 1, 2)
    kept = 2 * shape.hidden_size * recomputed + whole * kept_bytes(shape)
    return {
        "states": states,
        "gathered": gathered,
        "activations": wide * kept * tokens,
        "output": 8 * LOGIT_TOKENS * shape.vocab_size + 4 * shape.vocab_size * shape.hidden_size,
        "cpu": host,
    }


# ---- what of it fits ----


class Layout(NamedTuple):
    """How a model is trained on each of its devices."""

    zero: int
    tokens: int  # of a pack
    recomputed: int  # layers, from the first on
    layers: int
    needed: dict[str, float]  # of memory()
    device: float  # bytes that are there

    @property
    def bytes(self) -> float:
        """What the device has to hold."""
        return sum(self.needed.values()) - self.needed["cpu"]

    def __str__(self) -> str:
        """ZeRO-1, packs of 4,096 tokens, 6 of 24 layers recomputed: states 9 + ... = 20 of 26 GB"""
        parts = {name: size for name, size in self.needed.items() if size and name != "cpu"}
        parts = [f"{name} {size / 1e9:.1f}" for name, size in parts.items()]
        words = (
            f"ZeRO-{self.zero}, packs of {self.tokens:,} tokens, {self.recomputed} of "
            f"{self.layers} layers recomputed: {' + '.join(parts)} = {self.bytes / 1e9:.1f} of "
            f"{self.device / 1e9:.0f} GB"
        )
        if host := self.needed["cpu"]:
            words += f", and {host / 1e9:.0f} GB of CPU memory"
        return words


def layout(shape, args, longest: int, processes: int, device: float) -> Layout:
    """The fastest layout that fits a device of so many bytes; the leanest where none does.

    `args` are the training flags; what they leave to "auto" is chosen here: on one node smaller
    packs, down to SMALL_PACK and to the `longest` row, before a layer is computed twice (all of
    them: 29 % of a 7B model's step), and of ZeRO the lowest stage, which exchanges least.
    """
    layers, count = shape.num_hidden_layers, parameters(shape)
    capacity = max(args.micro_tokens, longest)
    # DeepSpeed's optimizer of stage 1 in bf16 knows no offload
    stages = [args.zero] if args.zero != "auto" else [3] if args.offload else [1, 2, 3]
    if args.activation_checkpointing == "auto":
        packs = [capacity]
        while processes <= NODE and packs[-1] // 2 >= max(SMALL_PACK, longest):
            packs.append(packs[-1] // 2)
        forms = [(tokens, 0) for tokens in packs]
        forms += [(packs[-1], recomputed) for recomputed in range(1, layers + 1)]
    else:
        forms = [(capacity, layers if args.activation_checkpointing == "on" else 0)]
    found = []
    for tokens, recomputed in forms:
        for zero in stages:
            needed = memory(
                shape, count, tokens, processes, zero, args.offload, recomputed, args.precision
            )
            found.append(Layout(zero, tokens, recomputed, layers, needed, device))
            if found[-1].bytes <= ROOM * device:
                return found[-1]
    return min(found, key=lambda layout: layout.bytes)


def refuse_too_large(name: str, layout: Layout, host: float) -> None:
    """UserError where a model does not fit its GPU, or what is offloaded not `host` bytes."""
    offloaded = layout.needed["cpu"]
    if layout.bytes > layout.device:
        advice = "fewer --micro-tokens" + ("" if offloaded else ", --offload")
        raise UserError(
            f"{name} does not fit its GPU: {layout}; pass {advice}, or train on more GPUs"
        )
    if offloaded > host:
        raise UserError(
            f"{name} does not fit: --offload takes {offloaded / 1e9:.0f} GB of CPU memory a GPU, "
            f"and {host / 1e9:.0f} GB are there; train on more GPUs"
        )
