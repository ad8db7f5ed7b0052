"""A stage killed at any moment, against a server with every fault: a rerun ends the same."""

import json
import os
import random
import subprocess
import sys

from fake_server import FakeServer, at_random
from tiny_models import ROOT

from autoif import several
from autoif.flags import call

LOWER = "def evaluate(response): return response == response.lower()"


def command(out, url, source, queries):
    return [
        sys.executable,
        "04_responses.py",
        "--model",
        "m",
        "--base-url",
        url,
        "--in",
        source,
        "--queries",
        queries,
        "--out",
        str(out / "04_responses.jsonl"),
        "--k",
        "4",
        "--heldout-queries",
        "0",
        "--queries-per-instruction",
        "5",
        "--concurrency",
        "8",
        "--timeout",
        "1",
        "--max-failed",
        "1",
    ]


def answer(messages, request):
    text = messages[0]["content"]
    return (
        "Score: 9"
        if "Score: <number>" in text
        else [f"{'ok' if n % 2 else 'NO'} {len(text)} {n}" for n in range(request["n"])]
    )


def test_kill_9_at_random_moments_and_every_fault_change_no_byte_and_buy_nothing_twice(tmp_path):
    source, queries = tmp_path / "several.jsonl", tmp_path / "queries.txt"
    single = tmp_path / "03.jsonl"
    single.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"i{n}",
                    "instruction": f"Use {n} words",
                    "split": "train",
                    "family": f"family {n}",
                    "verifiers": [{"code": LOWER, "accuracy": 1.0}],
                }
            )
            + "\n"
            for n in range(12)
        )
    )
    flags = [str(single), "--constraints", "1-2", "--out", str(source)]
    call(several.main, flags)
    queries.write_text(
        "\n".join(f"What should I know about the number {n} today?" for n in range(9))
    )
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    with FakeServer(answer) as server:
        subprocess.run(
            command(calm, server.url, source, queries), cwd=ROOT, check=True, capture_output=True
        )
    rng, kills = random.Random(1), 0
    with FakeServer(
        answer,
        delay=0.15,
        faults=at_random(0.2, ["429", "500", "drop", "half", "html", "broken json", "no choices"]),
    ) as server:
        for _ in range(40):
            process = subprocess.Popen(
                command(rough, server.url, source, queries),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENAI_API_KEY": "none"},
            )
            try:
                process.wait(rng.uniform(0.8, 3.0) if kills < 4 else 120)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        stored = sum(1 for _ in open(rough / "completions" / "04_responses.jsonl"))
        answered = sum(server.answered.values())
    assert kills >= 1 and process.returncode == 0
    for name in ("04_responses.jsonl", "04_sft.jsonl", "04_responses.dropped.jsonl"):
        assert (rough / name).read_bytes() == (calm / name).read_bytes(), name
    # what was bought and not stored was in flight when the stage was killed: at most 8 requests of
    # 4 samples each time
    assert stored <= answered <= stored + kills * 8 * 4
