"""The command: JSONL jobs on standard input, JSONL verdicts on standard output; see autoif/sandbox/__init__.py."""

import argparse
import json
import queue
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from autoif import sandbox
from autoif.files import UserError
from autoif.sandbox.pool import _job, add_flags, options, run
from autoif.stage import run as run_command


def _read_jobs(file: BinaryIO) -> Iterator[dict | None]:
    """The jobs of a JSONL stream, None whenever its writer pauses; a bad line is a UserError once all before are answered."""
    lines: queue.Queue[bytes | None] = queue.Queue(maxsize=1024)

    def read():
        for line in file:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    number = 0
    while True:
        try:
            line = lines.get(timeout=0.05)
        except queue.Empty:
            yield None
            line = lines.get()
        if line is None:
            return
        number += 1
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _job(row, 0, f"standard input, line {number}")
        except ValueError as error:  # JSON or UTF-8
            yield None
            raise UserError(
                f"standard input, line {number} is no JSON ({error}): {line[:80]!r}"
            ) from None
        except UserError:
            yield None
            raise
        yield row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.sandbox",
        description=sandbox.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    for result in run(_read_jobs(sys.stdin.buffer), **options(args)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run_command(main)
