"""run_all.sh in full mode, from seeds to the table, on a tiny base model behind llama.cpp.

The base has neither a chat template nor a generation config; the supervisor is scripted. Two
processes train, two online iterations run, and a second call keeps everything.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import transformers
from fake_server import FakeServer
from test_serving import chat_model

from autoif import chain, files
from autoif.files import UserError
from autoif.flags import call

ROOT = tiny_models.ROOT
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
    if "Is it a drink?" in text:  # InfoBench's question, to its judge
        return "YES"
    draw = [
        hashlib.sha256(f"{text} {n}".encode()).digest()[0] % 10 for n in range(request.get("n", 1))
    ]
    return ["word " * n + "end" for n in draw]


FLAGS = {
    "FLAGS_02": "--k 3",
    "FLAGS_03": "--heldout 0.3",
    "FLAGS_04": "--k 4 --queries-per-instruction 4",
    # a random model learns to say "word word end" and stop, more or less often
    "FLAGS_05": "--batch 8 --epochs 12 --lr 1e-2 --warmup-steps 2 --max-length 512",
    "FLAGS_06": "--batch 8 --epochs 1 --lr 1e-4 --max-length 512",
    # at the default 0.8 a policy of so few words draws about three different answers of eight
    "FLAGS_04_ONLINE": "--max-tokens 40 --temperature 1",
    "FLAGS_07_HELDOUT": "--k 4 --queries-per-instruction 2 --max-tokens 40",
    "FLAGS_07": "--max-tokens 40 --benchmarks ifeval,gsm8k",
}


def run_all(out: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    (out / "seeds.txt").write_text("\n".join(CONSTRAINTS[::4]))
    flags = {**FLAGS, "FLAGS_01": f"--k 2 --seeds {out / 'seeds.txt'}"}
    environment = {
        **os.environ,
        "VENV": sys.prefix,
        "OUT": str(out / "run"),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        **flags,
        **settings,
    }
    command = ["bash", "run_all.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def question_file(folder: Path) -> str:
    queries = [f"What should I know about the number {n} today?" for n in range(60)]
    (folder / "queries.txt").write_text("\n".join(queries))
    return str(folder / "queries.txt")


def benchmark_rows(folder: Path) -> str:
    """Two rows of our own in the forms of IFEval and GSM8K."""
    ifeval = {
        "key": 1,
        "prompt": "Name a river. Do not use any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    gsm8k = {"question": "Ann has 2 apples and buys 3. How many has she?", "answer": "#### 5"}
    for name, row in (("ifeval/input_data.jsonl", ifeval), ("gsm8k/test.jsonl", gsm8k)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(row) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, smollm2):
    """(folder, what the first call said, the second call) of a full run."""
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    out = tmp_path_factory.mktemp("full")
    base = chat_model("base", smollm2, out / "base")
    with FakeServer(answer) as server:
        settings = {
            "OPENAI_BASE_URL": server.url,
            "SUPERVISOR": "big",
            "BASE": base,
            "QUERIES": question_file(out),
            "NLI": "llm",
            "DATA_DIR": benchmark_rows(out / "data"),
            "PROCESSES": "2",
            "ONLINE_ITERATIONS": "2",
        }
        first = run_all(out, **settings)
        assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
        return out / "run", first.stdout, run_all(out, **settings)


@pytest.fixture
def made(run):
    """The folder of the first call."""
    return run[0]


def test_a_full_run_goes_from_seeds_to_a_table_of_four_models(run):
    out, said, *_ = run
    results = json.loads((out / "07_results.json").read_text())
    measured = {(row["model"], row["benchmark"]) for row in results if "metrics" in row}
    for model in ("base", "sft", "offline", "online"):
        assert {(model, "heldout"), (model, "ifeval"), (model, "gsm8k")} <= measured
    assert "Held-out" in (out / "07_results.md").read_text()
    assert "online - base" in said and (out / "report.html").stat().st_size > 10_000


def test_the_online_loop_samples_anew_from_each_policy(run):
    out, *_ = run
    texts = []
    for iteration in ("online_1", "online_2"):
        rows = list(files.read(out / iteration / "04_responses.jsonl"))
        sampled = [{response["text"] for response in row["responses"]} for row in rows]
        assert sum(len(each) for each in sampled) > 3 * len(sampled)
        texts.append([sorted(each) for each in sampled])
        assert list(files.read(out / iteration / "06_pairs.jsonl"))
    assert texts[0] != texts[1]


def test_the_base_model_is_measured_with_the_template_it_is_trained_with(run):
    out, *_ = run
    served = transformers.AutoTokenizer.from_pretrained(out / "07_base")
    trained = transformers.AutoTokenizer.from_pretrained(out / "05_sft")
    assert served.chat_template == trained.chat_template


def test_a_second_call_keeps_everything_that_the_first_made(run):
    _, said, second = run
    assert second.returncode == 0, second.stderr[-2000:]
    made = [line.split()[1] for line in said.splitlines() if ": done in" in line]
    assert made and "done in" not in second.stdout
    assert second.stdout.count("is there: kept") == len(made)


def rows(out, name):
    return list(files.read(out / name))


def test_ids_lead_from_each_row_back_to_its_constraint(made):
    constraints = {row["id"] for row in rows(made, "01_instructions.jsonl")}
    assert {row["instruction_id"] for row in rows(made, "04_sft.jsonl")} <= constraints


def test_no_held_out_constraint_reaches_training(made):
    split = {row["instruction"]: row["split"] for row in rows(made, "03_instructions.jsonl")}
    assert set(split.values()) == {"train", "heldout"}
    heldout = [text for text, side in split.items() if side == "heldout"]
    trained = [row["messages"][0]["content"] for row in rows(made, "04_sft.jsonl")]
    trained += [
        row["prompt"][0]["content"]
        for name in ("06_pairs.jsonl", "online_1/06_pairs.jsonl")
        for row in rows(made, name)
    ]
    assert trained and not [
        text for text in trained if any(text.endswith(each) for each in heldout)
    ]


def test_no_sibling_of_a_held_out_constraint_and_no_held_out_query_reaches_training(made):
    sides = {}
    for row in rows(made, "03_instructions.jsonl"):
        sides.setdefault(row["family"], set()).add(row["split"])
    assert all(len(each) == 1 for each in sides.values()) and len(sides) == 3
    queries = {row["query"]: row["split"] for row in rows(made, "04_queries.jsonl")}
    assert set(queries.values()) == {"train", "heldout"}
    asked = {row["query"] for row in rows(made, "04_responses.jsonl")}
    assert {queries[query] for query in asked} == {"train"}
    items = rows(made, "07_items/base/heldout.jsonl")
    measured = {row["prompt"].split("\n")[0] for row in items}
    assert {queries[query] for query in measured} == {"heldout"}


def test_the_online_loop_asks_the_prompts_of_the_training_samples_under_their_ids(made):
    samples = {row["id"].rpartition(".")[0]: row for row in rows(made, "04_sft.jsonl")}
    online = rows(made, "online_1/04_responses.jsonl")
    assert {row["id"] for row in online} == set(samples)
    for row in online:
        assert samples[row["id"]]["messages"][0]["content"] == row["prompt"]


def test_pairs_of_every_level_were_made_and_chosen_differs_from_rejected(made):
    pairs = rows(made, "06_pairs.jsonl") + rows(made, "online_1/06_pairs.jsonl")
    assert {row["level"] for row in pairs} == {"instruction", "query", "online"}
    assert all(row["chosen"] != row["rejected"] for row in pairs)


def test_every_training_stage_moved_the_weights_and_left_a_loadable_model(made):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = []
    for name in ("../base", "05_sft", "06_offline", "online_1/06_dpo", "online_2/06_dpo"):
        model = AutoModelForCausalLM.from_pretrained(made / name, dtype=torch.float32)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        if name != "../base":
            assert AutoTokenizer.from_pretrained(made / name).chat_template
    assert all(not torch.equal(a, b) for a, b in zip(weights, weights[1:]))


def test_each_stage_accounted_for_its_rows(made):
    stats = json.loads((made / "stats.json").read_text())
    assert all(row["in"] == row["kept"] + sum(row["dropped"].values()) for row in stats.values())
    assert {"01_seed_augment", "02_verifiers", "03_backtranslate", "04_responses"} <= set(stats)


# ---- what is out of date ----


def check(run: Path, folder: Path, change=lambda run: None, flags: tuple[str, str] = ("", "")):
    """What stands against the run's own plan, on a copy of its folder, with other flags."""
    shutil.copytree(run, folder / "run")
    change(folder / "run")
    plan = (run / "logs/plan").read_text().replace(str(run), f"{folder}/run")
    assert flags[0] in plan
    (folder / "plan").write_text(plan.replace(*flags))
    call(chain.main, [str(folder / "plan")])


def test_a_model_of_other_settings_is_out_of_date_with_all_that_was_made_of_it(made, tmp_path):
    with pytest.raises(UserError, match="--redo-from 05") as error:
        check(made, tmp_path, flags=("'--lr' '1e-2'", "'--lr' '2'"))
    said = str(error.value)
    assert "05_sft: --lr was 0.01, is 2.0" in said
    for path in ("06_offline", "online_1/06_dpo", "07_items/sft/heldout.settings.json"):
        assert f"{tmp_path}/run/{path}: made of" in said
    assert "07_items/base" not in said and f"{tmp_path}/run/06_pairs.jsonl:" not in said


def test_what_was_made_of_a_deleted_model_is_out_of_date(made, tmp_path):
    with pytest.raises(UserError, match="--redo-from 07") as error:
        check(made, tmp_path, lambda run: shutil.rmtree(run / "06_offline"))
    assert "07_items/offline/heldout.settings.json: made of" in str(error.value)
    assert "online_1" not in str(error.value)  # the online loop begins at the SFT model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder, settings) of stages 01 to 04 without a model, and the server that answers."""
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    out = tmp_path_factory.mktemp("data")
    settings = {"SUPERVISOR": "big", "QUERIES": question_file(out), "NLI": "llm"}
    with FakeServer(answer) as server:
        settings["OPENAI_BASE_URL"] = server.url
        first = run_all(out, "--until", "04", **settings)
        assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
        yield out, settings, server


def again(data, folder: Path, change, *arguments: str, **settings: str):
    """A second call up to stage 03, on a copy of the folder that `change` was called with."""
    out, before, server = data
    shutil.copytree(out / "run", folder / "run")
    change(folder / "run")
    asked = sum(server.answered.values())
    done = run_all(folder, "--until", "03", *arguments, **{**before, **settings})
    return done, sum(server.answered.values()) - asked - 1  # one token of the preflight


@pytest.fixture
def early(data):
    """The folder of stages 01 to 04."""
    return data[0] / "run"


def test_the_data_alone_need_no_model_and_no_benchmark(early):
    assert (early / "04_sft.jsonl").exists() and not (early / "05_sft").exists()


def test_what_cannot_change_the_result_keeps_everything_in_another_folder_too(
    early, tmp_path, capsys
):
    more = "'--k' '3' --concurrency 7 --timeout 99 --workers 1"
    check(early, tmp_path, flags=("'--k' '3'", more))
    assert "note" not in capsys.readouterr().out


def test_another_flag_puts_all_that_hangs_on_it_out_of_date(early, tmp_path):
    with pytest.raises(UserError, match="--redo-from 02") as error:
        check(early, tmp_path, flags=("'--k' '3'", "'--k' '4'"))
    assert "02_verifiers.jsonl: --k was 3, is 4" in str(error.value)
    assert "03_instructions.jsonl: made of" in str(error.value)
    assert f"{tmp_path}/run/01_instructions.jsonl:" not in str(error.value)


def test_a_hand_edited_input_puts_what_was_made_of_it_out_of_date(early, tmp_path):
    def shorten(run):
        rows = list(files.read(run / "01_instructions.jsonl"))
        tiny_models.write(run / "01_instructions.jsonl", rows[1:])

    with pytest.raises(UserError, match="02_verifiers.jsonl: --in .* is not what it was made of"):
        check(early, tmp_path, shorten)


def test_an_output_whose_input_is_gone_is_out_of_date(early, tmp_path):
    with pytest.raises(UserError, match="03_instructions.jsonl: made of .*gone") as error:
        check(early, tmp_path, lambda run: (run / "02_verifiers.jsonl").unlink())
    assert "--redo-from 03" in str(error.value)


def test_an_output_without_settings_is_taken_as_it_is_and_named(early, tmp_path, capsys):
    check(early, tmp_path, lambda run: (run / "02_verifiers.settings.json").unlink())
    assert f"no settings beside {tmp_path}/run/02_verifiers.jsonl" in capsys.readouterr().out


def test_a_run_with_changed_flags_ends_before_anything_is_asked(data, tmp_path):
    done, asked = again(data, tmp_path, lambda run: None, FLAGS_02="--k 4")
    assert done.returncode == 2 and "--redo-from 02" in done.stderr
    assert asked <= 0


def test_redo_makes_a_stage_and_the_later_ones_again_out_of_what_was_paid_for(data, tmp_path):
    done, asked = again(data, tmp_path, lambda run: None, "--redo-from", "02", FLAGS_02="--k 2")
    assert done.returncode == 0, done.stderr
    kept = [line for line in done.stdout.splitlines() if "is there: kept" in line]
    assert len(kept) == 1 and "01_instructions" in kept[0] and asked == 0
    settings = json.loads((tmp_path / "run/02_verifiers.settings.json").read_text())
    assert settings["flags"]["k"] == 2


def test_a_run_killed_before_an_output_appears_goes_on(data, tmp_path):
    # the settings are written first: an output never lacks them
    done, asked = again(data, tmp_path, lambda run: (run / "03_instructions.jsonl").unlink())
    assert done.returncode == 0 and done.stdout.count("is there: kept") == 2, done.stderr
    assert asked == 0


def test_typos_in_flags_and_settings_are_told_before_anything_is_spent(data, tmp_path):
    typos = {"FLAGS_02": "--kk 4", "FLAGS_03": "--heldout 2"}
    done, asked = again(data, tmp_path, shutil.rmtree, "--check", **typos)
    assert done.returncode == 2 and asked <= 0
    assert "02_verifiers: unrecognized arguments: --kk 4" in done.stderr
    assert "03_backtranslate: argument --heldout: must be at least 0" in done.stderr
    for name, value in {"PRESET": "70B", "PROCESSES": "0", "ONLINE_ITERATIONS": "two"}.items():
        refused = run_all(tmp_path, "--check", **{name: value})
        assert refused.returncode == 2 and f"{name}={value}" in refused.stderr


def test_a_password_in_an_address_reaches_no_file(tmp_path):
    refused = run_all(tmp_path, "--check", OPENAI_BASE_URL="https://me:hunter2@host/v1")
    written = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert refused.returncode == 2 and "$OPENAI_API_KEY" in refused.stderr
    assert "hunter2" not in "".join([refused.stdout, refused.stderr, *written])


@pytest.mark.parametrize("mode", ["--demo", "--study"])
def test_flags_from_the_environment_reach_the_modes_that_set_their_own(tmp_path, mode):
    (tmp_path / "run" / "base").mkdir(parents=True)  # not to be made for this
    refused = run_all(tmp_path, mode, FLAGS_04_ONLINE="--cpu-seconds never")
    assert refused.returncode == 2 and "04_responses" in refused.stderr
    assert "--cpu-seconds" in refused.stderr and "never" in refused.stderr


def test_what_another_student_has_made_is_no_base_of_this_run(tmp_path):
    (tmp_path / "run" / "base").mkdir(parents=True)
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "student").write_text("smollm2\n")
    refused = run_all(tmp_path, "--demo", BASE="coder-0.5b")
    assert refused.returncode == 2
    assert "base is smollm2, not coder-0.5b; give another OUT" in refused.stderr
    assert (tmp_path / "run" / "logs" / "student").read_text() == "smollm2\n"


def test_stored_completions_are_taken_over_whole_and_those_that_are_there_stay(tmp_path):
    for name in ("recorded/01.jsonl", "recorded/02.jsonl", "own/02.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    script = 'source autoif/run.sh; for time in 1 2; do replay "$1/recorded" "$1/own"; done'
    subprocess.run(["bash", "-ec", script, "bash", tmp_path], cwd=ROOT, check=True)
    own = {path.name: path.read_text() for path in (tmp_path / "own").iterdir()}
    assert own == {"01.jsonl": "recorded/01.jsonl", "02.jsonl": "own/02.jsonl"}


def test_help_answers_at_once_and_a_typo_ends_with_exit_code_2(tmp_path):
    settings = {"VENV": str(tmp_path / "none")}
    shown = run_all(tmp_path, "--help", **settings)
    assert shown.returncode == 0 and "--until 04" in shown.stdout and "VENV=" in shown.stdout
    for wrong in (["--dmeo"], ["--until", "8"], ["--until"], ["--check", "--demo"]):
        refused = run_all(tmp_path, *wrong, **settings)
        assert refused.returncode == 2 and "error" in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "constraints, queries, held_out",
    [("heldout", "heldout", True), ("train", "heldout", False), ("heldout", "train", False)],
)
def test_only_what_holds_out_constraints_and_queries_measures_them(
    tmp_path, constraints, queries, held_out
):
    for name, split in (("03_instructions", constraints), ("04_queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"split": split}) + "\n")
    script = "source autoif/run.sh; OUT=$1 HELDOUT_QUERIES=$1/04_queries.jsonl; held_out"
    done = subprocess.run(["bash", "-c", script, "bash", tmp_path], cwd=ROOT)
    assert (done.returncode == 0) == held_out


def test_the_servers_copies_of_models_are_named_with_the_command_that_deletes_them(tmp_path):
    tmp_path = tmp_path / "a run"
    for name in ("report.html", ".05_sft.0123.q8_0.gguf", "online_1/.06_dpo.4567.bf16/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    command = ["bash", "-c", "source autoif/run.sh; OUT=$0 UNTIL=07; finish", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "the models' copies for the servers" in said
    subprocess.run(said.partition("to delete them: ")[2], shell=True, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "online_1"}
    assert not list((tmp_path / "online_1").iterdir())
