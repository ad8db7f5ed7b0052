"""Is a constraint on the length of the answer? Brevity alone obeys such: they count apart.

The rule, on the English text of the instruction (what stands in quotes is not read):

    length   asks to be short, brief or concise; or bounds how many words, sentences, characters,
             lines or paragraphs there are: a number, a vague one ("a few") or "number of" before
             the unit
    other    all else, and a count that is of a part of the answer: "include two words in capitals",
             "end with one sentence", "no word of more than 8 characters", "one word per line",
             "each sentence one word longer than the last"
"""

import re

QUOTED = re.compile(r'"[^"]*"|“[^”]*”|‘[^’]*’|«[^»]*»|(?<!\w)\'[^\']*\'(?!\w)')

BRIEF = re.compile(r"\b(?:short|brief|briefly|concise|concisely|succinct|succinctly)\b", re.I)

NUMBER = (
    r"(?:\d[\d,]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    r"fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|"
    r"ninety|hundred|thousand|dozen|single|few|fewer|fewest|several|couple of|handful of)"
)
# what may stand between a number and its unit: "20 or fewer words", "three separate paragraphs"
BETWEEN = (
    r"(?:(?:or|fewer|less|more|short|long|full|complete|plain|separate|distinct|different|unique|"
    r"total|whole|single|English)[\s-]+){0,3}"
)
UNIT = r"(?:words?|sentences?|characters?|lines?|paragraphs?)\b"
COUNT = re.compile(rf"\b{NUMBER}[\s-]+{BETWEEN}{UNIT}", re.I)
# "the number of words must be even", "a word count below 40"
TOTAL = re.compile(
    rf"\bnumber of {UNIT}.*?(?:\d|\b{NUMBER}\b|\bodd\b|\beven\b)|"
    rf"\b(?:word|sentence|character|line|paragraph)[\s-](?:count|limit)\b.*?(?:\d|\b{NUMBER}\b)",
    re.I,
)

# A count of a part of the answer, by what stands before it in its clause ...
PART_BEFORE = re.compile(
    r"\b(?:highlight|capitali[sz]e|bold|italici[sz]e|underline|repeat)\b[^.;]*$|"
    r"\b(?:begin|start|open|end|close|finish)(?:s|ning|ing)?\b[^.;,]*\bwith\b[^.;,]*$|"
    r"\b(?:each|every|no|any|all|only|longest) words?\b[^.;,]*$",
    re.I,
)
# ... or by what is asked of the counted ones: "include three words that rhyme"
INCLUDES = re.compile(
    r"\b(?:include|contain|mention|use|have|has|add|insert|put|place)s?\b[^.;]*$", re.I
)
DESCRIBED = re.compile(
    r"\s+(?:that|which|who|starting|beginning|ending|containing|rhyming|written|"
    r"in (?:all |full |double |single |round |square )?"
    r"(?:capital|caps|upper|lower|bold|italic|quot|bracket|parenthes))",
    re.I,
)
PART_AFTER = re.compile(
    r"\s+(?:(?:per|on each|on every|in each|in every|a) line|(?:longer|shorter) than|entirely in|"
    r"of \w+ letters)\b",
    re.I,
)


def kind(instruction: str) -> str:
    """`length` or `other`, by the rule above."""
    text = QUOTED.sub("it", instruction)
    if BRIEF.search(text) or TOTAL.search(text):
        return "length"
    for count in COUNT.finditer(text):
        before, after = text[: count.start()], text[count.end() :]
        described = INCLUDES.search(before) and DESCRIBED.match(after)
        part = PART_BEFORE.search(before) or PART_AFTER.match(after)
        if not (described or part):
            return "length"
    return "other"
