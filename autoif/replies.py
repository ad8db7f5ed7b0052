"""What models write, read: lists, JSON objects, scores, labels, in every form that was seen."""

import json
import re
from collections.abc import Iterator

# What a line of a list starts with, bold or not: "-", "*", "•", "1.", "1)", "(1)", "**1.**", "#3:".
BULLET = re.compile(
    r"^\s*(?:\*\*|__)?(?:[-*•‣◦–—+](?!\*)|\(?#?\d{1,3}[.):]|\(\d{1,3}\))(?:\*\*|__)?\s+"
)
ARRAY = re.compile(r"^[ \t]*\[\s*\".*\"\s*,?\s*\][ \t]*$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)

NUMBER = r"(10(?:\.0+)?|[0-9](?:\.[0-9]+)?)(?![\d.,]*\d)"
LABEL = r"(?:score|rating)\b[^\d\n-]{0,20}"
RANGE = r"[01]\s*(?:-|–|to)\s*"
# The scale that some models repeat before the score: "(0-10):", "out of 10:".
SCALE = rf"\(?(?:\b(?:out of|from|on a scale (?:of|from))\s*(?:{RANGE})?|\b{RANGE})10\)?(?=\s*[:=])"


def items(text: str) -> list[str]:
    """The items of a list: bullets or numbers of any kind, a JSON array, or bare lines.

    Lines without a bullet are prose around the list and are left out, unless no line has one.
    """
    array = ARRAY.search(text)  # on lines of its own: an item may have one inside
    if array:
        try:
            return [clean(item) for item in json.loads(array.group()) if isinstance(item, str)]
        except json.JSONDecodeError:
            pass  # an array that is none: its lines are read like any others
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("```"):
            lines.append(line)
    marked = [line for line in lines if BULLET.match(line)]
    return [clean(BULLET.sub("", line)) for line in marked or lines]


def clean(item: str) -> str:
    """An item without a bold title before it, or bold marks, quotes or blanks around it."""
    text = re.sub(r"\s+", " ", item).strip()
    text = re.sub(r"^\*\*[^*]+(?::\*\*|\*\*:) (?=.)", "", text)
    # pairs only: a constraint may end with the sign it is about
    text = re.sub(r"^(\*\*|__|\*|_|`)(?=\S)(.*\S)\1$", r"\2", text)
    if text.count("**") == 1:  # its other half went with the bullet
        text = re.sub(r"^\*\*(?=[^\s*])|(?<=[^\s*])\*\*$", "", text)
    return unquoted(text.strip(" ,")).strip(" ,")


def unquoted(text: str) -> str:
    """`text` without quotes around the whole of it; those of its last word alone stay."""
    if re.fullmatch(r'"[^"]*"|“[^“”]*”', text):
        return text[1:-1]
    return text


def objects(text: str) -> Iterator[object]:
    r"""Yield every candidate for the asked-for JSON object, most literal reading first.

    1. valid JSON from any brace on (real newlines in strings allowed)
    2. the same without trailing commas
    3. json_repair's guess; last, since beside a trailing comma it takes the backslash out of the \"
       in source code
    """
    from json_repair import repair_json

    decoder = json.JSONDecoder(strict=False)
    spans = [*FENCE.findall(text), text[text.find("{") : text.rfind("}") + 1]]
    without_commas = [re.sub(r",(\s*[\]}])", r"\1", span) for span in spans]
    for span in [text, *without_commas]:
        for brace in re.finditer("{", span):
            try:
                yield decoder.raw_decode(span, brace.start())[0]
            except (json.JSONDecodeError, RecursionError):
                pass  # no object begins here
    for span in spans:
        if "{" in span:
            yield repair_json(span, return_objects=True)


def score(text: str) -> float | None:
    """The score of a judgement, 0 to 10: "8", "8.5", "8/10", "**Score: 8**"; None without one.

    1. the last line that begins with a score
    2. the last score inside a line
    3. a last line that is a number
    """
    text = re.sub(SCALE, "", re.sub(r"[*_`#\[\]{}]", "", text), flags=re.IGNORECASE)
    begins = rf"^\W*(?:(?:final|overall|my) )*{LABEL}{NUMBER}"
    labelled = re.findall(begins, text, re.IGNORECASE | re.MULTILINE)
    labelled = labelled or re.findall(LABEL + NUMBER, text, re.IGNORECASE)
    if labelled:
        return float(labelled[-1])
    last_line = (text.strip().splitlines() or [""])[-1].strip()
    bare = re.fullmatch(rf"{NUMBER}(?:\s*(?:/|out of)\s*10)?\.?", last_line)
    return float(bare.group(1)) if bare else None


def label(text: str, labels: tuple[str, ...]) -> str | None:
    """The last of `labels` that a reply names, None when it names none."""
    found = re.findall("|".join(labels), text.lower())
    return found[-1] if found else None
