"""Training on one GPU, measured by one command, without network, in 9 minutes.

    python bench/gpu.py                      writes bench/baselines/<gpu>.json and prints ratios
    python bench/gpu.py --tiny --parts ...   the same code on a CPU, with models of two layers

Random weights in the shapes of Qwen2-0.5B, 1.5B and 7B, and rows of random words as long as
AutoIF's. Each part runs in a process of its own; one that fails or runs out of time is named, its
words go into a log beside the JSON, and the others go on. It wants torch 2.11 or later,
transformers, and of requirements.txt deepspeed, tyro, tqdm, jsonlines, matplotlib, for trl-* trl
and datasets; where there is no network, carry their wheels and those that they want (pydantic and
hjson among them; `pip wheel --no-deps deepspeed==...` makes deepspeed's).

    attention      each kernel that runs here beside plain float32 attention: largest error, time
    sft-*, dpo-*   05's and 06's losses in packs of 8,192 and 4,096 tokens: tokens/s, MFU, memory
                   beside autoif/training/arithmetic.py's
    trl-*          the same rows through TRL in its fastest form of the same loss: SFT packed (bfd),
                   DPO with the reference computed before; FlashAttention and Liger if installed
    compiled-*     the same with --compile: norms, rotary, SwiGLU and log-probabilities fused
    zero2, zero3   sft-0.5b in the other stages of ZeRO (alone on a GPU 1 is chosen)
    sft-7b-half    half of 7B's layers: all of a layer's speed, and its states fit one GPU
    sft-7b         (named by --parts only) with the optimizer on the CPU, 152 GB of its memory

Bars to beat on one H100 or H200: 0.5B 86,000 tokens/s (SFT) and 65,000 (DPO, ZeRO-1), 7B 31 to 35 %
MFU (a roofline by kernels), DPO twice TRL's tokens/s.
"""

import importlib
import importlib.util
import os
import random
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import compare
from compare import ROOT

from autoif.files import UserError
from autoif.flags import Positive, cli
from autoif.settings import versions

# hidden, intermediate, layers, heads, key heads, words, tied: Qwen2's config.json
SHAPES = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "7b-half": (3584, 18944, 14, 28, 4, 152064, False),
    "tiny": (64, 128, 2, 4, 2, 512, True),
}
# those with the most to say first: the time may end before the list does
PARTS = (
    "attention sft-0.5b dpo-0.5b sft-7b-half compiled-sft-0.5b compiled-sft-7b-half zero3 "
    "trl-sft-0.5b trl-dpo-0.5b compiled-dpo-0.5b sft-1.5b dpo-1.5b zero2 trl-sft-1.5b trl-dpo-1.5b"
).split()
PACKAGES = ("torch", "transformers", "deepspeed", "trl", "flash-attn", "liger-kernel")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


@dataclass(kw_only=True)
class Flags(compare.Flags):
    parts: tuple[str, ...] = tuple(PARTS)
    tiny: bool = False  # two layers, on the CPU
    minutes: Positive = 8.5  # no part may end later
    part_seconds: Positive = 100.0  # of one part at most
    one: str | None = None  # (what the parent process calls)


# ---- models and rows ----


def shape_of(size: str):
    import transformers

    hidden, intermediate, layers, heads, key_heads, words, tied = SHAPES[size]
    return transformers.AutoConfig.for_model(
        "qwen2",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=words,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        eos_token_id=1,
    )


def random_model(size: str, attention: str, dtype, device: str):
    import torch
    import transformers

    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            shape_of(size), attn_implementation=attention, dtype=dtype
        )


def tokenizer():
    """Words w0 to w399, a token each."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "user", "assistant", *(f"w{number}" for number in range(400))]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    made.chat_template = TEMPLATE
    return made


def sides_of(kind: str) -> tuple[str, ...]:
    return ("completion",) if kind == "sft" else ("chosen", "rejected")


def conversations(kind: str, count: int, longest: int) -> list[dict]:
    """Rows as TRL has them: prompts of 40 to 300 words, responses of 20 to 700."""
    rng = random.Random(0)

    def message(role, low, high):
        size = rng.randint(low, min(high, longest))
        return [{"role": role, "content": " ".join(f"w{rng.randrange(400)}" for _ in range(size))}]

    rows = []
    for _ in range(count):
        prompt = message("user", 40, 300)
        sides = {side: message("assistant", 20, 700) for side in sides_of(kind)}
        rows.append({"prompt": prompt, **sides})
    return rows


def encoded(kind: str, conversations: list[dict]) -> list[dict]:
    """The same rows as tokens."""
    from autoif.training.rows import encode

    made, rows = tokenizer(), []
    for number, row in enumerate(conversations):
        sides = [row[side] for side in sides_of(kind)]
        tokens = encode(made, row["prompt"], sides, f"row {number}")
        rows.append({"id": str(number), **tokens})
    return rows


def sizes(kind: str, size: str) -> tuple[int, int, int, int]:
    """(rows a step, steps and the first is warm-up, tokens of a pack, words of a text at most)."""
    if size == "tiny":
        return 4, 2, 256, 60
    steps = 2 if size.startswith("7b") else 4
    return (64, steps, 8192, 700) if kind == "sft" else (32, steps, 4096, 700)


# ---- parts ----


def now(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def speed(kind: str, size: str, data: list[dict], seconds: float, device: str) -> dict:
    """Tokens/s, TFLOP/s and on a GPU the MFU of rows that took `seconds`."""
    import torch

    from autoif.training import arithmetic, rows

    once, repeated = rows.count_tokens(data)
    flops = arithmetic.step_flops(shape_of(size), data) / seconds
    numbers = {"tokens_per_second": once / seconds, "tflops": flops / 1e12}
    if peak := arithmetic.peak_flops(device, torch.bfloat16):
        numbers["mfu"] = flops / peak
    if kind == "dpo":
        numbers["tokens_per_second_prompt_repeated"] = repeated / seconds
    return numbers


def ours(kind: str, size: str, zero: int | str, compiled: bool, device: str) -> dict:
    """The stage's loss, packs and engine, as in its own loop."""
    import torch

    from autoif import gpu
    from autoif.training import arithmetic, engine, rows
    from autoif.training.log import memory_gb
    from autoif.training.packed import pack, placed

    stage = importlib.import_module("05_sft" if kind == "sft" else "06_dpo")
    batch, steps, capacity, longest = sizes(kind, size)
    engine.start(seed=0, precision="bf16")
    data = encoded(kind, conversations(kind, batch * steps, longest))

    # bring up the engine
    choice = engine.Flags(micro_tokens=capacity, zero=zero, offload=size == "7b")
    memory = min(gpu.memory(), default=24e9)
    layout = arithmetic.layout(shape_of(size), choice, 0, 1, memory)
    config = engine.deepspeed_config(ROOT / "ds_config.json", layout.zero, "bf16", size == "7b")
    model = engine.packed_model(random_model(size, "packed", torch.bfloat16, device))
    engine.recompute(model, layout.recomputed)
    if compiled:
        engine.fuse(model)
    settings = {"lr": 1e-6, "betas": [0.9, 0.95], "weight_decay": 0.0, "schedule": "constant"}
    policy = engine.trainable(model, config, steps, warmup=0, **settings)

    # train; the first step is warm-up
    for step in range(steps):
        rows_of_step = data[step * batch : (step + 1) * batch]
        if step == 1:
            began = now(device)
        for micro, weight, last in rows.micro_steps(rows_of_step, layout.tokens, 0, 1):
            policy.set_gradient_accumulation_boundary(last)
            logprobs = policy(**pack(micro, policy.device))
            if kind == "sft":
                loss = stage.sft_loss(logprobs, tokens=1000)
            else:
                reference = placed([[-1000.0] * 2] * len(micro), policy.device, torch.float32)
                losses, _ = stage.dpo_loss(logprobs.view(-1, 2), reference, beta=0.3)
                loss = losses.sum() / batch
            policy.backward(weight * loss, scale_wrt_gas=False)
            policy.step()
    numbers = speed(kind, size, data[batch:], now(device) - began, device)
    numbers["memory_gb"] = memory_gb()
    numbers["memory by arithmetic_gb"] = layout.bytes / 1e9
    return numbers


def trl(kind: str, size: str, device: str) -> dict:
    """TRL's trainer on the same rows in the fastest form that this machine has."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from autoif.training import packed
    from autoif.training.log import memory_gb

    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(now(device))

    batch, steps, capacity, longest = sizes(kind, size)
    made = conversations(kind, batch * steps, longest)
    flash = device == "cuda" and packed.has_flash_attn()
    liger = device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "num_train_epochs": 1,
        "bf16": True,
        "use_liger_kernel": liger,
        "gradient_checkpointing": False,
        "max_length": capacity,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "learning_rate": 1e-6,
        "use_cpu": device == "cpu",
    }
    if kind == "sft":
        # packs as large as ours; without FlashAttention packed rows would see each other
        trainer_class, config_class = SFTTrainer, SFTConfig
        settings |= {"packing": flash, "packing_strategy": "bfd", "gradient_accumulation_steps": 2}
        settings["per_device_train_batch_size"] = 1 if flash else min(8, batch // 2)
    else:
        trainer_class, config_class = DPOTrainer, DPOConfig
        settings |= {"beta": 0.3, "precompute_ref_log_probs": True}
        settings["per_device_train_batch_size"] = 4
        settings["gradient_accumulation_steps"] = max(1, batch // 4)
    # float32 weights under autocast, as our master weights are
    attention = "flash_attention_2" if flash else "sdpa"
    trainer = trainer_class(
        random_model(size, attention, torch.float32, device),
        args=config_class(**settings),
        train_dataset=Dataset.from_list(made),
        processing_class=tokenizer(),
        callbacks=[Clock()],
    )
    trainer.train()
    share = (len(times) - 1) / len(times)
    seconds = (times[-1] - times[0]) / share
    numbers = speed(kind, size, encoded(kind, made), seconds, device)
    return numbers | {"memory_gb": memory_gb(), "flash-attn": flash, "liger": liger}


def attention(device: str) -> dict:
    """Each kernel's output and gradients beside plain attention in float32."""
    import torch

    from autoif.training import packed

    heads, key_heads, size = 14, 2, 64
    _, _, capacity, longest = sizes("dpo", "0.5b" if device == "cuda" else "tiny")
    rows, used = [], 0
    for row in encoded("dpo", conversations("dpo", 64, longest)):
        used += len(row["prompt"]) + sum(map(len, row["responses"]))
        if used < capacity:
            rows.append(row)
    batch = packed.pack(rows, device)
    length, segments = batch["input_ids"].shape[1], batch["segments"]
    torch.manual_seed(0)
    inputs = [torch.randn(length, n, size, device=device) for n in (heads, key_heads, key_heads)]
    inputs = [states.bfloat16() for states in inputs]

    def computed(kernel, dtype):
        """Output, gradients, and milliseconds of the second time."""
        states = [each.to(dtype).requires_grad_() for each in inputs]
        for _ in range(2):
            began = now(device)
            keys, values = segments.keys(states[1]), segments.keys(states[2])
            output = kernel(states[0], keys, values, segments, size**-0.5)
            gradients = torch.autograd.grad(output.float().square().sum(), states)
            seconds = now(device) - began
        return [output, *gradients], 1000 * seconds

    names = ["sdpa"]
    if device == "cuda":
        names.append("varlen")
        names += ["flash_attn"] if packed.has_flash_attn() else []
    expected, _ = computed(packed.sdpa, torch.float32)
    numbers = {"tokens": length}
    for name in names:
        try:
            tensors, milliseconds = computed(getattr(packed, name), torch.bfloat16)
        except Exception as error:  # the others are measured all the same
            print(f"attention by {name} failed: {error!r}", flush=True)
            continue
        numbers[f"{name} milliseconds"] = milliseconds
        for what, tensor, exact in zip(("output", "query", "key", "value"), tensors, expected):
            error = (tensor.float() - exact).abs().max() / exact.abs().max()
            numbers[f"{name} {what} error"] = error.item()
    return numbers


# ---- all of them ----


def measure(part: str, tiny: bool) -> dict:
    """One part by its name."""
    device = "cpu" if tiny else "cuda"
    if tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if part == "attention":
        return attention(device)
    by, zero = "", "auto"
    for prefix in ("trl-", "compiled-"):
        if part.startswith(prefix):
            by, part = prefix, part.removeprefix(prefix)
    kind, _, size = part.partition("-")
    if part in ("zero2", "zero3"):
        kind, size, zero = "sft", "0.5b", int(part[-1])
    if kind not in ("sft", "dpo") or size not in SHAPES:
        raise UserError(f"no such part; parts are {', '.join(PARTS)}")
    size = "tiny" if tiny else size
    if by == "trl-":
        return trl(kind, size, device)
    return ours(kind, size, zero, by == "compiled-", device)


def ratios(numbers: dict) -> dict:
    """Ours beside TRL's, and compiled beside plain, of the parts that both were measured in."""
    compared = {}
    for part in numbers:
        for over, under in ((part, f"trl-{part}"), (f"compiled-{part}", part)):
            if {over, under} <= numbers.keys():
                above, below = numbers[over], numbers[under]
                compared[f"{over} ratio"] = above["tokens_per_second"] / below["tokens_per_second"]
                compared[f"{over} memory ratio_gb"] = above["memory_gb"] / below["memory_gb"]
    return compared


def main(args: Flags) -> None:
    if args.one:
        compare.hand_over(measure(args.one, args.tiny))
        return

    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise UserError("no GPU; `--tiny` runs the same code on a CPU")
    machine = "CPU, tiny shapes" if args.tiny else torch.cuda.get_device_name()
    name = re.sub(r"\W+", "-", machine).strip("-").lower()
    path = Path(args.json or ROOT / "bench" / "baselines" / f"{name}.json")
    flags, end = ["--tiny"] if args.tiny else [], time.monotonic() + 60 * args.minutes
    numbers, failed, flat = {}, {}, {}
    for part in args.parts:
        left = max(1, min(args.part_seconds, end - time.monotonic()))
        try:
            numbers[part] = compare.alone(__file__, *flags, "--one", part, seconds=left)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in numbers[part].items())
            print(f"{part}: {shown}", flush=True)
            flat |= {f"{part} {key}": value for key, value in numbers[part].items()}
        except UserError as error:
            failed[part] = str(error).splitlines()[-1]
            print(f"{part}: FAILED: {failed[part]}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path.with_suffix(".log"), "a") as log:
                log.write(f"== {part}\n{error}\n")
        # after every part: what is measured is kept, however this run ends
        more = {"versions": versions(PACKAGES), "failed": failed}
        compare.save(path, flat | ratios(numbers), machine, **more)
    for key, value in ratios(numbers).items():
        print(f"{key}: {value:.2f}x")
    print(f"wrote {path}; {len(failed)} of {len(args.parts)} parts failed")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli(main, __doc__)
