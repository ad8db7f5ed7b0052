"""The two engines that serve a checkpoint: vLLM where there are GPUs, llama.cpp elsewhere.

Both are started so that nothing but the request decides how a token is sampled: no top-k, min-p,
repetition penalty or length limit of the checkpoint's or the engine's own is added to it.
"""

import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from autoif import models
from autoif.files import UserError

CONTEXT = 16_384  # tokens of prompt and answer: Arena-Hard's answers may have 4,096
# vLLM's own default; the rest is left to CUDA and to whoever else uses the GPU
GPU_SHARE = 0.9
ACTIVATIONS = 3e9  # bytes a GPU: activations of a batch, CUDA graphs, buffers of the collectives
# Longest requests whose cache should fit beside the weights, or the GPU waits for memory.
REQUESTS = 16


@dataclass(frozen=True)
class Shape:
    """What a model's memory follows from; sizes in parameters, heads, tokens and bytes."""

    parameters: float
    heads: int
    key_heads: int
    context: int  # tokens of prompt and answer
    cache: int  # keys and values of one request of full length, in bf16

    def memory(self, tensor_parallel: int, requests: int) -> float:
        """Bytes each of `tensor_parallel` GPUs needs for weights and the cache of `requests`."""
        weights = 2 * self.parameters / tensor_parallel
        # a key head is never split: more GPUs than key heads hold copies
        cache = self.cache * requests / min(tensor_parallel, self.key_heads)
        return weights + cache + ACTIVATIONS

    def arithmetic(self, tensor_parallel: int) -> str:
        """How the bytes for a single request come about."""
        split, key_heads = tensor_parallel, min(tensor_parallel, self.key_heads)
        return (
            f"{self.parameters / 1e9:.1f} B parameters x 2 bytes / {split} + "
            f"{self.cache / 1e9:.1f} GB of cache for one request of {self.context:,} tokens / "
            f"{key_heads} + {ACTIVATIONS / 1e9:.0f} GB = {self.memory(split, 1) / 1e9:.0f} GB each"
        )


def shape(model: str) -> Shape:
    """The shape that a model's configuration describes; no weight is read or made."""
    config = models.read_config(model)
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    context = min(config.max_position_embeddings, CONTEXT)
    a_token = 2 * config.num_hidden_layers * key_heads * head_size  # a key and a value a layer
    return Shape(models.parameters(config), heads, key_heads, context, 2 * a_token * context)


def free_share() -> float:
    """The share of every GPU that vLLM may take: it refuses to start with less free memory."""
    free = subprocess.check_output([sys.executable, "-m", "autoif.gpu"], text=True)
    return min(GPU_SHARE, math.floor(100 * float(free)) / 100)


def split(model: str, shape: Shape, memory: list[float], share: float) -> tuple[int, int]:
    """The smallest split that fits, as often as there are GPUs: (tensor parallel, data parallel).

    Fewer GPUs a copy exchange less, and more copies answer more. UserError with the arithmetic
    where not even all GPUs together hold it.
    """
    usable, splits = share * min(memory), []
    for exponent in range(len(memory).bit_length()):
        if shape.heads % 2**exponent == 0:
            splits.append(2**exponent)
    for requests in (REQUESTS, 1):
        for tensor_parallel in splits:
            if shape.memory(tensor_parallel, requests) <= usable:
                return tensor_parallel, len(memory) // tensor_parallel
    raise UserError(
        f"{model} cannot be served on {len(memory)} GPUs of {min(memory) / 1e9:.0f} GB: "
        f"{shape.arithmetic(splits[-1])}, and {share:.0%} of a GPU is "
        f"{usable / 1e9:.0f} GB; use more or emptier GPUs, or set SERVE to a server of your own"
    )


def vllm() -> str | None:
    """The vLLM program: $VLLM, the environment's own, or the one on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which(os.environ.get("VLLM", "vllm"), path=path)


def environment() -> dict[str, str]:
    """A server's variables: vLLM finds what lies beside it, and compiles no sampler when it starts.

    FlashInfer calls `ninja` by its name, and its sampler wants nvcc, which wheels do not bring
    (vllm-project/vllm, issues 49029 and 49497); answers with a seed are sampled without it anyway.
    """
    path, program = os.environ.get("PATH", ""), vllm()
    if program:
        path = f"{Path(program).parent}{os.pathsep}{path}"
    return {"VLLM_USE_FLASHINFER_SAMPLER": "0", **os.environ, "PATH": path}


def vllm_command(
    model: str,
    folder: str,
    port: int,
    shape: Shape,
    memory: list[float],
    share: float = GPU_SHARE,
) -> list[str]:
    """vLLM's command line for `folder`, known to its clients as `model`, on a share of all GPUs."""
    program = vllm()
    if program is None:
        raise UserError(
            "vLLM is not installed; make it an environment of its own (python -m venv /opt/vllm; "
            "/opt/vllm/bin/pip install 'vllm>=0.25') and set VLLM=/opt/vllm/bin/vllm"
        )
    tensor_parallel, data_parallel = split(model, shape, memory, share)
    options = {
        "--served-model-name": model,
        "--host": "127.0.0.1",
        "--port": port,
        # the request alone decides: "auto" adds the checkpoint's top_p, top_k, penalty and length
        "--generation-config": "vllm",
        "--dtype": "bfloat16",
        "--max-model-len": shape.context,
        "--gpu-memory-utilization": share,
        "--tensor-parallel-size": tensor_parallel,
        "--data-parallel-size": data_parallel,
    }
    words = [str(word) for option in options.items() for word in option]
    more = shlex.split(os.environ.get("VLLM_FLAGS", ""))
    return [program, "serve", folder, *words, *more]


def own_command(template: str, folder: str, name: str, port: int) -> list[str]:
    """The command line of $SERVE: {model} is a folder or file, {name} what clients ask for."""
    words = shlex.split(template)
    # no str.format: JSON flags have braces too
    for field, value in {"{model}": folder, "{name}": name, "{port}": str(port)}.items():
        words = [word.replace(field, value) for word in words]
    return words


def llama_command(gguf: str, model: str, port: int, slots: int, context: int) -> list[str]:
    """llama.cpp's server in a process of its own (autoif/serving/llamacpp.py)."""
    numbers = [str(number) for number in (port, slots, context)]
    return [sys.executable, "-m", "autoif.serving.llamacpp", gguf, model, *numbers]
