"""A stage killed at any moment, against a server with every fault: a rerun ends the same."""

import random
import subprocess
import sys

from fake_server import FakeServer, at_random
from killed import after, killed
from tiny_models import ROOT, write

from autoif import several
from autoif.flags import call

LOWER = "def evaluate(response): return response == response.lower()"
FLAGS = (
    "--model m --k 4 --heldout-queries 0 --queries-per-instruction 5 --concurrency 8 --timeout 1 "
    "--max-failed 1"
).split()
FAULTS = ["429", "500", "drop", "half", "html", "broken json", "no choices"]
KILLS = 4


def answer(messages, request):
    text = messages[0]["content"]
    if "Score: <number>" in text:
        return "Score: 9"
    return [f"{'ok' if n % 2 else 'NO'} {len(text)} {n}" for n in range(request["n"])]


def test_kill_9_at_random_moments_and_every_fault_change_no_byte_and_buy_nothing_twice(tmp_path):
    source, queries, rows = tmp_path / "several.jsonl", tmp_path / "queries.txt", []
    for n in range(12):
        row = {"id": f"i{n}", "instruction": f"Use {n} words", "split": "train"}
        verifiers = [{"code": LOWER, "accuracy": 1.0}]
        rows.append({**row, "family": f"family {n}", "verifiers": verifiers})
    single = write(tmp_path / "03.jsonl", rows)
    call(several.main, [single, "--constraints", "1-2", "--out", str(source)])
    question = "What should I know about the number {} today?\n"
    queries.write_text("".join(map(question.format, range(9))))
    calm, rough = tmp_path / "calm", tmp_path / "rough"

    def command(out, server):
        stage = [sys.executable, "04_responses.py", *FLAGS, "--base-url", server.url]
        stage += ["--in", str(source), "--queries", str(queries)]
        return [*stage, "--out", str(out / "04_responses.jsonl")]

    with FakeServer(answer) as server:
        subprocess.run(command(calm, server), cwd=ROOT, check=True, capture_output=True)
    rng, kills = random.Random(1), 0
    with FakeServer(answer, delay=0.15, faults=at_random(0.2, FAULTS)) as server:
        for _ in range(KILLS):
            kills += killed(command(rough, server), after(rng.uniform(0.8, 3.0)))
        last = command(rough, server)
        subprocess.run(last, cwd=ROOT, check=True, capture_output=True, timeout=600)
        stored = (rough / "completions" / "04_responses.jsonl").read_text().count("\n")
        answered = sum(server.answered.values())
    assert kills >= 1
    for name in ("04_responses.jsonl", "04_sft.jsonl", "04_responses.dropped.jsonl"):
        assert (rough / name).read_bytes() == (calm / name).read_bytes(), name
    # what was bought and not stored was in flight when the stage was killed: at most 8 requests of
    # 4 samples each time
    assert stored <= answered <= stored + kills * 8 * 4
