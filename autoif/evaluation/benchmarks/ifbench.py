"""IFBench (arXiv 2507.02833): 58 constraints that no training set has, scored like IFEval.

Its number is IFB Pr(L); `if-verifiable` carries Allen AI's checkers. Two kinds of instruction need
NLTK data that no package carries (stop words, a part-of-speech tagger): where NLTK can neither find
nor download it, the prompts that hold one are left out and counted, not failed. The checkers are
those of commit 1a902f9 (2025-11-13); figures compare with that time's, for some have changed since.
"""

from autoif.evaluation.benchmarks import Settings, ifeval, undecided

SETTINGS = Settings(temperature=0.0, max_tokens=2048, columns=("IFB Pr(L)",))

PACKAGES = ("if_verifiable", "if_verifiable.ifbench")  # where the checkers are


def load(source) -> list[dict]:
    rows = source.rows(
        "ifbench/IFBench_test.jsonl", "allenai/IFBench_test", "data/train-00000-of-00001.parquet"
    )
    where, registry = source.used[-1], ifeval.checkers(*PACKAGES)
    return ifeval.checkable(ifeval.items(rows, where), registry, where)


def score(attempt: dict) -> dict:
    item, text = attempt["item"], attempt["answers"][0]["text"]
    try:
        strict, loose = ifeval.check(item, text, ifeval.checkers(*PACKAGES))
    except LookupError as error:
        return undecided(ifeval.lacking(error))
    return ifeval.scored(item, strict, loose, "IFB ")
