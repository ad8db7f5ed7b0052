"""Answer queries under each constraint; keep what the functions accept and a judge likes (3.3).

Reads `03_instructions.jsonl` (its `train` split) and user queries.
Writes
    `04_responses.jsonl`    every response with its verdicts; stage 06 pairs the good with the bad
    `04_sft.jsonl`          the kept ones as messages
    `04_queries.jsonl`      the queries that passed the filters, a tenth of them held out for 07

    python 04_responses.py --model NAME --queries ShareGPT.json    # the supervisor writes the data

English queries of 20 to 300 characters are used, as in the released code. In the online loop (3.4)
the policy is asked the prompts of the training samples as they stand, without the template:

    python 04_responses.py --model POLICY --sft out/04_sft.jsonl --no-score \\
        --out out/online_1/04_responses.jsonl

Departures from the paper:
1. Answers cut off at `--max-tokens` are never kept: they would teach to stop in mid-sentence.
2. A judge's reply without a score is a counted drop; the released code counts it as 0.
3. A tenth of the queries is held out for stage 07; `--heldout-queries 0` trains on all.
4. `--score topic`, where the model is no judge: 10 if its query is the nearest by TF-IDF, else 0.
`--no-score` is the paper's ablation (table 3). The released code's behaviour: `--min-accuracy 0
--min-score 8.01 --heldout-queries 0 --cpu-seconds 5`.
"""

import autoif  # noqa: F401  # isort: skip  first: from here on Ctrl-C ends in one line
import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Literal

from autoif import files, llm, queries, relevance, replies, sandbox, shards, verifiers
from autoif.files import UserError
from autoif.flags import Count, In, NonNegative, Threshold, cli
from autoif.settings import write_settings
from autoif.stage import Funnel, in_order, wrote
from autoif.tally import beside_the_paper, tally

RESPONSE_PROMPT = """\
Query: {query}
Constraint on the answer: {instruction}

Answer the query. Follow the constraint strictly, and write nothing but the answer."""

SCORE_PROMPT = """\
Question: {query}

Answer: {response}

Does the answer tell what the question asks for? Do not mind its form: it had to follow a rule. Give
a score from 0 (it is about something else) to 10 (it answers the question), in this form:
Score: <number>"""

TRIAL = 20  # prompts with whose answers the judge is tried before it is used


@dataclass(kw_only=True)
class Flags(shards.Flags, queries.Flags, llm.Flags, sandbox.Flags):
    input: In = "out/03_instructions.jsonl"
    out: str = "out/04_responses.jsonl"
    sft_out: str | None = None  # (default: 04_sft.jsonl beside --out)
    sft: str | None = None  # instead: ask the prompts of these training samples, bare (3.4)
    bare_prompt: bool = False  # no template: small models comment on it instead of answering
    queries_per_instruction: Count = 16  # queries joined to each constraint (3.3)
    min_accuracy: Threshold = 0.5  # keep what more than this share of functions accepts (3.3)
    min_score: NonNegative = 8.0  # drop a response under this quality score (3.3)
    score: Literal["judge", "topic", "none"] = "judge"  # the model (paper), or TF-IDF on the query
    no_score: bool = False  # as --score none: the paper's ablation, and the online loop
    limit: Count | None = None  # use only the first LIMIT constraints
    seed: int = 0  # of the draw of queries and of the samples
    k: Count = 8  # responses a prompt (3.3)
    temperature: NonNegative = 0.8  # of the sampling
    max_tokens: Count = 2048  # of one response

    def __post_init__(self):
        self.sft_out = self.sft_out or str(Path(self.out).with_name("04_sft.jsonl"))
        super().__post_init__()
        self.refuse_made_in_shards()
        self.sft_out = self.placed(self.sft_out)
        if bool(self.queries) == bool(self.sft):
            raise UserError("one of --queries and --sft is required")
        if self.sft and Path(self.sft).resolve() == Path(self.sft_out).resolve():
            raise UserError(f"--sft {self.sft} would be overwritten; give another --out")
        if self.no_score:
            self.score = "none"

    def content(self, row: dict) -> str:
        """What is asked; of a policy without the template, since its SFT rows have none."""
        return ("{prompt}" if self.sft or self.bare_prompt else RESPONSE_PROMPT).format(**row)


def joined(constraints: list[dict], pool: list[str], count: int, seed: int) -> list[tuple]:
    """[(constraint, {query: id of its prompt})], with `count` queries drawn for each (3.3)."""
    prompts = []
    for constraint in constraints:
        # a generator of its own: its queries stay when other constraints come or go
        drawn = random.Random(f"{seed} {constraint['id']}").sample(pool, min(count, len(pool)))
        ids = {query: f"{constraint['id']}.{number}" for number, query in enumerate(drawn)}
        prompts.append((constraint, ids))
    return prompts


def of_samples(constraints: list[dict], path: str) -> list[tuple]:
    """As `joined`, with the queries that the samples in a 04_sft.jsonl were made of (3.4)."""
    known, prompts = {constraint["id"]: constraint for constraint in constraints}, {}
    fields = {"id": str, "instruction_id": str, "messages": [{"role": str, "content": str}]}
    for number, sample in files.numbered(path, fields, "04_responses.py"):
        prompt, identity = sample["messages"][0]["content"], sample["instruction_id"]
        ending = verifiers.join("", known[identity]["instruction"]) if identity in known else None
        if ending is None or not prompt.endswith(ending):
            raise UserError(
                f"{path}:{number}: {identity!r} is no train constraint of --in "
                "that its prompt ends with; give the 03_instructions.jsonl that it was made of"
            )
        _, ids = prompts.setdefault(identity, (known[identity], {}))
        ids[prompt.removesuffix(ending)] = sample["id"].rpartition(".")[0]  # i2.0 of i2.0.7
    return list(prompts.values())


def drop_reason(response: dict, earlier: list[dict], min_accuracy: float) -> str | None:
    """Why a response is not worth a quality score, None when it is."""
    # before all else: a cut answer may pass, and would teach to stop in mid-sentence
    if response["finish_reason"] == "length":
        return "truncated"
    if response["accuracy"] <= min_accuracy:
        return "verdict errors" if "error" in response["verdicts"] else "accuracy"
    # the same text twice would weigh twice in the loss
    if any(other["text"] == response["text"] for other in earlier):
        return "duplicate"
    return None


def rows_of(constraint: dict, ids: dict) -> Iterator[dict]:
    """Yield a row a query: the query as it stands, then the constraint on a line of its own."""
    instruction = constraint["instruction"]
    for query, identity in ids.items():
        row = {"id": identity, "instruction_id": constraint["id"], "instruction": instruction}
        yield {**row, "query": query, "prompt": query + verifiers.join("", instruction)}


async def try_judge(prompts: list[tuple], client, args: Flags) -> dict:
    """What a judge is worth, for stats.json: can it tell an answer to a query from another's?"""
    rows = list(islice(chain.from_iterable(starmap(rows_of, prompts)), TRIAL))
    if len(rows) < TRIAL:  # of a few it says nothing
        return {}
    samples = await asyncio.gather(*(client.ask(args.content(row), k=args.k) for row in rows))
    pairs = [(row, answers[0]["text"]) for row, answers in zip(rows, samples) if answers]
    ask = partial(judgement, client=client)
    return await relevance.try_judge(*zip(*pairs), ask) if pairs else {}  # they are in a batch


async def answer(constraint: dict, ids: dict, client, box, others, args) -> tuple:
    """A constraint from its queries to judged responses: (constraint, rows of 04_responses)."""
    # ask: K responses a prompt
    rows = list(rows_of(constraint, ids))
    samples = await asyncio.gather(*(client.ask(args.content(row), k=args.k) for row in rows))

    # verify: every function on the responses to all prompts: it is loaded and locked in once
    texts = [sample["text"] for of_prompt in samples for sample in of_prompt]
    verdicts = iter(await verifiers.judge(box, constraint["verifiers"], texts))
    for row, of_prompt in zip(rows, samples):
        responses = []
        for sample in of_prompt:
            response = {"text": sample["text"], "verdicts": next(verdicts)}
            response["accuracy"] = verifiers.accuracy(response["verdicts"], constraint["verifiers"])
            response |= {"score": None, "finish_reason": sample["finish_reason"]}
            response["reason"] = drop_reason(response, responses, args.min_accuracy)
            responses.append(response)
        row["pass_rate"] = verifiers.pass_rate(responses, args.min_accuracy)
        row["responses"] = responses
        # several constraints in one: they contradict each other, or are too many at a time
        if verifiers.constraints(constraint) > 1 and row["pass_rate"] == 0:
            for response in responses:
                if response["reason"] == "accuracy":
                    response["reason"] = "no response passes all constraints"

    # score: does it answer the query? Only what the functions accept is shown to the judge
    if args.score != "none":
        await asyncio.gather(*(score(row, client, others, args) for row in rows))
    return constraint, rows


async def score(row: dict, client, others: list[str], args: Flags) -> None:
    """Score the accepted responses of a prompt, and say why those with too low a score go."""
    waiting = [response for response in row["responses"] if not response["reason"]]
    texts = [response["text"] for response in waiting]
    if args.score == "topic":
        # in a thread, not to hold up the requests under way
        topic = (row["query"], row["instruction"], others)
        scores = await asyncio.to_thread(relevance.scores, texts, *topic)
    else:
        scores = await asyncio.gather(*(judgement(row, text, client) for text in texts))
    for response, value in zip(waiting, scores):
        response["score"] = value
        # a judge that gave no number has not judged: the released code counts that as 0
        if value is None:
            response["reason"] = "no score found"
        elif value < args.min_score:
            response["reason"] = f"score under {args.min_score:g}"


async def judgement(row: dict, text: str, client) -> float | None:
    """The judge's score of a response, 0 to 10; None of a cut reply, whose 1 may be a 10."""
    content = SCORE_PROMPT.format(**row, response=text)
    [reply] = await client.ask(content, part="scores", temperature=0.0) or [None]
    if reply is None or reply["finish_reason"] == "length":
        return None
    return replies.score(reply["text"])


def sft_row(row: dict, number: int) -> dict:
    """The training sample of a response: the bare prompt, without the supervisor's template."""
    question = {"role": "user", "content": row["prompt"]}
    reply = {"role": "assistant", "content": row["responses"][number]["text"]}
    of = {"id": f"{row['id']}.{number}", "instruction_id": row["instruction_id"]}
    return {**of, "messages": [question, reply]}


async def answer_all(prompts: list[tuple], funnel, args: Flags) -> dict:
    """Write the rows of all constraints; what stats.json says of them."""
    # what an answer's topic is told from are queries of all shards
    others = relevance.others([query for _, ids in prompts for query in ids], args.seed)
    prompts = args.of_shard(prompts)

    # try: a function that cannot be called would make every answer of its constraint worthless
    async with sandbox.Sandbox(args) as box:
        await verifiers.refuse_broken(box, [constraint for constraint, _ in prompts], args.input)

    def work(prompts_of_constraint):
        return answer(*prompts_of_constraint, client, together, others, args)

    # answer: constraint after constraint; 04_sft.jsonl appears last, when everything is there
    most, counts = max((len(ids) for _, ids in prompts), default=1), Counter()
    with files.writer(args.sft_out) as write_sft, files.writer(args.out) as write:
        async with llm.Client(args, "04_responses") as client, sandbox.Sandbox(args) as box:
            together = sandbox.Together(box)  # rows of several constraints share functions
            judge = await try_judge(prompts, client, args) if args.score == "judge" else {}
            async for constraint, rows in in_order(work, prompts, max(2, client.ahead // most)):
                counts.update(tally(constraint, rows))
                for row in rows:
                    subject = {"id": row["id"], "prompt": row["prompt"]}
                    for _ in range(args.k - len(row["responses"])):  # empty, or kept failing
                        funnel.drop("no answer", subject)
                    for number, response in enumerate(row["responses"]):
                        if reason := response.pop("reason"):
                            funnel.drop(reason, {**subject, **response})
                        else:
                            write_sft(sft_row(row, number))
                            funnel.keep()
                    write(row)
        funnel.refuse_empty(
            "Does the model follow such constraints at all? See --max-tokens where answers are "
            "truncated, and --score topic where it is no judge"
        )
        write_settings(args, args.out)
    return {**counts, **judge}


def main(args: Flags) -> None:
    made_by = f"03_backtranslate.py (a file of your own: {verifiers.SPLIT})"
    train, numbers = verifiers.read(args.input, "train", made_by), {}
    funnel = Funnel("04_responses", args.out)
    files.refuse_unwritable(args.sft_out)

    # join: each constraint with queries drawn for it, or again with those of its training samples
    if args.sft:
        prompts = of_samples(train, args.sft)[: args.limit]
    else:
        pool, numbers = queries.prepare(args, Path(args.out).with_name("04_queries.jsonl"))
        prompts = joined(train[: args.limit], pool, args.queries_per_instruction, args.seed)

    # the loop begins here: Ctrl-C would wait in it until the language of each query is known
    if args.score == "none":
        print("04_responses: no quality scores (--score none)")
    counts = asyncio.run(answer_all(prompts, funnel, args))
    funnel.finish(**beside_the_paper(counts), **numbers)
    folder = Path(args.out).parent
    step = f"python 05_sft.py --in {args.sft_out} --model BASE --out {folder}/05_sft"
    if args.sft:
        step = (
            f"python 06_dpo.py pairs --level online --in {args.out} --out {folder}/06_pairs.jsonl"
        )
    wrote(args.out, args.sft_out, then=args.then(step))


if __name__ == "__main__":
    cli(main, __doc__)
