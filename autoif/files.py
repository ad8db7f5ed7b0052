"""JSONL files: UTF-8, one object a line, read with named errors and written whole."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonlines

# the names that every row must have, or {name: form}, forms as in `mismatch`
Fields = Iterable[str] | dict[str, object]


class UserError(Exception):
    """Bad input or set-up: the message names the file, the line, the value and the next step."""


class NotSetUp(UserError):
    """A benchmark that would be a gap in a rerun too: it has no data, no judge, no answers."""


def absent(path: str | Path) -> str | None:
    """Why there is no file to read at `path`; None when there is one."""
    if Path(path).is_file():
        return None if os.access(path, os.R_OK) else "cannot be read; chmod +r gives the right to"
    return "is a directory, not a file" if Path(path).is_dir() else "does not exist"


def target(path: str | Path) -> Path:
    """The file that is written for `path`: where a symlink points, so that the link stays."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def refuse_unwritable(path: str | Path) -> None:
    """UserError where `path` cannot become a file: before work is spent on what it is to hold."""
    path = target(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it")
    if path.exists() and not path.is_file():  # /dev/null would be replaced by a file
        raise UserError(f"{path} is a device or a pipe, not a file; choose another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {path.parent} ({error.strerror}); choose another folder"
        ) from None


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "w"):
    """`with whole_file(path) as file:` the file appears, whole, when the block ends well."""
    path = target(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    refuse_unwritable(path)
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
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


def read_json(path: str | Path, default: object = None, advice: str = "mend or delete it") -> Any:
    """The value of a JSON file, `default` where there is no such file; else UserError."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from None


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def dump(row: dict) -> str:
    """One JSON line without its newline; lone surrogates (models write them) are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
        return line
    except UnicodeEncodeError:
        return json.dumps(row)


def encodable(value: Any) -> Any:
    """A JSON value whose lone surrogates (models write them) are question marks."""
    data = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(data.decode("utf-16", "replace"))


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
        return next(filter(None, (mismatch(element, form[0]) for element in value)), None)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"must be an object with {', '.join(form)}"
        for name, inner in form.items():
            if name not in value:
                return f"must have {name!r}"
            if wrong := mismatch(value[name], inner):
                return f"has {name!r}, which {wrong}"
        return None
    numbers = {int: "a number", (int, float): "a number"}
    names = {str: "a text", bool: "true or false", list: "a list", **numbers}
    return None if isinstance(value, form) else f"must be {names[form]}"


def check(row: dict, fields: Fields, where: str, hint: str) -> None:
    """UserError where a row lacks one of `fields`, or has one of another form."""
    for field in fields:
        if field not in row:
            raise UserError(f"{where} has no {field!r} (it has {sorted(row)}){hint}")
    for field, form in fields.items() if isinstance(fields, dict) else ():
        if wrong := mismatch(row[field], form):
            raise UserError(
                f"{where}: {field!r} {wrong}, but is {dump(row[field])[:80]}; "
                "mend or delete the line"
            )


def lines(path: str | Path, unpack: Callable = open) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line; UserError names line and byte of what is no UTF-8."""
    # surrogateescape lets such bytes through as lone surrogates, which no UTF-8 decodes to
    with unpack(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode("utf-8")
            except UnicodeEncodeError as error:
                byte, before = ord(line[error.start]) - 0xDC00, line[: error.start][-20:]
                raise UserError(
                    f"{path}:{number} is not UTF-8 (the byte 0x{byte:02x} after {before!r}); "
                    "convert the file: iconv -f WINDOWS-1252 -t UTF-8"
                ) from None
            yield number, line


def values(
    path: str | Path, kind: type | None = None, advice: str = "mend or delete the line"
) -> Iterator[tuple[int, object]]:
    """Yield (line, value) of JSON lines, all of one `kind` if it is given; blank ones are none."""
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for line, text in lines(path):
            number = line
            yield text

    try:
        reader = jsonlines.Reader(texts())
        for value in reader.iter(type=kind, allow_none=kind is None, skip_empty=True):
            yield number, value
    except jsonlines.InvalidLineError as error:
        what = "JSON object" if kind is dict else "JSON"
        raise UserError(
            f"{path}:{number} is no {what} ({str(error).splitlines()[0][:120]}): "
            f"{error.line[:80]!r}; {advice}"
        ) from None


def numbered(path: str | Path, fields: Fields = (), made_by: str = "") -> Iterator[tuple]:
    """Yield (line, row) of `path`; UserError names file, line and value of an unusable row.

    `made_by` is the stage to run when the file or a field is missing.
    """
    hint = f"; run {made_by} first" if made_by else ""
    if why := absent(path):
        raise UserError(f"{path} {why}{hint}")
    for number, row in values(path, dict):
        check(row, fields, f"{path}:{number}", hint)
        yield number, row


def read(path: str | Path, fields: Fields = (), made_by: str = "") -> Iterator[dict]:
    """Yield the rows of `path`, checked as in `numbered`."""
    for _, row in numbered(path, fields, made_by):
        yield row


def read_all(paths: str | Path | list[str], fields: Fields, made_by: str = "") -> list[dict]:
    """All rows of a file or of several, each checked, no id twice: for a stage that will pay."""
    rows, seen, paths = [], {}, paths if isinstance(paths, list) else [paths]
    for path in paths:
        for number, row in numbered(path, fields, made_by):
            of, first = seen.setdefault(row["id"], (path, number))
            if (of, first) != (path, number):
                where = f"line {first}" if of == path else f"{of}:{first}"
                raise UserError(
                    f"{path}:{number} has the id {row['id']!r} of {where}; give each row its own"
                )
            rows.append(row)
    if not rows:
        hint = f"; run {made_by} again" if made_by else ""
        raise UserError(f"{' and '.join(map(str, paths))} is empty{hint}")
    return rows


@contextlib.contextmanager
def writer(path: str | Path):
    """`with writer(path) as write: write(row)`: the file appears when the block ends well."""
    with whole_file(path) as file:
        yield lambda row: file.write(dump(row) + "\n")
