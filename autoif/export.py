"""Write a run's rows, pairs, prompts and functions as other trainers read them.

    python -m autoif.export out --to trl out/trl
    python -m autoif.export out --to verl out/verl --pass-rate 0 1     # prompts that teach
    python -m autoif.export out --to trl out/trl --push USER/autoif      # with a dataset card

Reads what is there of 03_instructions.jsonl, 04_responses.jsonl, 04_sft.jsonl, 04_queries.jsonl and
06_pairs.jsonl; what is missing is left out and said, without an empty file. A folder holds

    SFT rows, preference pairs, prompts for RL with their constraint's id and pass rate,
    prompts under held-out constraints (never trained on), verifiers.jsonl (the functions),
    README.md (the card)

    trl             sft.jsonl, dpo.jsonl, grpo.jsonl, grpo_heldout.jsonl: message lists
    llamafactory    autoif_sft.json, autoif_dpo.json and dataset_info.json, for `dataset_dir`
    sharegpt        sft.json, dpo.json: conversations of human and gpt
    verl            sft.parquet, train.parquet, test.parquet
    open-instruct   sft.jsonl, dpo.jsonl, rlvr.jsonl, rlvr_heldout.jsonl

`autoif.reward.Verifiers.load("DIR/verifiers.jsonl")` scores answers to the prompts by those ids; a
prompt of several constraints has their ids in one ("i2+i5"), and the lowest of their scores.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from autoif import files, queries
from autoif.card import card
from autoif.files import UserError, write_whole
from autoif.prompt import join
from autoif.stage import Help
from autoif.stage import run as run_command

SOURCE = "autoif"  # the name by which verl and open-instruct find the reward
HELDOUT_QUERIES = 4  # joined to each held-out constraint


# ---- what a run holds ----


def pass_rate(row: dict) -> float | None:
    """The share of a prompt's responses that its functions accept, as stage 04 noted it."""
    if "pass_rate" in row or not row["responses"]:
        return row.get("pass_rate")
    accepted = sum(response["accuracy"] > 0.5 for response in row["responses"])
    return round(accepted / len(row["responses"]), 4)


def between(rate: float | None, limits: tuple[float, float] | None) -> bool:
    """Whether a pass rate lies strictly between `limits`; everything does where there are none."""
    if limits is None:
        return True
    return rate is not None and limits[0] < rate < limits[1]


def several(row: dict) -> dict:
    """{"instruction_ids": ["i2", "i5"]} of a row whose prompt has several constraints, else {}."""
    if "instruction_ids" not in row:
        return {}
    return {"instruction_ids": row["instruction_ids"]}


def prompt_row(row: dict, prompt: str, rate: float | None) -> dict:
    return {
        "id": row["id"],
        "instruction_id": row.get("instruction_id", row["id"]),
        **several(row),
        "instruction": row["instruction"],
        "pass_rate": rate,
        "prompt": [{"role": "user", "content": prompt}],
    }


def heldout_prompts(constraints: list[dict], queries: list[str]) -> Iterator[dict]:
    """Each held-out constraint with a few queries, drawn for each constraint by itself."""
    for row in constraints:
        if row["split"] != "heldout":
            continue
        rng = random.Random(row["id"])
        drawn = rng.sample(queries, min(HELDOUT_QUERIES, len(queries)))
        for number, query in enumerate(drawn):
            made = {**row, "id": f"{row['id']}.heldout.{number}", "instruction_id": row["id"]}
            yield prompt_row(made, join(query, row["instruction"]), None)


def read_run(
    out: Path, limits: tuple[float, float] | None, heldout_queries: Path
) -> dict[str, list[dict]]:
    """Lists of rows by {constraints, sft, pairs, prompts, heldout}, empty where none has run."""

    def rows(name: str, *fields: str) -> Iterable[dict]:
        return files.read(out / name, fields) if (out / name).is_file() else []

    constraints = list(rows("03_instructions.jsonl", "id", "instruction", "verifiers", "split"))
    prompts, rates = [], {}
    for row in rows("04_responses.jsonl", "id", "instruction_id", "prompt", "responses"):
        rates[row["id"]] = pass_rate(row)
        if between(rates[row["id"]], limits):
            prompts.append(prompt_row(row, row["prompt"], rates[row["id"]]))
    pairs = []
    for row in rows("06_pairs.jsonl", "id", "level", "prompt", "chosen", "rejected"):
        of_prompt = row["id"].split("/")[0]
        if row["level"] == "instruction" or between(rates.get(of_prompt), limits):
            pairs.append(row)
    unseen = queries.kept(str(heldout_queries), "heldout") if heldout_queries.is_file() else []
    return {
        "constraints": constraints,
        "sft": list(rows("04_sft.jsonl", "id", "messages")),
        "pairs": pairs,
        "prompts": prompts,
        "heldout": list(heldout_prompts(constraints, unseen)),
    }


# ---- the forms ----


def left_out(path: Path, rows: list | dict) -> bool:
    """Whether there is nothing to write; a file of an earlier export goes, it would pass for ours.

    Trainers end at an empty file.
    """
    if not rows:
        path.unlink(missing_ok=True)
    return not rows


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    if left_out(path, rows):
        return
    with files.writer(path) as write:
        for row in rows:
            write(row)


def write_parquet(path: Path, rows: Iterable[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = list(rows)
    if left_out(path, rows):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # pyarrow takes the columns of the first row, and leaves out what only later ones have
    columns = dict.fromkeys(chain.from_iterable(rows))
    whole = [{**dict.fromkeys(columns), **row} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), path)


def trl(run: dict, folder: Path) -> None:
    """Conversational rows: `messages`; `prompt`, `chosen`, `rejected`; `prompt` and its columns."""
    write_jsonl(folder / "sft.jsonl", run["sft"])
    write_jsonl(folder / "dpo.jsonl", run["pairs"])
    write_jsonl(folder / "grpo.jsonl", run["prompts"])
    write_jsonl(folder / "grpo_heldout.jsonl", run["heldout"])


SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def spoken(messages: list[dict]) -> list[dict]:
    """Messages as ShareGPT writes them: `from` and `value`."""
    return [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in messages]


def conversations(run: dict) -> tuple[list[dict], list[dict]]:
    """(SFT rows, pairs) as ShareGPT conversations; chosen and rejected are one turn, not a list."""
    sft = [{"id": row["id"], "conversations": spoken(row["messages"])} for row in run["sft"]]
    pairs = []
    for row in run["pairs"]:
        [chosen], [rejected] = spoken(row["chosen"]), spoken(row["rejected"])
        sides = {"chosen": chosen, "rejected": rejected}
        pairs.append({"id": row["id"], "conversations": spoken(row["prompt"]), **sides})
    return sft, pairs


def write_json(path: Path, value: list | dict) -> None:
    if not left_out(path, value):
        write_whole(path, json.dumps(value, indent=1) + "\n")


def sharegpt(run: dict, folder: Path) -> None:
    sft, pairs = conversations(run)
    write_json(folder / "sft.json", sft)
    write_json(folder / "dpo.json", pairs)


def llamafactory(run: dict, folder: Path) -> None:
    """ShareGPT's files and their description; `formatting: openai` would add a system prompt."""
    sft, pairs = conversations(run)
    write_json(folder / "autoif_sft.json", sft)
    write_json(folder / "autoif_dpo.json", pairs)
    columns = {"messages": "conversations"}
    described = {
        "autoif_sft": {
            "file_name": "autoif_sft.json",
            "formatting": "sharegpt",
            "columns": columns,
        },
        "autoif_dpo": {
            "file_name": "autoif_dpo.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {**columns, "chosen": "chosen", "rejected": "rejected"},
        },
    }
    there = {name: each for name, each in described.items() if (folder / f"{name}.json").is_file()}
    write_json(folder / "dataset_info.json", there)


def verl_row(row: dict, index: int, split: str) -> dict:
    kept = {key: row[key] for key in ("id", "instruction_id", "instruction", "pass_rate")}
    kept.update(several(row))
    return {
        "data_source": SOURCE,
        "prompt": row["prompt"],
        "ability": "instruction_following",
        "reward_model": {"style": "rule", "ground_truth": row["instruction_id"]},
        "extra_info": {"split": split, "index": index, **kept},
    }


def verl(run: dict, folder: Path) -> None:
    write_parquet(folder / "sft.parquet", run["sft"])
    for name, split in (("prompts", "train"), ("heldout", "test")):
        rows = (verl_row(row, index, split) for index, row in enumerate(run[name]))
        write_parquet(folder / f"{split}.parquet", rows)


def rlvr_row(row: dict) -> dict:
    kept = {key: row[key] for key in ("id", "instruction", "pass_rate")}
    return {
        "messages": row["prompt"],
        "ground_truth": row["instruction_id"],
        "dataset": SOURCE,
        **kept,
        **several(row),
    }


def open_instruct(run: dict, folder: Path) -> None:
    """As TRL's, but chosen and rejected repeat the prompt, and prompts name their verifier."""
    write_jsonl(folder / "sft.jsonl", run["sft"])
    whole = []
    for row in run["pairs"]:
        sides = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        whole.append({"id": row["id"], **sides})
    write_jsonl(folder / "dpo.jsonl", whole)
    write_jsonl(folder / "rlvr.jsonl", map(rlvr_row, run["prompts"]))
    write_jsonl(folder / "rlvr_heldout.jsonl", map(rlvr_row, run["heldout"]))


FORMATS: dict[str, Callable[[dict, Path], None]] = {
    "trl": trl,
    "llamafactory": llamafactory,
    "sharegpt": sharegpt,
    "verl": verl,
    "open-instruct": open_instruct,
}


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.export",
        description=__doc__,
        formatter_class=Help,
    )
    parser.add_argument("out", type=Path, help="the folder of a run")
    parser.add_argument("dir", type=Path, help="the folder to write")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument(
        "--pass-rate",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="only prompts, and pairs of prompts, with LOW < pass rate < HIGH; 0 1 leaves out what "
        "a policy always or never does",
    )
    parser.add_argument(
        "--heldout-queries",
        type=Path,
        metavar="FILE",
        help="queries for the held-out constraints (default: those that stage 04 held out)",
    )
    parser.add_argument(
        "--license", default="other", help="of the data, for the card (the hub's identifier)"
    )
    parser.add_argument("--push", metavar="REPO", help="also upload DIR as a dataset, USER/NAME")
    args = parser.parse_args(argv)

    # read: whatever the run has, so that a run without pairs can be taken away too
    limits = tuple(args.pass_rate) if args.pass_rate else None
    if args.heldout_queries and (why := files.absent(args.heldout_queries)):
        raise UserError(
            f"--heldout-queries {args.heldout_queries} {why}; give a file of queries as stage 04 "
            "reads them"
        )
    heldout_queries = args.heldout_queries or args.out / "04_queries.jsonl"
    run = read_run(args.out, limits, heldout_queries)
    if not run["constraints"]:
        raise UserError(
            f"{args.out} has no 03_instructions.jsonl with a row; give the folder of a run with "
            "03_backtranslate.py behind it"
        )

    # write: the form, the functions, the card
    FORMATS[args.to](run, args.dir)
    write_jsonl(args.dir / "verifiers.jsonl", run["constraints"])
    write_whole(args.dir / "README.md", card(args.out, args.dir, run, limits, args.license))
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in run.items())
    print(f"{args.to}: {counts} -> {args.dir}")
    if args.push:
        push(args.dir, args.push)


if __name__ == "__main__":
    run_command(main)
