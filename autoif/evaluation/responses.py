"""Answers that were made elsewhere (`--responses`): JSONL rows {prompt, response}.

{"prompt": "Write a letter ...", "response": "Dear ..."}
{"prompt": "First turn?", "response": ["answer to the first turn", "answer to the second"]}
"""

from collections.abc import Callable
from pathlib import Path

from autoif import files
from autoif.files import NotSetUp, UserError


def read(path: str | Path) -> dict[str, list[list[str]]]:
    """The samples by stripped prompt, in file order; a sample is the list of its turns' answers."""
    samples: dict[str, list] = {}
    for number, row in files.numbered(path, ["prompt", "response"]):
        turns = row["response"]
        if not isinstance(turns, list):
            turns = [turns]
        if not all(isinstance(text, str) for text in [row["prompt"], *turns]):
            raise UserError(
                f"{path}:{number}: prompt and response must be text "
                f'(response: {row["response"]!r:.60}); an empty answer is ""'
            )
        samples.setdefault(row["prompt"].strip(), []).append(turns)
    return samples


def add_answers(path: str | Path, attempts: list[dict], strip: Callable[[str], str]) -> None:
    """Add to each attempt its `answers` out of the file, without what `strip` takes off (thoughts).

    A prompt that the file lacks has empty answers, whose finish reason is "missing": it has failed,
    and where a judge decides, it is left out.
    """
    samples = read(path)
    if not any(attempt["item"]["prompt"].strip() in samples for attempt in attempts):
        example = attempts[0]["item"]["prompt"][:60]
        raise NotSetUp(f"{path} answers none of the {len(attempts):,} prompts, such as {example!r}")
    for attempt in attempts:
        prompt = attempt["item"]["prompt"]
        turns = len(attempt["item"].get("turns", ["the prompt"]))
        of_prompt = samples.get(prompt.strip(), [])
        texts, reason = [""] * turns, "missing"
        if attempt["sample"] < len(of_prompt):
            texts, reason = of_prompt[attempt["sample"]], "stop"
        if len(texts) != turns:
            raise UserError(f"{path}: a list of {turns} answers is wanted for {prompt[:60]!r}")
        attempt["answers"] = [{"text": strip(text), "finish_reason": reason} for text in texts]


def missing(attempt: dict) -> bool:
    """Whether the file lacks an answer of an attempt."""
    return any(answer["finish_reason"] == "missing" for answer in attempt.get("answers", []))
