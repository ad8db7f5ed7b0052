"""What models write, read: lists, objects, source code, scores, labels, in every form seen.

Nothing is executed: values of Python are read by `ast.literal_eval`, code is only parsed.
"""

import ast
import itertools
import json
import re
import warnings
from collections.abc import Iterator

# What a line of a list starts with, bold or not: "-", "*", "•", "1.", "1)", "(1)", "**1.**", "#3:",
# "1、", "Rule 1:"; live models also write it twice, as in "- - item", "- -=- item", "- [ ] item".
BULLET = re.compile(
    r"^\s*(?:(?:\*\*|__)?(?:[-*•‣◦–—+](?!\*)|(?:\(?#?|(?i:rule|constraint)\s)\d{1,3}[.):]|"
    r"\(\d{1,3}\))(?:\*\*|__)?\s+|\d{1,3}[、．]\s*)(?:(?:[-=]+|\d{1,3}[.)]|\[[ x]?\])\s+)*"
)
TITLE = re.compile(r"[A-Z][a-z]*(?: [a-z]+)?: (?=[A-Z])")  # "Last line: The last line must ..."
MARKUP = re.compile(r"\s*(?:```.*|</?\w+>)?\s*")  # a line with a fence, a lone tag or nothing
# Also several in a line, and those in a tag around all.
TAGGED = re.compile(
    r"(?:^|(?<=>))[ \t]*<(\w+)[^<>]*>(?!<)(.+?)</\1>(?=[ \t]*(?:<|$))", re.MULTILINE
)
CONSTRAINT = re.compile("constraint|instruction|requirement|rule", re.IGNORECASE)

FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)
BLOCK = re.compile(r"^[ \t]*```.*\n((?s:.*?))(?:^[ \t]*```|\Z)", re.MULTILINE)
# A list or an object that begins a line, perhaps after its name: `cases = [`, `"cases": [`.
VALUE = re.compile(r"""^[ \t]*(?:\w+\s*=\s*|["']\w+["']\s*:\s*)?(?=[\[{])""", re.MULTILINE)
# A string of source code, or a comment, whose quotes begin none.
STRING = re.compile(
    r"""([rRbBuUfF]{0,2})(?:#[^\n]*|\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"""
    r"""\"(?:\\.|[^"\\])*\"|'(?:\\.|[^'\\])*')""",
    re.DOTALL,
)
BRACKET = re.compile(rf"{STRING.pattern}|[\[\](){{}}]", re.DOTALL)  # or a string, to step over
DEFINITION = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
JSON_NAMES = {"true": True, "false": False, "null": None}
ESCAPED = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}

NUMBER = r"(10(?:\.0+)?|[0-9](?:\.[0-9]+)?)(?![\d.,]*\d)"
OUT_OF_TEN = r"\s*(?:/|out of)\s*10\b"
# What makes a number no score of 0 to 10: another scale ("4/5"), a range ("7-8"), a choice.
OTHERWISE = r"(?!\s*(?:[/–—~-]|to\b|or\b|out of\b)\s*\d)"
SCORE = rf"{NUMBER}(?:{OUT_OF_TEN})?{OTHERWISE}"
LABEL = r"(?:score|rating)\b(?!.{0,20}\bbetween\b)[^\d\n-]{0,20}"
RANGE = r"[01]\s*(?:-|–|to|and)\s*"
# The scale that some models repeat before the score: "(0-10):", "out of 10:".
SCALE = (
    rf"\(?(?:\b(?:out of|from|between|on a scale (?:of|from))\s*(?:{RANGE})?|\b{RANGE})10\)?"
    r"(?=\s*[:=])"
)
# What tells what the numbers mean: "Rating scale: 0 = unrelated, 10 = complete".
LEGEND = r"(?:\b(?:score|scoring|rating)\s+(?:scale|range|guide)\b|\b\d+\s*=.*\d\s*=).*"

# What a model says before the label that it means, and before one that it does not mean.
ANNOUNCED = r"\b(?:label|answer|verdict|judge?ment|relation(?:ship)?)\b(?:\W+(?:is|an?))*\W+"
DENIED = r"(?:\b(?:non?|not|cannot|never|neither|nor|without|rather than|instead of)\b|n['’]t\b)"


def items(text: str) -> list[str]:
    """The items of a list: in JSON or Python, a table, tags, bullets or numbers, or bare lines.

    Lines without a bullet are prose around the list and are left out, unless no line has one.
    """
    listed = [item for value in values(text) for item in texts(value)]
    lines = [line for line in text.splitlines() if not MARKUP.fullmatch(line)]
    marked = [BULLET.sub("", line) for line in lines if BULLET.match(line)]
    tagged = [content for _, content in TAGGED.findall(text)]
    # the longest list: an item may have a small one inside, and prose around a list may be marked
    longest = max(listed, column(text), marked, tagged, key=len)
    cleaned = [clean(item) for item in longest or lines]
    # "Length: The answer must ...": a model that names a kind before each
    if 2 * sum(bool(TITLE.match(item)) for item in cleaned) > len(cleaned) > 1:
        return [TITLE.sub("", item) for item in cleaned]
    return cleaned


def texts(value: object) -> list[str]:
    """The items of a parsed list of texts or of objects with a text each, or an object around one.

    {"constraints": [{"id": 1, "constraint": "Use no commas"}]} -> ["Use no commas"]
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [item for element in value for item in texts(element)]
    if not isinstance(value, dict):
        return []
    named = [element for key, element in value.items() if CONSTRAINT.search(str(key))]
    parts = [texts(element) for element in named or value.values()]
    lists = [part for part in parts if len(part) > 1]
    inner = list(itertools.chain(*(parts if named else lists or parts)))
    if named or lists or all(str(key).isdigit() for key in value):
        return inner
    return sorted(inner, key=len)[-1:]  # what says most, beside a name or a category


def column(text: str) -> list[str]:
    """The longest cell of each row of a Markdown table, [] without a table."""
    rows = [line.strip(" \t|").split("|") for line in text.splitlines() if "|" in line]
    for number, row in enumerate(rows):
        if all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in row):  # under the header
            return [max(cells, key=len) for cells in rows[number + 1 :]]
    return []


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


def values(text: str) -> Iterator[object]:
    """Yield every JSON or Python list or object that begins a line."""
    end, steps = 0, 0
    for opening in VALUE.finditer(text):
        if opening.end() < end:  # a part of the last value
            continue
        span = balanced(text, opening.end())
        # where nothing closes thousands of brackets, each would be followed to the end
        steps += len(span) or len(text) - opening.end()
        if steps > 50 * len(text):
            return
        if value := literal(span):
            end = opening.end() + len(span)
            yield value


def balanced(text: str, start: int) -> str:
    """`text` from the bracket at `start` to the one that closes it, "" where none does."""
    depth = 0
    for token in BRACKET.finditer(text, start):
        if len(token.group()) == 1:
            depth += 1 if token.group() in "([{" else -1
            if depth == 0:
                return text[start : token.end()]
    return ""


class JsonNames(ast.NodeTransformer):
    """Puts the values of true, false and null in a syntax tree."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(JSON_NAMES[node.id]) if node.id in JSON_NAMES else node


def literal(text: str) -> object:
    """The value of JSON (real newlines in strings allowed) or of a Python literal, None of others.

    Both may be mixed: true beside triple quotes.
    """
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):  # ValueError: an integer of thousands of digits, too
        tree = parsed(text.strip(), "eval")  # Python, then
    try:
        return tree and ast.literal_eval(JsonNames().visit(tree))
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None  # all that hostile text raises


def objects(text: str) -> Iterator[object]:
    r"""Yield every candidate for the asked-for object, most literal reading first.

    1. valid JSON from any brace on (real newlines in strings allowed)
    2. the same without trailing commas
    3. Python's literals: triple quotes, True, 'single quotes'
    4. json_repair's guess; last, since beside a trailing comma it takes the backslash out of the \"
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
            except (ValueError, RecursionError):
                pass  # no object begins here
    for span in spans:
        yield literal(span)
    for span in spans:
        if "{" in span:
            yield repair_json(span, return_objects=True)


def source(value: object) -> str | None:
    r"""The source code that a JSON value stands for, None for what is none.

    A list of lines, a fence around it, escapes that are doubled or that JSON has taken for its own.
    """
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(line.rstrip("\n") for line in value)
    if not isinstance(value, str) or not value.strip():
        return None
    fenced = BLOCK.match(value.lstrip())
    code = fenced.group(1) if fenced else value
    # the signs that JSON makes of \b and \f were meant for a pattern
    code = STRING.sub(pattern_escapes, code)
    if "\n" not in code.strip() and not parsed(code):
        code = re.sub(r"\\(.)", lambda pair: ESCAPED.get(pair[1], pair[0]), code)
    return code


def pattern_escapes(string: re.Match) -> str:
    r"""A string of source code with \b and \f in place of backspace and form feed."""
    escape = "\\" if "r" in string[1].lower() else r"\\"
    return string[0].replace("\b", escape + "b").replace("\f", escape + "f")


def parsed(code: str, mode: str = "exec") -> ast.AST | None:
    """The syntax tree of source code, None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d", which Python reads as it was meant
            return ast.parse(code, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # all that hostile text raises


def script(text: str) -> str | None:
    """The first code block (or the whole text) that defines `evaluate`, None where none does.

    What follows `evaluate` and defines nothing is left out, such as cases.
    """
    for block in [*BLOCK.findall(text), text]:
        lines = block.splitlines()
        ends = [end for end, line in enumerate(lines) if line and not line[0].isspace()]
        for end in [len(lines), *reversed(ends)]:
            if tree := parsed("\n".join(lines[:end])):
                break
        for place, node in enumerate(tree.body if tree else []):
            if isinstance(node, ast.FunctionDef) and node.name == "evaluate":
                rest = tree.body[place + 1 :]
                tree.body[place + 1 :] = [later for later in rest if isinstance(later, DEFINITION)]
                try:
                    return ast.unparse(tree)
                except (ValueError, RecursionError):
                    return None  # deeper than it can write
    return None


def score(text: str) -> float | None:
    """The score of a judgement, 0 to 10: "8", "8.5", "8/10", "**Score: 8**"; None without one.

    1. the last line that begins with a score
    2. the last score, or number out of 10, inside a line
    3. a last line that is a number
    """
    text = re.sub(r"[*_`#\[\]{}]", "", text)
    text = re.sub(SCALE, "", text, flags=re.IGNORECASE)
    text = re.sub(LEGEND, "", text, flags=re.IGNORECASE)
    begins = rf"^[^\w\n]*(?:(?:final|overall|my) )*{LABEL}{SCORE}"
    labelled = re.findall(begins, text, re.IGNORECASE | re.MULTILINE)
    if not labelled:
        inside = rf"(?:{LABEL}|(?<![\d./-])(?=[\d.]+{OUT_OF_TEN})){SCORE}"
        labelled = re.findall(inside, text, re.IGNORECASE)
    if labelled:
        return float(labelled[-1])
    last_line = (text.strip().splitlines() or [""])[-1].strip()
    bare = re.fullmatch(rf"{SCORE}\.?", last_line)
    return float(bare.group(1)) if bare else None


def label(text: str, forms: dict[str, str]) -> str | None:
    """The label that a reply gives, None when it gives none; `forms` are patterns by label.

    1. the last that is announced: "Answer: neutral"
    2. the one that the reply begins with
    3. the last that is not denied: "It is no contradiction"
    """
    form = rf"\b(?:{'|'.join(forms.values())})\b"
    # a choice is none: "entailment, neutral or contradiction"
    text = re.sub(rf"{form}(?:(?:\s*[,/|]\s*|\s+)(?:(?:or|and)\s+)?{form})+", "", text.lower())
    announced = re.findall(rf"{ANNOUNCED}({form})", text)
    begins = re.findall(rf"\A\W*({form})", text)
    denied = rf"{DENIED}(?:\s+(?!but\b|{form})\w+){{0,2}}(?:\s+|-){form}"
    words = announced or begins or re.findall(form, re.sub(denied, "", text))
    for name, pattern in forms.items():
        if words and re.fullmatch(pattern, words[-1]):
            return name
    return None
