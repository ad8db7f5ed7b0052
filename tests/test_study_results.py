"""The study's table and picture, made of the raw results that are committed."""

import gzip
import importlib.util
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_models import tokenizer

from autoif import files
from autoif.files import UserError

STUDY = Path(__file__).resolve().parents[1] / "study"
spec = importlib.util.spec_from_file_location("study_results", STUDY / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

COMMITTED = sorted((STUDY / "results").glob("seed_*.jsonl.gz"))
CELL = r"(?<=\| )[^|]+\](?= \|)"  # of a table: a number with its interval


def run_of(out: Path, answers: dict[str, list[bool]]) -> Path:
    """A folder as a run leaves it: for each model, whether each of its answers passes."""
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "run.log").write_text(f"-- {out}/05_sft: done in 12 s\n")
    (out / "07_results.json").write_text("[]")
    (out / "stats.json").write_text("{}")
    constraint = {"id": "i1", "instruction": "Use no commas", "family": "f", "split": "heldout"}
    with files.writer(out / "03_instructions.jsonl") as write:
        write(constraint)
    for model, passed in answers.items():
        folder = out / "07_items" / model
        folder.mkdir(parents=True)
        with files.writer(folder / "heldout.jsonl") as write:
            for number, each in enumerate(passed):
                point = ("", f"i1-{number}", each, 1)
                row = {"id": f"i1-{number}", "answers": ["a text"], "points": {"Held-out": [point]}}
                write(row)
    return out


@pytest.fixture
def two_seeds(tmp_path):
    paths = []
    for seed, online in (("seed_1", [1, 1, 1, 0]), ("seed_2", [1, 1, 0, 0])):
        out = run_of(tmp_path / "out" / seed, {"base": [1, 0, 0, 0], "online": online})
        paths.append(tmp_path / "results" / f"{seed}.jsonl.gz")
        results.collect(out, paths[-1])
    return paths


def changed(path: Path, **parts: list | None) -> None:
    """Put other rows into parts of a results file, or take the parts out."""
    whole = results.parts_of(path) | {name.replace("__", "/"): rows for name, rows in parts.items()}
    results.write_parts(path, {name: rows for name, rows in whole.items() if rows is not None})


def test_models_are_compared_on_shares_over_seeds_and_items_drawn_for_all(two_seeds):
    seeds, found = results.compared(two_seeds, ["base", "sft", "online"], "held-out")
    assert seeds == ["seed_1", "seed_2"] and list(found) == ["base", "online"]
    (value, low, high), (gain, least, _) = found["online"]
    assert value == pytest.approx(100 * 5 / 8) and low < value < high
    assert gain == pytest.approx(100 * (5 / 8 - 2 / 8))
    # no item is worse, whichever are drawn: apart, the intervals overlap
    assert least >= 0
    assert found["base"][1] == (0, 0, 0)
    assert results.compared(two_seeds, ["base", "online"], "IFEval") == ([], {})
    assert results.compared(two_seeds, ["sft", "online"], "held-out") == ([], {})


def test_models_are_compared_on_the_seeds_and_items_that_all_of_them_have(two_seeds):
    changed(two_seeds[1], online__heldout=None)
    changed(two_seeds[0], online__heldout=results.parts_of(two_seeds[0])["online/heldout"][:2])
    seeds, found = results.compared(two_seeds, ["base", "online"], "held-out")
    assert seeds == ["seed_1"]
    assert [number for (number, *_), _ in found.values()] == [50, 100]
    assert "held-out (seed 1)" in results.table_of(two_seeds, ["held-out"], results.MODELS)


def test_one_trained_model_is_compared_with_another_in_the_seeds_that_are_named(two_seeds):
    folder = two_seeds[0].parent
    text = results.compare(folder, ["online", "base"], ["2"])
    assert "| 1 | + SFT + online DPO, 2 iterations | 50.0 [" in text
    assert "| 2 - 1 | base - online | -25.0 [" in text
    with pytest.raises(UserError, match="seed_1.jsonl.gz has no held-out answers of sft"):
        results.compare(folder, ["base", "sft"], ["1", "2"])


def test_what_is_kept_of_a_run_has_no_texts_and_is_the_same_twice(two_seeds, tmp_path):
    again = tmp_path / "again.jsonl.gz"
    results.collect(tmp_path / "out" / "seed_1", again)
    assert again.read_bytes() == two_seeds[0].read_bytes()
    assert b"a text" not in gzip.decompress(again.read_bytes())
    assert results.parts_of(again)["seconds"] == [{"05_sft": 12}]
    assert set(results.points_of(again, "base", "heldout")) >= {"Held-out"}


def test_a_training_that_did_not_end_and_a_servers_copy_are_not_kept(tmp_path):
    out = run_of(tmp_path / "seed_1", {"base": [1]})
    for name in ("05_sft", "06_offline.state", ".05_sft.0ff0.bf16"):
        (out / name).mkdir()
        (out / name / "metrics.jsonl").touch()
    results.collect(out, tmp_path / "results.jsonl.gz")
    parts = results.parts_of(tmp_path / "results.jsonl.gz")
    assert [name for name in parts if name.endswith(".metrics")] == ["05_sft.metrics"]


def test_what_a_run_has_not_measured_again_stays(two_seeds, tmp_path):
    out = run_of(tmp_path / "less" / "seed_1", {"online": [0, 0, 0, 0]})
    before = results.parts_of(two_seeds[0])
    part = {"model": "online", "benchmark": "heldout", "served": "one"}
    changed(two_seeds[0], **{"07_results": [{**part, "model": "base"}, part]})
    files.write_whole(out / "07_results.json", json.dumps([{**part, "served": "two"}]))
    results.collect(out, two_seeds[0])
    after = results.parts_of(two_seeds[0])
    served = {each["model"]: each["served"] for each in after["07_results"]}
    assert served == {"base": "one", "online": "two"}
    assert after["base/heldout"] == before["base/heldout"]
    assert not any(row["points"]["Held-out"][0][2] for row in after["online/heldout"])


def test_what_a_trained_constraint_implies_by_reading_is_left_out_of_a_column(two_seeds):
    named = set()
    for line in (STUDY / "implied.tsv").read_text().splitlines()[1:]:
        named |= set(line.split("\t"))
    folders = [STUDY / "results", STUDY / "strong" / "results" / "smollm2"]
    for path in itertools.chain(*(folder.rglob("seed_1.jsonl.gz") for folder in folders)):
        named -= {row["instruction"] for row in results.parts_of(path)["constraints"]}
    assert not named
    [row] = results.parts_of(two_seeds[0])["constraints"]
    heldout = {**row, "instruction": "Use at most three sentences"}
    other = {**row, "id": "i2", "split": "train", "instruction": "Use no digits"}
    trained = {**other, "instruction": "The answer should only contain one sentence."}
    for rows, left in (([heldout, other], 4), ([heldout, trained], 0)):
        changed(two_seeds[0], constraints=rows)
        assert len(results.points_of(two_seeds[0], "base", "heldout")["not implied"]) == left


def test_the_cost_of_a_run_is_its_responses_rows_and_the_minutes_until_it_is_measured(tmp_path):
    out = run_of(tmp_path / "seed_1", {"base": [1]})
    made = {f"{out}/05_sft": 50, f"{out}/online_1/06_dpo": 70, f"{out}/07_items/base": 300}
    log = "".join(f"-- {name}: done in {time} s\n" for name, time in made.items())
    files.write_whole(out / "logs" / "run.log", log)
    # a token a byte: 24 of the prompt in its template, 4 and 5 of the responses with their end
    tokenizer("qwen2").save_pretrained(out / "base")
    user = [{"role": "user", "content": "query"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "nope"))
    for stage in (out, out / "online_1"):
        stage.mkdir(exist_ok=True)
        with files.writer(stage / "04_responses.jsonl") as write:
            write({"responses": [{"text": "yes"}, {"text": "nope"}]})
        with files.writer(stage / "06_pairs.jsonl") as write:
            write({"id": "p", "prompt": user, "chosen": good, "rejected": bad})
    with files.writer(out / "04_sft.jsonl") as write:
        write({"id": "s", "messages": user + good})
    assert results.cost(out) == "14 tokens sampled, 94 trained on, 2 minutes"


def test_a_greedy_answer_is_a_column_of_its_model(two_seeds):
    for path in two_seeds:
        changed(path, online_greedy__heldout=results.parts_of(path)["online/heldout"])
    changed(two_seeds[0], base_greedy__heldout=results.parts_of(two_seeds[0])["base/heldout"])
    sampled, greedy = (
        results.compared(two_seeds, ["base", "online"], column)
        for column in ("held-out", "greedy: held-out")
    )
    assert sampled == greedy


def test_shorter_answers_alone_are_no_gain_alike_in_length(tmp_path):
    path = tmp_path / "seed_1.jsonl.gz"
    for model, short in (("base", 5), ("online", 8)):  # of ten answers; the short ones pass
        rows = []
        for number in range(10):
            words, point = (5 if number < short else 80), ("", f"i1-{number}", number < short, 1)
            points = {"Held-out": [point], "Held-out other": [point]}
            points["words"] = [("", f"i1-{number}", words, 1)]
            rows.append({"points": points})
        changed(path, **{f"{model}__heldout": rows})
    gain, alike = (
        results.compared([path], ["base", "online"], column)[1]["online"][1][0]
        for column in ("not on length", "that, alike in length")
    )
    assert gain == pytest.approx(30) and alike == pytest.approx(0)


def test_tuning_holds_out_whole_families_of_the_training_side(tmp_path):
    path, out = tmp_path / "03_instructions.jsonl", tmp_path / "03_tuning.jsonl"
    with files.writer(path) as write:
        for number in range(40):
            side = "heldout" if number % 4 == 0 else "train"
            write({"id": f"i{number}", "family": f"f{number % 20}", "split": side})
    results.tuning(path, out)
    rows = list(files.read(out))
    assert {row["id"] for row in rows} == {f"i{number}" for number in range(40) if number % 4}
    sides = {}
    for row in rows:
        sides.setdefault(row["family"], set()).add(row["split"])
    assert all(len(each) == 1 for each in sides.values())
    assert sum(each == {"heldout"} for each in sides.values()) == 3


def test_a_folder_without_seeds_is_named(tmp_path):
    with pytest.raises(UserError, match="no seed_N.jsonl.gz"):
        results.write(tmp_path)
    results.parts_of.cache_clear()
    shutil.copy(STUDY / "results" / "tuning.jsonl.gz", tmp_path)  # study/tune.sh alone
    assert "| same |" in results.write(tmp_path)


def test_the_table_is_what_the_committed_results_make(tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(STUDY / "results", copy)
    assert results.write(copy) == (STUDY / "results" / "table.md").read_text()
    assert (copy / "bars.png").stat().st_size > 5_000


def test_the_numbers_of_the_readmes_tables_stand_in_the_studys():
    study = (STUDY / "results" / "table.md").read_text()
    section = (STUDY / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    cells = re.findall(CELL, "\n".join(rows))
    assert len(rows) == 2 * len(results.MODELS) - 1 and len(cells) > 6 * len(rows)
    assert [cell for cell in cells if f"| {cell} |" not in study] == []
    readme = (STUDY.parent / "README.md").read_text()
    cells = re.findall(CELL, readme.split("## Does it work?")[1].split("\n## ")[0])
    assert len(cells) == 4 * 3
    strong = (STUDY / "strong" / "results" / "smollm2" / "table.md").read_text()
    section = (STUDY / "README.md").read_text().split("## The second study")[1].split("\n- **")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d( - \d)? \|", line)]
    cells += re.findall(CELL, "\n".join(rows))
    assert len(cells) > 4 * 3 + 4 * len(rows) > 4 * 3
    strong = strong.replace("[+", "[").replace(", +", ", ")  # of a bound
    assert [cell for cell in cells if f"| {cell} of " not in strong] == []


def test_the_committed_results_are_small():
    assert COMMITTED
    sizes = [path.stat().st_size for path in (STUDY / "results").rglob("*") if path.is_file()]
    assert sum(sizes) < 1_500_000
