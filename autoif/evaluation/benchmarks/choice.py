"""Multiple choice, for MMLU and C-Eval: by generation on any endpoint, or by log-likelihood for a local checkpoint.

The two modes give different numbers for the same model, so each row of the results names its own. Log-likelihoods
come from lm-eval's model classes and are kept in its cache, so that a run that was killed computes none of them
twice.
"""

import os
import re
from pathlib import Path

from autoif.files import UserError

LETTERS = "ABCD"
FORM = (
    r"(?:[\s*_$\"'`(（\[{]|\\(?:text\w*|math\w+|boxed)\{|\\\()*"  # what may stand before a letter
)
# a small letter only where it cannot be the article: at the end of a line or before a mark
LETTER = r"(?:([A-D])(?![A-Za-z0-9'’])|([a-d])(?=[).,;:!\]*}'\"`]|\s*$))"
# "Answer: B", "the answer is (B)", "the correct option is B", "\boxed{\text{B}}", "答案是B", "故选B"
MARKED = re.compile(
    rf"""(?:(?i:answer){FORM}(?i:is|should\s+be|must\s+be|would\s+be|[:：=])[:：]?{FORM}(?i:option|choice)?
                        |(?i:correct|right|best)\s+(?i:option|choice|one){FORM}(?i:is|[:：])
                        |(?:答案|正确选项){FORM}应?该?(?:是|为|选)?[:：]?{FORM}(?:选项?)?
                        |(?<!不)选(?!项)择?[:：]?
                        |\\boxed\{{){FORM}{LETTER}""",
    re.VERBOSE | re.MULTILINE,
)
# "Option B is correct"
NAMED = re.compile(
    rf"(?i:option|choice|选项){FORM}([A-D])[\s*_)）]*(?i:is|是|为)?\s*(?i:the\s+)?(?i:correct|right|best|answer|正确)"
)
LEADING = re.compile(r"\s*[*(（\[\"'`]*([A-D])(?:[*)）\].:、\"'`：。]|,(?!\s*[A-D]\b)|\s*$|\s*\n)")
NEXT_QUESTION = re.compile(
    r"\n\s*(?:Question|Q|Problem|问题)\s*\d*\s*[:：.]"
)  # where a base model runs on


def lines(item: dict) -> str:
    return "\n".join(
        [item["question"], *(f"{letter}. {text}" for letter, text in zip(LETTERS, item["choices"]))]
    )


def read_choice(text: str, choices: list[str]) -> str | None:
    """The letter an answer settles on: the last one announced, one at its start or alone on a line, a choice's words."""
    text = NEXT_QUESTION.split(text)[0]
    marked = sorted([*MARKED.finditer(text), *NAMED.finditer(text)], key=lambda found: found.end())
    if marked:
        return marked[-1].group(marked[-1].lastindex).upper()
    if leading := LEADING.match(text):
        return leading.group(1)
    alone = {
        found
        for line in text.splitlines()
        for found in re.findall(r"^[\s*(（\[]*([A-D])[\s*)）\].。]*$", line)
        + re.findall(r"[(（]([A-D])[)）]", line)
        + re.findall(r"(?i:option|choice|选项)\s*([A-D])\b", line)
    }
    if len(alone) == 1:
        return alone.pop()
    said = {
        letter
        for letter, choice in zip(LETTERS, choices)
        if choice.strip() and choice.strip().lower() in text.lower()
    }
    return said.pop() if len(said) == 1 else None


def score(works: list[dict], metric: str, by_subject: bool) -> list[dict]:
    rows = []
    for work in works:
        item = work["item"]
        letter = read_choice(work["answers"][0]["text"], item["choices"])
        right = letter == item["target"]
        rows.append(
            {
                "verdict": right,
                "reason": f"{letter}, expected {item['target']}",
                "unparsable": letter is None,
                "subject": item["subject"],
                "points": {
                    metric: [(item["subject"] if by_subject else "", item["cluster"], right, 1)]
                },
            }
        )
    return rows


def by_likelihood(works: list[dict], model: str, cache: Path) -> None:
    """Add to each work the letter with the highest log-likelihood after the item's `context`, as its answer."""
    if not os.path.isdir(model):
        raise UserError(
            f"--mc-mode loglik needs a checkpoint folder as --model, {model!r} is none; "
            "--mc-mode gen asks an endpoint"
        )
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM
    from lm_eval.models.huggingface import HFLM

    instances = [
        Instance("loglikelihood", {}, (work["item"]["context"], f" {letter}"), index)
        for index, work in enumerate(works)
        for letter in LETTERS
    ]
    cache.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = CachingLM(
        HFLM(pretrained=model, device=device, batch_size=8), str(cache)
    ).loglikelihood(instances)
    choose(works, [logprob for logprob, _ in found])


def choose(works: list[dict], logprobs: list[float]) -> None:
    """Four log-probabilities a work, in the order of LETTERS: the highest is its answer."""
    for index, work in enumerate(works):
        of_letters = logprobs[len(LETTERS) * index : len(LETTERS) * (index + 1)]
        work["answers"] = [
            {
                "text": f"Answer: {LETTERS[of_letters.index(max(of_letters))]}",
                "finish_reason": "stop",
            }
        ]
