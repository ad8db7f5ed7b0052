"""User queries out of ShareGPT JSON, JSONL or plain text."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator

from autoif import files
from autoif.files import UserError


def first_human_turn(row: dict) -> str | None:
    """`query` of a row, or the first human turn of its `conversations` (ShareGPT) or `messages`."""
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
    """Yield the records of a JSON array; of a cut-off file the whole ones, with a warning."""
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


def read(path: str) -> Iterator[dict]:
    """Yield `{"query": text or None}` of each record, and its `langdetect` and `split`, if any.

    The kind of file is seen from its first character.
    """
    if why := files.absent(path):
        raise UserError(
            f"--queries {path} {why}; give ShareGPT JSON, JSONL rows with 'query', or a text file"
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(4096).lstrip()
        file.seek(0)
        if "\0" in head:
            raise UserError(
                f"--queries {path} is no text file; give ShareGPT JSON, JSONL or a text file"
            )
        if head[:1] == "[":
            for row in _json_array(path, file):
                yield {"query": first_human_turn(row) if isinstance(row, dict) else None}
        elif head[:1] == "{":
            for row in files.read(path):
                known = {key: row[key] for key in ("langdetect", "split") if key in row}
                yield {"query": first_human_turn(row), **known}
        else:
            for line in file:
                if line.strip():
                    yield {"query": line.strip()}


def side(query: str, heldout_share: float) -> str:
    """`heldout` for about `heldout_share` of all queries, else `train`: by a hash of each alone."""
    digest = hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < heldout_share * 2**64 else "train"


def load(
    path: str, min_chars: int, max_chars: int, language: str, heldout_share: float
) -> tuple[list[dict], Counter]:
    """The rows of 04_queries.jsonl, and why other queries went.

    Kept are distinct ones with min_chars < length < max_chars in `language` ("any" takes all):
    {"query": "Why is the sky blue?", "langdetect": "en", "split": "train"}
    """
    from langdetect import DetectorFactory, LangDetectException, detect
    from tqdm import tqdm

    DetectorFactory.seed = 0  # the same query gets the same language in every run
    kept, dropped = {}, Counter()
    for row in tqdm(read(path), desc="queries", unit=" records", disable=None):
        query = (row["query"] or "").strip()
        if not query:
            dropped["no human turn"] += 1
            continue
        if not min_chars < len(query) < max_chars:
            dropped["length"] += 1
            continue
        if query in kept:
            dropped["duplicate"] += 1
            continue
        found = row.get("langdetect") or "any"
        if found == "any" and language != "any":
            try:
                found = detect(query)
            except LangDetectException:  # nothing but digits and signs
                found = "none"
        if language not in ("any", found, found.split("-")[0]):  # zh is zh-cn and zh-tw
            dropped["language"] += 1
            continue
        split = row.get("split") or side(query, heldout_share)
        if split not in ("train", "heldout"):
            raise UserError(f"--queries {path}: the split {split!r} is neither train nor heldout")
        kept[query] = {"query": query, "langdetect": found, "split": split}
    return list(kept.values()), dropped


def kept(path: str, split: str) -> list[str]:
    """The queries of one split as stage 04 kept them; a file without `split` is used whole."""
    found = []
    for row in read(path):
        if row["query"] and row.get("split", split) == split:
            found.append(row["query"])
    return found
