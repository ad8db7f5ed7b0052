"""Answer queries under each constraint; keep what the functions accept and a judge likes (3.3).

Reads `03_instructions.jsonl` (its `train` split) and user queries.
Writes
    `04_responses.jsonl`    every response with its verdicts; stage 06 pairs the good with the bad
    `04_sft.jsonl`          the kept ones as messages
    `04_queries.jsonl`      the queries that passed the filters, a tenth of them held out for 07

    python 04_responses.py --model NAME --queries ShareGPT.json    # the supervisor writes the data
    python 04_responses.py --show 3                                # look at 3 random rows of --out

A query file is ShareGPT JSON (streamed), JSONL rows with `query`, or text lines; English ones of 20
to 300 characters are used, as in the released code. The supervisor is asked through a template that
tells it to follow the constraint. In the online loop (3.4) the policy is asked the prompts of the
training samples as they stand, in each iteration the same ones:

    python 04_responses.py --model POLICY --sft out/04_sft.jsonl --no-score \\
        --out out/online_1/04_responses.jsonl

Departures from the paper:
1. Answers that ran into `--max-tokens` are never kept for training: they would teach to stop in
   mid-sentence.
2. A judge's reply without a score is a counted drop; the released code counts it as 0.
3. A tenth of the queries is held out, so that stage 07 measures on other queries as well as on
   other constraints; `--heldout-queries 0` trains on all.
4. A query has one constraint there; `--constraints 1-3` joins up to three of different families.
   A response then has to pass each of them: its accuracy is the lowest of theirs. Constraints that
   contradict each other fall out by themselves, since no response passes them all.
5. Where the model is no judge, `--score topic` gives 10 to a response that is nearer to its query
   than to others, by the words that they share, and 0 to all else.
`--no-score` is the paper's ablation (table 3). The released code's behaviour: `--min-accuracy 0
--min-score 8.01 --heldout-queries 0 --cpu-seconds 5`. It leaves errors out of a mean (pass and
error: 1.0 there, 0.5 here), which above 0 keeps the same responses.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from autoif import files, llm, queries, relevance, replies, sandbox, several, verifiers
from autoif.files import UserError
from autoif.prompt import accuracy, has_scores, join
from autoif.stage import (
    Funnel,
    Help,
    non_negative,
    positive_int,
    run,
    share,
    through,
    write_settings,
    wrote,
)

RESPONSE_PROMPT = """\
Query: {query}
Constraint on the answer: {instruction}

Answer the query. Follow the constraint strictly, and write nothing but the answer."""

SCORE_PROMPT = """\
A user asked a question and set a constraint on the form of the answer. Judge whether the answer
helps with the question.

[Question]
{query}

[Constraint]
{instruction}

[Answer]
{response}

The constraint may force an unusual form on the answer; do not hold the form against it. Explain in
a few sentences how well the content answers the question. Then give a score from 0 (has nothing to
do with the question) to 10 (answers it fully) on a last line of its own, in exactly this form:
Score: <number>"""

# Table 5, written into stats.json beside ours. Its column of MBPP pass rates (how well the
# supervisor writes code) is not reproduced.
PAPER_TABLE_5 = {
    "columns": ["raw samples", "SFT rows", "DPO pairs", "share above 8"],
    "LLaMA3-70B": [85_000, 15_000, 6_000, 0.26],
    "Qwen2-72B": [123_000, 10_000, 4_000, 0.28],
    "GPT-4": [210_000, 25_000, 15_000, 0.34],
}

OTHERS = 100  # queries that a response is compared with by --score topic

FORM = {**verifiers.ROW, "split": {"train", "heldout"}}


def prompt_row(identity: str, query: str, constraints: list[dict]) -> dict:
    """A query under its constraints, each on a line of its own.

    {"id": "i00002.0", "instruction_id": "i00002", "instruction": ..., "query": ..., "prompt": ...}

    Of several: "instruction_id": "i00002+i00007", "instruction_ids": ["i00002", "i00007"].
    """
    ids = [constraint["id"] for constraint in constraints]
    instruction = reduce(join, [constraint["instruction"] for constraint in constraints])
    row = {"id": identity, "instruction_id": "+".join(ids)}
    if len(ids) > 1:
        row["instruction_ids"] = ids
    asked = {"instruction": instruction, "query": query, "prompt": join(query, instruction)}
    return {**row, **asked, "constraints": constraints}


def joined(
    rows: list[dict], pool: list[str], per_instruction: int, draw: Callable, seed: int
) -> Iterator[dict]:
    """Yield a row for each constraint and query; queries are drawn for each constraint by itself.

    `draw(row, rng)` are the constraints that join one in its prompt (`several.companions`).
    """
    for row in rows:
        # a generator of its own: its queries stay when other constraints come or go
        drawn = random.Random(f"{seed} {row['id']}").sample(pool, min(per_instruction, len(pool)))
        for number, query in enumerate(drawn):
            identity = f"{row['id']}.{number}"
            rng = random.Random(f"{seed} {identity}")
            yield prompt_row(identity, query, [row, *draw(row, rng)])


def of_samples(rows: list[dict], path: str, limit: int | None) -> Iterator[dict]:
    """Yield the prompts of the training samples in `path`, each once, under their ids (3.4)."""
    constraints = {row["id"]: row for row in rows}
    asked = defaultdict(dict)  # first constraint -> prompt -> row: those of one come together
    fields = {"id": str, "instruction_id": str, "messages": [{"role": str, "content": str}]}
    for number, sample in files.numbered(path, fields, "04_responses.py"):
        prompt, row = sample["messages"][0]["content"], None
        of = sample.get("instruction_ids", [sample["instruction_id"]])
        if files.mismatch(of, [str]) is None and constraints.keys() >= set(of):
            # without a query: its prompt is what the sample's ends with
            identity = sample["id"].rpartition(".")[0]
            row = prompt_row(identity, "", [constraints[each] for each in of])
        if row is None or not prompt.endswith(row["prompt"]):
            raise UserError(
                f"{path}:{number}: {sample['instruction_id']!r} is no train constraint of --in "
                "that its prompt ends with; give the 03_instructions.jsonl that it was made of"
            )
        query = prompt.removesuffix(row["prompt"])
        asked[of[0]][prompt] = {**row, "query": query, "prompt": prompt}
    for prompts in list(asked.values())[:limit]:
        yield from prompts.values()


def request(row: dict, k: int, template: bool) -> list[dict]:
    """What is asked: the supervisor through the template, a policy the prompt as it stands."""
    content = row["prompt"]
    if template:
        content = RESPONSE_PROMPT.format(instruction=row["instruction"], query=row["query"])
    return [{"messages": [{"role": "user", "content": content}], "k": k}]


def by_constraint(asked: Iterable[tuple]) -> Iterator[list[tuple[dict, list[dict]]]]:
    """Yield [(row, samples), ...] of one constraint, the first of each row, after the other."""
    for _, group in groupby(asked, key=lambda item: item[0]["constraints"][0]["id"]):
        yield [(row, samples) for row, [samples] in group]


def jobs(group: list[tuple[dict, list[dict]]]) -> list[dict]:
    """One sandbox job a function, on all responses to all prompts of its constraint."""
    # in one job, as a function is loaded and locked in once however many answers it sees
    constraints, inputs = {}, defaultdict(list)
    for row, samples in group:
        for constraint in row["constraints"]:
            constraints[constraint["id"]] = constraint
            inputs[constraint["id"]] += [sample["text"] for sample in samples]
    # companions stand in a group for a few responses only: each constraint has its own inputs
    found = []
    for identity, constraint in constraints.items():
        for number, verifier in enumerate(constraint["verifiers"]):
            job = {"id": f"{identity}.{number}", "code": verifier["code"]}
            found.append({**job, "inputs": inputs[identity]})
    return found


def judged(sample: dict, verdicts: dict[str, list[str]]) -> dict:
    """A sample as a response with its verdicts: it is as good as on the constraint it obeys least.

    `verdicts` are those of the functions of each constraint, {"i00002": ["pass", "fail"]}.
    """
    response = {
        "text": sample["text"],
        "verdicts": list(chain.from_iterable(verdicts.values())),
        "accuracy": round(min(map(accuracy, verdicts.values())), 4),
        "score": None,
        "finish_reason": sample["finish_reason"],
    }
    if len(verdicts) > 1:
        response["by_constraint"] = verdicts
    return response


def with_verdicts(
    group: list[tuple[dict, list[dict]]], results: list[dict], min_accuracy: float
) -> Iterator[dict]:
    """Yield the rows of `04_responses.jsonl`: every response with its verdicts and accuracy."""
    said = {}  # constraint -> what its functions say of one response after the other
    for identity, own in groupby(results, key=lambda result: result["id"].rpartition(".")[0]):
        # in the order of the inputs: taken one by one below, as the samples were put in
        said[identity] = zip(*[result["verdicts"] for result in own])
    for row, samples in group:
        responses = []
        for sample in samples:
            verdicts = {each["id"]: list(next(said[each["id"]])) for each in row["constraints"]}
            responses.append(judged(sample, verdicts))
        kept = {key: value for key, value in row.items() if key != "constraints"}
        yield {**kept, "pass_rate": pass_rate(responses, min_accuracy), "responses": responses}


def verified(
    asked: Iterable[tuple], execute: Callable, min_accuracy: float, said: dict[str, set]
) -> Iterator[dict]:
    """Yield the rows of `04_responses.jsonl`; `said` collects the verdicts of each function."""
    for group, results in through(execute, by_constraint(asked), jobs):
        for result in results:
            said[result["id"]].update(result["verdicts"])
        yield from with_verdicts(group, results, min_accuracy)


def pass_rate(responses: list[dict], min_accuracy: float) -> float | None:
    """The share of a prompt's responses that the functions accept; None without a response."""
    if not responses:
        return None
    accepted = sum(response["accuracy"] > min_accuracy for response in responses)
    return round(accepted / len(responses), 4)


def outcome(row: dict) -> str:
    """Whether a prompt's responses are all accepted, all refused, or mixed (makes a pair).

    "mixed" under one constraint, "of 2 constraints mixed" under two.
    """
    rate = row["pass_rate"]
    found = {None: "without a response", 0.0: "all fail", 1.0: "all pass"}.get(rate, "mixed")
    if "instruction_ids" in row:
        found = f"of {len(row['instruction_ids'])} constraints {found}"
    return found


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


def score_reason(response: dict, min_score: float) -> str | None:
    """Why the judge's score keeps a response from training, None when it does not."""
    # a judge that gave no number has not judged: the released code counts that as 0
    if response["score"] is None:
        return "no score found"
    if response["score"] < min_score:
        return f"score under {min_score:g}"
    return None


def reasons(row: dict, min_accuracy: float, min_score: float | None) -> list[str | None]:
    """Why each response is dropped, None for the kept; without `min_score` by verdicts only."""
    found = []
    for number, response in enumerate(row["responses"]):
        reason = drop_reason(response, row["responses"][:number], min_accuracy)
        # they contradict each other, or are too much at a time: a reason of its own tells how often
        if reason == "accuracy" and "instruction_ids" in row and row["pass_rate"] == 0:
            reason = "no response passes all constraints"
        if reason is None and min_score is not None:
            reason = score_reason(response, min_score)
        found.append(reason)
    return found


def candidates(row: dict, min_accuracy: float) -> list[dict]:
    """The responses that are worth a judge's score."""
    dropped = reasons(row, min_accuracy, None)
    return [response for response, reason in zip(row["responses"], dropped) if reason is None]


def score_requests(row: dict, min_accuracy: float) -> list[dict]:
    found = []
    for response in candidates(row, min_accuracy):
        content = SCORE_PROMPT.format(
            query=row["query"], instruction=row["instruction"], response=response["text"]
        )
        found.append(
            {"messages": [{"role": "user", "content": content}], "k": 1, "temperature": 0.0}
        )
    return found


def scored(rows: Iterable[dict], client: llm.LLM, min_accuracy: float) -> Iterator[dict]:
    """Yield the rows with the judge's scores; a cut reply has none, since a cut "10" is a "1"."""
    expand = partial(score_requests, min_accuracy=min_accuracy)
    for row, answers in through(client.complete, rows, expand):
        for response, samples in zip(candidates(row, min_accuracy), answers):
            if samples and samples[0]["finish_reason"] != "length":
                response["score"] = replies.score(samples[0]["text"])
        yield row


def scored_by_topic(path: Path, min_accuracy: float, seed: int) -> Iterator[dict]:
    """Yield the rows of `path`, scored 10 where a response is on its query, and 0 where not.

    On its query: by TF-IDF, that is the nearest of it and at most `OTHERS` of all queries.
    """
    asked = list(dict.fromkeys(map(itemgetter("query"), files.read(path))))
    others = random.Random(seed).sample(asked, min(OTHERS, len(asked)))
    for row in files.read(path):
        found = candidates(row, min_accuracy)
        texts = [response["text"] for response in found]
        own, instruction = [row["query"]] * len(found), [row["instruction"]] * len(found)
        near = relevance.relevant(texts, own, instruction, others, "TF-IDF")
        for response, on_topic in zip(found, near):
            response["score"] = 10.0 if on_topic else 0.0
        yield row


def sft_row(row: dict, number: int) -> dict:
    """The training sample of a response: the bare prompt, without the supervisor's template."""
    names = ("instruction_id", "instruction_ids")
    of = {name: row[name] for name in names if name in row}
    messages = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["responses"][number]["text"]},
    ]
    return {"id": f"{row['id']}.{number}", **of, "messages": messages}


def show(args: argparse.Namespace) -> None:
    """Print random rows of `--out` with what became of each response: `--show`."""
    rows = list(files.read(args.out, ["prompt", "pass_rate", "responses"], "04_responses.py"))
    # a run with --no-score left none: there its absence is no reason
    min_score = args.min_score if has_scores(rows) else None
    for row in random.Random(args.seed).sample(rows, min(args.show, len(rows))):
        dropped = reasons(row, args.min_accuracy, min_score)
        print(f"\n{row['id']}, pass rate {row['pass_rate']}\n{row['prompt']}")
        for response, reason in zip(row["responses"], dropped):
            numbers = f"accuracy {response['accuracy']:g}, score {response['score']}"
            print(f"  [{reason or 'kept'}] {numbers}: {' '.join(response['text'].split())[:200]}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--in", dest="input", default="out/03_instructions.jsonl")
    parser.add_argument("--out", default="out/04_responses.jsonl")
    parser.add_argument("--sft-out", help="(default: 04_sft.jsonl beside --out)")
    parser.add_argument("--queries", help="ShareGPT JSON, JSONL rows with 'query', or text lines")
    parser.add_argument(
        "--sft",
        metavar="FILE",
        help="instead of --queries: ask the prompts of these training samples, bare (3.4)",
    )
    parser.add_argument(
        "--bare-prompt",
        action="store_true",
        help="ask without the template: a small model talks about it instead of the query",
    )
    parser.add_argument(
        "--show", type=positive_int, metavar="N", help="only print N random rows of --out"
    )
    parser.add_argument(
        "--queries-per-instruction",
        type=positive_int,
        default=16,
        help="queries joined to each constraint (3.3)",
    )
    parser.add_argument(
        "--constraints",
        type=several.span,
        default="1",
        metavar="N",
        help="constraints of a prompt, as 2 or 1-3 (each prompt draws how many, all of different "
        "families); default 1, the paper's",
    )
    parser.add_argument(
        "--heldout-queries",
        type=share,
        default=0.1,
        help="share of queries that are never trained on",
    )
    parser.add_argument(
        "--min-accuracy",
        type=share,
        default=0.5,
        help="keep a response above this share of functions (3.3)",
    )
    parser.add_argument(
        "--min-score",
        type=non_negative,
        default=8.0,
        help="drop a response under this quality score (3.3)",
    )
    parser.add_argument(
        "--score",
        choices=["judge", "topic", "none"],
        default="judge",
        help="what scores a response: the model (paper), or TF-IDF whether it is on its query",
    )
    parser.add_argument(
        "--no-score",
        dest="score",
        action="store_const",
        const="none",
        help="skip the quality score (the paper's ablation, and the online loop)",
    )
    parser.add_argument(
        "--min-chars", type=int, default=20, help="queries must be longer than this"
    )
    parser.add_argument(
        "--max-chars", type=positive_int, default=300, help="queries must be shorter than this"
    )
    parser.add_argument(
        "--language",
        default="en",
        help="language of the queries, such as en or zh; 'any' takes all",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        help="use only the first LIMIT constraints of the train split",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draw of queries and of the samples"
    )
    llm.add_flags(parser, temperature=0.8, max_tokens=2048, k=8, model_required=False)
    sandbox.add_flags(parser)
    args = parser.parse_args(argv)
    if not args.show and not args.model:
        parser.error("the following arguments are required: --model")
    if not args.show and bool(args.queries) == bool(args.sft):
        parser.error("one of --queries and --sft is required")
    args.sft_out = args.sft_out or str(Path(args.out).with_name("04_sft.jsonl"))
    if args.sft and Path(args.sft).resolve() == Path(args.sft_out).resolve():
        parser.error(f"--sft {args.sft} would be overwritten; give another --out or --sft-out")
    return args


def read_queries(args: argparse.Namespace) -> tuple[list[str], dict]:
    """The train queries, and numbers for stats.json; all that pass are written beside `--out`."""
    rows, dropped = queries.load(
        args.queries, args.min_chars, args.max_chars, args.language, args.heldout_queries
    )
    if set(dropped) == {"no human turn"} and not rows:
        raise UserError(
            f"--queries {args.queries}: no record has 'query', nor a human turn in "
            "'conversations' or 'messages'; rename the field that holds the query"
        )
    pool = [row["query"] for row in rows if row["split"] == "train"]
    if not pool:
        raise UserError(
            f"--queries {args.queries}: none is left of {len(rows)} ({dict(dropped)}); "
            "see --min-chars, --max-chars, --language, --heldout-queries"
        )
    # languages take minutes to detect: whoever comes later reads this file
    kept = Path(args.out).with_name("04_queries.jsonl")
    if Path(args.queries).resolve() != kept.resolve():
        with files.writer(kept) as write:
            for row in rows:
                write(row)
    lost = "".join(f", {reason} {count:,}" for reason, count in dropped.most_common())
    print(
        f"04_responses queries: {len(rows) + dropped.total():,} in -> {len(pool):,} kept "
        f"(held out {len(rows) - len(pool):,}{lost})"
    )
    numbers = {"queries": len(pool), "queries held out": len(rows) - len(pool)}
    return pool, {**numbers, "queries_dropped": dict(dropped)}


def next_command(args: argparse.Namespace) -> str:
    """What to run on the output: training, or the pairs of the online loop."""
    if args.sft:
        pairs = Path(args.out).with_name("06_pairs.jsonl")
        return f"python 06_dpo.py pairs --level online --in {args.out} --out {pairs}"
    model = Path(args.out).with_name("05_sft")
    return f"python 05_sft.py --in {args.sft_out} --model BASE --out {model}"


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.show:
        return show(args)
    out, counts = Path(args.out), Counter()
    made_by = f"03_backtranslate.py (a file of your own: {verifiers.SPLIT})"
    rows = files.read_all(args.input, FORM, made_by)
    train = [row for row in rows if row["split"] == "train"]
    if not train:
        raise UserError(f"{args.input} has no row with split 'train'; lower --heldout of stage 03")
    funnel = Funnel("04_responses", out)
    for path in (out, args.sft_out):
        files.refuse_unwritable(path)

    # join: the prompts, constraint by constraint
    numbers = {}
    if args.sft:
        prompts = of_samples(train, args.sft, args.limit)
    else:
        train = train[: args.limit]
        of_family = several.by_family(train, args.constraints[1], args.input)
        pool, numbers = read_queries(args)
        draw = partial(several.companions, of_family=of_family, numbers=args.constraints)
        prompts = joined(train, pool, args.queries_per_instruction, draw, args.seed)

    # try: a function that cannot be called would make every answer of its constraint worthless
    verifiers.refuse_broken(train, args.input, **sandbox.options(args))

    # between the two passes a file, not memory: a hundred thousand rows are some gigabytes
    between = out.with_name(f".{out.name}.verified")
    said = defaultdict(set)  # the verdicts of each function over all responses
    execute = partial(sandbox.run, **sandbox.options(args))
    with llm.LLM.from_args(args, stage="04_responses") as client:
        with files.writer(between) as write:
            # ask: K responses a prompt; a policy without the template, since its SFT rows have none
            template = not (args.sft or args.bare_prompt)
            expand = partial(request, k=args.k, template=template)
            asked = through(client.complete, prompts, expand)

            # verify: each function on all responses to its constraint, as they arrive
            for row in verified(asked, execute, args.min_accuracy, said):
                counts.update(["prompts", f"prompts {outcome(row)}"])
                for _ in range(args.k - len(row["responses"])):  # empty, or kept failing
                    funnel.drop("no answer", {"id": row["id"], "prompt": row["prompt"]})
                write(row)

        # score: does it answer the query? Only what the functions accept is shown to the judge
        found, min_score = files.read(between), args.min_score
        if args.score == "none":
            print("04_responses: no quality scores (--no-score), as in the paper's ablation")
            min_score = None
        elif args.score == "topic":
            found = scored_by_topic(between, args.min_accuracy, args.seed)
        else:
            found = scored(found, client, args.min_accuracy)

        # keep: 04_sft.jsonl appears last, when everything is there
        with files.writer(args.sft_out) as write_sft, files.writer(out) as write:
            for row in found:
                for number, reason in enumerate(reasons(row, args.min_accuracy, min_score)):
                    response = row["responses"][number]
                    counts["raw samples"] += 1
                    counts["scored"] += response["score"] is not None
                    counts["scored above 8"] += (response["score"] or 0) > 8
                    if reason:
                        funnel.drop(reason, {"id": row["id"], "prompt": row["prompt"], **response})
                        continue
                    write_sft(sft_row(row, number))
                    funnel.keep()
                write(row)
            funnel.refuse_empty(
                "Does the model follow such constraints at all? See --max-tokens where answers are "
                "truncated, and --score topic where it is no judge"
            )
            write_settings(args, out)
    between.unlink()

    # count: a function that says the same of all responses may check nothing, though cases agreed
    constant = [f"functions always {min(each)}" for each in said.values() if len(each) == 1]
    counts.update(constant)
    above = round(counts["scored above 8"] / counts["scored"], 4) if counts["scored"] else None
    funnel.finish(
        **counts,
        **{"share above 8": above},
        functions=len(said),
        **numbers,
        paper_table_5=PAPER_TABLE_5,
    )
    wrote(out, args.sft_out, then=next_command(args))


if __name__ == "__main__":
    run(main)
