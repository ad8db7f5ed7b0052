"""JSONL files: UTF-8, one object a line, read with named errors and written whole."""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jsonlines


class UserError(Exception):
    """Bad input or set-up: the message names the file, the line, the value and the next step."""


@contextlib.contextmanager
def whole_file(path: str | Path):
    """`with whole_file(path) as file: file.write(...)`: the file appears, whole, when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path} cannot be written, the disk is full; make room and run the same command"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def dump(row: dict) -> str:
    """One JSON line without its newline; a row with lone surrogates (models write them) is escaped to stay UTF-8."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def read(path: str | Path, fields: Iterable[str] = (), made_by: str = "") -> Iterator[dict]:
    """Yield the rows of `path` one by one; UserError names the file and line of a broken row or a missing field.

    `made_by` is the stage to run when the file or a field is missing.
    """
    hint = f"; run {made_by} first" if made_by else ""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist{hint}")
    with jsonlines.open(path) as reader:
        lines = reader.iter(type=dict)
        for number in range(1, 1 << 62):
            try:
                row = next(lines)
            except StopIteration:
                return
            except (jsonlines.InvalidLineError, UnicodeDecodeError) as error:
                line = getattr(error, "line", b"")
                raise UserError(
                    f"{path}:{number} is no JSON object ({str(error).splitlines()[0][:120]}): "
                    f"{str(line)[:80]!r}; mend or delete the line"
                ) from None
            for field in fields:
                if field not in row:
                    raise UserError(
                        f"{path}:{number} has no {field!r} (it has {sorted(row)}){hint}"
                    )
            yield row


@contextlib.contextmanager
def writer(path: str | Path):
    """`with writer(path) as write: write(row)`: the file appears, whole, when the block ends without an error."""
    with whole_file(path) as file:
        yield lambda row: file.write(dump(row) + "\n")
