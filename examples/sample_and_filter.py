"""Answers under other people's checkers: sample K to each prompt, keep what passes all of them.

    python examples/sample_and_filter.py --in prompts.jsonl --model $SUPERVISOR --out out/sft.jsonl

A row of `--in` has IFEval's and IFBench's form: key, prompt, instruction_id_list, kwargs. The
output is that of stage 04: SFT rows in `--out` and, beside it, NAME.responses.jsonl with every
answer, which `python 06_dpo.py pairs` turns into preference pairs. Never train on the benchmarks'
own prompts.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, uninstalled
from autoif import files, llm  # noqa: E402
from autoif.reward import Verifiers  # noqa: E402
from autoif.stage import run  # noqa: E402


def answered(row: dict, samples: list[dict], verifiers: Verifiers) -> dict:
    """The row of 04_responses.jsonl: every sample with the checkers' verdict."""
    identity = str(row["key"])
    scores = verifiers.score([identity] * len(samples), [sample["text"] for sample in samples])
    responses = []
    for sample, score in zip(samples, scores):
        verdict = {True: "pass", False: "fail", None: "error"}[score.all_pass]
        responses.append(
            {
                "text": sample["text"],
                "verdicts": [verdict],
                "accuracy": float(verdict == "pass"),
                "score": None,
                "finish_reason": sample["finish_reason"],
            }
        )
    return {
        "id": identity,
        "instruction_id": identity,
        "prompt": row["prompt"],
        "responses": responses,
    }


def kept(row: dict) -> list[dict]:
    """The SFT rows of a prompt: whole answers that pass."""
    rows = []
    for number, response in enumerate(row["responses"]):
        if response["accuracy"] == 1 and response["finish_reason"] != "length":
            messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": response["text"]},
            ]
            about = {"id": f"{row['id']}.{number}", "instruction_id": row["id"]}
            rows.append({**about, "messages": messages})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in", dest="input", required=True)
    parser.add_argument("--out", type=Path, required=True)
    llm.add_flags(parser, temperature=0.8, max_tokens=2048, k=8)
    args = parser.parse_args(argv)

    rows = list(files.read(args.input, ["key", "prompt", "instruction_id_list", "kwargs"]))
    verifiers = Verifiers.load(args.input)
    requests = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    answers, taken, prompts = 0, 0, 0
    with (
        llm.LLM.from_args(args, stage="sample_and_filter") as client,
        files.writer(args.out) as write_sft,
        files.writer(args.out.with_suffix(".responses.jsonl")) as write,
    ):
        for row, samples in zip(rows, client.complete(requests)):
            made = answered(row, samples, verifiers)
            write(made)
            found = kept(made)
            for each in found:
                write_sft(each)
            answers += len(samples)
            taken += len(found)
            prompts += bool(found)
    print(f"kept {taken:,} of {answers:,} answers, to {prompts:,} of {len(rows):,} prompts")


if __name__ == "__main__":
    run(main)
