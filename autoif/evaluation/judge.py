"""The judge of a run: its flags, and the client that asks it."""

import argparse
import contextlib
import os
from pathlib import Path

from autoif import llm


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judge-model",
        help="judge of FollowBench, InfoBench, MT-Bench, Arena-Hard and of rephrasings",
    )
    parser.add_argument(
        "--judge-base-url",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="default: $OPENAI_BASE_URL",
    )


def client(args, **limits) -> contextlib.AbstractContextManager:
    """The judge's client for a `with` block, which gives None where no judge is named.

    `limits` are the client's own: concurrency, timeout, max_failed.
    """
    if args.judge_model is None:
        return contextlib.nullcontext()
    return llm.LLM(
        args.judge_model,
        args.judge_base_url,
        Path(args.out).parent / "completions" / "07_judge.jsonl",
        temperature=0.0,
        max_tokens=1024,
        name="judge",
        keep_empty=True,  # an empty judgement is asked again
        **limits,
    )
