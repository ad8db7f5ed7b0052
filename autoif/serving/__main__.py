"""Serve a checkpoint on a free port for as long as a command runs.

    python -m autoif.serving out/05_sft -- python 07_eval.py --model out/05_sft --benchmarks heldout

The command finds the server in $OPENAI_BASE_URL. `vllm serve` is used when vLLM is installed, else `transformers serve`;
$SERVE overrides both, with {model} and {port} in it: SERVE="vllm serve {model} --port {port} --tensor-parallel-size 8".
The server ends with the command, and with this process however it ends.
"""

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from autoif.files import UserError
from autoif.stage import run

START_SECONDS = 1800  # a 72B model is read from a network disk in minutes
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command_line(model: str, port: int) -> list[str]:
    """The server's command line, from $SERVE or from what is installed."""
    template = os.environ.get("SERVE")
    if not template:
        beside = Path(
            sys.executable
        ).parent  # the environment's own programs, also when it is not activated
        vllm = shutil.which("vllm", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
        transformers = shutil.which(
            "transformers", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        if vllm:
            template = f"{vllm} serve {{model}} --host 127.0.0.1 --port {{port}}"
        elif transformers:
            template = f"{transformers} serve {{model}} --continuous-batching --host 127.0.0.1 --port {{port}}"
        else:
            raise UserError(
                "neither vllm nor transformers is installed; pip install vllm, or set $SERVE to a command "
                "with {model} and {port}"
            )
    return [
        word.replace("{model}", model).replace("{port}", str(port))
        for word in shlex.split(template)
    ]  # JSON flags have braces too


def die_with_parent() -> None:
    """In the child, before it starts: a group of its own, and SIGKILL when this process is gone (kill -9 included)."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_ready(server: subprocess.Popen, url: str, log: Path) -> None:
    """Return when `url` answers. /health is what vLLM, SGLang and transformers share; /v1/models may need a hub cache."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(
                f"the server ended with exit code {server.returncode}; the end of {log}:\n"
                + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"the server is not ready after {START_SECONDS} s; see {log}")


def stop(server: subprocess.Popen) -> None:
    """End the server's whole process group; it has 3 seconds to go by itself: what it was answering is nobody's."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(3)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def main() -> None:
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        raise UserError("usage: python -m autoif.serving MODEL -- COMMAND ...")
    model, command, port = sys.argv[1], sys.argv[3:], free_port()
    log = Path(os.environ.get("SERVE_LOG", "out/logs")) / f"serve_{Path(model).name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for name in (
        "no_proxy",
        "NO_PROXY",
    ):  # for the check below and the command's client: the server is on this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    # Ctrl-C and kill of this process go through `finally` as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with open(log, "a") as output:
        server = subprocess.Popen(
            command_line(model, port),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(server, url, log)
        print(
            f"serving {model} on port {port} after {time.monotonic() - began:.0f} s; log: {log}",
            flush=True,
        )
        code = subprocess.run(
            command, env={**os.environ, "OPENAI_BASE_URL": f"{url}/v1"}
        ).returncode
    finally:
        stop(server)
    sys.exit(code)


if __name__ == "__main__":
    run(main)
