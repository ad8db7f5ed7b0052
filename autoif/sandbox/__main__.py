"""The command: JSONL jobs on standard input, JSONL verdicts on standard output."""

import argparse
import json
import os
import select
import sys
from collections.abc import Iterator

from autoif import sandbox
from autoif.files import UserError
from autoif.sandbox.pool import check_job
from autoif.stage import Help
from autoif.stage import run as run_command


def _read_jobs(descriptor: int) -> Iterator[dict | None]:
    """The jobs of a JSONL stream, None whenever its writer pauses or a bad line comes next."""
    number, begun, part = 0, bytearray(), b"-"
    while part:
        if not select.select([descriptor], [], [], 0.05)[0]:
            yield None
        part = os.read(descriptor, 1 << 20)
        begun += part
        if part and b"\n" not in part:
            continue
        *lines, begun = begun.split(b"\n") if part else (begun, bytearray())
        for line in lines:
            number += 1
            where = f"standard input, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                check_job(row, where)
                json.dumps(row["id"])  # as it will be written
            except (ValueError, RecursionError, UserError) as error:  # ValueError: JSON, UTF-8
                yield None  # so that all before it are answered
                if isinstance(error, UserError):
                    raise
                text = f"{where} is no JSON job ({error}): {bytes(line[:80])!r}"
                raise UserError(text) from None
            yield row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.sandbox",
        description=sandbox.__doc__,
        formatter_class=Help,
    )
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    for result in sandbox.run(_read_jobs(sys.stdin.fileno()), **sandbox.options(args)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run_command(main)
