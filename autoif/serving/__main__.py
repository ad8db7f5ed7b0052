"""Serve a checkpoint on a free port for as long as a command runs.

    python -m autoif.serving out/05_sft -- python 07_eval.py --model out/05_sft --benchmarks heldout

A GGUF file is served as it is, `coder-1.5b` and other words of autoif.serving.fetch are fetched:

    python -m autoif.serving coder-1.5b -- python 02_verifiers.py --model coder-1.5b

The command finds the server in $OPENAI_BASE_URL and asks for the model by the name given here. With
GPUs the engine is vLLM ($VLLM, with $VLLM_FLAGS) on all of them, else llama.cpp, whose flags these
are. $SERVE overrides both: a command line with {model}, a folder, {name}, by which clients ask for
it, and {port} in it. The server ends with the command, and with this process however it ends.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from autoif import gpu
from autoif.files import UserError
from autoif.flags import Count, cli
from autoif.models import servable
from autoif.serving import engines, fetch, llamacpp
from autoif.weights import half

START_SECONDS = 1800  # a 72B model is read from a network disk in minutes
# The server, and beside it in its group what kills the whole of it, engines too, when its standard
# input ends: this process alone writes there, and is gone then, by kill -9 too.
WATCHED = 'exec 3<&0; (read _; kill -KILL 0) <&3 & exec "$@" 3<&- </dev/null'

Model = Annotated[str, arg(metavar="MODEL")]
Command = Annotated[tuple[str, ...], arg(metavar="-- COMMAND ...")]


@dataclass(kw_only=True)
class Flags:
    model: Positional[Model]  # checkpoint, name on the hub, GGUF file, or a word of serving.fetch
    command: Positional[Command] = ()  # what runs beside the server, behind --
    slots: Count = 16  # answers at a time
    context: Count = 4096  # tokens of a prompt and its answer
    # of the copy in llama.cpp's format, which stays as .NAME.*.gguf beside the model
    weights: Literal["q8_0", "bf16", "f32"] = "q8_0"

    def __post_init__(self):
        if not self.command:
            raise UserError("give the command after --")


def command_line(args: Flags, folder: Path, port: int) -> list[str]:
    """The server's command line; what it serves is made of the model in the empty `folder`."""
    gguf = fetch.gguf(args.model)
    if template := os.environ.get("SERVE"):
        served = gguf or servable(half(args.model), folder)
        return engines.own_command(template, served, args.model, port)
    if gguf is None and (memory := gpu.memory()):
        # first what can be refused: the folder may take minutes of download
        shape, share = engines.shape(args.model), engines.free_share()
        line = engines.vllm_command(args.model, str(folder), port, shape, memory, share)
        servable(half(args.model), folder)
        return line
    gguf = gguf or llamacpp.converted(args.model, folder, args.weights)
    return engines.llama_command(gguf, args.model, port, args.slots, args.context)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(
                f"the server ended with exit code {server.returncode}; the end of {log}:\n{last}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:  # not listening yet, or busy with its start
            time.sleep(0.2)
    raise UserError(f"the server is not ready after {START_SECONDS} s; see {log}")


def stop(server: subprocess.Popen) -> None:
    """End the server's whole process group, in 3 seconds: what it was answering is nobody's."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(3)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def serve(args: Flags, folder: Path, log: Path) -> int:
    """Run the command beside the server; returns the command's exit code."""
    began, port = time.monotonic(), free_port()
    line = command_line(args, folder, port)
    with open(log, "a") as output:
        server = subprocess.Popen(
            ["sh", "-c", WATCHED, "sh", *line],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=engines.environment(),
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(server, url, log)
        seconds = time.monotonic() - began
        print(f"serving {args.model} on port {port} after {seconds:.0f} s; log: {log}", flush=True)
        environment = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1"}
        return subprocess.run(args.command, env=environment).returncode
    finally:
        stop(server)


def main(args: Flags) -> None:
    log = Path(os.environ.get("SERVE_LOG", "out/logs")) / f"serve_{Path(args.model).name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # for the check above and the command's client: the server is on this machine
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    # kill of this process goes through `finally` as Ctrl-C does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        code = serve(args, Path(folder), log)
    sys.exit(code)


if __name__ == "__main__":
    cli(main, __doc__)
