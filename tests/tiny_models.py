"""Tiny random models, byte-level tokenizers with chat templates, and runs of the stages."""

import argparse
import importlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from autoif.training import rows as token_rows

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# kind: (special tokens, the tokenizer's own end token, template)
KINDS = {
    "smollm2": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", CHATML),
    "qwen2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", CHATML),
    "llama3": (
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        LLAMA3,
    ),
    "base": (["</s>"], "</s>", None),
}


def tokenizer(kind: str):
    special, end, template = KINDS[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(special + alphabet)}, merges=[]
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=end, additional_special_tokens=special
    )
    made.chat_template = template
    return made


def model(model_type: str = "llama", attention: str = "sdpa", seed: int = 0):
    """A random model of two layers in float32; the same weights for the same seed."""
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=model_type == "llama",
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32
    )


def checkpoint(folder: Path, kind: str = "smollm2", seed: int = 0) -> str:
    model(seed=seed).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return str(folder)


# hidden, intermediate, layers, heads, key heads, vocabulary, tied
QWEN2 = {
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}


def qwen2(folder: Path, size: str) -> str:
    """A folder with the configuration of a Qwen2 of that size, and no weights."""
    hidden, intermediate, layers, heads, key_heads, vocabulary, tied = QWEN2[size]
    transformers.Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=131_072,
    ).save_pretrained(folder)
    return str(folder)


def random_rows(responses: int, count: int, seed: int = 0) -> list[dict]:
    """Token rows as the stages make them, of unequal lengths, one response of a single token."""
    rng = random.Random(seed)

    def ids(low, high):
        return [rng.randrange(264) for _ in range(rng.randint(low, high))]

    rows = [
        {
            "id": str(number),
            "prompt": ids(2, 9),
            "responses": [ids(2, 12) for _ in range(responses)],
        }
        for number in range(count)
    ]
    rows[0]["responses"][-1] = ids(1, 1)
    return rows


def plain_logprobs(model, rows: list[dict]) -> torch.Tensor:
    """Summed log-probability of each response by one unpacked forward pass each."""
    found = []
    for row in rows:
        for response in row["responses"]:
            ids = torch.tensor([row["prompt"] + response])
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(each[len(row["prompt"]) - 1 :].sum())
    return torch.stack(found)


def usable(stage: str, rows, tokenizer, out: Path, max_length=999, skip_bad=False) -> list[dict]:
    """Encoded rows through rows.usable, as the stages' flags have it."""
    flags = argparse.Namespace(
        input="rows.jsonl", out=str(out), max_length=max_length, skip_bad=skip_bad
    )
    return token_rows.usable(stage, rows, tokenizer, flags, rank=0)


def stage(name: str):
    """The module of a numbered file."""
    return importlib.import_module(name)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def environment() -> dict[str, str]:
    paths = f"{ROOT}:{ROOT / 'tests'}"
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def start(
    stage: str, *arguments: str, node: int = 0, nodes: int = 1, port: int = 0, processes: int = 1
) -> subprocess.Popen:
    """Run a stage alone, as several processes, or as one of several torchrun nodes on loopback."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    if nodes > 1:
        launcher += ["-m", "torch.distributed.run", "--nnodes", str(nodes)]
        launcher += ["--node-rank", str(node), "--nproc-per-node", "1", "--rdzv-id", "test"]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        launcher += ["--local-addr", "127.0.0.1"]
    return subprocess.Popen(
        [*launcher, str(ROOT / stage), *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )


def finish(process: subprocess.Popen, code: int = 0, timeout: float = 120) -> str:
    try:
        output = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    assert process.returncode == code, output[-3000:]
    return output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(folder: str) -> list[dict]:
    return [json.loads(line) for line in open(Path(folder) / "metrics.jsonl")]
