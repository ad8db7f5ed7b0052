"""Multiple choice, for MMLU and C-Eval: by generation, or by log-likelihood of a local checkpoint.

The two modes give different numbers for the same model, so each row of the results names its own.
Log-likelihoods come from lm-eval's model classes and are kept in its cache, so that a run that was
killed computes none of them twice.
"""

import os
import re
from pathlib import Path

from autoif.files import UserError

LETTERS = "ABCD"
# what may stand before a letter: blanks, marks, LaTeX
FORM = r"(?:[\s*_$\"'`(（\[{]|\\(?:text\w*|math\w+|boxed)\{|\\\()*"
# a small letter only where it cannot be the article: at the end of a line or before a mark
LETTER = r"(?:([A-D])(?![A-Za-z0-9'’])|([a-d])(?=[).,;:!\]*}'\"`]|\s*$))"
IS = r"(?i:is|should\s+be|must\s+be|would\s+be|[:：=])"
MARKED = re.compile(
    rf"""(?:(?i:answer){FORM}{IS}[:：]?{FORM}(?i:option|choice)?      # the answer is (B)
           |(?i:correct|right|best)\s+(?i:option|choice|one){FORM}(?i:is|[:：])  # the best one is B
           |(?:答案|正确选项){FORM}应?该?(?:是|为|选)?[:：]?{FORM}(?:选项?)?  # 答案是B
           |(?<!不)选(?!项)择?[:：]?                                   # 故选B
           |\\boxed\{{){FORM}{LETTER}                                  # \boxed{{\text{{B}}}}""",
    re.VERBOSE | re.MULTILINE,
)
# "Option B is correct"
NAMED = re.compile(
    rf"(?i:option|choice|选项){FORM}([A-D])[\s*_)）]*"
    r"(?i:is|是|为)?\s*(?i:the\s+)?(?i:correct|right|best|answer|正确)"
)
LEADING = re.compile(r"\s*[*(（\[\"'`]*([A-D])(?:[*)）\].:、\"'`：。]|,(?!\s*[A-D]\b)|\s*$|\s*\n)")
ALONE = [
    re.compile(r"^[\s*(（\[]*([A-D])[\s*)）\].。]*$"),
    re.compile(r"[(（]([A-D])[)）]"),
    re.compile(r"(?i:option|choice|选项)\s*([A-D])\b"),
]
# where a base model runs on
NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|Problem|问题)\s*\d*\s*[:：.]")


def lines(question: str, choices: list[str]) -> str:
    """The question, and a line "A. ..." for each choice."""
    text = question
    for letter, choice in zip(LETTERS, choices):
        text += f"\n{letter}. {choice}"
    return text


def only(letters: set[str]) -> str | None:
    """The letter of a set of one."""
    return next(iter(letters)) if len(letters) == 1 else None


def read_choice(text: str, choices: list[str]) -> str | None:
    """The letter an answer settles on, None when it settles on none.

    The last one announced ("the answer is B"), one at its start, the only one that stands alone on
    a line or is named ("(B)", "option B"), or the only choice whose words occur.
    """
    text = NEXT_QUESTION.split(text)[0]
    marked = sorted([*MARKED.finditer(text), *NAMED.finditer(text)], key=lambda found: found.end())
    if marked:
        return marked[-1].group(marked[-1].lastindex).upper()
    if leading := LEADING.match(text):
        return leading.group(1)
    alone = set()
    for line in text.splitlines():
        for form in ALONE:
            alone.update(form.findall(line))
    said = set()
    for letter, choice in zip(LETTERS, choices):
        if choice.strip() and choice.strip().lower() in text.lower():
            said.add(letter)
    return only(alone) or only(said)


def score(works: list[dict], metric: str, by_subject: bool) -> list[dict]:
    rows = []
    for work in works:
        item = work["item"]
        letter = read_choice(work["answers"][0]["text"], item["choices"])
        right = letter == item["target"]
        stratum = item["subject"] if by_subject else ""
        rows.append(
            {
                "verdict": right,
                "reason": f"{letter}, expected {item['target']}",
                "unparsable": letter is None,
                "subject": item["subject"],
                "points": {metric: [(stratum, item["cluster"], right, 1)]},
            }
        )
    return rows


def by_likelihood(works: list[dict], model: str, cache: Path) -> None:
    """Add to each work, as its answer, the likeliest letter after the item's `context`."""
    if not os.path.isdir(model):
        raise UserError(
            f"--mc-mode loglik needs a checkpoint folder as --model, {model!r} is none; "
            "--mc-mode gen asks an endpoint"
        )
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM
    from lm_eval.models.huggingface import HFLM

    instances = []
    for index, work in enumerate(works):
        for letter in LETTERS:
            asked = work["item"]["context"], f" {letter}"
            instances.append(Instance("loglikelihood", {}, asked, index))
    cache.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = CachingLM(HFLM(pretrained=model, device=device, batch_size=8), str(cache))
    choose(works, [logprob for logprob, _ in scorer.loglikelihood(instances)])


def choose(works: list[dict], logprobs: list[float]) -> None:
    """Four log-probabilities a work, in the order of LETTERS: the highest is its answer."""
    for index, work in enumerate(works):
        of_letters = logprobs[len(LETTERS) * index : len(LETTERS) * (index + 1)]
        likeliest = LETTERS[of_letters.index(max(of_letters))]
        work["answers"] = [{"text": f"Answer: {likeliest}", "finish_reason": "stop"}]
