"""Families: which constraints are siblings, and that whole families are held out."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

from autoif import families, files, replies

ROOT = Path(__file__).resolve().parents[1]

WORDS = "def evaluate(response):\n    return len(response.split()) <= {}"


def rows(*instructions, code=None):
    return [
        {"instruction": each, "verifiers": [{"code": code}] if code else []}
        for each in instructions
    ]


SIBLINGS = [
    ["Use no more than 20 words", "Do not use more than 18 words", "Keep the answer under 30 words",
     "Answer in at most ten words", "Use fewer than 25 words",
     "Limit your reply to a maximum of 40 words",
     "Your answer must not exceed fifty words", "Respond with 12 words or fewer"],
    ["Use at least 50 words", "Write no fewer than 80 words", "Use more than forty words"],
    ['Include the word "water"', "Use the word 'river'", 'Your answer must contain the word “moon”',
     "Mention the word `tree`"],
    ['Do not use the word "and"', 'Never use the word "you"', "Avoid the word 'very'",
     'Answer without the word "but"'],
    ["Use no commas", "Do not use apostrophes", "Avoid semicolons", "Use no exclamation marks"],
    ["Begin the answer with the letter T", "Start your response with the letter 'b'",
     "Open with the letter M"],
    ["End with a question mark", "Finish the answer with an exclamation mark",
     "Conclude your response with a period"],
    ["Answer with exactly two sentences", "Write exactly 5 sentences",
     "Respond in exactly three sentences"],
    ["Use between 10 and 25 words", "Write between forty and 60 words"],
    ["Write every third word in capital letters", "Write every second word in capital letters"],
]  # fmt: skip


# The wording of the first of each: a changed one would move constraints between train and heldout.
FORMS = [
    "# most word", "# least word", "_word use", "_word not", "_sign not", "_letter begin",
    "_sign end", "# exactly sentence", "# between word", "# capital letter word",
]  # fmt: skip


@pytest.mark.parametrize("siblings, form", list(zip(SIBLINGS, FORMS)), ids=FORMS)
def test_a_form_and_with_it_the_name_of_a_family_stays_what_it_was(siblings, form):
    assert families.form(siblings[0]) == form
    names = set(map(families.form, siblings))
    assert set(families.families(rows(*siblings))) == {min(names, key=hashed)}


def hashed(name: str) -> bytes:
    return hashlib.sha256(f"0 {name}".encode()).digest()


@pytest.mark.parametrize("siblings", SIBLINGS, ids=[each[0] for each in SIBLINGS])
def test_other_numbers_words_letters_and_signs_make_a_sibling(siblings):
    assert len(set(families.families(rows(*siblings)))) == 1, [families.form(x) for x in siblings]


def test_different_constraints_stay_apart():
    firsts = [each[0] for each in SIBLINGS] + [
        "Use at most 20 characters",
        "Use exactly 20 words",
        "Write everything in lower case",
        "Write everything in capital letters",
        "Answer with a bulleted list",
        "Repeat the last word",
        'Begin every line with ">"',
        "Put the answer in double quotes",
    ]
    names = families.families(rows(*firsts))
    assert len(set(names)) == len(firsts), sorted(names)


@pytest.mark.parametrize(
    "one, other, same",
    [
        (WORDS.format(20), "def evaluate(text):\n    return 31 > len(text.split())", True),
        (WORDS.format(20), 'def evaluate(r):\n    """Doc."""\n    return len(r.split()) < 9', True),
        (WORDS.format(20), WORDS.format(20).replace("<=", ">="), False),
        (WORDS.format(20), "def evaluate(response):\n    return len(response) <= 20", False),
        (
            "import re\ndef evaluate(x):\n    y = re.findall(r'\\bcat\\b', x)\n    return bool(y)",
            "import re\ndef evaluate(a):\n    b = re.findall(r'\\bhen\\b', a)\n    return bool(b)",
            True,
        ),
        (
            "import re\ndef evaluate(x):\n    return bool(re.search(r'\\bcat\\b', x))",
            "import re\ndef evaluate(x):\n    return bool(re.search(r'^\\s*[-*] ', x))",
            False,
        ),
        (
            "def evaluate(x):\n    return 'water' in x",
            "def evaluate(x):\n    return '!' in x",
            False,
        ),
    ],
)
def test_functions_tie_when_they_are_equal_up_to_constants_and_names(one, other, same):
    assert (families.shape(one) == families.shape(other)) == same


def test_a_function_that_ignores_its_input_or_does_not_parse_ties_nothing():
    assert families.shape("def evaluate(response): return True") is None
    assert families.shape("def evaluate(response) return") is None
    assert families.shape("def evaluate(r): return " + "not " * 5000 + "r") is None
    assert families.shape("def evaluate(r): return " + "-" * 80 + "len(r)")
    code = "def evaluate(response): return True"
    assert len(set(families.families(rows("Use no commas", "Answer in French", code=code)))) == 2


def test_functions_tie_constraints_whose_words_differ():
    named = families.families(
        rows("Be brief: twenty words", code=WORDS.format(20))
        + rows("At most 7 words", code=WORDS.format(7).replace("response", "answer"))
    )
    assert named[0] == named[1]


def many(count):
    """Constraints in families of one to four."""
    found = []
    for n in range(count):
        kind = f"{chr(97 + n % 26)}{chr(97 + n // 26)}x"
        found += [f"Use {size} {kind} things" for size in range(3, 4 + n % 4)]
    return found


def test_about_the_asked_share_is_held_out_in_whole_families():
    names = families.families(rows(*many(120)))
    held = families.heldout(names, 0.1, seed=0)
    count = sum(name in held for name in names)
    assert abs(count - 0.1 * len(names)) <= 2
    assert families.heldout(names, 0.0, seed=0) == set()
    assert families.heldout(names, 1.0, seed=0) == set(names)
    assert families.heldout(names, 0.1, seed=1) != held


def test_one_large_family_is_not_held_out_against_the_share():
    names = ["long"] * 50 + [f"other {n}" for n in range(50)]
    for seed in range(20):
        held = families.heldout(names, 0.1, seed)
        assert "long" not in held and 8 <= len(held) <= 11


def test_the_split_stays_when_constraints_are_added_but_for_the_margin_of_the_share():
    before = families.families(rows(*many(100)))
    after = families.families(rows(*many(120)))
    assert after[: len(before)] == before
    held, later = (families.heldout(names, 0.1, 0) for names in (before, after))
    assert len(held & later) >= 0.7 * len(held)


def test_siblings_that_join_a_family_change_neither_its_name_nor_its_side():
    before = families.families(rows(*many(50)))
    after = families.families(rows(*many(50), "Use 77 aax things", "Use twelve aax things"))
    assert after[: len(before)] == before and set(after) == set(before)


def test_the_recorded_constraints_fall_into_the_families_that_they_fell_into():
    """All of study/ with all their functions: what runs have held out stays so."""
    functions = defaultdict(list)
    for record in files.read(ROOT / "study" / "completions" / "02_verifiers.jsonl"):
        for answer in replies.objects(record["text"]):
            if isinstance(answer, dict) and isinstance(answer.get("func"), str):
                functions[record["for"]].append({"code": answer["func"]})
                break
    recorded = [{"instruction": each, "verifiers": codes} for each, codes in functions.items()]
    for seed, names_digest, heldout_digest in (
        (0, "a6fbe641da61665d", "f9ff5319e2cb7e5e"),
        (59, "fee7a144c6d6b69b", "be35c2a18337123a"),
    ):
        names = families.families(recorded, seed)
        assert (len(names), len(set(names))) == (152, 107)
        assert digest(names) == names_digest
        assert digest(sorted(families.heldout(names, 0.25, seed))) == heldout_digest


def digest(names: list[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
