"""Answers under other people's checkers: sample K to each prompt, keep what passes all of them.

    python examples/sample_and_filter.py --in prompts.jsonl --model $SUPERVISOR --out out/sft.jsonl

A row of `--in` has IFEval's and IFBench's form: key, prompt, instruction_id_list, kwargs. The
output is that of stage 04: SFT rows in `--out` and, beside it, NAME.responses.jsonl with every
answer, which `python 06_dpo.py pairs` turns into preference pairs. Never train on the benchmarks'
own prompts.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, uninstalled
from autoif import files, llm  # noqa: E402
from autoif.evaluation.benchmarks import ifeval  # noqa: E402
from autoif.flags import Count, In, NonNegative, cli  # noqa: E402
from autoif.reward import Verifiers, as_item  # noqa: E402
from autoif.stage import in_order  # noqa: E402


@dataclass(kw_only=True)
class Flags(llm.Flags):
    input: In  # prompts with the names of their checkers
    out: str  # the SFT rows; NAME.responses.jsonl beside it has every answer
    k: Count = 8  # answers to a prompt
    temperature: NonNegative = 0.8  # of the sampling
    max_tokens: Count = 2048  # of one answer


async def answered(row: dict, client: llm.Client, verifiers: Verifiers, k: int) -> dict:
    """The row of 04_responses.jsonl: every sample with the checkers' verdict."""
    identity, responses = str(row.get("id", row["key"])), []
    samples = await client.ask(row["prompt"], k=k)
    texts = [sample["text"] for sample in samples]
    scores = await verifiers.score_async([identity] * len(samples), texts)
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
    names = {"id": identity, "instruction_id": identity}
    return {**names, "prompt": row["prompt"], "responses": responses}


def kept(row: dict) -> list[dict]:
    """The SFT rows of a prompt: whole answers that pass, each text once."""
    rows, texts = [], set()
    for number, response in enumerate(row["responses"]):
        whole = response["accuracy"] == 1 and response["finish_reason"] != "length"
        if whole and response["text"].strip() not in texts:
            texts.add(response["text"].strip())
            messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": response["text"]},
            ]
            about = {"id": f"{row['id']}.{number}", "instruction_id": row["id"]}
            rows.append({**about, "messages": messages})
    return rows


async def main(args: Flags) -> None:
    rows = list(files.read(args.input, ["key", "prompt", "instruction_id_list", "kwargs"]))
    for row in rows:  # before an answer is paid for
        item, registry = as_item(row)
        ifeval.checkable([item], registry, args.input)
    verifiers = Verifiers.load(args.input)
    answers, passed, prompts = 0, 0, 0

    def work(row):
        return answered(row, client, verifiers, args.k)

    with (
        files.writer(args.out) as write_sft,
        files.writer(Path(args.out).with_suffix(".responses.jsonl")) as write,
    ):
        async with llm.Client(args, "sample_and_filter") as client:
            async for row in in_order(work, rows, client.ahead):
                write(row)
                samples = kept(row)
                for sample in samples:
                    write_sft(sample)
                answers += len(row["responses"])
                passed += len(samples)
                prompts += bool(samples)
    verifiers.close()
    print(f"kept {passed:,} of {answers:,} answers, to {prompts:,} of {len(rows):,} prompts")


if __name__ == "__main__":
    cli(main, __doc__)
