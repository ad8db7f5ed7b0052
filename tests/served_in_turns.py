"""A server of one's own for $SERVE: a scripted supervisor where its name says so, else llama.cpp.

SERVE="python tests/served_in_turns.py {model} {name} {port}"
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from fake_server import FakeServer
from test_run_all import answer

from autoif.serving import engines, llamacpp


def main(model: str, name: str, port: str) -> None:
    with open(Path(os.environ["SERVE_LOG"], "turns"), "a") as turns:
        turns.write(f"{Path(name).name}\n")
    if Path(name).name == "supervisor":
        asyncio.run(FakeServer(answer, port=int(port), keep=False).serve())
    else:
        gguf = llamacpp.converted(model, Path(tempfile.mkdtemp()), "q8_0")
        line = engines.llama_command(gguf, name, int(port), slots=16, context=1024)
        os.execv(line[0], line)


if __name__ == "__main__":
    main(*sys.argv[1:])
