"""Grow a seed list of format constraints by self-instruct (section 3.1).

Reads hand-written constraints (the 36 below, or a text file with one a line).
Writes `01_instructions.jsonl`: the seeds and what the supervisor adds to them, without duplicates.

    python 01_seed_augment.py --model Qwen/Qwen2-72B-Instruct --out out/01_instructions.jsonl

Departures from the paper:
1. Each of the K = 100 requests shows its own random sample of the seeds, not all 36: more variety
   for the same price. `--shown 36` shows all.
2. Near duplicates (TF-IDF cosine) are dropped as well as exact ones; `--near-duplicate 1.01` keeps
   them.
3. Lines about style, metaphor or translation, which the prompt forbids, are dropped by their words;
   `--no-style-filter` keeps them.
4. Lines longer than 200 characters are dropped (`--max-chars`), and exact duplicates are those that
   are equal but for case and punctuation.
5. Sampling (temperature 1, at most 4,096 tokens) is ours; the paper does not state it.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

from autoif import files, llm, replies
from autoif.files import UserError
from autoif.stage import Funnel, Help, non_negative, positive_int, run, write_settings, wrote

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

# A sign that a constraint is about, such as "!" or [: not one that follows a (quoted) word as
# punctuation does, and no quotes.
SIGN = re.compile(r"""(?<!\w)(?<!\w["'”’])[^\w\s"'“”‘’]""")
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
    r"^(?:sure|certainly|of course|okay|here (?:are|is)|here['’]s|below are|these are|"
    r"(?:i['’]m |i am )?sorry|i apologi[sz]e|unfortunately|as an ai|i (?:cannot|can['’]t)|"
    r"i hope|hope this|let me know|feel free)\b|\bconstraints?\b.*:$",
    re.IGNORECASE,
)


def form(instruction: str) -> str:
    """What exact duplicates share: words and numbers in lower case, and signs.

    'Use no commas, ever: "no".' -> 'use no commas ever no'
    """
    return " ".join(re.findall(r"\w+", instruction.lower()) + SIGN.findall(instruction))


def details(instruction: str) -> list[str]:
    """Numbers, single letters and signs in their order: two that differ here ask for two things."""
    # without a, i and I, which are words in a constraint
    return re.findall(rf"\d+|\b[b-hj-zA-HJ-Z]\b|{SIGN.pattern}", instruction)


def near_duplicates(instructions: list[str], threshold: float) -> dict[int, int]:
    """Each instruction with its twin, an earlier kept one whose TF-IDF cosine with it is high.

    Words and word pairs are counted.
    ['Use at most 20 words', 'Use no commas', 'At most 20 words: use these'] -> {2: 0}
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(instructions)
    detail = [details(instruction) for instruction in instructions]
    twin: dict[int, int] = {}

    def is_twin(earlier: int, later: int) -> bool:
        # what is dropped itself has no twins: small steps would lead far from the one that is kept
        return earlier < later and earlier not in twin and detail[earlier] == detail[later]

    # 1,000 rows of cosines at a time: flat memory
    for start in range(0, len(instructions), 1000):
        cosines = (vectors[start : start + 1000] @ vectors.T).tocsr()
        for row in range(cosines.shape[0]):
            begin, end = cosines.indptr[row : row + 2]
            near = cosines.indices[begin:end][cosines.data[begin:end] >= threshold]
            earlier = [int(other) for other in near if is_twin(other, start + row)]
            if earlier:
                twin[start + row] = min(earlier)
    return twin


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


def requests(
    seeds: list[str], samples: int, count: int, shown: int, rng: random.Random
) -> Iterator[dict]:
    """One request a self-instruct sample, each with its own examples out of the seeds."""
    for index in range(samples):
        examples = "\n".join(f"- {seed}" for seed in rng.sample(seeds, min(shown, len(seeds))))
        content = AUGMENT_PROMPT.format(count=count, examples=examples)
        yield {"messages": [{"role": "user", "content": content}], "k": 1, "first": index}


def read_seeds(path: str | None) -> list[str]:
    """The seeds of a text file, or the 36 above."""
    if path is None:
        return SEEDS
    advice = "give a text file with one constraint a line"
    if why := files.absent(path):
        raise UserError(f"--seeds {path} {why}; {advice}")
    try:
        # -sig: some editors put a byte order mark before the first seed
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--seeds {path} is no UTF-8 text; {advice}") from None
    seeds = [line.strip() for line in lines if line.strip()]
    if not seeds:
        raise UserError(f"--seeds {path} is empty; {advice}")
    return seeds


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--seeds", help="text file, one constraint a line (default: the paper's 36, in our words)"
    )
    parser.add_argument("--out", default="out/01_instructions.jsonl")
    parser.add_argument(
        "--shown",
        type=positive_int,
        default=10,
        help="seeds shown in each request, drawn at random (the paper shows all)",
    )
    parser.add_argument(
        "--count",
        type=positive_int,
        default=50,
        help="constraints asked for in each request (released prompt)",
    )
    parser.add_argument(
        "--max-chars", type=positive_int, default=200, help="longer lines are dropped"
    )
    parser.add_argument(
        "--near-duplicate",
        type=non_negative,
        default=0.9,
        help="TF-IDF cosine from which two are the same",
    )
    parser.add_argument(
        "--no-style-filter",
        action="store_true",
        help="keep lines about style, metaphor or translation",
    )
    parser.add_argument("--limit", type=positive_int, help="use only the first LIMIT seeds")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draw of examples and of the samples"
    )
    llm.add_flags(parser, temperature=1.0, max_tokens=4096, k=100)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    seeds = read_seeds(args.seeds)[: args.limit]
    funnel = Funnel("01_seed_augment", args.out)

    # ask: K requests for new constraints, each with other examples; the seeds stand first, so that
    # of two duplicates the one written by hand stays
    candidates = [(seed, "seed") for seed in seeds]
    prompts = requests(seeds, args.k, args.count, args.shown, random.Random(args.seed))
    with llm.LLM.from_args(args, stage="01_seed_augment") as client:
        for samples in client.complete(prompts):
            for sample in samples:
                candidates += [(item, "augmented") for item in replies.items(sample["text"])]

    # filter: what no function can check, and exact duplicates; seeds are taken as they are
    unique, seen = [], set()
    for instruction, source in candidates:
        reason = None
        if source == "augmented":
            reason = drop_reason(instruction, args.max_chars, not args.no_style_filter)
        if reason is None and form(instruction) in seen:
            reason = "exact duplicate"
        if reason:
            funnel.drop(reason, {"instruction": instruction, "source": source})
            continue
        seen.add(form(instruction))
        unique.append((instruction, source))

    # near duplicates last: cosines need all constraints at once
    twin = near_duplicates([instruction for instruction, _ in unique], args.near_duplicate)

    # write: ids count what is kept, so the same completions give the same ids
    with files.writer(args.out) as write:
        for index, (instruction, source) in enumerate(unique):
            if index in twin and source == "augmented":
                like = unique[twin[index]][0]
                funnel.drop("near duplicate", {"instruction": instruction, "like": like})
                continue
            write({"id": f"i{funnel.kept:05d}", "instruction": instruction, "source": source})
            funnel.keep()
        write_settings(args, args.out)
    funnel.finish(seeds=len(seeds), requests=args.k)
    out = Path(args.out).with_name("02_verifiers.jsonl")
    wrote(
        args.out,
        then=f"python 02_verifiers.py --model {args.model} --in {args.out} --out {out}",
    )


if __name__ == "__main__":
    run(main)
