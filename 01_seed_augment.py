"""Grow a seed list of format constraints by self-instruct (section 3.1).

Reads hand-written constraints (the 36 below, or a text file with one a line); writes `01_instructions.jsonl`: the
seeds and what the supervisor adds to them, without duplicates.

    python 01_seed_augment.py --model Qwen/Qwen2-72B-Instruct --out out/01_instructions.jsonl

Departures from the paper:
1. Each of the K = 100 requests shows its own random sample of the seeds, not all 36: more variety for the same price.
2. Near duplicates (TF-IDF cosine) are dropped as well as exact ones; `--near-duplicate 1.01` keeps them.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from autoif import files, llm
from autoif.files import UserError
from autoif.stage import Funnel, run

# The paper's 36 seed constraints, in our words.
SEEDS = """\
Start every word of the answer with the letter B
Write the answer like a telegram, with STOP in place of every full stop
Use palindromes only
Work a line from a well-known film into the answer
Write the whole answer backwards
Use only words that contain a double letter, such as "coffee"
Use onomatopoeic words only
Reply with one sentence of exactly 100 words
Avoid every word that contains the letter E
Express the answer in emojis
Stay within the 1,000 most common English words
Let every word end in "-ing"
Use military jargon only
Reply with a haiku: three lines of 5, 7 and 5 syllables
Reply with a sonnet: 14 lines of 10 syllables each
Use words of one syllable only
Put the words of the answer in alphabetical order
Reply with a limerick
Leave out all adjectives and adverbs
Reply with a story of six words
Include three or more pairs of rhyming words
Keep to iambic pentameter
Let all words of a sentence begin with the same letter
Put every verb in the future tense
Use only letters from A to M
Answer with questions only
Use only words whose first and last letters are the same
Spell the answer in Morse code
Use only words that name a colour
Use only letters from N to Z
Make each sentence shorter, in words, than the one before
Answer as a bulleted list
Answer with a chain of puns
Reply with nothing but emojis
Use only words that contain the letter X
Begin each word with the next letter of the alphabet""".splitlines()

AUGMENT_PROMPT = """\
Write {count} new constraints that a user could add to any question to control the form of the answer.

Every constraint must be
- about the format of the answer (length, layout, letters, words, punctuation, beginning, ending), and
- checkable by a short Python function that sees nothing but the text of the answer.

These constraints have the right kind of form:
{examples}

Leave out whatever only a human reader could judge: tone or style of writing, metaphors, famous quotations, speaking as
a character, and translation into another language or dialect.

Give one constraint a line, each line starting with "- ", and nothing else."""

# What a line of a list starts with: "-", "*", "•", "1.", "1)", "(1)", "**1.**", "#3:", with or without bold marks.
BULLET = re.compile(
    r"^\s*(?:\*\*|__)?(?:[-*•‣◦–—+](?!\*)|\(?#?\d{1,3}[.):]|\(\d{1,3}\))(?:\*\*|__)?\s+"
)
# A sign that a constraint is about, such as "!" or [: not one that follows a (quoted) word as punctuation does, and no quotes.
SYMBOL = re.compile(r"""(?<!\w)(?<!\w["'”’])[^\w\s"'“”‘’]""")
# Constraints that a function cannot check (section 3.1), by the words that give them away.
NOT_FORMAT = re.compile(
    r"\b(?:metaphor\w*|simile\w*|translat\w+|in the style of|writing style|stylistic\w*|tone of|\w+ tone|poetic\w*|"
    r"quot(?:e|ation)s? (?:from|by)|famous|as if you (?:are|were)|pretend\w*|persona|shakespear\w*|pig latin|"
    r"humorous\w*|sarcas\w+|formal(?:ly)?|informal(?:ly)?|emotional\w*)\b",
    re.IGNORECASE,
)


def parse_list(text: str) -> list[str]:
    """The items of a list as models write it: bullets or numbers of any kind, a JSON array, or bare lines.

    Lines without a bullet are prose around the list and are left out, unless no line has one.
    """
    array = re.search(
        r"^[ \t]*\[\s*\".*\"\s*,?\s*\][ \t]*$", text, re.DOTALL | re.MULTILINE
    )  # not one inside a constraint
    if array:
        try:
            return [item for item in json.loads(array.group()) if isinstance(item, str)]
        except json.JSONDecodeError:
            pass  # an array that is none: its lines are read like any others
    lines = [
        line for line in text.splitlines() if line.strip() and not line.strip().startswith("```")
    ]
    return [BULLET.sub("", line) for line in lines if BULLET.match(line)] or lines


def clean(item: str) -> str:
    """An item without a bold title before it, or bold marks, quotes or blanks around it."""
    text = re.sub(r"\s+", " ", item).strip()
    text = re.sub(r"^\*\*[^*]+(?::\*\*|\*\*:) (?=.)", "", text)
    text = re.sub(
        r"^(\*\*|__|\*|_|`)(?=\S)(.*\S)\1$", r"\2", text
    )  # pairs only: a constraint may end with the symbol it is about
    if text.count("**") == 1:  # its other half went with the bullet
        text = re.sub(r"^\*\*(?=[^\s*])|(?<=[^\s*])\*\*$", "", text)
    text = text.strip(" ,")
    return (
        text[1:-1].strip(" ,") if re.fullmatch(r'"[^"]*"|“[^“”]*”', text) else text
    )  # not the quotes of a last word


def form(instruction: str) -> str:
    """What two constraints share when they are exact duplicates: words and numbers, in lower case, and symbols."""
    return " ".join(re.findall(r"\w+", instruction.lower()) + SYMBOL.findall(instruction))


def near_duplicates(instructions: list[str], threshold: float) -> dict[int, int]:
    """Index of each instruction whose TF-IDF cosine (words and word pairs) with an earlier kept one is >= threshold.

    Returns {index: index of the earlier one}. Two that differ in numbers, symbols or single letters, or in the order of
    these, are never duplicates of each other.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(instructions)
    details = [
        re.findall(rf"\d+|\b[b-hj-zA-HJ-Z]\b|{SYMBOL.pattern}", instruction)
        for instruction in instructions
    ]
    twin = {}
    for start in range(0, len(instructions), 1000):  # 1,000 rows of cosines at a time: flat memory
        cosines = (vectors[start : start + 1000] @ vectors.T).tocsr()
        for row in range(cosines.shape[0]):
            begin, end = cosines.indptr[row : row + 2]
            earlier = [
                j
                for j, cosine in zip(cosines.indices[begin:end], cosines.data[begin:end])
                if j < start + row
                and cosine >= threshold
                and j not in twin
                and details[j] == details[start + row]
            ]
            if earlier:
                twin[start + row] = min(earlier)
    return twin


def drop_reason(instruction: str, max_chars: int) -> str | None:
    """Why a single constraint is unusable, whatever the others are; None when it is fine."""
    if not re.search(r"\w", instruction):
        return "empty"
    if len(instruction) > max_chars:
        return "over-long"
    if NOT_FORMAT.search(instruction):
        return "style, metaphor or translation"
    return None


def requests(
    seeds: list[str], samples: int, count: int, shown: int, rng: random.Random
) -> Iterator[dict]:
    """One request a self-instruct sample, each with its own examples out of the seeds."""
    for index in range(samples):
        examples = "\n".join(f"- {seed}" for seed in rng.sample(seeds, min(shown, len(seeds))))
        content = AUGMENT_PROMPT.format(count=count, examples=examples)
        yield {"messages": [{"role": "user", "content": content}], "k": 1, "first": index}


def read_seeds(path: str | None) -> list[str]:
    if path is None:
        return SEEDS
    if not Path(path).is_file():
        raise UserError(
            f"--seeds {path} does not exist; give a text file with one constraint a line"
        )
    seeds = [
        line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    if not seeds:
        raise UserError(f"--seeds {path} is empty; give a text file with one constraint a line")
    return seeds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", help="text file, one constraint a line (default: the paper's 36, in our words)"
    )
    parser.add_argument("--out", default="out/01_instructions.jsonl")
    parser.add_argument(
        "--shown",
        type=int,
        default=10,
        help="seeds shown in each request, drawn at random (the paper shows all)",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=50,
        help="constraints asked for in each request (released prompt)",
    )
    parser.add_argument("--max-chars", type=int, default=200, help="longer lines are dropped")
    parser.add_argument(
        "--near-duplicate",
        type=float,
        default=0.9,
        help="TF-IDF cosine from which two are the same",
    )
    parser.add_argument("--limit", type=int, help="use only the first LIMIT seeds")
    parser.add_argument("--seed", type=int, default=0)
    llm.add_flags(parser, temperature=1.0, max_tokens=4096, k=100)
    args = parser.parse_args(argv)

    seeds = read_seeds(args.seeds)[: args.limit]
    funnel = Funnel("01_seed_augment", args.out)
    candidates = [(seed, "seed") for seed in seeds]
    prompts = requests(seeds, args.k, args.count, args.shown, random.Random(args.seed))
    with llm.LLM.from_args(args, stage="01_seed_augment") as client:
        for samples in client.complete(prompts):
            candidates += [
                (clean(item), "augmented")
                for sample in samples
                for item in parse_list(sample["text"])
            ]

    unique, seen = [], set()
    for instruction, source in candidates:
        reason = drop_reason(instruction, args.max_chars) if source == "augmented" else None
        reason = reason or ("exact duplicate" if form(instruction) in seen else None)
        if reason:
            funnel.drop(reason, {"instruction": instruction, "source": source})
            continue
        seen.add(form(instruction))
        unique.append((instruction, source))

    twin = near_duplicates([instruction for instruction, _ in unique], args.near_duplicate)
    with files.writer(args.out) as write:
        for index, (instruction, source) in enumerate(unique):
            if index in twin and source == "augmented":
                funnel.drop(
                    "near duplicate", {"instruction": instruction, "like": unique[twin[index]][0]}
                )
                continue
            write({"id": f"i{funnel.kept:05d}", "instruction": instruction, "source": source})
            funnel.keep()
    funnel.finish(seeds=len(seeds), requests=args.k)


if __name__ == "__main__":
    run(main)
