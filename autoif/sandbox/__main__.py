"""The command: JSONL jobs on standard input, JSONL verdicts on standard output."""

import json
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from autoif import sandbox
from autoif.files import UserError, check
from autoif.flags import cli
from autoif.sandbox.pool import HELD_ANSWERS


def check_job(row: dict, where: str) -> None:
    """UserError that names `where` and what is wrong, unless `row` is a job."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is no object with id, code, inputs: {str(row)[:80]!r}")
    check(row, ["id", "code", "inputs"], where, "; a job has id, code and inputs")
    code, inputs = row["code"], row["inputs"]
    if not isinstance(code, str):
        raise UserError(f"{where}: 'code' must be a string, not {str(code)[:80]!r}")
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise UserError(f"{where}: 'inputs' must be a list of strings, not {str(inputs)[:80]!r}")


def parse(lines: Iterable[bytes]) -> Iterator[dict]:
    """The jobs of JSONL lines; UserError names the first line that is none."""
    for number, line in enumerate(lines, 1):
        where = f"standard input, line {number}"
        if not line.strip():
            continue
        try:
            job = json.loads(line)
            check_job(job, where)
            json.dumps(job["id"])  # as it will be written
        except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8
            text = f"{where} is no JSON job ({error}): {line[:80]!r}"
            raise UserError(text) from None
        yield job


def read(box: sandbox.Sandbox, answers: queue.Queue) -> None:
    """Put the answers to standard input's jobs, to come, and None behind the last one."""
    try:
        with open(0, "rb", closefd=False) as lines:
            for answer in box.ahead(parse(lines)):
                answers.put(answer)
        answers.put(None)
    except Exception as error:  # said once all before it is answered
        answers.put(bad := Future())
        bad.set_exception(error)


def main(args: sandbox.Flags) -> None:
    answers = queue.Queue(HELD_ANSWERS)
    with sandbox.Sandbox(args) as box:
        # in a thread, so that a line is answered before the next one is written
        threading.Thread(target=read, args=(box, answers), daemon=True).start()
        while answer := answers.get():
            print(json.dumps(answer.result()), flush=True)


if __name__ == "__main__":
    cli(main, sandbox.__doc__)
