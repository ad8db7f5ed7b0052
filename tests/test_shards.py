"""Stages 02 to 04 in shards: together they write and buy what one run does."""

import importlib
import json
import subprocess
import sys
import time
from collections import Counter

import pytest
import tiny_models
from fake_server import FakeServer

from autoif import files, folder, settings, shards
from autoif.files import UserError
from autoif.flags import call, parse
from autoif.training.verified import read_verified

WORDS = "one two three four five six seven eight nine ten eleven".split()


def function(word: str, number: int) -> str:
    """What the supervisor writes: of the word "seven" nothing that can be called."""
    name = "check" if word == "seven" else "evaluate"
    text = "response" + ".strip()" * WORDS.index(word)  # no two words are of one family
    return f"def {name}(response): return {word!r} in {text} or {number} < 0"


def answer(messages, request):
    """What a supervisor says to the prompts of 02, 03 and 04: it depends on the prompt alone."""
    text = messages[-1]["content"]
    if "Score: <number>" in text:
        return f"Score: {6 + len(text) % 5}"
    word = next((word for word in WORDS[::-1] if f'"{word}"' in text or f"'{word}'" in text), "")
    if "Python function `evaluate" in text:
        cases = [{"input": word, "output": True}, {"input": "-", "output": word == "three"}]
        samples = [{"func": function(word, n), "cases": cases} for n in range(request["n"])]
        return list(map(json.dumps, samples))
    if "This Python function checks" in text:
        return f'Mention "{word}"'
    if text.startswith("Premise"):
        return "contradiction" if word == "five" else "entailment"
    return [f"{word if n % 2 else 'no'} {len(text)} {n}" for n in range(request["n"])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{0: the folder of one run, 3: that of three shards, "asked": prompts that each has sent}"""
    made, texts = {}, {}
    for count in (0, 3):
        out = made[count] = tmp_path_factory.mktemp(f"of_{count}")
        rows = []
        for number, word in enumerate(WORDS):
            rows.append({"id": f"i{number}", "instruction": f'Mention "{word}" as {word}th'})
        tiny_models.write(out / "01_instructions.jsonl", rows)
        questions = [f"What should I know about the number {n} today?" for n in range(30)]
        (out / "queries.txt").write_text("\n".join(questions))
        with FakeServer(answer) as server:
            made_by(out, server.url, count)
            texts[count] = server.answered
    return {**made, "asked": texts}


def made_by(out, url, count):
    """Stages 02 to 04 in one run, or in so many shards each."""
    asking = ["--model", "m", "--base-url", url]

    def stage(name, *flags):
        module = importlib.import_module(name)
        for number in range(max(count, 1)):
            own = ["--shard", f"{number}/{count}"] if count else []
            call(module.main, [*asking, *map(str, flags), *own])

    def made(name):
        return shards.parts(out / f"{name}.jsonl")

    stage("02_verifiers", "--in", *made("01_instructions"), "--out", out / "02_verifiers.jsonl")
    flags = ["--nli", "llm", "--heldout", "0.2", "--out", out / "03_instructions.jsonl"]
    stage("03_backtranslate", "--in", *made("02_verifiers"), *flags)
    if count:
        paths = map(str, made("03_instructions"))
        call(
            importlib.import_module("03_backtranslate").main,
            [*asking, "--in", *paths, *map(str, flags)],
        )
    flags = ["--queries", out / "queries.txt", "--queries-per-instruction", 2, "--k", 4]
    flags += ["--in", out / "03_instructions.jsonl", "--out", out / "04_responses.jsonl"]
    stage("04_responses", *flags)


NAMES = ["02_verifiers", "03_instructions", "04_responses", "04_sft", "04_responses.dropped"]


@pytest.mark.parametrize("name", [*NAMES, "02_verifiers.dropped"])
def test_the_sorted_rows_of_all_shards_are_those_of_one_run(runs, name):
    [one], parts = shards.parts(runs[0] / f"{name}.jsonl"), shards.parts(runs[3] / f"{name}.jsonl")
    assert len(parts) == (1 if name == "03_instructions" else 3)
    rows = []
    for part in parts:
        rows += part.read_text().splitlines()
    assert sorted(rows) == sorted(one.read_text().splitlines()) and rows


def test_shards_ask_what_one_run_asks_and_nothing_else(runs):
    assert runs["asked"][3] == runs["asked"][0] and runs["asked"][0].total() > 150


def test_families_and_split_are_those_of_all_constraints(runs):
    of_shard = list(files.read(runs[3] / "0-of-3" / "03_instructions.jsonl"))
    assert of_shard and not any("split" in row for row in of_shard)
    rows = list(files.read(runs[3] / "03_instructions.jsonl"))
    assert {row["split"] for row in rows} == {"train", "heldout"}
    lost = list(folder.rows(runs[3] / "03_instructions.dropped.jsonl"))
    assert [row["reason"] for row in lost] == []  # of the last run: the shards have said it
    assert folder.stats(runs[3])["03_backtranslate"]["dropped"] == {"contradiction": 1}


def test_the_numbers_of_shards_add_up_to_those_of_one_run(runs):
    one, added = folder.stats(runs[0]), folder.stats(runs[3])
    for stage, numbers in one.items():
        for name in ("in", "kept", "dropped"):
            assert added[stage][name] == numbers[name], (stage, name)


def test_what_is_there_whole_counts_and_not_a_trial_in_shards_beside_it(runs, tmp_path):
    for name, kept in (("0-of-4", 1), ("best-of-8", 2), (".", 3)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "stats.json").write_text(json.dumps({"04_responses": {"kept": kept}}))
    assert folder.stats(tmp_path) == {"04_responses": {"kept": 3}}


def test_what_shards_wrote_is_read_as_one_file(runs):
    counts = Counter(row["id"] for row in folder.rows(runs[3] / "04_responses.jsonl"))
    wanted = [row["id"] for row in files.read(runs[0] / "04_responses.jsonl")]
    assert counts == Counter(wanted) and len(wanted) > 10
    paths = [str(path) for path in shards.parts(runs[3] / "04_responses.jsonl")]
    dpo, made = importlib.import_module("06_dpo"), []
    for out, inputs in ((runs[0], [str(runs[0] / "04_responses.jsonl")]), (runs[3], paths)):
        sft = map(str, shards.parts(out / "04_sft.jsonl"))
        pairs = str(out / "06_pairs.jsonl")
        call(dpo.COMMANDS, ["pairs", "--in", *inputs, "--sft", *sft, "--out", pairs])
        made.append(sorted(row["prompt"][0]["content"] for row in files.read(pairs)))
    assert made[0] == made[1] and made[0]


def test_stage_05_trains_on_the_rows_of_several_files(runs):
    from autoif.training.rows import read_sft

    sft, tokenizer = importlib.import_module("05_sft"), tiny_models.tokenizer("smollm2")
    paths = [str(path) for path in shards.parts(runs[3] / "04_sft.jsonl")]
    _, args = parse(sft.main, ["--in", *paths, "--model", "m", "--out", "x"])
    [one] = shards.parts(runs[0] / "04_sft.jsonl")
    rows = sorted(row["id"] for path in args.input for row in read_sft(path, tokenizer))
    assert rows == sorted(row["id"] for row in files.read(one))


def test_a_shard_whose_judge_said_nothing_is_of_a_run_that_scores(tmp_path):
    response = {"text": "t", "verdicts": ["pass"], "accuracy": 1.0}
    for number, score in enumerate([9.0, None]):
        row = {"id": f"i{number}", "prompt": "p", "responses": [{**response, "score": score}]}
        for name in (f"{number}-of-2", f"run_{number}"):
            files.write_whole(tmp_path / name / "04.jsonl", json.dumps(row))
    for pattern, wanted in (("*-of-2", [True, True]), ("run_*", [True, False])):
        paths = sorted(map(str, tmp_path.glob(f"{pattern}/04.jsonl")))
        assert [scored for _, scored in read_verified(paths)] == wanted


def test_a_shard_that_was_killed_pays_nothing_twice(runs, tmp_path):
    names = ["queries.txt", "03_instructions.jsonl"]
    for name in names:
        (tmp_path / name).write_bytes((runs[3] / name).read_bytes())
    with FakeServer(answer, delay=0.05) as server:
        command = [sys.executable, "04_responses.py", "--model", "m", "--base-url", server.url]
        command += ["--in", str(tmp_path / names[1]), "--queries", str(tmp_path / names[0])]
        command += ["--queries-per-instruction", "2", "--k", "4", "--concurrency", "2"]
        command += ["--out", str(tmp_path / "04_responses.jsonl"), "--shard", "1/3"]
        process = subprocess.Popen(command, cwd=tiny_models.ROOT)
        while server.answered.total() < 8 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "1-of-3" / "04_responses.jsonl").exists()
        subprocess.run(command, cwd=tiny_models.ROOT, check=True)
        bought, in_flight = server.answered, 2
    wanted = runs["asked"][3]
    twice = {prompt: count for prompt, count in bought.items() if count != wanted[prompt]}
    # what was under way at the kill had no answer yet that could have been stored
    assert len(twice) <= in_flight and bought.keys() <= wanted.keys()
    made = (tmp_path / "1-of-3" / "04_responses.jsonl").read_bytes()
    assert made == (runs[3] / "1-of-3" / "04_responses.jsonl").read_bytes()


def test_another_number_of_shards_over_the_same_folder_is_refused_by_name(runs):
    stage = importlib.import_module("02_verifiers")
    flags = ["--model", "m", "--in", "x", "--out", str(runs[3] / "02_verifiers.jsonl")]
    with pytest.raises(UserError, match="--shard 0/4: .*[012]-of-3 is of another number of shards"):
        call(stage.main, [*flags, "--shard", "0/4"])
    assert not (runs[3] / "0-of-4").exists()


def test_a_stage_that_was_made_in_shards_is_not_made_again_beside_them(runs):
    stage = importlib.import_module("04_responses")
    flags = ["--model", "m", "--queries", "q", "--out", str(runs[3] / "04_responses.jsonl")]
    with pytest.raises(UserError, match=r"made in shards .*cat \S*/\*-of-3/04_responses.jsonl > "):
        parse(stage.main, flags)


@pytest.mark.parametrize("value", ["4/4", "1", "-1/4", "a/b", "1/0", "1/4/2"])
def test_a_shard_that_is_none_is_refused(value):
    stage = importlib.import_module("04_responses")
    with pytest.raises(UserError, match="--shard must be I/N with I from 0 to N - 1, not "):
        parse(stage.main, ["--model", "m", "--queries", "q", f"--shard={value}"])


def test_a_shard_has_all_that_it_writes_in_its_folder_and_names_what_comes_next(runs, capsys):
    stage = importlib.import_module("04_responses")
    flags = ["--model", "m", "--queries", "q", "--shard", "1/3", "--out", "of/04.jsonl"]
    _, args = parse(stage.main, [*flags, "--sft-out", "else/sft.jsonl"])
    assert (args.out, args.sft_out) == ("of/1-of-3/04.jsonl", "else/1-of-3/sft.jsonl")
    _, args = parse(stage.main, flags)
    assert args.sft_out == "of/1-of-3/04_sft.jsonl"
    wanted = "the other shards, then x --in of/*-of-3/04.jsonl --out of/05"
    assert args.then("x --in of/1-of-3/04.jsonl --out of/1-of-3/05") == wanted
    whole = parse(stage.main, flags[:4])[1]
    assert whole.then("x --out of/1-of-3/05") == "x --out of/1-of-3/05"


def test_a_row_of_two_files_under_one_id_is_named_with_both(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        (tmp_path / path).write_text('{"id": "i1"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl:1 has the id 'i1' of .*a\.jsonl:1"):
        files.read_all(paths, {"id": str})


def test_another_shard_is_another_setting(runs):
    made = json.loads((runs[3] / "1-of-3" / "04_responses.settings.json").read_text())
    stage = importlib.import_module("04_responses")
    _, args = parse(stage.main, ["--model", "m", "--queries", "q", "--shard", "2/3"])
    assert "--shard was 1/3, is 2/3" in list(settings.changes(made, args))


def test_the_page_of_shards_counts_what_that_of_one_run_counts(runs):
    report, parts = importlib.import_module("autoif.report.__main__"), []
    for count in (0, 3):
        call(report.main, [str(runs[count])])
        html = (runs[count] / "report.html").read_text(encoding="utf-8")
        funnel, _, responses = html.split("<footer>")[0].split("</h2>")[1:4]
        parts.append((funnel, responses))
    assert parts[0] == parts[1] and "with functions and cases that agree" in parts[0][0]


def test_a_shard_that_keeps_nothing_is_written_all_the_same(runs, tmp_path):
    rows = [row for row in files.read(runs[0] / "02_verifiers.jsonl") if row["id"] == "i4"]
    tiny_models.write(tmp_path / "02.jsonl", rows)  # "five", which its functions contradict
    stage, out = importlib.import_module("03_backtranslate"), tmp_path / "03_instructions.jsonl"
    flags = ["--model", "m", "--nli", "llm", "--in", str(tmp_path / "02.jsonl"), "--out", str(out)]
    with FakeServer(answer) as server:
        with pytest.raises(UserError, match="nothing was kept"):
            call(stage.main, [*flags, "--base-url", server.url])
        call(stage.main, [*flags, "--base-url", server.url, "--shard", "0/2"])
    assert list(files.read(tmp_path / "0-of-2" / out.name)) == []
    [lost] = files.read(tmp_path / "0-of-2" / "03_instructions.dropped.jsonl")
    assert lost["reason"] == "contradiction"
