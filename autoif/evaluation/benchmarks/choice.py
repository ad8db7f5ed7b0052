"""Multiple choice, for MMLU and C-Eval: by generation, so each row of the results says "mode gen".

Log-likelihoods give other numbers for the same model; lm-eval computes these.
"""

import re

from autoif.evaluation.benchmarks import right_or_wrong

LETTERS = "ABCD"
# what may stand before a letter: blanks, marks, LaTeX
FORM = r"(?:[\s*_$\"'`(（\[{]|\\(?:text\w*|math\w+|boxed)\{|\\\()*"
# a small letter only where it cannot be the article: at the end of a line or before a mark
LETTER = r"(?:([A-D])(?![A-Za-z0-9'’])|([a-d])(?=[).,;:!\]*}'\"`]|\s*$))"
IS = r"(?i:is|should\s+be|must\s+be|would\s+be|[:：=])"
MARKED = re.compile(
    rf"""(?:(?i:answer){FORM}{IS}[:：]?{FORM}(?i:option|choice)?      # the answer is (B)
           |^[\s*_#]*(?i:(?:(?:the|final|correct)\s+)*answer)\s{FORM}  # Answer B
           |<(?i:answer)>                                              # <answer>B</answer>
           |(?i:correct|right|best)\s+(?i:option|choice|one){FORM}(?i:is|[:：])  # the best one is B
           |(?:答案|正确(?:的一项|的|选项)?){FORM}应?该?(?:是|为|选)?[:：]?{FORM}(?:选项?)?
           |(?<!不)选(?!项)择?[:：]?                                   # 故选B
           |\\boxed\{{){FORM}{LETTER}                                  # \boxed{{\text{{B}}}}""",
    re.VERBOSE | re.MULTILINE,
)
RIGHT = r"(?i:(?:the\s+)?(?:correct|right|best|answer)\b)"
# "Option B is correct", "B is the answer", "I choose B": capital letters only
NAMED = re.compile(
    rf"""(?<!\bor\s)(?i:option|choice|选项){FORM}([A-D])[\s*_)）]*(?i:is|是|为)?\s*(?:{RIGHT}|正确)
      |(?<![A-Za-z0-9'’])(?<!\bor\s)(?<!\boption\s)(?<![/或])([A-D])[\s*_)）]*(?:\s(?i:is|would\s+be)\s+{RIGHT}|(?:选?项)?[是为]?正确)
      |\b(?i:I(?:\s+would|['’]d|\s+will|['’]ll)?\s+(?:choose|pick|select|go\s+with)
         (?:\s+(?:option|choice))?){FORM}([A-D])(?![A-Za-z0-9'’])""",
    re.VERBOSE,
)
# "not A. It is C", where nothing else is announced
IT_IS = re.compile(rf"\b(?i:it\s+is|it['’]s){FORM}([A-D])(?![A-Za-z0-9'’])")
LEADING = re.compile(
    r"\s*[*(（\[\"'`]*([A-D])(?:[*)）\].:、\"'`：。]|,(?!\s*[A-D]\b)|\s*$|\s*\n"
    r"|\s+(?:because|since)\b|\s+[-–—]\s|选?项(?!不|错))"
)
ALONE = [
    re.compile(r"^[\s*(（\[]*([A-D])[\s*)）\].。]*$"),
    re.compile(r"[(（]([A-D])[)）]"),
    re.compile(r"(?i:option|choice|选项)\s*([A-D])(?![A-Za-z0-9])"),
]
# the whole reply
SMALL = re.compile(r"[\s*(\[]*([a-d])[\s*)\].]*")
# "A or B", "A, B, C or D": no letter is settled on, unless the others have a verb of their own
HEDGE = re.compile(
    rf"""[\s*_)）\]}}$"'`]*
         (?:(?:\s*(?:[,/&、|+]|[(（]?\b(?:or|and|maybe|perhaps|possibly|also|else)\b|或者?|和)
            |\s+(?=[B-D](?:\s+[A-D]\b|\s*$)))+{FORM}(?i:option\s|choice\s|选项)?
            {FORM}[A-D](?![A-Za-z0-9'’])[*_)）\]}}]*)++
         (?!\s+(?:is|are|was|were|does|do|has|have|can|would)\b)""",
    re.VERBOSE,
)
# the choices repeated, one a line
ECHO = re.compile(r"[\s*(（\[]*A[)）\].:、][^\n]*\n[ \t]*[*(（\[]*B[)）\].:、]")
DENIED = re.compile(
    rf"(?:\bnot|n['’]t|不是|不选){FORM}(?i:option\s|选项)?{FORM}[A-D](?![A-Za-z0-9'’])"
    r"(?:[\s*_)）\],，]*(?:but\b|而是))?"
)
# where a base model runs on
NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|Problem|问题)\s*\d*\s*[:：.]")


def lines(question: str, choices: list[str]) -> str:
    """The question, and a line "A. ..." for each choice."""
    text = question
    for letter, choice in zip(LETTERS, choices):
        text += f"\n{letter}. {choice}"
    return text


def only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def read_choice(text: str, choices: list[str]) -> str | None:
    """The letter an answer settles on, None when it settles on none, or on two ("A or B").

    The last one announced ("the answer is B", "B is correct"), one at its start, the only one that
    stands alone on a line or is named ("(B)", "option B"), or the only choice whose words occur.
    """
    text = DENIED.sub("", NEXT_QUESTION.split(text)[0])
    announced = [*MARKED.finditer(text), *NAMED.finditer(text)] or [*IT_IS.finditer(text)]
    first = None if ECHO.match(text) else LEADING.match(text) or SMALL.fullmatch(text)
    if settled := max(announced, key=lambda found: found.end(found.lastindex), default=first):
        hedged = HEDGE.match(text, settled.end(settled.lastindex))
        return None if hedged else settled.group(settled.lastindex).upper()
    alone, said = set(), set()
    for line in text.splitlines():
        for form in ALONE:
            alone.update(form.findall(line))
    for letter, choice in zip(LETTERS, choices):
        if choice.strip() and choice.strip().lower() in text.lower():
            said.add(letter)
    return only(alone) or only(said)


def score(attempt: dict, metric: str, stratum: str) -> dict:
    """The row of a question: the letter that its answer settles on beside the right one."""
    item = attempt["item"]
    letter = read_choice(attempt["answers"][0]["text"], item["choices"])
    more = {"unparsable": letter is None, "subject": item["subject"]}
    reason = f"{letter}, expected {item['target']}"
    return right_or_wrong(attempt, metric, letter == item["target"], reason, stratum, **more)
