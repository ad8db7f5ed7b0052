"""Constraints that ask for the same: duplicates in words, and families in other numbers (ours).

    Use no more than 20 words      <- one family: held out together, or trained on together
    Do not use more than 18 words
    Keep the answer under 30 words

Two constraints are tied when their wording has the same `form`, or when half of the functions of
one have the `shape` of functions of the other. A family is everything that ties connect: with a
sibling in training a constraint measures memory, not obedience to something new.
"""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator

# A sign that a constraint is about, such as "!" or [: not one that follows a (quoted) word as
# punctuation does, and no quotes.
SIGN = re.compile(r"""(?<!\w)(?<!\w["'”’])[^\w\s"'“”‘’]""")
# Numbers, single letters (without a, i and I, which are words in a constraint) and signs.
DETAIL = re.compile(rf"\d+|\b[b-hj-zA-HJ-Z]\b|{SIGN.pattern}")

# Phrases that mean the same, longest first; what is left of a constraint after these is its form.
SAME = [
    (r"\b(?:do|does|must|should|may|can) not\b|\b(?:don't|doesn't|mustn't|cannot|can't)\b", "not"),
    (r"\b(?:never|avoid(?:ing)?|without|refrain from|free of|exclud\w+|omit\w*|skip)\b", "not"),
    (
        r"\b(?:leav(?:e|ing) out|neither|nor|no(?:ne)?)\b(?! (?:more|fewer|less|longer|shorter))",
        "not",
    ),
    (r"\b(?:not|no) (?:\w+ )?(?:more|longer) than\b|\bnot (?:to )?exceed(?:ing)?\b", "most"),
    (r"\b(?:not|no) (?:\w+ )?(?:fewer|less|shorter) than\b", "least"),
    (r"\b(?:fewer|less|shorter) than\b|\b(?:under|below|within|up to|at most)\b", "most"),
    (r"\bmax(?:imum)?\b", "most"),
    (r"\b(?:more|longer) than\b|\b(?:over|above|at least|min(?:imum)?)\b|\bor more\b", "least"),
    (r"\bor (?:fewer|less)\b", "most"),
    (r"\b(?:contain|mention|hav|us|includ|add|insert|employ|work)(?:e|s|es|ing)?(?: in)?\b", "use"),
    (r"\b(?:start|begin|open)(?:s|ning|ing)?\b", "begin"),
    (r"\b(?:end|finish|clos|conclud)(?:e|s|es|ing)?\b", "end"),
    (r"\bthe (?:last|final) (?:character|sign|word) (?:must |should )?be\b", "end"),
    (r"\b(?:precisely|just)\b", "exactly"),
]
# Names of signs, and number words: which sign and which number is what siblings differ in.
SIGN_NAME = (
    r"\b(?:commas?|apostrophes?|colons?|semicolons?|hyphens?|dash(?:es)?|full stops?|periods?|"
    r"asterisks?|(?:exclamation|question) (?:marks?|points?)|slash(?:es)?|ampersands?|"
    r"percent signs?|underscores?)\b"
)
NUMBER = (
    r"\b(?:\d[\d,.]*\d|\d|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|"
    r"sixty|seventy|eighty|ninety|hundred|thousand|"
    r"first|second|third|fourth|fifth|dozen|half|once|twice|thrice|single)\b"
)
QUOTED = r"""["“”][^"“”]*["“”]|(?<!\w)['‘][^'‘’]*['’](?!\w)|`[^`]*`"""
# Words that say nothing about what is asked for.
FILLER = set(
    "a an the your you of in to with that which it its is are be as by for and or any all each "
    "every whole entire please must should answer answers response responses reply replies respond "
    "text write writing keep make give stay limit restrict let form only put count total length "
    "long there this than".split()
)


# ---- duplicates, for stage 01 ----


def normalized(instruction: str) -> str:
    """What exact duplicates share: words and numbers in lower case, and signs.

    'Use no commas, ever: "no".' -> 'use no commas ever no'
    """
    return " ".join(re.findall(r"\w+", instruction.lower()) + SIGN.findall(instruction))


def near_duplicates(instructions: list[str], threshold: float, stay: int = 0) -> dict[int, int]:
    """Each instruction with its twin, the first kept one whose TF-IDF cosine with it is high.

    The first `stay` are kept even where they have a twin.
    ['Use at most 20 words', 'Use no commas', 'At most 20 words: use these'] -> {2: 0}
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    # words and word pairs are counted; what differs in a detail asks for another thing
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(instructions)
    details = list(map(DETAIL.findall, instructions))
    twins: dict[int, int] = {}
    # 1,000 rows of cosines at a time: flat memory
    for start in range(0, len(instructions), 1000):
        cosines = (vectors[start : start + 1000] @ vectors.T).tocoo()
        near = cosines.data >= threshold
        for later, earlier in zip(cosines.row[near] + start, cosines.col[near]):
            # what is dropped itself has no twins: small steps would lead far from what is kept
            kept = earlier < stay or earlier not in twins
            if earlier < later and kept and details[earlier] == details[later]:
                twins[later] = min(earlier, twins.get(later, earlier))
    return twins


# ---- families, for stage 03 ----


KINDS = {
    "number": r"\s*\d+\s*",
    "letter": r"\s*[^\W\d_]\s*",
    "sign": r"[^\w\s]?\s*[^\w\s]?|\s*",
    "word": r"[\w\s'’-]+",
}


def quoted(text: str) -> str:
    """The kind of a quoted text or a string: which one it is is what siblings differ in.

    "water", "I think" -> word    "q" -> letter    "12" -> number    ", " -> sign
    r"\\bcat\\b" -> \\bword\\b
    """
    for kind, pattern in KINDS.items():
        if re.fullmatch(pattern, text):
            return kind
    # a regular expression or a list of signs: words and numbers go, its structure stays
    masked = re.sub(r"(?<!\\)(?<!\w)[^\W\d_]{2,}|(?<=\\b)[^\W\d_]+", "word", text)
    return re.sub(r"\d+", "#", masked)


def form(instruction: str) -> str:
    """The wording of a constraint without what siblings differ in, as sorted words.

    'Use no more than 20 words' -> '# most use word'
    """
    text = instruction.replace("’", "'")
    text = re.sub(QUOTED, lambda found: f" _{quoted(found.group()[1:-1])} ", text)
    text = re.sub(r"(?<=[a-z ])\b[B-HJ-Z]\b", " _letter ", text).lower()
    text = re.sub(r"\b(?:words?|phrases?|letters?|signs?|symbols?|characters?)\s+(?=_)", "", text)
    for pattern, meaning in SAME:
        text = re.sub(r"\s+", " ", re.sub(pattern, f" {meaning} ", text))
    text = re.sub(SIGN_NAME, " _sign ", text)
    text = re.sub(NUMBER, " # ", text)
    text = re.sub(r"[^\w\s#'.,;:!?]", " _sign ", text)
    words = re.findall(r"[\w']+|#", text)
    singular = {re.sub(r"(?<=\w\w)(?<!s)s$", "", word) for word in words if word not in FILLER}
    if singular & {"most", "least", "exactly", "between", "not"}:
        singular.discard("use")  # "use at most 9 words" and "at most 9 words" ask for the same
    return " ".join(sorted(singular))


class _Shape(ast.NodeTransformer):
    """Takes out of a function what siblings differ in: constants, names of variables, < or <=."""

    def __init__(self, own_names: set[str]):
        self.own_names, self.places = own_names, {}

    def place(self, name: str) -> str:
        """A variable is named by its first appearance: equal up to renaming is equal."""
        if name not in self.own_names:
            return name
        return self.places.setdefault(name, f"v{len(self.places)}")

    def visit_FunctionDef(self, node):
        node.name, node.returns = self.place(node.name), None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_arg(self, node):
        return ast.arg(self.place(node.arg))

    def visit_Name(self, node):
        return ast.Name(self.place(node.id), ast.Load())

    def visit_Constant(self, node):
        if isinstance(node.value, str):
            return ast.Constant(quoted(node.value))
        return ast.Constant(type(node.value).__name__)

    def visit_Compare(self, node):
        """`20 >= n` as `n <= 20`, and `<` as `<=`: 'under 21' asks for the same as 'at most 20'."""
        turned = {ast.Lt: ast.GtE, ast.LtE: ast.GtE, ast.Gt: ast.LtE, ast.GtE: ast.LtE}
        loose = {ast.Lt: ast.LtE, ast.Gt: ast.GtE}
        operation = type(node.ops[0])
        if len(node.ops) == 1 and isinstance(node.left, ast.Constant) and operation in turned:
            node.left, node.comparators = node.comparators[0], [node.left]
            node.ops = [turned[operation]()]
        node.ops = [loose.get(type(each), type(each))() for each in node.ops]
        return self.generic_visit(node)


def shape(code: str) -> str | None:
    """The syntax tree of a function without what siblings differ in.

    These two have the same shape:
        def evaluate(response): return len(response.split()) <= 20
        def evaluate(answer): return 30 > len(answer.split())

    None for a function that does not parse or ignores its input.
    """
    imports = (ast.Import, ast.ImportFrom)
    try:
        tree = ast.parse(code)
        own_names, read = names_in(tree)
        if not arguments(tree) & read:
            return None  # `return True` would tie everything to everything
        tree.body = [node for node in tree.body if not isinstance(node, imports)]
        return ast.dump(_Shape(own_names).visit(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # all that ast raises on hostile text


def arguments(tree: ast.Module) -> set[str]:
    """The name of the text that `evaluate` gets, of each definition of it."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "evaluate":
            names.update(argument.arg for argument in node.args.args[:1])
    return names


def names_in(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names that a module gives (functions, arguments, variables), and those that it reads."""
    own, read = {"evaluate"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Name):
            (own if isinstance(node.ctx, ast.Store) else read).add(node.id)
    return own, read


def related(shapes: list[set[str]]) -> Iterator[tuple[int, int]]:
    """Yield the rows (by number) that at least half of the functions of one of them tie together.

    Half, since single functions miss their constraint: one that counts words where it should count
    sentences would tie the two kinds, and soon everything to everything.
    """
    having: dict[str, list[int]] = {}
    shared = Counter()
    for number, own in enumerate(shapes):
        for each in own:
            shared.update((other, number) for other in having.setdefault(each, []))
            having[each].append(number)
    for (one, other), count in shared.items():
        if 2 * count >= min(len(shapes[one]), len(shapes[other])):
            yield one, other


def families(rows: list[dict], seed: int = 0) -> list[str]:
    """The name of each row's family: of all forms in it, the one whose hash is smallest.

    ['At most 20 words', 'At most 18 words', 'No commas']
    -> ['# most word', '# most word', '_sign not']
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]  # halve the path on the way up
            name = parent[name]
        return name

    forms = [form(row["instruction"]) for row in rows]
    shapes = []
    for row in rows:
        own = {shape(verifier["code"]) for verifier in row["verifiers"]}
        shapes.append(own - {None})
    for one, other in related(shapes):
        parent[root(forms[one])] = root(forms[other])

    # the name hangs on the forms alone: it stays when siblings with a known form are added
    names: dict[str, str] = {}
    for own in forms:
        known = names.get(root(own), own)
        names[root(own)] = min(known, own, key=lambda name: place(name, seed))
    return [names[root(own)] for own in forms]


def place(name: str, seed: int) -> bytes:
    """Where a family stands in the queue for the held-out side: a hash of its name and the seed."""
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()


def heldout(names: list[str], share: float, seed: int) -> set[str]:
    """The families to hold out: in the order of their hashes, until about `share` of the rows is.

    One that would overshoot it by more than half of itself is passed over: a large family must not
    empty the training side.
    """
    size = Counter(names)
    wanted, chosen, count = share * len(names), set(), 0
    for name in sorted(size, key=lambda each: place(each, seed)):
        if count + size[name] / 2 <= wanted:
            chosen.add(name)
            count += size[name]
    return chosen
