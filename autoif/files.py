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


def absent(path: str | Path) -> str | None:
    """Why there is no file to read at `path`; None when there is one."""
    if Path(path).is_file():
        return None
    return "is a directory, not a file" if Path(path).is_dir() else "does not exist"


def refuse_unwritable(path: str | Path) -> None:
    """UserError where `path` cannot become a file: before work is spent on what it is to hold."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {path.parent} ({error.strerror}); choose another folder"
        ) from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: no right to write in {path.parent}")


@contextlib.contextmanager
def whole_file(path: str | Path):
    """`with whole_file(path) as file:` the file appears, whole, when the block ends well."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    refuse_unwritable(path)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path} cannot be written, the disk is full; make room and run the same command"
            ) from None
        if error.filename is None:  # not about this file: raised by the block itself
            raise
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another") from None
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def dump(row: dict) -> str:
    """One JSON line without its newline; lone surrogates (models write them) are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def mismatch(value, form) -> str | None:
    """What is wrong with a JSON value, None when it has the form.

    str, bool, (int, float)    of this type
    {"train", "heldout"}       one of these
    [form]                     a list, not empty, of values that have the form
    {"code": str}              an object that has these fields
    """
    if isinstance(form, set):
        choices = sorted(form)  # in a list, since what has no hash is not looked up in a set
        return None if value in choices else f"must be one of {', '.join(choices)}"
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            return "must be a list with at least one element"
        for each in value:
            if wrong := mismatch(each, form[0]):
                return wrong
        return None
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"must be an object with {', '.join(form)}"
        for name, inner in form.items():
            if name not in value:
                return f"must have {name!r}"
            if wrong := mismatch(value[name], inner):
                return f"has {name!r}, which {wrong}"
        return None
    names = {str: "a text", bool: "true or false", int: "a number", list: "a list"}
    if not isinstance(value, form):
        return f"must be {names[form]}"
    return None


def check(row: dict, fields: Iterable[str] | dict[str, object], where: str, hint: str) -> None:
    """UserError where a row lacks one of `fields`, or has one of another form."""
    for field in fields:
        if field not in row:
            raise UserError(f"{where} has no {field!r} (it has {sorted(row)}){hint}")
    if not isinstance(fields, dict):
        return
    for field, form in fields.items():
        if wrong := mismatch(row[field], form):
            raise UserError(
                f"{where}: {field!r} {wrong}, but is {dump(row[field])[:80]}; "
                "mend or delete the line"
            )


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line."""
    with open(path, encoding="utf-8-sig") as file:
        yield from enumerate(file, 1)


def read(
    path: str | Path, fields: Iterable[str] | dict[str, object] = (), made_by: str = ""
) -> Iterator[dict]:
    """Yield the rows of `path`; UserError names file, line and value of one that cannot be used.

    `fields` are the names that every row must have, or {name: form}, forms as in `mismatch`.
    `made_by` is the stage to run when the file or a field is missing.
    """
    hint = f"; run {made_by} first" if made_by else ""
    if why := absent(path):
        raise UserError(f"{path} {why}{hint}")
    number = 0
    try:
        with jsonlines.open(path) as reader:
            for number, row in enumerate(reader.iter(type=dict), 1):
                check(row, fields, f"{path}:{number}", hint)
                yield row
    except (jsonlines.InvalidLineError, UnicodeDecodeError) as error:
        line = getattr(error, "line", b"")
        raise UserError(
            f"{path}:{number + 1} is no JSON object ({str(error).splitlines()[0][:120]}): "
            f"{str(line)[:80]!r}; mend or delete the line"
        ) from None


def read_all(path: str | Path, fields: dict[str, object], made_by: str = "") -> list[dict]:
    """All rows of `path`, each checked, no id twice: for a stage that will spend money on them."""
    rows, seen = [], {}
    for number, row in enumerate(read(path, fields, made_by), 1):
        first = seen.setdefault(row["id"], number)
        if first != number:
            raise UserError(
                f"{path}:{number} has the id {row['id']!r} of line {first}; give each row its own"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty" + (f"; run {made_by} again" if made_by else ""))
    return rows


@contextlib.contextmanager
def writer(path: str | Path):
    """`with writer(path) as write: write(row)`: the file appears when the block ends well."""
    with whole_file(path) as file:
        yield lambda row: file.write(dump(row) + "\n")
