"""All that is open on a GPU, measured by one command on one GPU, without network, in 9 minutes.

    python bench/gpu.py                      writes bench/baselines/<gpu>.json and prints ratios
    python bench/gpu.py --tiny --parts ...   the same code on a CPU, with models of two layers

Random weights in the shapes of Qwen2-0.5B, 1.5B and 7B, and rows of random words as long as
AutoIF's. Each part runs in a process of its own; one that fails or runs out of time is named, and
the others go on.

    attention      each kernel that runs here beside plain float32 attention: largest error, time
    sft-*, dpo-*   05's and 06's losses in packs of 8,192 and 4,096 tokens: tokens/s, MFU, memory
                   beside autoif/training/arithmetic.py's
    trl-*          the same rows through TRL in its fastest form of the same loss: SFT packed (bfd),
                   DPO with the reference computed before; FlashAttention and Liger if installed
    zero1, zero2   sft-0.5b in the other stages of ZeRO
    sft-7b         with the optimizer on the CPU (122 GB of its memory)

Bars to beat on one H100: 0.5B to 1B at 8k: 26,000 tokens/s and 17 % MFU (prime-rl's published
baseline); 7B: 40 % MFU of the forward and backward passes; DPO twice TRL's tokens/s.
"""

import argparse
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# hidden, intermediate, layers, heads, key heads, words, tied: Qwen2's config.json
SHAPES = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "tiny": (64, 128, 2, 4, 2, 512, True),
}
# those with the most to say first: the time may end before the list does
PARTS = [
    "attention",
    *("sft-0.5b", "dpo-0.5b", "trl-sft-0.5b", "trl-dpo-0.5b"),
    *("sft-1.5b", "dpo-1.5b", "zero1", "zero2", "sft-7b", "trl-sft-1.5b", "trl-dpo-1.5b"),
]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


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


def conversations(kind: str, count: int, longest: int) -> list[dict]:
    """Rows as TRL has them: prompts of 40 to 300 words, responses of 20 to 700."""
    rng = random.Random(0)

    def message(role, low, high):
        size = rng.randint(low, min(high, longest))
        return [{"role": role, "content": " ".join(f"w{rng.randrange(400)}" for _ in range(size))}]

    rows = []
    for _ in range(count):
        row = {"prompt": message("user", 40, 300)}
        sides = ("completion",) if kind == "sft" else ("chosen", "rejected")
        rows.append(row | {side: message("assistant", 20, 700) for side in sides})
    return rows


def encoded(kind: str, conversations: list[dict]) -> list[dict]:
    """The same rows as tokens, with a reference that DPO can use."""
    from autoif.training.rows import encode

    made = tokenizer()
    sides = ("completion",) if kind == "sft" else ("chosen", "rejected")
    rows = []
    for number, row in enumerate(conversations):
        tokens = encode(made, row["prompt"], [row[side] for side in sides], f"row {number}")
        rows.append({"id": str(number), "reference": [-1000.0, -1000.0], **tokens})
    return rows


def sizes(kind: str, size: str) -> tuple[int, int, int, int]:
    """(rows a step, steps and the first is warm-up, tokens of a pack, words of a text at most)."""
    if size == "tiny":
        return 4, 2, 256, 60
    rows = 64 if kind == "sft" else 32
    return rows, 2 if size == "7b" else 4, 8192 if kind == "sft" else 4096, 700


def ours(kind: str, size: str, zero: int, device: str) -> dict:
    """The stage's loss, packs and engine, as in its own loop."""
    import torch

    from autoif.training import arithmetic, rows
    from autoif.training import engine as train
    from autoif.training.log import memory_gb
    from autoif.training.packed import pack

    path = ROOT / ("05_sft.py" if kind == "sft" else "06_dpo.py")
    spec = importlib.util.spec_from_file_location("stage", path)
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    batch, steps, capacity, longest = sizes(kind, size)
    train.start(seed=0, precision="bf16")
    data = encoded(kind, conversations(kind, batch * steps, longest))

    # bring up the engine
    config = train.deepspeed_config(ROOT / "ds_config.json", zero, "bf16", size == "7b")
    model = train.packed_model(random_model(size, "packed", torch.bfloat16, device))
    train.checkpoint_activations(model, data, "auto", capacity, config, world=1)
    recomputed = model.model.is_activation_checkpointing
    settings = {"lr": 1e-6, "betas": [0.9, 0.95], "weight_decay": 0.0, "schedule": "constant"}
    engine = train.trainable(model, config, steps, warmup=0, **settings)

    # train; the time of a step, and of its forward and backward passes alone
    whole, passes = [], []
    for step in range(steps):
        rows_of_step = data[step * batch : (step + 1) * batch]
        begin = now(device)
        for micro, weight, last in rows.micro_steps(rows_of_step, capacity, 0, 1):
            engine.set_gradient_accumulation_boundary(last)
            logprobs = engine(**pack(micro, engine.device))
            if kind == "sft":
                loss = stage.sft_loss(logprobs, tokens=1000)
            else:
                reference = torch.tensor([row["reference"] for row in micro], device=device)
                losses, _ = stage.dpo_loss(logprobs.view(-1, 2), reference, beta=0.3)
                loss = losses.sum() / batch
            engine.backward(weight * loss, scale_wrt_gas=False)
            computed = now(device)
            engine.step()
        passes.append(computed - begin)
        whole.append(now(device) - begin)
    expected = arithmetic.memory(
        shape_of(size), capacity, 1, zero, size == "7b", recompute=recomputed
    )
    timed = data[batch:]
    numbers = speed(kind, size, timed, sum(whole[1:]), device)
    if "mfu" in numbers:
        numbers["mfu of the passes"] = numbers["mfu"] * sum(whole[1:]) / sum(passes[1:])
    numbers["memory_gb"] = memory_gb()
    numbers["memory by arithmetic_gb"] = (sum(expected.values()) - expected["cpu"]) / 1e9
    return numbers


def trl(kind: str, size: str, device: str) -> dict:
    """TRL's trainer on the same rows in the fastest form that this machine has."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from autoif.training.log import memory_gb

    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(now(device))

    batch, steps, capacity, longest = sizes(kind, size)
    made = conversations(kind, batch * steps, longest)
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    liger = device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    settings = dict(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=1,
        bf16=True,
        use_liger_kernel=liger,
        gradient_checkpointing=False,
        max_length=capacity,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        learning_rate=1e-6,
        use_cpu=device == "cpu",
    )
    if kind == "sft":
        # packs as large as ours; without FlashAttention packed rows would see each other
        config = SFTConfig(
            **settings,
            packing=flash,
            packing_strategy="bfd",
            per_device_train_batch_size=1 if flash else min(8, batch // 2),
            gradient_accumulation_steps=2,
        )
        trainer_class = SFTTrainer
    else:
        config = DPOConfig(
            **settings,
            beta=0.3,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=max(1, batch // 4),
        )
        trainer_class = DPOTrainer
    # float32 weights under autocast, as our master weights are
    attention = "flash_attention_2" if flash else "sdpa"
    trainer = trainer_class(
        random_model(size, attention, torch.float32, device),
        args=config,
        train_dataset=Dataset.from_list(made),
        processing_class=tokenizer(),
        callbacks=[Clock()],
    )
    trainer.train()
    data = encoded(kind, made)
    share = (len(times) - 1) / len(times)
    numbers = speed(kind, size, data, (times[-1] - times[0]) / share, device)
    return numbers | {"memory_gb": memory_gb(), "flash-attn": flash, "liger": liger}


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
    inputs = [each.bfloat16() for each in inputs]

    def computed(kernel, dtype):
        """Output, gradients, and milliseconds of the second time."""
        states = [each.to(dtype).requires_grad_() for each in inputs]
        for _ in range(2):
            begin = now(device)
            keys, values = segments.keys(states[1]), segments.keys(states[2])
            output = kernel(states[0], keys, values, segments, size**-0.5)
            gradients = torch.autograd.grad(output.float().square().sum(), states)
            seconds = now(device) - begin
        return [output, *gradients], 1000 * seconds

    names = ["sdpa"]
    if device == "cuda":
        names.append("varlen")
        names += ["flash_attn"] if importlib.util.find_spec("flash_attn") else []
    expected, _ = computed(packed.sdpa, torch.float32)
    numbers = {"tokens": length}
    for name in names:
        found, numbers[f"{name} milliseconds"] = computed(getattr(packed, name), torch.bfloat16)
        for what, ours, exact in zip(("output", "query", "key", "value"), found, expected):
            error = (ours.float() - exact).abs().max() / exact.abs().max()
            numbers[f"{name} {what} error"] = error.item()
    return numbers


def measure(part: str, size: str | None, device: str) -> dict:
    """One part by its name; `size` in place of the name's own."""
    if part == "attention":
        return attention(device)
    if part.startswith("zero"):
        return ours("sft", size or "0.5b", int(part[-1]), device)
    kind, own = part.removeprefix("trl-").split("-")
    if kind not in ("sft", "dpo") or own not in SHAPES:
        sys.exit(f"no such part; parts are {', '.join(PARTS)}")
    if part.startswith("trl-"):
        return trl(kind, size or own, device)
    return ours(kind, size or own, 3, device)


def ratios(numbers: dict) -> dict:
    """Ours beside TRL's, of the parts that both were measured in."""
    found = {}
    for part, ours in numbers.items():
        theirs = numbers.get(f"trl-{part}")
        if theirs:
            found[f"{part} ratio"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
            found[f"{part} memory ratio_gb"] = ours["memory_gb"] / theirs["memory_gb"]
    return found


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--tiny", action="store_true", help="two layers, on the CPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part may end later")
    parser.add_argument("--json", help="(default: bench/baselines/<gpu>.json)")
    parser.add_argument("--one", metavar="PART", help="(what the parent process calls)")
    args = parser.parse_args(argv)
    size, device = ("tiny", "cpu") if args.tiny else (None, "cuda")
    if args.one:
        print("RESULT " + json.dumps(measure(args.one, size, device)))
        return 0

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: error: no GPU; `--tiny` runs the same code on a CPU", file=sys.stderr)
        return 2
    machine = "CPU, tiny shapes" if args.tiny else torch.cuda.get_device_name()
    flags, end = ["--tiny"] if args.tiny else [], time.monotonic() + 60 * args.minutes
    numbers, failed = {}, {}
    for part in args.parts:
        try:
            done = subprocess.run(
                [sys.executable, __file__, *flags, "--one", part],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(1, end - time.monotonic()),
            )
            found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
            reason = done.stdout.strip().splitlines()[-1:] or ["no output"]
        except subprocess.TimeoutExpired:
            found, reason = None, ["out of time"]
        if found:
            numbers[part] = json.loads(found[1])
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers[part].items())
            print(f"{part}: {shown}", flush=True)
        else:
            failed[part] = reason[0]
            print(f"{part}: FAILED: {reason[0]}", flush=True)

    # write what was measured: bench/compare.py reads it
    compared = ratios(numbers)
    for name, value in compared.items():
        print(f"{name}: {value:.2f}x")
    flat = {f"{part} {name}": value for part in numbers for name, value in numbers[part].items()}
    packages = ("torch", "transformers", "deepspeed", "trl")
    record = {
        "machine": machine,
        "versions": {name: metadata.version(name) for name in packages},
        "numbers": flat | compared,
        "failed": failed,
    }
    name = re.sub(r"\W+", "-", machine).strip("-").lower()
    path = Path(args.json or ROOT / "bench" / "baselines" / f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path}; {len(failed)} of {len(args.parts)} parts failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
