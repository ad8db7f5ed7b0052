"""All stages in their order, on a tiny random model, against a scripted supervisor and policies."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import tiny_models
from fake_server import FakeServer

from autoif import files

# Three families of constraints: one of them is held out.
KINDS = {"at most": "<=", "at least": ">=", "exactly": "=="}
CONSTRAINTS = [f"Use {kind} {n} words" for kind in KINDS for n in (4, 5, 6, 7)]


def verifier(kind, limit):
    code = f"def evaluate(response):\n    return len(response.split()) {KINDS[kind]} {limit}"
    wrong = limit + 1 if kind == "at most" else limit - 1
    cases = [
        {"input": "word " * limit, "output": True},
        {"input": "word " * wrong, "output": False},
    ]
    return code, cases


def answer(messages, request):
    """A supervisor that can do its work, and a policy that obeys now and then."""
    text = messages[-1]["content"]
    if text.startswith("Write") and "constraints" in text.splitlines()[0]:
        return "\n".join(f"- {constraint}" for constraint in CONSTRAINTS)
    if '"func"' in text:
        kind, limit = re.search(rf"({'|'.join(KINDS)}) (\d+) words", text).groups()
        code, cases = verifier(kind, int(limit))
        return [
            json.dumps({"func": code + "\n" * n, "cases": cases})
            for n in range(request.get("n", 1))
        ]
    if "Hypothesis:" in text:
        return "entailment"
    if "evaluate" in text:
        return "Use few words"
    if "Score: <number>" in text:
        return "Score: 9"
    draw = [
        hashlib.sha256(f"{text} {n}".encode()).digest()[0] % 10 for n in range(request.get("n", 1))
    ]
    return ["word " * n + "end" for n in draw]


def stage(out, url, *command):
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": url,
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=tiny_models.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    base = tiny_models.checkpoint(out / "base")
    (out / "queries.txt").write_text(
        "\n".join(f"What should I know about the number {n} today?" for n in range(20))
    )
    (out / "seeds.txt").write_text("\n".join(CONSTRAINTS[::4]))
    asking = ["--queries", out / "queries.txt", "--queries-per-instruction", 2, "--k", 4]
    training = ["--batch", 4, "--epochs", 1, "--max-length", 512, "--micro-tokens", 512]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
    with FakeServer(answer) as server:

        def run(*command):
            return stage(out, server.url, *command)

        run(
            "01_seed_augment.py",
            "--model",
            "big",
            "--out",
            out / "01_instructions.jsonl",
            "--k",
            2,
            "--seeds",
            out / "seeds.txt",
        )
        run(
            "02_verifiers.py",
            "--model",
            "big",
            "--in",
            out / "01_instructions.jsonl",
            "--out",
            out / "02_verifiers.jsonl",
            "--k",
            2,
        )
        run(
            "03_backtranslate.py",
            "--model",
            "big",
            "--in",
            out / "02_verifiers.jsonl",
            "--out",
            out / "03_instructions.jsonl",
            "--nli",
            "llm",
            "--heldout",
            0.4,
        )
        run(
            "04_responses.py",
            "--model",
            "big",
            "--in",
            out / "03_instructions.jsonl",
            "--out",
            out / "04_responses.jsonl",
            *asking,
        )
        run(
            *torchrun,
            "05_sft.py",
            "--in",
            out / "04_sft.jsonl",
            "--model",
            base,
            "--out",
            out / "05_sft",
            *training,
        )
        run(
            "06_dpo.py",
            "pairs",
            "--in",
            out / "03_instructions.jsonl",
            out / "04_responses.jsonl",
            "--sft",
            out / "04_sft.jsonl",
            "--out",
            out / "06_pairs.jsonl",
        )
        run(
            *torchrun,
            "06_dpo.py",
            "train",
            "--in",
            out / "06_pairs.jsonl",
            "--model",
            out / "05_sft",
            "--out",
            out / "06_offline",
            *training,
        )
        online = out / "online_1"
        run(
            "04_responses.py",
            "--model",
            out / "06_offline",
            "--in",
            out / "03_instructions.jsonl",
            "--out",
            online / "04_responses.jsonl",
            "--no-score",
            "--sft",
            out / "04_sft.jsonl",
            "--k",
            4,
        )
        run(
            "06_dpo.py",
            "pairs",
            "--level",
            "online",
            "--in",
            online / "04_responses.jsonl",
            "--out",
            online / "06_pairs.jsonl",
        )
        run(
            *torchrun,
            "06_dpo.py",
            "train",
            "--in",
            online / "06_pairs.jsonl",
            "--model",
            out / "06_offline",
            "--reference",
            out / "05_sft",
            "--out",
            online / "06_dpo",
            *training,
        )
        for name, model in [("base", base), ("online", online / "06_dpo")]:
            run(
                "07_eval.py",
                "--model",
                model,
                "--name",
                name,
                "--benchmarks",
                "heldout",
                "--heldout",
                out / "03_instructions.jsonl",
                "--queries",
                out / "04_queries.jsonl",
                "--queries-per-instruction",
                2,
                "--k",
                4,
                "--out",
                out / "07_results.json",
            )
    return out


def rows(out, name):
    return list(files.read(out / name))


def test_ids_lead_from_each_row_back_to_its_constraint(out):
    constraints = {row["id"] for row in rows(out, "01_instructions.jsonl")}
    assert {row["instruction_id"] for row in rows(out, "04_sft.jsonl")} <= constraints


def test_no_held_out_constraint_reaches_training(out):
    split = {row["instruction"]: row["split"] for row in rows(out, "03_instructions.jsonl")}
    assert set(split.values()) == {"train", "heldout"}
    heldout = [text for text, side in split.items() if side == "heldout"]
    trained = [row["messages"][0]["content"] for row in rows(out, "04_sft.jsonl")]
    trained += [
        row["prompt"][0]["content"]
        for name in ("06_pairs.jsonl", "online_1/06_pairs.jsonl")
        for row in rows(out, name)
    ]
    assert trained and not [
        text for text in trained if any(text.endswith(each) for each in heldout)
    ]


def test_no_sibling_of_a_held_out_constraint_and_no_held_out_query_reaches_training(out):
    sides = {}
    for row in rows(out, "03_instructions.jsonl"):
        sides.setdefault(row["family"], set()).add(row["split"])
    assert all(len(each) == 1 for each in sides.values()) and len(sides) == 3
    queries = {row["query"]: row["split"] for row in rows(out, "04_queries.jsonl")}
    assert set(queries.values()) == {"train", "heldout"}
    asked = {row["query"] for row in rows(out, "04_responses.jsonl")}
    assert {queries[query] for query in asked} == {"train"}
    items = rows(out, "07_items/base/heldout.jsonl")
    measured = {row["prompt"].split("\n")[0] for row in items}
    assert {queries[query] for query in measured} == {"heldout"}


def test_the_online_loop_asks_the_prompts_of_the_training_samples_under_their_ids(out):
    samples = {row["id"].rpartition(".")[0]: row for row in rows(out, "04_sft.jsonl")}
    online = rows(out, "online_1/04_responses.jsonl")
    assert {row["id"] for row in online} == set(samples)
    for row in online:
        assert samples[row["id"]]["messages"][0]["content"] == row["prompt"]


def test_pairs_of_every_level_were_made_and_chosen_differs_from_rejected(out):
    pairs = rows(out, "06_pairs.jsonl") + rows(out, "online_1/06_pairs.jsonl")
    assert {row["level"] for row in pairs} == {"instruction", "query", "online"}
    assert all(row["chosen"] != row["rejected"] for row in pairs)


def test_every_training_stage_moved_the_weights_and_left_a_loadable_model(out):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = []
    for name in ("base", "05_sft", "06_offline", "online_1/06_dpo"):
        model = AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        assert AutoTokenizer.from_pretrained(out / name).chat_template
    assert all(not torch.equal(a, b) for a, b in zip(weights, weights[1:]))


def test_the_results_hold_both_models_with_intervals(out):
    results = json.loads((out / "07_results.json").read_text())
    assert {(row["model"], row["benchmark"]) for row in results} == {
        ("base", "heldout"),
        ("online", "heldout"),
    }
    assert "Held-out" in (out / "07_results.md").read_text()


def test_each_stage_accounted_for_its_rows(out):
    stats = json.loads((out / "stats.json").read_text())
    assert all(row["in"] == row["kept"] + sum(row["dropped"].values()) for row in stats.values())
    assert {"01_seed_augment", "02_verifiers", "03_backtranslate", "04_responses"} <= set(stats)
