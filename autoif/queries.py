"""User queries out of ShareGPT JSON, JSONL, a CSV column or plain text."""

import codecs
import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoif import files
from autoif.files import UserError
from autoif.flags import Count, Natural, Share

KINDS = "give ShareGPT JSON, JSONL rows with 'query', or a text file"
LIST_LINES = re.compile(rb"\[.*\]\s*\n\s*\[")  # a list of messages a line: not one array
COLUMNS = ("query", "question", "prompt")  # of a .csv or .tsv file, the first that is there


@dataclass(kw_only=True)
class Flags:
    queries: str | None = None  # ShareGPT JSON, JSONL rows with 'query', or text lines
    heldout_queries: Share = 0.1  # share of queries that are never trained on
    min_chars: Natural = 20  # queries must be longer than this
    max_chars: Count = 300  # queries must be shorter than this
    language: str = "en"  # of the queries, such as en or zh; 'any' takes all


def text_of(content: object) -> str | None:
    """A turn's text; of content in parts the text of all, None where one is an image or a sound."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def first_human_turn(record: object) -> str | None:
    """The query of a record, None where it has none.

    A text is one; else `query`, or the first human turn of `conversations` (ShareGPT), of
    `messages` or of a list of messages.
    """
    if isinstance(record, str):
        return record
    turns = record
    if isinstance(record, dict):
        if isinstance(record.get("query"), str):
            return record["query"]
        turns = record.get("conversations") or record.get("messages")
    for turn in turns if isinstance(turns, list) else []:
        if not isinstance(turn, dict):
            continue
        if str(turn.get("from") or turn.get("role")).lower() in ("human", "user"):
            return text_of(turn.get("value") or turn.get("content"))
    return None


class _Utf8:
    """A file's bytes as ijson reads them: no byte order mark, no character that the end cut off."""

    def __init__(self, file):
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8-sig")()

    def read(self, size: int) -> bytes:
        return self.decoder.decode(self.file.read(size)).encode()


def _json_array(path: str) -> Iterator[object]:
    """Yield the records of a JSON array; of a cut-off file the whole ones, with a warning."""
    import ijson

    count = 0
    try:
        with open(path, "rb") as file:
            for record in ijson.items(_Utf8(file), "item"):
                count += 1
                yield record
    except UnicodeDecodeError:
        for _ in files.lines(path):  # names the line
            pass
    except ijson.JSONError as error:
        said = str(error).splitlines()[0]
        if "premature" not in said.lower() and "incomplete" not in said.lower():
            raise UserError(
                f"{path} begins with '[', as a JSON array does, but its record {count + 1:,} is no "
                f"JSON ({said}); mend or delete it; a file of text lines is named .txt"
            ) from None
        print(
            f"warning: {path} breaks off after {count:,} whole records ({said}); these are used",
            file=sys.stderr,
        )


def _column(path: str, delimiter: str) -> Iterator[str]:
    """Yield the column of a table that holds the queries."""
    reader = csv.DictReader((line for _, line in files.lines(path)), delimiter=delimiter)
    try:
        names = {name.strip().lower(): name for name in reader.fieldnames or []}
        wanted = [names[name] for name in COLUMNS if name in names]
        if not wanted:
            raise UserError(
                f"--queries {path} has no column {', '.join(COLUMNS)} (it has "
                f"{', '.join(names)}); rename the one that holds the queries"
            )
        for row in reader:
            yield row[wanted[0]]
    except csv.Error as error:
        raise UserError(
            f"--queries {path}:{reader.line_num} is no line of a table ({error}); mend or delete it"
        ) from None


def records(path: str) -> Iterator[object]:
    """Yield what the file holds, a record a query.

    Its kind is that of its name (.txt, .csv, .tsv, .jsonl), else seen from its first character.
    """
    if why := files.absent(path):
        raise UserError(f"--queries {path} {why}; {KINDS}")
    kind = Path(path).suffix.lower()
    with open(path, "rb") as file:
        head = file.read(65_536).removeprefix(codecs.BOM_UTF8).lstrip()
    if b"\0" in head:
        raise UserError(f"--queries {path} is no text in UTF-8; {KINDS}")
    sign = head[:1].decode("ascii", "ignore")
    if kind in (".csv", ".tsv"):
        yield from _column(path, "\t" if kind == ".tsv" else ",")
    elif kind == ".txt" or (sign not in ("[", "{") and kind != ".jsonl"):
        if sign in ("[", "{"):
            print(
                f"note: {path} begins with {sign!r} and is read as lines of text, as its name "
                "says; JSON is read from .json and .jsonl",
                file=sys.stderr,
            )
        for _, line in files.lines(path):
            if line.strip():
                yield line.strip()
    elif sign == "[" and not LIST_LINES.match(head):
        yield from _json_array(path)
    else:
        advice = "mend or delete the line; a file of text lines is named .txt"
        for _, record in files.values(path, advice=advice):
            yield record


def read(path: str) -> Iterator[dict]:
    """Yield `{"query": text or None}` of each record, and its `langdetect` and `split`, if any."""
    for record in records(path):
        row = record if isinstance(record, dict) else {}
        known = {key: row[key] for key in ("langdetect", "split") if isinstance(row.get(key), str)}
        yield {"query": first_human_turn(record), **known}


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
            except LangDetectException as error:  # nothing but digits and signs
                if isinstance(error.__context__, KeyboardInterrupt):  # it takes that for its own
                    raise error.__context__ from None
                found = "none"
        if language not in ("any", found, found.split("-")[0]):  # zh is zh-cn and zh-tw
            dropped["language"] += 1
            continue
        split = row.get("split") or side(query, heldout_share)
        if split not in ("train", "heldout"):
            raise UserError(f"--queries {path}: the split {split!r} is neither train nor heldout")
        kept[query] = {"query": query, "langdetect": found, "split": split}
    if set(dropped) == {"no human turn"} and not kept:
        raise UserError(
            f"--queries {path}: no record has 'query', nor a human turn in "
            "'conversations' or 'messages'; rename the field that holds the query"
        )
    return list(kept.values()), dropped


def prepare(args: Flags, out: Path) -> tuple[list[str], dict]:
    """The train queries, and numbers for stats.json; all that pass the filters are in `out`."""
    path, filters = args.queries, (args.min_chars, args.max_chars, args.language)
    rows, dropped = load(path, *filters, args.heldout_queries)
    train = [row["query"] for row in rows if row["split"] == "train"]
    heldout = len(rows) - len(train)
    lost = "".join(f", {reason} {count:,}" for reason, count in dropped.most_common())
    funnel = f"{len(rows) + dropped.total():,} in -> {len(train):,} kept"
    funnel += f" (held out {heldout:,}{lost})"
    if not train:
        raise UserError(
            f"--queries {path}: none is left, {funnel}; "
            "see --min-chars, --max-chars, --language, --heldout-queries"
        )
    # languages take minutes to detect: whoever comes later reads this file
    if Path(path).resolve() != out.resolve():
        with files.writer(out) as write:
            for row in rows:
                write(row)
    print(f"04_responses queries: {funnel}")
    numbers = {"queries": len(train), "queries held out": heldout}
    return train, {**numbers, "queries_dropped": dict(dropped)}


def kept(path: str, split: str) -> list[str]:
    """The queries of one split as stage 04 kept them; a file without `split` is used whole."""
    found = []
    for row in read(path):
        if row["query"] and row.get("split", split) == split:
            found.append(row["query"])
    return found
