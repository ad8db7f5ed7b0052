"""The second study: what is held out and what leaks, its arms, its intervals and its table."""

import asyncio
import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from conftest import run_all
from scipy import stats

from autoif import files
from autoif.files import UserError
from autoif.flags import call
from study import results
from study.strong import data, effects, measures, table

ROOT = Path(__file__).resolve().parents[1]
STRONG = ROOT / "study" / "strong"
TINY = Path(__file__).parent / "strong"  # two seeds of a few answers, and the table of them


def write(path: Path, *rows: dict) -> Path:
    with files.writer(path) as line:
        for row in rows:
            line(row)
    return path


def constraint(name: str, instruction: str, body: str, *cases: str, split="train") -> dict:
    code = f"def evaluate(response):\n    return {body}"
    row = {"id": name, "instruction": instruction, "family": instruction, "split": split}
    row["cases"] = [{"input": case, "output": True, "accuracy": 1.0} for case in cases]
    return {**row, "verifiers": [{"code": code, "accuracy": 1.0}]}


# ---- what is held out ---------------------------------------------------------------------------


def test_what_is_held_out_are_33_constraints_of_24_families_and_of_all_four_kinds():
    rows = list(files.read(ROOT / "study" / "heldout.jsonl"))
    assert len(rows) == 33 and len({row["family"] for row in rows}) == 24
    assert {row["split"] for row in rows} == {"heldout"}
    assert Counter(row["kind"] for row in rows) == {
        "place": 12,
        "count": 9,
        "insert": 9,
        "forbid": 3,
    }
    assert [row["kind"] for row in rows] == [data.kind(row["instruction"]) for row in rows]


def test_three_splits_hold_out_24_families_each_and_share_none(tmp_path):
    rows = []
    for number in range(66):
        row = constraint(f"i{number}", f"Use the sign {number}", "True")
        rows.append({**row, "source": "augmented"})
    rows.append({**ASKS, "source": "augmented"})
    recorded = str(write(tmp_path / "03_instructions.jsonl", *rows))
    found = []
    for split in ("1", "2", "3"):
        out = tmp_path / f"{split}.jsonl"
        call(data.COMMANDS, ["heldout", recorded, "--out", str(out), "--split", split])
        found.append([row["family"] for row in files.read(out)])
    assert list(map(len, found)) == [1, 24, 24] and len(set(sum(found, []))) == 49
    families = []
    for name in ("heldout", "heldout_2", "heldout_3"):
        rows = list(files.read(ROOT / "study" / f"{name}.jsonl"))
        families.append({row["family"] for row in rows})
        assert {row["split"] for row in rows} == {"heldout"}
        assert min(Counter(row["kind"] for row in rows).values()) >= 3
    assert list(map(len, families)) == [24, 24, 24] and len(set.union(*families)) == 72


@pytest.mark.parametrize(
    "instruction, kind",
    [
        ("Use no digits", "forbid"),
        ('Speak of yourself as "we" and never as "I"', "forbid"),
        ("Let no sentence be longer than 12 words", "count"),
        ("Use a colon exactly once", "count"),
        ("Use at least one semicolon", "insert"),
        ('Use both the word "first" and the word "then"', "insert"),
        ("Give a link that starts with https://", "insert"),
        ("End the answer with a question mark", "place"),
        ("Put a comma in every sentence", "place"),
    ],
)
def test_a_constraint_is_of_the_kind_that_its_words_say(instruction, kind):
    assert data.kind(instruction) == kind


BEGINS = constraint(
    "i1",
    "Begin the answer with a question",
    "'?' in response.split('.')[0]",
    *(f"Did you know number {n}? It is so." for n in range(6)),
)
COLOUR = constraint(
    "i2", "Mention a colour", "'red' in response", *(f"It is red, {n} times." for n in range(6))
)
ASKS = constraint("h1", "Ask the reader a question", "'?' in response", "Why?", split="heldout")


def test_a_trained_constraint_leaks_where_the_texts_that_obey_it_obey_a_held_out_one():
    [pair] = asyncio.run(data.leaks([BEGINS, COLOUR], [ASKS], []))
    assert pair["given"] == BEGINS["instruction"] and pair["follows"] == ASKS["instruction"]
    assert pair["texts"] == pair["passes"] == 6 and pair["base"] < 0.2


def test_a_part_of_a_held_out_constraint_leaks_into_it():
    cases = [f"It is red, {n}, and blue." for n in range(6)]
    whole = constraint("h2", "Mention red and blue", "'blue' in response", *cases, split="heldout")
    few = {**COLOUR, "cases": []}
    [pair] = asyncio.run(data.leaks([few], [whole], []))
    assert (pair["id"], pair["given"]) == ("i2", "Mention red and blue")


def test_responses_count_beside_the_cases_and_only_what_the_own_functions_accept():
    few = {**COLOUR, "cases": COLOUR["cases"][:1]}
    texts = [f"Is it red, {n}?" for n in range(8)] + ["Is it blue?"]
    responses = [{"instruction_id": "i2", "responses": [{"text": text} for text in texts]}]
    [pair] = asyncio.run(data.leaks([few], [ASKS], responses))
    assert (pair["texts"], pair["passes"]) == (9, 8)
    assert not asyncio.run(data.leaks([few], [ASKS], []))  # of one text nothing can be said


def test_what_leaked_in_the_first_study_is_found():
    """By its recorded cases; the file has what leaks and each fourth of the other constraints."""
    rows = list(files.read(TINY / "first_study.jsonl"))
    heldout = list(files.read(ROOT / "study" / "heldout.jsonl"))
    found = asyncio.run(data.leaks(rows, heldout, []))
    leaking = {row["instruction"] for row in rows if row["id"] in {pair["id"] for pair in found}}
    assert leaking == {
        "Begin the answer with a question",
        'Write a question line that begins with "Q:" and an answer line that begins with "A:"',
        "Mention a time of day in digits, such as 14:30",
        "Give a link that starts with https://",
        'Give the answer as a JSON object with the key "answer"',
        'Include the word "first"',
        "Put a comma in every sentence",
        "Write at least two words entirely in capital letters",
    }


OTHERS = {
    "Write in lower case": "response.islower()",
    "Write in capital letters": "response.isupper()",
    "Finish with a hashtag": "response.split()[-1].startswith('#')",
    "Use fewer than nine words": "len(response.split()) < 9",
    "Mention a price in dollars": "'$' in response and response.count('$') == 1",
    "Repeat the first word at the end": "response.split()[0] == response.split()[-1]",
}


def dropped(tmp_path, *flags: str, others=()) -> dict[str, list[str]]:
    """{file of the run without leaks: ids of its rows}."""
    sibling = constraint("i3", "Ask the reader a question", "'?' in response", "Is it?")
    commas = constraint("i4", "Use no commas", "',' not in response", "One thing.")
    rows = [BEGINS, COLOUR, sibling, commas]
    for number, (instruction, body) in enumerate(others, 5):
        rows.append(constraint(f"i{number}", instruction, body, "a $ is one"))
    write(tmp_path / "03_instructions.jsonl", *rows)
    answers, samples = [], []
    for row in rows:
        answers.append({"id": f"{row['id']}.0", "instruction_id": row["id"], "responses": []})
        samples.append({"id": f"{row['id']}.0.0", "instruction_id": row["id"], "messages": []})
    write(tmp_path / "04_responses.jsonl", *answers)
    write(tmp_path / "04_sft.jsonl", *samples)
    heldout = write(tmp_path / "heldout.jsonl", {**ASKS, "kind": "insert"})
    out = tmp_path / "out"
    call(data.COMMANDS, ["drop", str(tmp_path), str(out), "--heldout", str(heldout), *flags])
    return {path.stem: [row["id"] for row in files.read(path)] for path in out.glob("*.jsonl")}


def test_what_leaks_and_what_is_of_a_held_out_family_is_dropped_by_name(tmp_path, capsys):
    rows = dropped(tmp_path)
    assert rows["03_instructions"] == ["i2", "i4", "h1"]
    assert rows["03_instructions.dropped"] == ["i1", "i3"]
    assert rows["04_responses"] == ["i2.0", "i4.0"] and rows["04_sft"] == ["i2.0.0", "i4.0.0"]
    said = capsys.readouterr().out
    assert "'Ask the reader a question' follows from 'Begin the answer with a question'" in said
    assert "data: 4 constraints in -> 2 kept" in said


@pytest.fixture(scope="module")
def strong_run(tmp_path_factory):
    """The second study's data, out of its recordings."""
    out = tmp_path_factory.mktemp("strong")
    (out / "base").mkdir()  # kept as it is: these stages need no model
    return run_all(out, "--study", "--until", "04", STUDY="strong")


def test_the_recordings_are_all_that_is_asked_for(strong_run):
    for recorded in (STRONG / "completions").glob("*.jsonl"):
        assert (strong_run / "completions" / recorded.name).read_bytes() == recorded.read_bytes()
    assert not list((strong_run / "logs").glob("serve_*"))
    stats = json.loads((strong_run / "stats.json").read_text())
    recorded = list(files.read(STRONG / "completions" / "02_verifiers.jsonl"))
    assert len(recorded) == stats["02_verifiers"]["completions"]


def test_of_the_recordings_what_is_left_beside_the_test_set_is_of_all_four_kinds(
    strong_run, tmp_path, capsys
):
    call(data.COMMANDS, ["drop", str(strong_run), str(tmp_path)])
    rows = list(files.read(tmp_path / "03_instructions.jsonl"))
    kinds = Counter(row["kind"] for row in rows if row["split"] == "train")
    assert kinds.total() >= 70 and min(kinds.values()) >= 15
    assert len(list(files.read(tmp_path / "04_sft.jsonl"))) >= 400


def test_settings_are_tuned_on_trained_families_alone(tmp_path):
    rows = dropped(tmp_path, "--tuning", others=OTHERS.items())
    names = {f"i{number}" for number in (2, *range(4, 11))}
    assert set(rows["03_instructions"]) == names
    trained = {name.split(".")[0] for name in rows["04_sft"]}
    assert 0 < len(names - trained) < len(trained)


def test_every_arm_takes_the_same_pairs_of_cases_and_as_many_of_responses(tmp_path):
    rows = []
    for level, count in (("instruction", 12), ("online", 9)):
        rows += [{"id": f"{level}/{n}", "level": level} for n in range(count)]
    path = str(write(tmp_path / "all.jsonl", *rows))

    def take(*flags: str) -> list[str]:
        out = str(tmp_path / "pairs.jsonl")
        call(data.COMMANDS, ["take", path, out, "--responses", "4", *flags])
        return [row["id"] for row in files.read(out)]

    whole = take("--instruction", "8")
    halves = [take("--instruction", "4"), take("--instruction", "4", "--skip", "4")]
    assert len(whole) == 12 and [len(half) for half in halves] == [8, 8]
    cases = [[name for name in names if name.startswith("inst")] for names in (*halves, whole)]
    assert cases[0] + cases[1] == cases[2]
    with pytest.raises(UserError, match="has 12 pairs of level instruction, and 14 are wanted"):
        take("--instruction", "4", "--skip", "10")
    take("--instruction", "4", "--no-end")
    rows = files.read(tmp_path / "pairs.jsonl")
    assert [row["truncated"] for row in rows] == [["chosen", "rejected"]] * 8


def test_of_alike_pairs_chosen_sides_are_as_long_as_rejected_ones_and_brevity_is_left_out():
    rows = []
    for chosen, rejected in ((1, 9), (2, 6), (3, 4), (5, 5), (8, 3)):
        sides = {"chosen": "word " * chosen, "rejected": "word " * rejected}
        rows.append({name: [{"content": text}] for name, text in sides.items()})
    assert data.alike(rows) == rows[1:]  # -4 -1 +0 +5
    assert data.alike(rows[2:]) == rows[2:]


# ---- arms ---------------------------------------------------------------------------------------

STUBS = """
set -euo pipefail
export STUDY=strong SEED=3 OUT="$1"
source autoif/run.sh
settings study/settings.sh
MAIN=$OUT HERE=$OUT/variants
python() { echo python "$@"; }
train() { echo train "$@"; }
heldout() { echo heldout "$@"; }
sft() { echo sft "$@"; }
source study/strong/arms.sh
shift
for name in "$@"; do variant "$name"; done
"""


def arms(tmp_path, *names: str) -> list[str]:
    """The commands of arms, none of which is run."""
    command = ["bash", "-c", STUBS, "arms", "out", *names]
    env = {**os.environ, "PWD": str(tmp_path)}
    for name in ("study", "live", "autoif"):
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "out").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def value(command: str, flag: str) -> str:
    """The value of a flag that counts: the last."""
    words = command.split()
    return words[len(words) - words[::-1].index(flag)]


def test_offline_and_online_have_as_many_pairs_of_each_level(tmp_path):
    lines = arms(tmp_path, "offline", "online_fixed")
    takes = [line for line in lines if "data.py take" in line]
    counts = [
        (int(value(line, "--instruction")), int(value(line, "--responses"))) for line in takes
    ]
    assert len(counts) == 3
    assert np.array_equal(counts[0], np.sum(counts[1:], axis=0))
    assert sum(counts[1]) % 8 == 0  # no batch is filled up: as many steps
    assert [value(line, "--skip") for line in takes] == ["0", "0", str(counts[1][0])]
    levels = [line for line in lines if "06_dpo.py pairs" in line]
    assert all("out/03_instructions.jsonl" in line for line in levels)


def test_another_split_has_its_own_folder_results_and_numbers_of_pairs():
    command = "source study/settings.sh && echo $OUT $RESULTS $PAIRS_OF_CASES $PAIRS_OF_RESPONSES"
    env = {**os.environ, "STUDY": "strong", "SPLIT": "2"}
    said = subprocess.check_output(["bash", "-c", command], cwd=ROOT, env=env, text=True)
    out, collected, *pairs = said.split()
    assert out == "out/strong/smollm2/split_2/seed_1"
    assert collected == "out/strong/results/smollm2/split_2"
    # halves of them, and batches of eight, are whole
    assert sum(map(int, pairs)) % 16 == 0 and all(int(number) % 2 == 0 for number in pairs)


def test_the_reference_is_the_sft_model_or_each_iterations_start(tmp_path):
    lines = arms(tmp_path, "online_moving", "online_from_offline")
    trained = {}
    for line in lines:
        if "--reference" in line and line.startswith("train"):
            trained[value(line, "--out")] = (value(line, "--model"), value(line, "--reference"))
    of = "out/variants"
    fixed, offline = f"{of}/online_fixed/online_1/06_dpo", f"{of}/offline/06_offline"
    assert trained[fixed] == ("out/05_sft", "out/05_sft")
    moving = f"{of}/online_moving/online_1/06_dpo"
    assert trained[f"{of}/online_moving/online_2/06_dpo"] == (moving, moving)
    from_offline = trained[f"{of}/online_from_offline/online_1/06_dpo"]
    assert from_offline == (offline, "out/05_sft")


def test_the_rounding_arms_round_every_training_and_the_others_none(tmp_path):
    lines = arms(tmp_path, "offline", "offline_bf16", "online_fixed_bf16", "offline_responses")
    for line in filter(lambda line: line.startswith("train"), lines):
        rounded = value(line, "--precision") == "bf16"
        assert rounded == ("bf16/" in value(line, "--out") + "/") == ("export-dtype bf16" in line)
    assert sum("05_sft.py" in line for line in lines) == 2  # once it is there
    responses = [line for line in lines if "offline_responses/06_pairs" in line and "take" in line]
    assert value(responses[0], "--instruction") == "0"


def test_endings_of_an_arms_name_stand_behind_each_other(tmp_path):
    lines = arms(tmp_path, "offline_responses_bf16", "without_end_alike_beta_0.5")
    first, second = (line for line in lines if "data.py take" in line)
    assert value(first, "--instruction") == "0" and "--alike" not in first
    assert "--alike --no-end" in second and value(second, "--instruction") != "0"
    trained = [line for line in lines if line.startswith("train 06_dpo.py")]
    assert [value(line, "--precision") for line in trained] == ["bf16", "fp32"]
    assert value(trained[0], "--model") == "out/variants/sft_bf16/05_sft"
    assert value(trained[1], "--beta") == "0.5"


@pytest.mark.parametrize("name", ["sft_lr_1e-4", "base_bf16", "no_score_bf16", "offlne", "no_nli"])
def test_a_name_that_is_no_arm_is_refused(tmp_path, name):
    with pytest.raises(AssertionError, match=f"error: no variant {name}"):
        arms(tmp_path, name)


def test_a_try_is_offline_dpo_with_the_settings_changed_that_its_name_says(tmp_path):
    names = ["offline", "without_end", "offline_sft-weight_0.2", "offline_lr_1e-5_sft-weight_0"]
    lines = arms(tmp_path, *names)
    takes = [line for line in lines if "data.py take" in line]
    assert ["--no-end" in line for line in takes] == [False, True, False, False]
    trained = [line for line in lines if line.startswith("train")]
    assert [Path(value(line, "--out")).parent.name for line in trained] == names
    assert [value(line, "--sft-weight") for line in trained] == ["1", "1", "0.2", "0"]
    assert [value(line, "--lr") for line in trained] == ["5e-5", "5e-5", "5e-5", "1e-5"]


def test_a_setting_goes_with_every_training_of_an_online_arm_and_its_first_iteration(tmp_path):
    lines = arms(tmp_path, "online_moving_lr_2e-5", "online_from_offline_beta_0.5")
    trained = {value(line, "--out"): line for line in lines if line.startswith("train")}
    assert len(trained) == 7  # two of online_fixed, two of online_moving, and three
    for out, line in trained.items():
        wanted, other = ("lr", "beta") if "lr_2e-5" in out else ("beta", "lr")
        assert value(line, f"--{wanted}") == out.split(f"_{wanted}_")[1].split("/")[0]
        assert value(line, f"--{other}") in ("0.3", "5e-5")


def test_flags_of_the_environment_come_last_in_every_arm(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGS_06", "--lr 1e-6")
    lines = arms(tmp_path, "offline", "online_fixed")
    trained = [line for line in lines if line.startswith("train 06_dpo.py")]
    assert len(trained) == 3 and {value(line, "--lr") for line in trained} == {"1e-6"}


def test_arms_of_other_pairs_begin_with_the_responses_that_are_there(tmp_path):
    first = tmp_path / "out" / "variants" / "online_fixed" / "online_1" / "04_responses.jsonl"
    write(first, {"id": "r"})
    lines = arms(tmp_path, "online_fixed_alike", "offline_alike", "offline_alike_lr_1e-5")
    assert [line.endswith("--alike") for line in lines if "data.py take" in line] == [True] * 4
    assert value(lines[-3], "--out") == "out/variants/offline_alike_lr_1e-5/06_offline"
    assert sum("04_responses.py" in line for line in lines) == 1  # the second iteration's
    linked = tmp_path / "out" / "variants" / "online_fixed_alike" / "online_1" / first.name
    assert list(files.read(linked)) == [{"id": "r"}]


# ---- beside stage 07 ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.checkpoint(tmp_path_factory.mktemp("model") / "policy", "smollm2")


def test_before_it_learns_a_policy_that_is_its_reference_has_no_margin(tmp_path, model):
    pair = {"id": "p", "level": "online", "prompt": [{"role": "user", "content": "query"}]}
    pair["chosen"] = [{"role": "assistant", "content": "yes"}]
    pair["rejected"] = [{"role": "assistant", "content": "no, no"}]
    case = {**pair, "level": "instruction"}
    path, out = write(tmp_path / "06_pairs.jsonl", pair, case), tmp_path / "before"
    flags = ["pairs", str(model), "--reference", str(model), "--in", str(path), "--out", str(out)]
    call(measures.COMMANDS, [*flags, "--beta", "0.3"])
    [row] = files.read(out / "metrics.jsonl")
    assert row["margin"] == row["accuracy of responses"] == 0 and row["pairs"] == 2


def test_an_answer_is_near_the_query_whose_words_it_shares_and_an_empty_one_near_none(tmp_path):
    heldout = write(tmp_path / "03.jsonl", ASKS)
    items = []
    for number, query in enumerate(("Why is the sky blue?", "How is cheese made?")):
        prompt = f"{query}\n{ASKS['instruction']}"
        for sample, text in enumerate(("Blue light is scattered in the sky.", " ")):
            item = {"id": f"h1-{number}", "sample": sample, "prompt": prompt, "answers": [text]}
            items.append(item)
    path = write(tmp_path / "heldout.jsonl", *items)
    call(measures.COMMANDS, ["topic", str(path), "--heldout", str(heldout)])
    rows = files.read(tmp_path / "topic.jsonl")
    near = [row["points"]["TF-IDF"][0][2] for row in rows]
    assert near == [True, False, False, False]


# ---- intervals ----------------------------------------------------------------------------------


def test_of_one_seed_the_interval_is_students_over_families():
    values = np.random.default_rng(0).normal(5, 2, (1, 24))
    low, high = stats.ttest_1samp(values[0], 0).confidence_interval()
    assert effects.interval(values) == pytest.approx((values.mean(), low, high))


def test_where_families_agree_the_interval_is_students_over_seeds():
    seeds = np.array([1.0, 4.0, 2.5, 3.0])
    low, high = stats.ttest_1samp(seeds, 0).confidence_interval()
    values = np.repeat(seeds[:, None], 24, axis=1)
    assert effects.interval(values) == pytest.approx((seeds.mean(), low, high))


def test_the_components_of_a_table_by_hand():
    # two seeds that differ by 2, three families that differ by 3, and nothing else
    values = np.array([[0.0, 3.0, 6.0], [2.0, 5.0, 8.0]])
    assert effects.components(values) == pytest.approx((2.0, 9.0, 0.0))
    deviation, freedom = effects.error((2.0, 9.0, 0.0), seeds=2, clusters=3)
    assert deviation**2 == pytest.approx(2 / 2 + 9 / 3)
    # Satterthwaite: 4^2 / (1^2 / 1 + 3^2 / 2)
    assert freedom == pytest.approx(16 / 5.5)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_truth_nineteen_times_of_twenty(seeds):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0, 2, (seeds, 1)) + rng.normal(0, 10, 24)
        _, low, high = effects.interval(values + rng.normal(0, 8, (seeds, 24)))
        covered += low < 0 < high
    assert covered >= 0.93 * 400


def test_a_column_is_the_mean_of_what_its_clusters_add():
    sums_CM2 = np.random.default_rng(0).random((24, 2, 2)) + [0, 1]
    shares = sums_CM2[..., 0].sum(axis=0) / sums_CM2[..., 1].sum(axis=0)
    assert effects.of_clusters(sums_CM2).mean() == pytest.approx(shares.mean())
    # of equal clusters each adds its own share
    equal = np.stack([np.arange(4.0), np.full(4, 5.0)], axis=-1)[:, None]
    assert effects.of_clusters(equal) == pytest.approx(np.arange(4) / 5)


def test_smaller_differences_take_more_seeds_and_some_more_families():
    rng = np.random.default_rng(0)
    values = np.array([[-2.0], [0.0], [2.0]]) + rng.normal(0, 1, 24) + rng.normal(0, 4, (3, 24))
    large, small = (effects.seeds_needed(values, difference) for difference in (8, 4))
    assert large < small
    apart = values + rng.normal(0, 20, 24)
    assert effects.seeds_needed(apart, 4) is None
    # it does what it promises: with so many seeds the difference is found in four of five
    seed, cluster, rest = effects.components(values)
    found = 0
    for _ in range(400):
        drawn = rng.normal(4, seed**0.5, (small, 1)) + rng.normal(0, cluster**0.5, 24)
        _, low, _ = effects.interval(drawn + rng.normal(0, rest**0.5, (small, 24)))
        found += low > 0
    assert found / 400 > effects.POWER - 0.1


# ---- table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [TINY, STRONG / "results" / "smollm2"])
def test_table_and_picture_are_what_raw_results_make(tmp_path, folder):
    copy = tmp_path / "strong"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.png"))
    assert table.write(copy) == (folder / "table.md").read_text()
    assert (copy / "bars.png").stat().st_size > 5_000
    if folder != TINY:  # whose first iteration is online_fixed's
        assert "| online_moving | 2 |" in (folder / "table.md").read_text()


def test_families_stand_beside_each_interval_and_gains_are_paired(tmp_path):
    paths = sorted(TINY.glob("seed_*"))
    seeds, found = table.by_families(paths, ["base", "offline"], "held-out")
    assert seeds == ["seed_1", "seed_2"]
    (number, *_, families), (gain, low, high, _) = found["offline"]
    rows = results.parts_of(paths[0])["constraints"]
    heldout = [row for row in rows if row["split"] == "heldout"]
    assert families == len({row["family"] for row in heldout}) < len(heldout)
    apart = number - found["base"][0][0]
    assert gain == pytest.approx(apart) and low < gain < high
    text = (TINY / "table.md").read_text()
    assert f"] of {families} |" in text and "| online_fixed | 2 |" in text


def test_over_splits_families_are_counted_together_and_seeds_are_averaged(tmp_path):
    shutil.copytree(TINY, tmp_path / "strong")
    shutil.copytree(TINY, tmp_path / "strong" / "split_2")
    (tmp_path / "strong" / "split_2" / "seed_2.jsonl.gz").unlink()
    paths = sorted((tmp_path / "strong").rglob("seed_*"))
    models = ["base", "offline"]
    _, found = table.by_families(paths, models, "held-out")
    (number, *_, families), (gain, low, high, _) = found["offline"]
    each = []
    for folder in ("strong", "strong/split_2"):
        of_split = sorted((tmp_path / folder).glob("seed_*"))
        _, shown = table.by_families(of_split, models, "held-out")
        each.append(shown["offline"])
    assert families == 2 * each[0][0][-1]
    assert number == pytest.approx((each[0][0][0] + each[1][0][0]) / 2)
    assert gain == pytest.approx((each[0][1][0] + each[1][1][0]) / 2) and low < gain < high
    text = table.write(tmp_path / "strong")
    assert "Split 2:\n" in text and "All splits, of each the mean of its seeds" in text
    assert f"] of {families} |" in text


def test_how_many_seeds_a_difference_takes_is_one_line(capsys):
    flags = ["seeds", "base", "offline", "--seeds", "1", "2", "--difference", "20"]
    call(table.COMMANDS, [*flags, "--results", str(TINY)])
    said = capsys.readouterr().out
    assert said.startswith("held-out, offline - base: a difference of 20 takes ")
    with pytest.raises(UserError, match="two at least"):
        call(table.COMMANDS, [*flags[:5], *flags[6:], "--results", str(TINY)])
    with pytest.raises(UserError, match="no IFBench of both base and offline"):
        call(table.COMMANDS, [*flags, "--column", "IFBench", "--results", str(TINY)])


def test_tries_alone_have_a_table(tmp_path):
    committed = STRONG / "results" / "smollm2"
    shutil.copy(committed / "tuning.jsonl.gz", tmp_path)
    text = table.write(tmp_path)
    assert text in (committed / "table.md").read_text()
    assert not (tmp_path / "bars.png").exists()


def test_the_students_topics_are_those_of_its_own_draw_in_each_seed():
    paths = sorted((STRONG / "results" / "smollm2").glob("seed_[123].jsonl.gz"))
    shares = [results.totals([path], "base", "on topic by TF-IDF") for path in paths]
    assert len({str(share.popitem()[1]) for share in shares}) == len(paths) == 3


def test_every_answer_of_a_seed_can_be_read(tmp_path):
    row = {"id": "h1-0", "sample": 0, "prompt": "q", "answers": ["a text"], "verdict": True}
    run = tmp_path / "seed_1"
    write(run / "07_items" / "base" / "heldout.jsonl", {**row, "relevant": False})
    call(table.COMMANDS, ["texts", str(run), "--results", str(tmp_path)])
    parts = results.parts_of(tmp_path / "texts_seed_1.jsonl.gz")
    assert json.dumps(parts["base"]).count("a text") == 1


def test_measures_of_topic_stand_beside_what_readers_say(tmp_path):
    row = {"query": "q", "answer": "a", "encoder": True, "TF-IDF": False, "own query": True}
    rows = [{**row, "readers": [True, True]}, {**row, "readers": [True, False]}]
    other = {"encoder": False, "TF-IDF": True, "own query": False}
    rows.append({**row, **other, "readers": [False, False]})
    said = table.readers(write(tmp_path / "read.jsonl", *rows)).splitlines()
    assert "| the other reader | 2 of 3 |" in said[2]
    assert "| encoder | 2 of 2 | 1.00 |" in said[3] and "| TF-IDF | 0 of 2 | -1.00 |" in said[4]


def test_what_is_committed_of_the_second_study_is_small():
    sizes = [path.stat().st_size for path in STRONG.rglob("*") if path.is_file()]
    assert sum(sizes) < 6_000_000
