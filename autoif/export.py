"""Write a run's rows, pairs, prompts and functions as other trainers read them.

    python -m autoif.export out --to trl out/trl
    python -m autoif.export out --to verl out/verl --pass-rate 0 1     # prompts that teach
    python -m autoif.export out --to trl out/trl --push USER/autoif      # with a dataset card

Stages 03, 04 and 06 wrote what it reads; what is missing is left out, without an empty file. A
folder holds SFT rows, preference pairs, prompts for RL with their constraint's id and pass rate,
prompts under held-out constraints (never trained on), verifiers.jsonl (the functions) and README.md
(the card):

    trl             sft.jsonl, dpo.jsonl, grpo.jsonl, grpo_heldout.jsonl: message lists
    llamafactory    autoif_sft.json, autoif_dpo.json and dataset_info.json, for `dataset_dir`
    verl            sft.parquet, train.parquet, test.parquet
    open-instruct   sft.jsonl, dpo.jsonl, rlvr.jsonl, rlvr_heldout.jsonl

`autoif.reward.Verifiers.load("DIR/verifiers.jsonl")` scores answers to the prompts by those ids; a
prompt of several constraints has their ids in one ("i2+i5"), and the lowest of their scores.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import jinja2
from tyro.conf import Positional

from autoif import files, folder, queries, shards
from autoif.files import UserError, write_whole
from autoif.flags import cli
from autoif.verifiers import join

SOURCE = "autoif"  # the name by which verl and open-instruct find the reward
HELDOUT_QUERIES = 4  # joined to each held-out constraint
Limits = tuple[float, float]  # of a pass rate, which lies strictly between
ANY_RATE = (-math.inf, math.inf)


# ---- what a run holds ----


def between(rate: float | None, limits: Limits) -> bool:
    """Whether a pass rate lies strictly between `limits`; without any, even none does."""
    return limits == ANY_RATE if rate is None else limits[0] < rate < limits[1]


def some(row: dict, *names: str) -> dict:
    """Those of the fields that the row has."""
    return {name: row[name] for name in names if name in row}


def prompt_row(row: dict, prompt: str, rate: float | None) -> dict:
    turn = {"role": "user", "content": prompt}
    about = some(row, "id", "instruction_id", "instruction")
    return {**about, "pass_rate": rate, "prompt": [turn]}


def heldout_prompts(constraints: list[dict], queries: list[str]) -> Iterator[dict]:
    """Each held-out constraint with a few queries, drawn for each constraint by itself."""
    for row in constraints:
        if row["split"] == "heldout":
            count = min(HELDOUT_QUERIES, len(queries))
            for number, query in enumerate(random.Random(row["id"]).sample(queries, count)):
                made = {**row, "id": f"{row['id']}.heldout.{number}", "instruction_id": row["id"]}
                yield prompt_row(made, join(query, row["instruction"]), None)


def read_run(out: Path, limits: Limits, heldout_queries: Path) -> dict[str, list[dict]]:
    """Lists of rows by {constraints, sft, pairs, prompts, heldout}, empty where none has run."""
    for name in ("04_responses.jsonl", "04_sft.jsonl"):
        if lacking := shards.missing(out / name):
            raise UserError(
                f"{out} has no {name} of {len(lacking)} shards yet, {lacking[0]} among them; "
                "export when all have ended"
            )
    prompts, rates, pairs = [], {}, []
    fields = ("id", "instruction_id", "prompt", "pass_rate")
    for row in folder.rows(out / "04_responses.jsonl", *fields):
        rates[row["id"]] = rate = row["pass_rate"]
        if between(rate, limits):
            prompts.append(prompt_row(row, row["prompt"], rate))
    fields = ("id", "level", "prompt", "chosen", "rejected")
    for row in folder.rows(out / "06_pairs.jsonl", *fields):
        of_prompt = row["id"].rsplit("/", 2)[0]
        if row["level"] == "instruction" or between(rates.get(of_prompt), limits):
            pairs.append(row)
    fields = ("id", "instruction", "verifiers", "split")
    constraints = list(folder.rows(out / "03_instructions.jsonl", *fields))
    sft = list(folder.rows(out / "04_sft.jsonl", "id", "messages"))
    unseen = queries.kept(str(heldout_queries), "heldout") if heldout_queries.is_file() else []
    heldout = list(heldout_prompts(constraints, unseen))
    run = {"constraints": constraints, "sft": sft, "pairs": pairs}
    return {**run, "prompts": prompts, "heldout": heldout}


# ---- the forms: {file: what it holds} ----


def trl(run: dict) -> dict[str, list]:
    """Conversational rows: `messages`; `prompt`, `chosen`, `rejected`; `prompt` and its columns."""
    return {
        "sft.jsonl": run["sft"],
        "dpo.jsonl": run["pairs"],
        "grpo.jsonl": run["prompts"],
        "grpo_heldout.jsonl": run["heldout"],
    }


SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def spoken(messages: list[dict]) -> list[dict]:
    """Messages as ShareGPT writes them: `from` and `value`."""
    return [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in messages]


def llamafactory(run: dict) -> dict[str, list | dict]:
    """ShareGPT's form and its description; `formatting: openai` would add a system prompt."""
    sft = [{"id": row["id"], "conversations": spoken(row["messages"])} for row in run["sft"]]
    pairs, columns = [], {"messages": "conversations"}
    for row in run["pairs"]:
        # one turn a side: of a list the trainer drops the row
        [chosen], [rejected] = spoken(row["chosen"]), spoken(row["rejected"])
        sides = {"chosen": chosen, "rejected": rejected}
        pairs.append({"id": row["id"], "conversations": spoken(row["prompt"]), **sides})
    ranked = {"ranking": True, "columns": {**columns, "chosen": "chosen", "rejected": "rejected"}}
    made, described = {"autoif_sft": (sft, {"columns": columns}), "autoif_dpo": (pairs, ranked)}, {}
    for name, (rows, description) in made.items():
        if rows:
            form = {"formatting": "sharegpt", "file_name": f"{name}.json"}
            described[name] = {**form, **description}
    return {"autoif_sft.json": sft, "autoif_dpo.json": pairs, "dataset_info.json": described}


def verl(run: dict) -> dict[str, list]:
    """`prompt`, how it is rewarded, and all else in `extra_info`."""
    written = {"sft.parquet": run["sft"]}
    for split, part in (("train", "prompts"), ("test", "heldout")):
        written[f"{split}.parquet"] = rows = []
        for index, row in enumerate(run[part]):
            about = {name: value for name, value in row.items() if name != "prompt"}
            made = {"data_source": SOURCE, "prompt": row["prompt"]}
            made["ability"] = "instruction_following"
            made["reward_model"] = {"style": "rule", "ground_truth": row["instruction_id"]}
            rows.append({**made, "extra_info": {"split": split, "index": index, **about}})
    return written


def rlvr_row(row: dict) -> dict:
    made = {"messages": row["prompt"], "ground_truth": row["instruction_id"], "dataset": SOURCE}
    return {**made, **some(row, "id", "instruction", "pass_rate")}


def open_instruct(run: dict) -> dict[str, list]:
    """As TRL's, but chosen and rejected repeat the prompt, and prompts name their verifier."""
    pairs = []
    for row in run["pairs"]:
        sides = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        pairs.append({"id": row["id"], **sides})
    return {
        "sft.jsonl": run["sft"],
        "dpo.jsonl": pairs,
        "rlvr.jsonl": list(map(rlvr_row, run["prompts"])),
        "rlvr_heldout.jsonl": list(map(rlvr_row, run["heldout"])),
    }


FORMATS = {"trl": trl, "llamafactory": llamafactory, "verl": verl, "open-instruct": open_instruct}


@dataclass(kw_only=True)
class Flags:
    out: Positional[Path]  # the folder of a run
    dir: Positional[Path]  # the folder to write
    to: Literal[tuple(FORMATS)]  # the trainer, or the hub's dataset form
    # only prompts, and pairs of prompts, with LOW < pass rate < HIGH; 0 1 leaves out what a policy
    # always or never does
    pass_rate: Limits = ANY_RATE
    # queries for the held-out constraints (default: those that stage 04 held out)
    heldout_queries: Path | None = None
    license: str = "other"  # of the data, for the card (the hub's identifier)
    push: str | None = None  # also upload DIR as a dataset, USER/NAME


def write(path: Path, rows: list | dict) -> None:
    """A file in the form of its suffix; without rows none, since trainers end at an empty one."""
    if not rows:
        path.unlink(missing_ok=True)  # that of an earlier export would pass for ours
        return
    rows = files.encodable(rows)  # half a surrogate is none of Arrow's text
    if path.suffix == ".json":
        write_whole(path, json.dumps(rows, indent=1) + "\n")
        return
    # the columns of the first rows are taken for those of all, by pyarrow and by `datasets`
    columns = dict.fromkeys(chain.from_iterable(rows))
    whole = [{**dict.fromkeys(columns), **row} for row in rows]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), path)
    else:
        with files.writer(path) as write_row:
            for row in whole:
                write_row(row)


def card(args: Flags, run: dict, data: list[str]) -> str:
    """The Markdown of README.md: what the `data` files were made of, and with what."""
    made = {"stats": folder.stats(args.out), "settings": folder.made_with(args.out)}
    if args.pass_rate != ANY_RATE:
        made["pass_rate"] = args.pass_rate
    text = Path(__file__).with_name("card.jinja").read_text(encoding="utf-8")
    card = jinja2.Template(text, trim_blocks=True, keep_trailing_newline=True)
    return card.render(license=args.license, run=run, data=data, **made)


def push(folder: Path, repo: str) -> None:
    """Upload the folder as a dataset to the hub ($HF_ENDPOINT, $HF_TOKEN), private at first."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder)
    # the hub's own errors, those of whatever HTTP library it uses, and of a name that is none
    except Exception as error:
        words = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--push {repo}: the hub refused it or cannot be reached ({words}); see HF_TOKEN, "
            f"HF_HUB_OFFLINE and the name of the repository; {folder} is written"
        ) from None
    print(f"pushed to {repo} (private): {done.commit_url}")


def main(args: Flags) -> None:
    # read: whatever the run has, so that a run without pairs can be taken away too
    if args.heldout_queries and (why := files.absent(args.heldout_queries)):
        wrong = f"--heldout-queries {args.heldout_queries} {why}"
        raise UserError(f"{wrong}; give a file of queries as stage 04 reads them")
    kept = args.out / "04_queries.jsonl"  # of shards: each has the whole
    heldout_queries = args.heldout_queries or (shards.parts(kept) or [kept])[0]
    run = read_run(args.out, args.pass_rate, heldout_queries)
    if not run["constraints"]:
        raise UserError(
            f"{args.out} has no 03_instructions.jsonl with a row; give the folder of a run with "
            "03_backtranslate.py behind it"
        )

    # write: the form, the functions, the card
    made = FORMATS[args.to](run) | {"verifiers.jsonl": run["constraints"]}
    for name, rows in made.items():
        write(args.dir / name, rows)
    data = [name for name, rows in made.items() if isinstance(rows, list) and rows]
    write_whole(args.dir / "README.md", card(args, run, sorted(data)))
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in run.items())
    print(f"{args.to}: {counts} -> {args.dir}")
    if args.push:
        push(args.dir, args.push)


if __name__ == "__main__":
    cli(main, __doc__)
