"""What stats.json says of stage 04's responses, and of the paper's."""

from collections import Counter

from autoif import verifiers

# Table 5, written into stats.json beside ours, but for its column of MBPP pass rates
PAPER_TABLE_5 = {
    "columns": ["raw samples", "SFT rows", "DPO pairs", "share above 8"],
    "LLaMA3-70B": [85_000, 15_000, 6_000, 0.26],
    "Qwen2-72B": [123_000, 10_000, 4_000, 0.28],
    "GPT-4": [210_000, 25_000, 15_000, 0.34],
}


def tally(constraint: dict, rows: list[dict]) -> Counter:
    """What stats.json counts of a constraint: its prompts by outcome, responses, functions."""
    counts, verdicts = Counter(functions=len(constraint["verifiers"])), []
    several = verifiers.constraints(constraint)
    label = "prompts" if several == 1 else f"prompts of {several} constraints"
    outcomes = {None: "without a response", 0.0: "all fail", 1.0: "all pass"}
    for row in rows:
        counts.update(["prompts", f"{label} {outcomes.get(row['pass_rate'], 'mixed')}"])
        for response in row["responses"]:
            verdicts.append(response["verdicts"])
            counts["raw samples"] += 1
            counts["scored"] += response["score"] is not None
            counts["scored above 8"] += (response["score"] or 0) > 8
    # a function that says the same of all responses may check nothing, though its cases agreed
    for column in zip(*verdicts):
        if len(set(column)) == 1:
            counts[f"functions always {column[0]}"] += 1
    return counts


def beside_the_paper(counts: dict) -> dict:
    """The counts with the share of good scores and the paper's rows (table 5)."""
    scored = counts.get("scored")
    above = round(counts.get("scored above 8", 0) / scored, 4) if scored else None
    return {**counts, "share above 8": above, "paper_table_5": PAPER_TABLE_5}
