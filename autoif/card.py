"""The dataset card of an export: provenance, licences, funnel, settings, models and their terms."""

import json
import re
from pathlib import Path

# What the makers of often used supervisors ask of data that their models wrote, by part of a name.
TERMS = [
    ("llama-?3", "Llama 3 Community License: a model trained on it is named 'Llama 3...'"),
    ("qwen2-72b|qwen2.5-(3|72)b", "Qwen License (Tongyi Qianwen): attribution where distributed"),
    ("qwen", "Apache-2.0 for most sizes; see the model's own page"),
    ("gpt-|o[134]-|chatgpt", "OpenAI's terms: not for models that compete with OpenAI's"),
    ("claude", "Anthropic's terms: not for models that compete with Anthropic's"),
    ("smollm", "Apache-2.0"),
    ("mixtral|mistral-7b", "Apache-2.0"),
    ("recorded-supervisor", "completions written for the demo of this project"),
]
UNKNOWN = "not known here: see the model's own page before publishing"
RECORDED = re.compile(r"^(SUPERVISOR|BASE|NLI|PRESET|ONLINE_ITERATIONS|ONLINE_K)=(\S+)$", re.M)

CARD = """\
---
license: {license}
pretty_name: AutoIF data
language:
- en
task_categories:
- text-generation
tags:
- instruction-following
- autoif
- verifiable-rewards
configs:
{configs}---

# AutoIF data: constraints, functions that check them, and what passed

Made with the reproduction of [AutoIF](https://arxiv.org/abs/2406.13542) ("Self-play with Execution
Feedback", ICLR 2025): a model writes format constraints and Python functions that check them;
functions and test cases are kept where they agree by execution, responses where more than half of
the functions pass and (unless it was left out) a judge gives 8 of 10 or more.

{counts}

`verifiers.jsonl` holds the functions by constraint id. They were written by a model: run them in a
sandbox only, as `autoif.reward.Verifiers.load("verifiers.jsonl").score(ids, texts)` does. Rows lead
back to their constraint by `instruction_id`, pairs by the part of their `id` before the first dot
or slash; those of several constraints name all in `instruction_ids`. Constraints with split
`heldout` are in no training row here.

## How many rows came through

| stage | in | kept | dropped |
|---|---|---|---|
{funnel}

## Settings

{settings}

## Models, and the terms on what they wrote

| model | terms |
|---|---|
{models}

The terms are a reminder as of 2026, no legal advice.

## Licences

The data is marked `{license}`. What it is made of: constraints, functions and responses (the terms
above), and user queries{queries}, whose licence is that of their source: ShareGPT's conversations
were shared by their users without a licence for reuse. The code of the reproduction is no part of
this data set.
"""


def terms(model: str) -> str:
    for pattern, text in TERMS:
        if re.search(pattern, model, re.IGNORECASE):
            return text
    return UNKNOWN


def public(name: str) -> str:
    """A model's name without the folders of the machine that it lay on."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name


def recorded(out: Path) -> dict[str, str]:
    """The settings that run_all.sh wrote to its log, the latest of each."""
    log = out / "logs" / "run.log"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    return {name: public(value) for name, value in RECORDED.findall(text)}


def funnel(stats: dict) -> str:
    """One row a stage, such as `| 02_verifiers | 812 | 514 | no case agreed 34 |`."""
    lines = []
    for stage, numbers in stats.items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in numbers["dropped"].items())
        lines.append(f"| {stage} | {numbers['in']:,} | {numbers['kept']:,} | {dropped} |")
    return "\n".join(lines)


def configs(folder: Path) -> str:
    """A configuration of the hub's viewer for each data file of `folder`."""
    lines = []
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jsonl", ".parquet") and file.name != "dataset_info.json":
            lines.append(f"- config_name: {file.stem}\n  data_files: {file.name}\n")
    return "".join(lines)


def card(out: Path, folder: Path, run: dict, limits: tuple | None, license_: str) -> str:
    """The Markdown of README.md for the files in `folder`, which were made of `out`."""
    stats, settings, models = {}, recorded(out), []
    if (out / "stats.json").is_file():
        stats = json.loads((out / "stats.json").read_text())
    for name in ("SUPERVISOR", "BASE"):
        if name in settings:
            models.append(f"| {settings[name]} | {terms(settings[name])} |")
    if not models:
        models = [f"| not recorded: name the supervisor here | {UNKNOWN} |"]
    lines = [f"- {name}: {value}" for name, value in settings.items()]
    if limits:
        lines.append(f"- prompts and their pairs with {limits[0]:g} < pass rate < {limits[1]:g}")
    counts = [f"- {len(rows):,} {name}" for name, rows in run.items()]
    queries = stats.get("04_responses", {}).get("queries")
    return CARD.format(
        license=license_,
        configs=configs(folder),
        counts="\n".join(counts),
        funnel=funnel(stats) or "| not recorded | | | |",
        settings="\n".join(lines) or "The defaults of the paper, or not recorded.",
        # self-alignment: one model is both
        models="\n".join(dict.fromkeys(models)),
        queries=f" ({queries:,} were used)" if queries else "",
    )
