"""Multiple choice, for MMLU and C-Eval: by generation on any endpoint, or by log-likelihood for a local checkpoint.

The two modes give different numbers for the same model, so each row of the results names its own. Log-likelihoods
come from lm-eval's model classes and are kept in its cache, so that a run that was killed computes none of them
twice.
"""
import os
import re
from pathlib import Path

from autoif.stage import UserError

LETTERS = "ABCD"
# "Answer: B", "the answer is (B)", "答案是B", "\boxed{B}"; the letter must end there
MARKED = re.compile(r"(?:answer(?:\s+is|\s*[:=])|答案\s*(?:是|为|[:：])?|\\boxed\{|\\text\{)[\s:：*(（\[{\"'`]*"
                    r"(?:option|choice|选项?)?[\s*(（]*([A-D])(?![A-Za-z0-9'’])", re.IGNORECASE)
LEADING = re.compile(r"\s*[*(（\[\"'`]*([A-D])(?:[*)）\].:,、\"'`：。]|\s*$|\s*\n)")


def lines(item: dict) -> str:
    return "\n".join([item["question"], *(f"{letter}. {text}" for letter, text in zip(LETTERS, item["choices"]))])


def read_choice(text: str, choices: list[str]) -> str | None:
    """The letter an answer settles on: the last one announced, one at its start or alone on a line, a choice's words."""
    if marked := MARKED.findall(text):
        return marked[-1].upper()
    if leading := LEADING.match(text):
        return leading.group(1)
    alone = {found for line in text.splitlines()
             for found in re.findall(r"^[\s*(（\[]*([A-D])[\s*)）\].。]*$", line) + re.findall(r"[(（]([A-D])[)）]", line)}
    if len(alone) == 1:
        return alone.pop()
    said = {letter for letter, choice in zip(LETTERS, choices)
            if choice.strip() and choice.strip().lower() in text.lower()}
    return said.pop() if len(said) == 1 else None


def score(works: list[dict], metric: str, by_subject: bool) -> list[dict]:
    rows = []
    for work in works:
        item = work["item"]
        letter = read_choice(work["answers"][0]["text"], item["choices"])
        right = letter == item["target"]
        rows.append({"verdict": right, "reason": f"{letter}, expected {item['target']}", "unparsable": letter is None,
                     "subject": item["subject"],
                     "points": {metric: [(item["subject"] if by_subject else "", item["cluster"], right, 1)]}})
    return rows


def by_likelihood(works: list[dict], model: str, cache: Path) -> None:
    """Add to each work the letter with the highest log-likelihood after the item's `context`, as its answer."""
    if not os.path.isdir(model):
        raise UserError(f"--mc-mode loglik needs a checkpoint folder as --model, {model!r} is none; "
                        "--mc-mode gen asks an endpoint")
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM
    from lm_eval.models.huggingface import HFLM

    instances = [Instance("loglikelihood", {}, (work["item"]["context"], f" {letter}"), index)
                 for index, work in enumerate(works) for letter in LETTERS]
    cache.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = CachingLM(HFLM(pretrained=model, device=device, batch_size=8), str(cache)).loglikelihood(instances)
    choose(works, [logprob for logprob, _ in found])


def choose(works: list[dict], logprobs: list[float]) -> None:
    """Four log-probabilities a work, in the order of LETTERS: the highest is its answer."""
    for index, work in enumerate(works):
        of_letters = logprobs[len(LETTERS) * index:len(LETTERS) * (index + 1)]
        work["answers"] = [{"text": f"Answer: {LETTERS[of_letters.index(max(of_letters))]}", "finish_reason": "stop"}]
