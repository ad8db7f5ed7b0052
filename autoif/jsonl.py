"""JSONL files: UTF-8, one object a line, read with named errors and written whole."""
import contextlib
import json
from pathlib import Path
from typing import Iterable, Iterator

import jsonlines

from autoif.stage import UserError, whole_file


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
                raise UserError(f"{path}:{number} is no JSON object ({str(error).splitlines()[0][:120]}): "
                                f"{str(line)[:80]!r}; mend or delete the line") from None
            for field in fields:
                if field not in row:
                    raise UserError(f"{path}:{number} has no {field!r} (it has {sorted(row)}){hint}")
            yield row


@contextlib.contextmanager
def writer(path: str | Path):
    """`with writer(path) as write: write(row)`: the file appears, whole, when the block ends without an error."""
    with whole_file(path) as file:
        yield lambda row: file.write(dump(row) + "\n")
