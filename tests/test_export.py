"""A run taken away: each format as its library or documentation wants it; card and hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny_models

from autoif import export, files
from autoif.files import UserError
from autoif.flags import call
from autoif.reward import Verifiers


@pytest.fixture(scope="module")
def taken(whole_run, tmp_path_factory):
    """{format: the folder that it was exported to}."""
    folder = tmp_path_factory.mktemp("exports")
    for name in export.FORMATS:
        call(export.main, [str(whole_run), str(folder / name), "--to", name])
    return {name: folder / name for name in export.FORMATS}


def rows(run, name):
    return list(files.read(run / name))


def loaded(folder, name):
    """A file as `datasets` reads it, which is how the trainers do."""
    from datasets import load_dataset

    kind = {".parquet": "parquet"}.get((folder / name).suffix, "json")
    return load_dataset(kind, data_files=str(folder / name), split="train")


# ---- the formats ----


def test_trl_reads_its_rows_as_conversations(taken, whole_run):
    from trl import is_conversational
    from trl.data_utils import apply_chat_template

    tokenizer = tiny_models.tokenizer("smollm2")
    for name, keys in [
        ("sft.jsonl", {"messages"}),
        ("dpo.jsonl", {"prompt", "chosen", "rejected"}),
        ("grpo.jsonl", {"prompt"}),
    ]:
        data = loaded(taken["trl"], name)
        assert len(data) and is_conversational(data[0])
        example = {key: data[0][key] for key in keys}
        assert set(apply_chat_template(example, tokenizer)) >= keys - {"messages"}
    assert loaded(taken["trl"], "sft.jsonl").to_list() == rows(whole_run, "04_sft.jsonl")


def test_every_format_has_every_row_and_the_functions(taken, whole_run):
    sft, pairs = rows(whole_run, "04_sft.jsonl"), rows(whole_run, "06_pairs.jsonl")
    prompts = rows(whole_run, "04_responses.jsonl")
    files_of = {
        "trl": ("sft.jsonl", "dpo.jsonl", "grpo.jsonl"),
        "llamafactory": ("autoif_sft.json", "autoif_dpo.json", None),
        "verl": ("sft.parquet", None, "train.parquet"),
        "open-instruct": ("sft.jsonl", "dpo.jsonl", "rlvr.jsonl"),
    }
    assert set(files_of) == set(export.FORMATS)
    for name, written in files_of.items():
        for file, wanted in zip(written, (sft, pairs, prompts)):
            if file is not None:
                assert len(loaded(taken[name], file)) == len(wanted), (name, file)
        functions = rows(taken[name], "verifiers.jsonl")
        assert functions == rows(whole_run, "03_instructions.jsonl")


def test_llamafactory_gets_one_turn_a_side_and_its_description(taken):
    """The traps of data/README.md there: a list of one drops the row, `openai` adds a prompt."""
    described = json.loads((taken["llamafactory"] / "dataset_info.json").read_text())
    assert {each["formatting"] for each in described.values()} == {"sharegpt"}
    assert described["autoif_dpo"]["ranking"] is True
    for each in described.values():
        row = json.loads((taken["llamafactory"] / each["file_name"]).read_text())[0]
        for column in each["columns"].values():
            assert column in row
        turns = [turn["from"] for turn in row["conversations"]]
        assert turns == (["human"] if "ranking" in each else ["human", "gpt"])
        if "ranking" in each:
            assert set(row["chosen"]) == set(row["rejected"]) == {"from", "value"}
            assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"


def test_verl_gets_its_five_fields_and_held_out_constraints_to_test_on(taken, whole_run):
    split = {row["id"]: row["split"] for row in rows(whole_run, "03_instructions.jsonl")}
    for name, side in [("train", "train"), ("test", "heldout")]:
        data = loaded(taken["verl"], f"{name}.parquet")
        assert set(data.column_names) == {
            *("data_source", "prompt", "ability", "reward_model", "extra_info")
        }
        for index, row in enumerate(data):
            assert row["prompt"][0]["role"] == "user" and row["data_source"] == "autoif"
            assert split[row["reward_model"]["ground_truth"]] == side
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (name, index)


def test_open_instruct_gets_whole_conversations_and_the_name_of_the_verifier(taken):
    pair = rows(taken["open-instruct"], "dpo.jsonl")[0]
    assert pair["chosen"][:-1] == pair["rejected"][:-1] != []
    assert pair["chosen"][-1]["role"] == pair["rejected"][-1]["role"] == "assistant"
    row = rows(taken["open-instruct"], "rlvr.jsonl")[0]
    assert row["dataset"] == "autoif" and isinstance(row["ground_truth"], str)
    assert [turn["role"] for turn in row["messages"]] == ["user"]


def test_exported_functions_score_the_exported_responses_as_stage_04_did(taken, whole_run):
    verifiers = Verifiers.load(taken["trl"] / "verifiers.jsonl")
    ids, texts, wanted = [], [], []
    for row in rows(whole_run, "04_responses.jsonl")[:30]:
        for response in row["responses"]:
            ids.append(row["instruction_id"])
            texts.append(response["text"])
            erred = "error" in response["verdicts"]
            wanted.append(None if erred else response["accuracy"])
    found = verifiers.score(ids, texts)
    verifiers.close()
    assert [score.pass_share for score in found] == pytest.approx(wanted, abs=1e-4)


def test_prompts_of_several_constraints_carry_all_their_functions_in_every_format(tmp_path):
    first, second = ["Use lower case", "Use at most two words"]
    codes = ["response == response.lower()", "len(response.split()) <= 2"]
    constraints = []
    for number, (text, code) in enumerate(zip([first, second], codes)):
        verifiers = [{"code": f"def evaluate(response): return {code}", "accuracy": 1.0}]
        row = {"id": f"i{number}", "instruction": text, "split": "train", "verifiers": verifiers}
        constraints.append(row)
    response = {"text": "so so so", "accuracy": 0.0}
    single = {"id": "i0.0", "instruction_id": "i0", "instruction": first, "prompt": "Why?"}
    single["pass_rate"] = 0.0
    both = {**single, "id": "i0.1", "instruction_id": "i0+i1"}
    responses = [{**each, "responses": [response]} for each in (single, both)]
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "so"}]
    samples = []
    for each in (single, both):
        sample = {**each, "id": f"{each['id']}.0", "messages": messages}
        samples.append(sample)
    for name, rows_of in [
        ("03_instructions.jsonl", constraints),
        ("04_responses.jsonl", responses),
        ("04_sft.jsonl", samples),
    ]:
        tiny_models.write(tmp_path / name, rows_of)
    for name in export.FORMATS:
        call(export.main, [str(tmp_path), str(tmp_path / name), "--to", name])

    # the id under which each trainer finds the functions
    taken = [
        (rows(tmp_path, "trl/grpo.jsonl"), "instruction_id"),
        (rows(tmp_path, "open-instruct/rlvr.jsonl"), "ground_truth"),
    ]
    for found, field in taken:
        assert [row[field] for row in found] == ["i0", "i0+i1"]
    found = loaded(tmp_path / "verl", "train.parquet")
    assert [row["reward_model"]["ground_truth"] for row in found] == ["i0", "i0+i1"]

    verifiers = Verifiers.load(tmp_path / "trl" / "verifiers.jsonl")
    scores = verifiers.score(["i0", "i0+i1"], ["so so so"] * 2)
    verifiers.close()
    assert [score.all_pass for score in scores] == [True, False]


# ---- filters and parts of runs ----


def test_the_pass_rate_filter_leaves_prompts_that_teach_something(whole_run, tmp_path):
    call(export.main, [str(whole_run), str(tmp_path), "--to", "trl", "--pass-rate", "0", "1"])
    left = rows(tmp_path, "grpo.jsonl")
    assert 0 < len(left) < len(rows(whole_run, "04_responses.jsonl"))
    assert all(0 < row["pass_rate"] < 1 for row in left)


def test_pairs_follow_the_pass_rate_of_their_prompt(whole_run, tmp_path):
    call(export.main, [str(whole_run), str(tmp_path), "--to", "trl", "--pass-rate", "0.4", "0.9"])
    prompts = {row["id"] for row in rows(tmp_path, "grpo.jsonl")}
    pairs = rows(tmp_path, "dpo.jsonl")
    of_queries = {row["id"].split("/")[0] for row in pairs if row["level"] == "query"}
    assert of_queries and of_queries <= prompts
    every = [row for row in rows(whole_run, "06_pairs.jsonl") if row["level"] == "instruction"]
    assert [row for row in pairs if row["level"] == "instruction"] == every


def test_pairs_of_ids_with_a_slash_follow_their_prompt_too(tmp_path):
    prompt = {"id": "acme/1.0", "instruction_id": "acme/1", "prompt": "q", "pass_rate": 0.5}
    tiny_models.write(tmp_path / "04_responses.jsonl", [prompt])
    pair = {"id": "acme/1.0/query/1", "level": "query", "prompt": [], "chosen": [], "rejected": []}
    tiny_models.write(tmp_path / "06_pairs.jsonl", [pair])
    for limits, count in (((0, 1), 1), ((0.6, 1), 0)):
        assert len(export.read_run(tmp_path, limits, tmp_path / "none")["pairs"]) == count


def test_held_out_prompts_take_held_out_queries():
    constraints = [{"id": "i1", "instruction": "Be brief", "split": "heldout"}]
    found = list(export.heldout_prompts(constraints, ["Why is the sky blue?"]))
    assert found[0]["prompt"] == [{"role": "user", "content": "Why is the sky blue?\nBe brief"}]
    assert found[0]["instruction_id"] == "i1" and found[0]["id"] == "i1.heldout.0"


def test_held_out_queries_may_be_in_a_file_of_their_own(whole_run, tmp_path):
    shutil.copy(whole_run / "03_instructions.jsonl", tmp_path)
    flags = [str(tmp_path), str(tmp_path / "trl"), "--to", "trl", "--heldout-queries"]
    unseen = tmp_path / "unseen.txt"
    with pytest.raises(UserError, match="unseen.txt does not exist"):
        call(export.main, [*flags, str(unseen)])
    unseen.write_text("Which animal gives us wool?\n")
    call(export.main, [*flags, str(unseen)])
    found = rows(tmp_path / "trl", "grpo_heldout.jsonl")
    assert found and all("wool" in row["prompt"][0]["content"] for row in found)


def test_the_held_out_queries_of_a_run_in_shards_are_those_of_any_shard(whole_run, tmp_path):
    shutil.copy(whole_run / "03_instructions.jsonl", tmp_path)
    for shard in ("0-of-2", "1-of-2"):
        kept = {"query": "Which animal gives us wool?", "langdetect": "en", "split": "heldout"}
        (tmp_path / shard).mkdir()
        (tmp_path / shard / "04_queries.jsonl").write_text(json.dumps(kept) + "\n")
    call(export.main, [str(tmp_path), str(tmp_path / "trl"), "--to", "trl"])
    found = rows(tmp_path / "trl", "grpo_heldout.jsonl")
    assert found and all("wool" in row["prompt"][0]["content"] for row in found)


def test_a_run_that_lacks_a_shard_is_not_exported(whole_run, tmp_path):
    shutil.copy(whole_run / "03_instructions.jsonl", tmp_path)
    (tmp_path / "1-of-3").mkdir()
    shutil.copy(whole_run / "04_responses.jsonl", tmp_path / "1-of-3")
    with pytest.raises(UserError, match="no 04_responses.jsonl of 2 shards yet, 0-of-3 among them"):
        call(export.main, [str(tmp_path), str(tmp_path / "trl"), "--to", "trl"])
    assert not (tmp_path / "trl").exists()


def test_a_column_of_later_rows_is_one_of_all_and_half_a_surrogate_is_written(tmp_path):
    rows = [{"text": "whole"}, {"text": "half \ud83d", "truncated": ["rejected"]}]
    for name in ("rows.jsonl", "rows.parquet"):
        export.write(tmp_path / name, rows)
    assert loaded(tmp_path, "rows.jsonl").column_names == ["text", "truncated"]
    assert [row["truncated"] for row in files.read(tmp_path / "rows.jsonl")] == [None, ["rejected"]]
    for name in ("rows.jsonl", "rows.parquet"):
        assert loaded(tmp_path, name)[1]["text"].startswith("half ")


def test_a_run_without_pairs_is_exported_without_them(whole_run, tmp_path):
    shutil.copy(whole_run / "03_instructions.jsonl", tmp_path)
    for name in export.FORMATS:
        call(export.main, [str(tmp_path), str(tmp_path / name), "--to", name])
    for name in export.FORMATS:
        assert {file.name for file in (tmp_path / name).iterdir()} == {
            "verifiers.jsonl",
            "README.md",
        }
    with pytest.raises(UserError, match="03_backtranslate.py behind it"):
        call(export.main, [str(tmp_path / "nothing"), str(tmp_path / "to"), "--to", "trl"])


def test_what_a_run_has_no_more_is_gone_from_its_export_and_the_description(tmp_path):
    run, ask, tell = tmp_path / "run", {"role": "user", "content": "a"}, {"role": "assistant"}
    run.mkdir()
    sides = {"chosen": [{**tell, "content": "b"}], "rejected": [{**tell, "content": "c"}]}
    pair = {"id": "i0.0/1", "level": "instruction", "prompt": [ask], **sides}
    constraint = {"id": "i0", "instruction": "Be brief", "split": "train", "verifiers": []}
    tiny_models.write(run / "03_instructions.jsonl", [constraint])
    tiny_models.write(run / "04_sft.jsonl", [{"id": "x", "messages": [ask, *sides["chosen"]]}])
    tiny_models.write(run / "06_pairs.jsonl", [pair])
    for pairs in ({"dpo.jsonl", "autoif_dpo.json"}, set()):
        written = set()
        for kind in ("trl", "llamafactory"):
            call(export.main, [str(run), str(tmp_path / kind), "--to", kind])
            written |= {file.name for file in (tmp_path / kind).iterdir()}
        there = {"sft.jsonl", "autoif_sft.json", "dataset_info.json", "README.md"}
        assert written == pairs | there | {"verifiers.jsonl"}
        described = json.loads((tmp_path / "llamafactory/dataset_info.json").read_text())
        assert len(described) == 2 if pairs else list(described) == ["autoif_sft"]
        (run / "06_pairs.jsonl").unlink(missing_ok=True)


# ---- the card and the hub ----


def test_the_card_accounts_for_rows_models_and_settings(whole_run, tmp_path):
    import yaml

    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    for stage, model in [
        ("01_instructions", "Qwen/Qwen2-72B-Instruct"),
        ("05_sft", "/models/private/Qwen2-7B"),
    ]:
        settings = json.loads((out / f"{stage}.settings.json").read_text())
        settings["flags"]["model"] = model
        (out / f"{stage}.settings.json").write_text(json.dumps(settings))
    call(
        export.main,
        [str(out), str(tmp_path / "to"), "--to", "verl", "--license", "apache-2.0"]
        + ["--pass-rate", "0", "1"],
    )
    card = (tmp_path / "to" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert {each["data_files"] for each in front["configs"]} == {
        *("sft.parquet", "test.parquet", "train.parquet", "verifiers.jsonl")
    }
    verifiers = json.loads((out / "stats.json").read_text())["02_verifiers"]
    counted = f"| 02_verifiers | {verifiers['in']} | {verifiers['kept']} |"
    assert counted in card and "0 < pass rate < 1" in card
    assert "- supervisor: Qwen/Qwen2-72B-Instruct\n" in card
    assert "Qwen2-7B" in card and "/models" not in card and "/data" not in card


class Hub(BaseHTTPRequestHandler):
    """The four calls of the hub that an upload makes."""

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        self.server.seen.append((self.path, body, self.headers.get("authorization")))
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"{self.server.url}/datasets/me/autoif", "id": "me/autoif"})
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            wanted = [{"path": each["path"], **mode} for each in json.loads(body)["files"]]
            self.answer({"files": wanted})
        else:
            commit = {
                "commitUrl": f"{self.server.url}/datasets/me/autoif/commit/1",
                "commitOid": "1",
            }
            self.answer({**commit, "success": True})

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(whole_run, folder, url):
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "autoif.export", str(whole_run), str(folder), "--to", "trl"]
        + ["--push", "me/autoif"],
        cwd=tiny_models.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_push_uploads_every_file_to_a_private_dataset(whole_run, tmp_path, hub):
    done = pushed(whole_run, tmp_path / "to", hub.url)
    assert done.returncode == 0, done.stderr[-2000:]
    created = json.loads(hub.seen[0][1])
    assert created["type"] == "dataset" and created["visibility"] == "private"
    [commit] = [body for path, body, _ in hub.seen if "/commit/" in path]
    sent = re.findall(r'"path": ?"([^"]+)"', commit)
    assert sorted(sent) == sorted(file.name for file in (tmp_path / "to").iterdir())
    assert "pushed to me/autoif (private)" in done.stdout
    assert "hf_test" not in done.stdout + done.stderr


def test_a_push_without_a_network_is_one_line(whole_run, tmp_path):
    done = pushed(whole_run, tmp_path / "to", "http://127.0.0.1:9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "--push me/autoif" in line]
    assert "cannot be reached" in line and str(tmp_path / "to") in line


def test_a_refused_push_ends_with_code_2_and_the_next_step(whole_run, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(Hub, "do_POST", lambda self: self.send_error(403))
    done = pushed(whole_run, tmp_path / "to", hub.url)
    assert done.returncode == 2 and "see HF_TOKEN" in done.stderr
