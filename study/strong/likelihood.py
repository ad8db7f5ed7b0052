"""What a model's own probabilities say: of fresh pairs, and of whether an answer fits its query.

    python study/strong/likelihood.py pairs POLICY --reference SFT --in 06_pairs.jsonl --out DIR
    python study/strong/likelihood.py topic out/strong/seed_1/07_items/sft/heldout.jsonl \\
        --model out/strong/seed_1/base --heldout study/heldout.jsonl

`pairs` is the first line of an iteration before it begins: by the rewards that the policy has
learned so far (against the SFT model), margin and accuracy on all its new pairs, into metrics.jsonl
of the folder --out. `topic` writes topic.jsonl beside the answers to held-out constraints:

    TF-IDF     whether the answer's own query is the nearest by shared words (autoif.relevance)
    own query  whether the base model finds the answer likelier behind it than behind another query
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, uninstalled
from autoif import files, relevance, verifiers  # noqa: E402
from autoif.flags import Count, In, Positive, cli  # noqa: E402
from autoif.models import chat_tokenizer  # noqa: E402
from autoif.training.kept import read_rows  # noqa: E402
from autoif.training.rows import encode  # noqa: E402


@dataclass(kw_only=True)
class Flags:
    micro_tokens: Count = 4096  # tokens that are computed at a time


@dataclass(kw_only=True)
class Pairs(Flags):
    policy: Positional[str]  # the model that answered, before it learns from its answers
    reference: str  # the model that its rewards are relative to
    input: In  # 06_pairs.jsonl
    out: str  # a folder
    beta: Positive  # of the training


@dataclass(kw_only=True)
class Topic(Flags):
    items: Positional[Path]  # heldout.jsonl of 07_items
    model: str  # the base model
    heldout: str  # the held-out constraints


def logprobs(model: str, rows: list[dict], micro_tokens: int):
    """Summed log-probability of each row's responses, in nats, shape (rows, responses)."""
    import torch
    from transformers import AutoModelForCausalLM

    from autoif.training.packed import ResponseLogprobs, frozen_logprobs

    options = {"attn_implementation": "packed", "dtype": torch.float32}
    policy = ResponseLogprobs(AutoModelForCausalLM.from_pretrained(model, **options))
    return frozen_logprobs(policy, rows, micro_tokens, "cpu")


def pairs(args: Pairs) -> None:
    rows = read_rows(args.input, args.policy)
    policy, reference = (
        logprobs(model, rows, args.micro_tokens) for model in (args.policy, args.reference)
    )
    chosen, rejected = (args.beta * (policy - reference)).unbind(1)
    numbers = {"margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
    numbers["accuracy"] = (chosen > rejected).float()
    means = {name: float(values.mean()) for name, values in numbers.items()}
    with files.writer(Path(args.out) / "metrics.jsonl") as write:
        write({"step": 0, "pairs": len(rows), **means})
    print(f"{args.policy} on {len(rows)} new pairs: {files.dump(means)}")


def other_query(query: str, queries: list[str]) -> str:
    """Another of the queries, the same one for all answers to `query`."""
    return random.Random(query).choice([each for each in queries if each != query])


def topic(args: Topic) -> None:
    instructions = {}
    for row in files.read(args.heldout, verifiers.ROW):
        instructions[row["id"]] = row["instruction"]
    answers, asked, texts = [], [], []
    for item in files.read(args.items, ["id", "sample", "prompt", "answers"], "07_eval.py"):
        instruction = instructions[item["id"].split("-")[0]]
        answers.append((item, instruction))
        asked.append(item["prompt"].removesuffix(verifiers.join("", instruction)))
        texts.append(item["answers"][0])
    queries = sorted(set(asked))
    of = [instruction for _, instruction in answers]
    near = relevance.relevant(texts, asked, of, queries, "TF-IDF")

    # a row for each query: own and other ones; what is empty fits nothing
    tokenizer, rows = chat_tokenizer(args.model), []
    for (item, instruction), query, text in zip(answers, asked, texts):
        reply = [{"role": "assistant", "content": text.strip() or "."}]
        for each in (query, other_query(query, queries)):
            user = {"role": "user", "content": verifiers.join(each, instruction)}
            rows.append(encode(tokenizer, [user], [reply], item["id"]))
    nats = logprobs(args.model, rows, args.micro_tokens).view(-1, 2)
    with files.writer(args.items.with_name("topic.jsonl")) as write:
        for (item, _), nearest, (own, other), text in zip(answers, near, nats.tolist(), texts):
            likelier = own > other and bool(text.strip())
            numbers = {"TF-IDF": nearest, "own query": likelier}
            points = {name: [("", item["id"], number, 1)] for name, number in numbers.items()}
            row = {"id": item["id"], "sample": item["sample"], "points": points}
            write({**row, "nats": round(own - other, 3)})


COMMANDS = {"pairs": pairs, "topic": topic}

if __name__ == "__main__":
    cli(COMMANDS, __doc__)
