"""User queries out of ShareGPT JSON, JSONL or plain text."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from autoif import files
from autoif.files import UserError


def first_human_turn(row: dict) -> str | None:
    """The query of a row: `query`, or the first human turn of `conversations` (ShareGPT) or `messages`."""
    if isinstance(row.get("query"), str):
        return row["query"]
    for turn in row.get("conversations") or row.get("messages") or []:
        if isinstance(turn, dict) and (turn.get("from") or turn.get("role")) in ("human", "user"):
            text = turn.get("value") or turn.get("content")
            return text if isinstance(text, str) else None
    return None


class _Utf8:
    """A text file as the bytes that ijson reads."""

    def __init__(self, file):
        self.file = file

    def read(self, size: int) -> bytes:
        return self.file.read(size).encode()


def _json_array(path: str, file) -> Iterator[dict]:
    """The records of a JSON array, streamed; a file that is cut off yields its whole records and a warning."""
    import ijson

    count = 0
    try:
        for row in ijson.items(_Utf8(file), "item"):
            count += 1
            yield row
    except ijson.JSONError as error:
        said = str(error).splitlines()[0]
        if "premature" not in said.lower() and "incomplete" not in said.lower():
            raise UserError(
                f"{path}: record {count + 1:,} is no JSON ({said}); mend or delete it"
            ) from None
        print(
            f"warning: {path} breaks off after {count:,} whole records ({said}); these are used",
            file=sys.stderr,
        )


def read(path: str) -> Iterator[tuple[str | None, str | None]]:
    """Yield (query or None, its language if the record knows it). The kind of file is seen from its first character."""
    if not Path(path).is_file():
        raise UserError(
            f"--queries {path} does not exist; give ShareGPT JSON, JSONL rows with 'query', or a text file"
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.read(4096).lstrip()[:1]
        file.seek(0)
        if first == "[":
            yield from (
                (first_human_turn(row), None)
                for row in _json_array(path, file)
                if isinstance(row, dict)
            )
        elif first == "{":
            yield from ((first_human_turn(row), row.get("langdetect")) for row in files.read(path))
        else:
            yield from ((line.strip(), None) for line in file if line.strip())


def keep(path: Path, kept: list[str], language: str) -> None:
    """Write what `load` kept, with its language: to `load` this file takes seconds, ShareGPT's languages take minutes."""
    with files.writer(path) as write:
        for query in kept:
            write(
                {"query": query} if language == "any" else {"query": query, "langdetect": language}
            )


def load(path: str, min_chars: int, max_chars: int, language: str) -> tuple[list[str], Counter]:
    """The distinct queries with min_chars < length < max_chars in `language` ("any" takes all), and why others went."""
    from langdetect import DetectorFactory, LangDetectException, detect
    from tqdm import tqdm

    DetectorFactory.seed = 0  # the same query gets the same language in every run
    kept, dropped = {}, Counter()
    for query, known in tqdm(read(path), desc="queries", unit=" records", disable=None):
        query = (query or "").strip()
        if not query:
            dropped["no human turn"] += 1
        elif not min_chars < len(query) < max_chars:
            dropped["length"] += 1
        elif query in kept:
            dropped["duplicate"] += 1
        else:
            try:
                found = known or ("any" if language == "any" else detect(query))
            except LangDetectException:  # nothing but digits and signs
                found = "none"
            if language in ("any", found, found.split("-")[0]):  # zh is zh-cn and zh-tw
                kept[query] = True
            else:
                dropped["language"] += 1
    return list(kept), dropped
