"""llama.cpp's OpenAI-compatible server (package xllamacpp) on a checkpoint converted to GGUF.

    python -m autoif.serving.llamacpp model.gguf NAME PORT SLOTS CONTEXT

Weights are 8-bit integers with a scale for each 32 (Q8_0), bf16 or float32.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from autoif.files import UserError
from autoif.models import beside, servable
from autoif.weights import half

# The bits by which llama.cpp notes what was set on purpose; what is not, a checkpoint's
# generation config may set.
ALL_SET = (1 << 12) - 1


def converted(model: str, folder: Path, weights: str) -> str:
    """The GGUF file of `model`, kept beside it and made anew when its weights change.

    `folder` is empty and takes the servable form that is converted. `weights` is q8_0, bf16 or f32.
    """

    def write(path: Path) -> None:
        source = half(model) if weights == "bf16" else model
        command = [sys.executable, "-m", "convert_hf_to_gguf", servable(source, folder)]
        command += ["--outfile", str(path), "--outtype", weights]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            words = "\n".join(done.stderr.splitlines()[-5:])
            raise UserError(f"{model} cannot be converted for llama.cpp:\n{words}")

    return str(beside(model, f"{weights}.gguf", write))


def parameters(gguf: str, name: str, port: int, slots: int, context: int):
    """llama.cpp's settings: `slots` answers at a time, of `context` tokens with their prompts."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = gguf
    settings.model_alias = {name}
    settings.hostnames = ["127.0.0.1"]
    settings.port = port
    settings.n_parallel = slots
    settings.n_ctx = slots * context  # of all slots together
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    settings.use_jinja = True  # the checkpoint's own chat template
    settings.cache_ram_mib = 0  # else a cache of old prompts grows to 8 GB
    settings.n_ctx_checkpoints = 0
    settings.warmup = False
    # the request decides, in the order in which vLLM and transformers do it, and nothing else
    settings.sampling.samplers = "temperature;top_p"
    settings.sampling.top_p = 1.0
    settings.sampling.user_sampling_config = ALL_SET
    return settings


def main() -> None:
    import xllamacpp

    gguf, name, *numbers = sys.argv[1:]
    server = xllamacpp.Server(parameters(gguf, name, *map(int, numbers)))
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()  # its threads answer until this process is ended


if __name__ == "__main__":
    main()
