"""Grow a seed list of format constraints by self-instruct (section 3.1).

Reads hand-written constraints (the 36 below, or a text file with one a line).
Writes `01_instructions.jsonl`: the seeds and what the supervisor adds to them, without duplicates.

    python 01_seed_augment.py --model Qwen/Qwen2-72B-Instruct --out out/01_instructions.jsonl

Departures from the paper:
1. Each of the K = 100 requests shows its own random sample of the seeds, not all 36: more variety
   for the same price. `--shown 36` shows all.
2. Near duplicates (TF-IDF cosine) are dropped like exact ones; `--near-duplicate 1.01` keeps them.
3. Lines about style, metaphor or translation, which the prompt forbids, are dropped by their words;
   `--no-style-filter` keeps them.
4. Lines longer than 200 characters are dropped (`--max-chars`), and exact duplicates are those that
   are equal but for case and punctuation.
5. Sampling (temperature 1, at most 4,096 tokens) is ours; the paper does not state it.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
import asyncio
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from autoif import families, files, llm, replies
from autoif.files import UserError
from autoif.flags import Count, NonNegative, cli
from autoif.settings import write_settings
from autoif.stage import Funnel, in_order, wrote

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
Write {count} new constraints that a user could add to any question to control the form of the
answer.

Every constraint must be
- about the format of the answer (length, layout, letters, words, punctuation, beginning, ending),
  and
- checkable by a short Python function that sees nothing but the text of the answer.

These constraints have the right kind of form:
{examples}

Leave out whatever only a human reader could judge: tone or style of writing, metaphors, famous
quotations, speaking as a character, and translation into another language or dialect. So none like
these:
- Tell it the way an old fisherman would
- Compare the topic with a season of the year
- Close with a well-known saying of a philosopher
- Sound cheerful from beginning to end
- Give the answer in Danish

Give one constraint a line, each line starting with "- ", and nothing else."""

# Words that a constraint mentions and does not ask for: 'the word "metaphor"', 'the phrase famous'.
MENTIONED = re.compile(
    r"""["“][^"“”]*["”]|(?<!\w)['‘][^'‘’]*['’](?!\w)|\b(?:words?|phrase|term)\s+\w+""",
    re.IGNORECASE,
)
# Constraints that a function cannot check (section 3.1), by the words that give them away.
NOT_FORMAT = re.compile(
    r"\b(?:metaphor\w*|simile\w*|translat\w+|in the style of|writing style|stylistic\w*|tone of|"
    r"\w+ tone|poetic\w*|quot(?:e|ation)s? (?:from|by)|famous|as if you (?:are|were)|pretend\w*|"
    r"persona|shakespear\w*|pig latin|humorous\w*|sarcas\w+|emotional\w*|(?:in)?formally|"
    r"(?:in)?formal (?:style|language|register|english|voice|way|manner|writing|speech))\b",
    re.IGNORECASE,
)
# Lines of a reply that are none of its list: openings, closings and refusals.
PROSE = re.compile(
    r"^(?:sure|certainly|of course|okay|(?:here|below|these)(?: are| is|['’]s)|"
    r"(?:i['’]m |i am )?(?:sorry|unable|not able)|i apologi[sz]e|unfortunately|as an ai|"
    r"i (?:cannot|can['’]t|won['’]t)|i hope|hope this|let me know|feel free)\b|"
    r"\bconstraints?\b.*:$",
    re.IGNORECASE,
)


@dataclass(kw_only=True)
class Flags(llm.Flags):
    seeds: str | None = None  # text file, one constraint a line (default: the paper's 36)
    out: str = "out/01_instructions.jsonl"  # the seeds and what is added to them
    shown: Count = 10  # seeds shown in each request, drawn at random (the paper shows all)
    count: Count = 50  # constraints asked for in each request (released prompt)
    max_chars: Count = 200  # longer lines are dropped
    near_duplicate: NonNegative = 0.9  # TF-IDF cosine from which two are the same
    no_style_filter: bool = False  # keep lines about style, metaphor or translation
    limit: Count | None = None  # use only the first LIMIT seeds
    seed: int = 0  # of the draw of examples and of the samples
    k: Count = 100  # requests, one sample each (3.1)
    temperature: NonNegative = 1.0  # of the sampling; 0 is greedy
    max_tokens: Count = 4096  # of one sample


def drop_reason(instruction: str, max_chars: int, style_filter: bool) -> str | None:
    """Why a single constraint is unusable, whatever the others are; None when it is fine."""
    if not re.search(r"\w", instruction):
        return "empty"
    if PROSE.search(instruction):
        return "prose"
    if len(instruction) > max_chars:
        return "over-long"
    # 'use the word "metaphor"' can be checked: only words that are meant count
    if style_filter and NOT_FORMAT.search(MENTIONED.sub("", instruction)):
        return "style, metaphor or translation"
    return None


def prompts(seeds: list[str], args: Flags) -> Iterator[str]:
    """One prompt a self-instruct sample, each with its own examples out of the seeds."""
    rng = random.Random(args.seed)
    for _ in range(args.k):
        examples = "\n".join(f"- {seed}" for seed in rng.sample(seeds, min(args.shown, len(seeds))))
        yield AUGMENT_PROMPT.format(count=args.count, examples=examples)


def read_seeds(path: str | None) -> list[str]:
    """The seeds of a text file, or the 36 above."""
    if path is None:
        return SEEDS
    advice = "give a text file with one constraint a line"
    if why := files.absent(path):
        raise UserError(f"--seeds {path} {why}; {advice}")
    seeds = [line.strip() for _, line in files.lines(path) if line.strip()]
    if not seeds:
        raise UserError(f"--seeds {path} is empty; {advice}")
    return seeds


async def ask(seeds: list[str], args: Flags) -> list[str]:
    """The lines of K answers to requests for new constraints."""
    lines = []

    def work(request):
        index, prompt = request
        return client.ask(prompt, k=1, first=index)

    async with llm.Client(args, "01_seed_augment") as client:
        async for samples in in_order(work, enumerate(prompts(seeds, args)), client.ahead):
            for sample in samples:
                text = sample["text"]
                if sample["finish_reason"] == "length":  # its last line ends in the middle
                    text = text.rpartition("\n")[0] or text
                lines += replies.items(text)
    return lines


def main(args: Flags) -> None:
    seeds = read_seeds(args.seeds)[: args.limit]
    funnel = Funnel("01_seed_augment", args.out)

    # ask: K requests for new constraints, each with other examples; the seeds stand first, so that
    # of two duplicates the one written by hand stays
    candidates = [*zip(seeds, repeat("seed"))]
    candidates += zip(asyncio.run(ask(seeds, args)), repeat("augmented"))

    # filter: what no function can check, and exact duplicates; seeds are taken as they are
    unique = {}
    for instruction, source in candidates:
        name, reason = families.normalized(instruction), None
        if source == "augmented":
            reason = drop_reason(instruction, args.max_chars, not args.no_style_filter)
        if reason is None and name in unique:
            reason = "exact duplicate"
        if reason:
            funnel.drop(reason, {"instruction": instruction, "source": source})
            continue
        unique[name] = (instruction, source)

    # near duplicates last: cosines need all constraints at once
    instructions, sources = zip(*unique.values())
    twins = families.near_duplicates(instructions, args.near_duplicate, sources.count("seed"))

    # write: ids count what is kept, so the same completions give the same ids
    with files.writer(args.out) as write:
        for index, (instruction, source) in enumerate(unique.values()):
            if index in twins and source == "augmented":
                like = instructions[twins[index]]
                funnel.drop("near duplicate", {"instruction": instruction, "like": like})
                continue
            write({"id": f"i{funnel.kept:05d}", "instruction": instruction, "source": source})
            funnel.keep()
        write_settings(args, args.out)
    funnel.finish(seeds=len(seeds), requests=args.k)
    flags = f"--in {args.out} --out {Path(args.out).with_name('02_verifiers.jsonl')}"
    wrote(args.out, then=f"python 02_verifiers.py --model {args.model} {flags}")


if __name__ == "__main__":
    cli(main, __doc__)
