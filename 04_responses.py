"""Answer queries under each constraint; keep what the functions accept and a judge finds helpful (section 3.3).

Reads `03_instructions.jsonl` (its `train` split) and queries; writes `04_responses.jsonl`, every response with its
verdicts (stage 06 pairs the good with the bad), `04_sft.jsonl`, the kept ones as messages, and `04_queries.jsonl`, the
queries that passed the filters, for later runs.

    python 04_responses.py --in out/03_instructions.jsonl --queries ShareGPT.json --out out/04_responses.jsonl

A query file is ShareGPT JSON (streamed), JSONL rows with `query`, or text lines; English ones of 20 to 300 characters
are used, as in the released code. The online loop calls this stage with the policy as `--model` and `--no-score`.

Departures from the paper:
1. Answers that ran into `--max-tokens` are never kept for training: they would teach to stop in mid-sentence.
2. A judge's reply without a score is a counted drop; the released code counts it as 0.
The released code's behaviour: `--min-accuracy 0 --min-score 8.01`.
"""

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from autoif import files, llm, queries, sandbox
from autoif.files import UserError
from autoif.prompt import accuracy, join
from autoif.stage import Funnel, run, through

SCORE_PROMPT = """\
A user asked a question and set a constraint on the form of the answer. Judge whether the answer helps with the question.

[Question]
{query}

[Constraint]
{instruction}

[Answer]
{response}

The constraint may force an unusual form on the answer; do not hold the form against it. Explain in a few sentences how
well the content answers the question. Then give a score from 0 (has nothing to do with the question) to 10 (answers it
fully) on a last line of its own, in exactly this form:
Score: <number>"""

# Table 5: raw samples, SFT rows, DPO pairs, share of samples scored above 8; printed into stats.json beside ours.
PAPER_TABLE_5 = {
    "LLaMA3-70B": [85_000, 15_000, 6_000, 0.26],
    "Qwen2-72B": [123_000, 10_000, 4_000, 0.28],
    "GPT-4": [210_000, 25_000, 15_000, 0.34],
}

NUMBER = r"(10(?:\.0+)?|[0-9](?:\.[0-9]+)?)(?![\d.,]*\d)"
LABEL = r"(?:score|rating)\b[^\d\n-]{0,20}"
RANGE = r"[01]\s*(?:-|–|to)\s*"
SCALE = rf"\(?(?:\b(?:out of|from|on a scale (?:of|from))\s*(?:{RANGE})?|\b{RANGE})10\)?(?=\s*[:=])"  # "(0-10):", "out of 10:"


def parse_score(text: str) -> float | None:
    """The score of a judgement, 0 to 10, in any usual form ("8", "8.5", "8/10", "**Score: 8**"); None when there is none.

    The last line that begins with a score counts, else the last score inside a line, else a last line that is a number.
    """
    text = re.sub(SCALE, "", re.sub(r"[*_`#\[\]{}]", "", text), flags=re.IGNORECASE)
    first_of_line = re.findall(
        rf"^\W*(?:(?:final|overall|my) )*{LABEL}{NUMBER}", text, re.IGNORECASE | re.MULTILINE
    )
    labelled = first_of_line or re.findall(LABEL + NUMBER, text, re.IGNORECASE)
    last_line = (text.strip().splitlines() or [""])[-1].strip()
    bare = re.fullmatch(rf"{NUMBER}(?:\s*(?:/|out of)\s*10)?\.?", last_line)
    return float(labelled[-1]) if labelled else float(bare.group(1)) if bare else None


def prompts(
    rows: Iterator[dict], pool: list[str], per_instruction: int, seed: int
) -> Iterator[dict]:
    """One row for each train constraint and query: `per_instruction` queries, drawn for each constraint by itself."""
    for row in rows:
        drawn = random.Random(f"{seed} {row['id']}").sample(pool, min(per_instruction, len(pool)))
        for number, query in enumerate(drawn):
            yield {
                "id": f"{row['id']}.{number}",
                "instruction_id": row["id"],
                "instruction": row["instruction"],
                "query": query,
                "prompt": join(query, row["instruction"]),
                "verifiers": row["verifiers"],
            }


def request(row: dict, k: int) -> dict:
    return {"messages": [{"role": "user", "content": row["prompt"]}], "k": k}


def jobs(item: tuple[dict, list[list[dict]]]) -> list[dict]:
    """One sandbox job a function, on all responses to a prompt."""
    row, [samples] = item
    inputs = [sample["text"] for sample in samples]
    return [
        {"id": f"{row['id']}.{n}", "code": verifier["code"], "inputs": inputs}
        for n, verifier in enumerate(row["verifiers"])
    ]


def with_verdicts(row: dict, samples: list[dict], results: list[dict]) -> dict:
    """The row of `04_responses.jsonl`: every response with the verdicts of all functions and their accuracy."""
    responses = []
    for n, sample in enumerate(samples):
        verdicts = [result["verdicts"][n] for result in results]
        responses.append(
            {
                "text": sample["text"],
                "verdicts": verdicts,
                "accuracy": round(accuracy(verdicts), 4),
                "score": None,
                "finish_reason": sample["finish_reason"],
            }
        )
    return {
        **{key: value for key, value in row.items() if key != "verifiers"},
        "responses": responses,
    }


def outcome(responses: list[dict], min_accuracy: float) -> str:
    """Whether a prompt's responses are all accepted, all refused, or mixed: only mixed ones can make a pair."""
    accepted = {response["accuracy"] > min_accuracy for response in responses}
    return (
        "without a response"
        if not accepted
        else "mixed"
        if len(accepted) > 1
        else "all pass"
        if True in accepted
        else "all fail"
    )


def drop_reason(response: dict, earlier: list[dict], min_accuracy: float) -> str | None:
    """Why a response is no candidate for training (before the quality score), None when it is one."""
    if response["finish_reason"] == "length":
        return "truncated"
    if response["accuracy"] <= min_accuracy:
        return "verdict errors" if "error" in response["verdicts"] else "accuracy"
    if any(other["text"] == response["text"] for other in earlier):
        return "duplicate"
    return None


def candidates(row: dict, min_accuracy: float) -> list[dict]:
    return [
        response
        for n, response in enumerate(row["responses"])
        if drop_reason(response, row["responses"][:n], min_accuracy) is None
    ]


def score_requests(row: dict, min_accuracy: float) -> list[dict]:
    contents = (
        SCORE_PROMPT.format(
            query=row["query"], instruction=row["instruction"], response=response["text"]
        )
        for response in candidates(row, min_accuracy)
    )
    return [
        {"messages": [{"role": "user", "content": content}], "k": 1, "temperature": 0.0}
        for content in contents
    ]


def score_reason(response: dict, min_score: float) -> str | None:
    if response["score"] is None:
        return "no score found"
    return f"score under {min_score:g}" if response["score"] < min_score else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in", dest="input", default="out/03_instructions.jsonl")
    parser.add_argument("--out", default="out/04_responses.jsonl")
    parser.add_argument("--sft-out", help="(default: 04_sft.jsonl beside --out)")
    parser.add_argument(
        "--queries", required=True, help="ShareGPT JSON, JSONL rows with 'query', or text lines"
    )
    parser.add_argument(
        "--queries-per-instruction",
        type=int,
        default=16,
        help="queries joined to each constraint (3.3)",
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.5,
        help="keep a response above this share of functions (3.3)",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=8.0,
        help="drop a response under this quality score (3.3)",
    )
    parser.add_argument(
        "--no-score",
        action="store_true",
        help="skip the quality score (the paper's ablation, and the online loop)",
    )
    parser.add_argument(
        "--min-chars", type=int, default=20, help="queries must be longer than this"
    )
    parser.add_argument(
        "--max-chars", type=int, default=300, help="queries must be shorter than this"
    )
    parser.add_argument(
        "--language",
        default="en",
        help="language of the queries, such as en or zh; 'any' takes all",
    )
    parser.add_argument(
        "--limit", type=int, help="use only the first LIMIT constraints of the train split"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of queries")
    llm.add_flags(parser, temperature=0.8, max_tokens=2048, k=8)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)

    out, counts = Path(args.out), Counter()
    sft_out = args.sft_out or out.with_name("04_sft.jsonl")
    pool, query_counts = queries.load(args.queries, args.min_chars, args.max_chars, args.language)
    if not pool:
        raise UserError(
            f"--queries {args.queries}: none is left ({dict(query_counts)}); see --min-chars, --max-chars, --language"
        )
    if Path(args.queries).resolve() != (kept := out.with_name("04_queries.jsonl").resolve()):
        queries.keep(kept, pool, args.language)
    read = files.read(
        args.input, ["id", "instruction", "verifiers", "split"], "03_backtranslate.py"
    )
    train = islice((row for row in read if row["split"] == "train"), args.limit)
    rows = prompts(train, pool, args.queries_per_instruction, args.seed)

    verified = out.with_name(
        f".{out.name}.verified"
    )  # between the two passes: the judge sees accepted responses only
    funnel = Funnel("04_responses", args.out)
    said = defaultdict(set)  # the verdicts of each function over all responses
    with llm.LLM.from_args(args, stage="04_responses") as client:
        with files.writer(verified) as write:
            asked = through(client.complete, rows, lambda row: [request(row, args.k)])
            for (row, [samples]), results in through(
                partial(sandbox.run, **sandbox.options(args)), asked, jobs
            ):
                row = with_verdicts(row, samples, results)
                counts.update(
                    ["prompts", f"prompts {outcome(row['responses'], args.min_accuracy)}"]
                )
                for response in row["responses"]:
                    for n, verdict in enumerate(response["verdicts"]):
                        said[row["instruction_id"], n].add(verdict)
                for _ in range(args.k - len(samples)):
                    funnel.drop(
                        "no answer", {"id": row["id"], "prompt": row["prompt"]}
                    )  # empty, or its request kept failing
                write(row)
        if args.no_score:
            print(
                "04_responses: no quality scores (--no-score): the paper's ablation without quality verification"
            )
        with (
            files.writer(sft_out) as write_sft,
            files.writer(out) as write,
        ):  # the last to appear is the first of these
            expand = (
                (lambda row: [])
                if args.no_score
                else partial(score_requests, min_accuracy=args.min_accuracy)
            )
            for row, answers in through(client.complete, files.read(verified), expand):
                for response, samples in zip(candidates(row, args.min_accuracy), answers):
                    complete = (
                        samples and samples[0]["finish_reason"] != "length"
                    )  # a cut "10" is a "1"
                    response["score"] = parse_score(samples[0]["text"]) if complete else None
                for n, response in enumerate(row["responses"]):
                    reason = drop_reason(response, row["responses"][:n], args.min_accuracy)
                    reason = reason or (
                        None if args.no_score else score_reason(response, args.min_score)
                    )
                    counts["scored above 8"] += (response["score"] or 0) > 8
                    if reason:
                        funnel.drop(reason, {"id": row["id"], "prompt": row["prompt"], **response})
                        continue
                    messages = [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": response["text"]},
                    ]
                    write_sft(
                        {
                            "id": f"{row['id']}.{n}",
                            "instruction_id": row["instruction_id"],
                            "messages": messages,
                        }
                    )
                    funnel.keep()
                write(row)
    verified.unlink()
    counts.update(
        f"functions always {min(verdicts)}" for verdicts in said.values() if len(verdicts) == 1
    )
    funnel.finish(
        **counts,
        functions=len(said),
        queries=len(pool),
        queries_dropped=dict(query_counts),
        paper_table_5={
            "columns": ["raw samples", "SFT rows", "DPO pairs", "share above 8"],
            **PAPER_TABLE_5,
        },
    )


if __name__ == "__main__":
    run(main)
