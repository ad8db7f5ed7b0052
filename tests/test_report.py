"""The page of a run: what it shows, what it escapes, and that it works in a browser."""

import json
import re
import shutil
import subprocess
from collections import Counter

import pytest
import tiny_models
from example_run import HOSTILE, MODELS

from autoif import files
from autoif.evaluation import results
from autoif.files import UserError
from autoif.flags import call
from autoif.report.__main__ import main
from autoif.report.against import aligned
from autoif.report.gather import responses
from autoif.report.page import cell, spread

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page(whole_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    call(main, [str(whole_run), "--to", str(path)])
    return path


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


def data(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL).group(1))


def browser(url: str, *flags: str, folder) -> tuple[str, list[str]]:
    """(standard output, console messages) of headless Chromium on `url`."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        + ["--disable-background-networking", f"--user-data-dir={folder}", *flags, url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, said


def cards(dom: str) -> list[str]:
    return re.findall(r"<article.*?</article>", dom, re.DOTALL)


# ---- what it shows ----


def test_the_page_has_every_part_of_a_whole_run(html):
    found = re.findall(r'<section id="(\w+)"', html)
    assert found == ["funnel", "verifiers", "responses", "training", "results", "samples"]
    # functions, cases, accuracy, agreement; pass rates, lengths of both sides
    assert len(re.findall("[▁-█]{10}", html)) == 7 and html.count("<figure>") == 2
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,(\w{20})', html)
    assert [name for name, _ in pictures] == ["05_sft, curves", "06_offline, curves", "results"]


def test_the_funnel_stands_beside_the_papers_table_5(whole_run, html):
    stats = json.loads((whole_run / "stats.json").read_text())["04_responses"]
    assert f"<b>{stats['kept']:,}</b> SFT rows of {stats['in']:,}" in html
    for reason, count in stats["dropped"].items():
        assert f"<li>{reason} <b>{count:,}</b></li>" in html
    assert "<th>paper, Qwen2-72B</th><td>123,000</td><td>10,000</td><td>4,000</td>" in html


def test_outcomes_of_the_samples_are_those_of_stage_04(whole_run, html):
    kept = {row["id"] for row in files.read(whole_run / "04_sft.jsonl")}
    dropped = [row["reason"] for row in files.read(whole_run / "04_responses.dropped.jsonl")]
    shown = []
    for row in data(html)["prompts"]:
        for number, response in enumerate(row["responses"]):
            shown.append(response["outcome"])
            assert (response["outcome"] == "kept") == (f"{row['id']}.{number}" in kept)
    assert sorted(shown) == sorted(dropped + ["kept"] * len(kept))


def test_chosen_and_rejected_are_those_of_the_pairs(whole_run, html):
    sides = set()
    for row in files.read(whole_run / "06_pairs.jsonl"):
        if row["level"] == "query":
            prompt = row["id"].split("/")[0]
            sides |= {(prompt, row[side][0]["content"], side) for side in ("chosen", "rejected")}
    shown = set()
    for row in data(html)["prompts"]:
        for response in row["responses"]:
            if response["side"]:
                shown.add((row["id"], response["text"], response["side"]))
    assert shown == sides


def test_all_verifiers_are_probed_and_their_shares_shown(html):
    rows = dict(re.findall(r"<tr><th>([\w ]+)</th><td>(\d+) %</td><td>\d+ %</td>", html))
    assert set(rows) == {
        *("empty answer", "prompt copied", "constraint repeated"),
        *("keyword stuffing", "constant answer"),
    }
    assert all(0 < int(share) < 100 for share in rows.values())


def test_the_page_names_its_models_date_and_commit(whole_run, html):
    note = re.search(r"<p class=note>Made with: (.*?)</p>", html).group(1)
    settings = json.loads((whole_run / "01_instructions.settings.json").read_text())
    for words in ("supervisor recorded-supervisor", "base model base", "NLI llm"):
        assert words in note
    assert f"date {settings['date']}" in note and f"commit {settings['commit']}" in note
    assert "/" not in note  # no folder of this machine


def test_the_page_has_the_differences_to_the_first_model_with_their_intervals(whole_run, html):
    part = html.split("<h3>Differences</h3>")[1].split("</table>")[0]
    lines = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", part)[1:]
    assert {name for name, _ in lines} == {
        f"{name} - base" for name in ("sft", "offline", "online")
    }
    printed = results.compare(whole_run / "07_results.json", "base", "online").splitlines()[2:]
    wanted = [line.strip("| ").split(" | ") for line in printed]
    shown = [re.findall("<td>(.*?)</td>", cells) for name, cells in lines if name.startswith("onl")]
    assert shown == wanted and any("[" in cell for cell in shown[0])


def test_the_page_names_the_judge_and_stars_a_part(tmp_path):
    row = {"model": "m", "benchmark": "infobench", "partial": False, "unanswered": 1, "missing": 0}
    row |= {"settings": {"judge": "j"}, "metrics": {"InfoBench": {"value": 0.5, "low": None}}}
    (tmp_path / "07_results.json").write_text(json.dumps([{**row, "versions": {}, "items": "i"}]))
    (tmp_path / "stats.json").write_text('{"01_seed_augment": {"in": 1, "kept": 1, "dropped": {}}}')
    call(main, [str(tmp_path), "--to", str(tmp_path / "report.html")])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "InfoBench (judge j)" in html and ">50.0*</td>" in html


# ---- before and after ----


def items(whole_run) -> dict[str, dict[str, dict]]:
    """{prompt and sample: {model: row of 07_items}}"""
    found = {}
    for model in MODELS:
        for row in files.read(whole_run / "07_items" / model / "heldout.jsonl"):
            found.setdefault(f"{row['id']}.{row['sample']}", {})[model] = row
    return found


def became(base: dict, row: dict) -> list[str]:
    words = {(False, True): ["now passes"], (True, False): ["no longer passes"]}
    left = ["left its query"] if base["relevant"] and not row["relevant"] else []
    return words.get((base["verdict"], row["verdict"]), []) + left


def test_the_answers_of_all_models_stand_side_by_side_with_what_changed(whole_run, html):
    wanted, seen = items(whole_run), set()
    shown = data(html)["answers"]
    assert len(shown) == min(300, len(wanted))
    for row in shown:
        of_models = wanted[row["id"]]
        assert [each["model"] for each in row["responses"]] == list(MODELS)
        for each in row["responses"]:
            item = of_models[each["model"]]
            assert row["prompt"] == item["prompt"] and each["text"] == item["answers"][0]
            assert each["verdicts"] == item["verdicts"]
            assert each["outcome"] == ("passes" if item["verdict"] else "fails")
            assert each["changes"] == became(of_models["base"], item)
            seen.update(each["changes"])
    assert {"now passes", "no longer passes"} <= seen


@pytest.mark.parametrize("only", ["now passes", "no longer passes"])
def test_the_terminal_shows_the_answers_side_by_side(whole_run, capsys, only):
    call(main, [str(whole_run), "--models", "2", "--only", only])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    for block in blocks:
        of_models = items(whole_run)[block.splitlines()[0]]
        lines = block.splitlines()[-len(MODELS) :]
        for model, line in zip(MODELS, lines):
            item = of_models[model]
            outcome = ["passes" if item["verdict"] else "fails", *became(of_models["base"], item)]
            text = " ".join(item["answers"][0].split())[:200]
            assert line == f"  {model} [{', '.join(outcome)}]: {text}"
        assert only in block
    assert len(blocks) == 2


def test_without_two_models_there_is_nothing_to_put_side_by_side(tmp_path):
    with pytest.raises(UserError, match="has no held-out prompt with answers of two models$"):
        call(main, [str(tmp_path), "--models", "2"])


@needs_chromium
def test_the_page_filters_by_what_became_of_a_models_answers(page, html, tmp_path):
    url = f"{page.as_uri()}#view=models&outcome=online+now+passes"
    dom, console = browser(url, "--dump-dom", folder=tmp_path)
    wanted = 0
    for row in data(html)["answers"]:
        wanted += "now passes" in row["responses"][-1]["changes"]
    assert not console and wanted and f"{wanted} of " in dom
    assert len(cards(dom)) == min(wanted, 40)
    for card in cards(dom):
        assert card.count('class="response"') == len(MODELS) and ">now passes</span>" in card


# ---- looked at again ----


@pytest.mark.parametrize(
    "before, after, functions",
    [
        ("abc", "abc", [(0, 0, "1"), (1, 1, "2"), (2, 2, "3")]),
        ("abc", "bx", [(1, 0, "1"), (0, 1, "2, changed"), (2, None, "3, gone")]),
        ("a", "ba", [(0, 1, "2"), (None, 0, "1, new")]),
        ("aa", "a", [(0, 0, "1"), (1, None, "2, gone")]),
    ],
)
def test_functions_are_told_by_their_code(before, after, functions):
    assert aligned(list(before), list(after)) == functions


def again(whole_run, tmp_path, change) -> list[str]:
    """Stage 04 once more on the answers of the run, with `change` made to its first constraint."""
    rows = list(files.read(whole_run / "03_instructions.jsonl"))
    first = next(row for row in rows if row["split"] == "train")
    change(first)
    tiny_models.write(tmp_path / "changed.jsonl", rows)
    store = whole_run / "completions" / "04_responses.jsonl"
    stored, queries = store.read_bytes(), tiny_models.ROOT / "demo" / "queries.txt"
    flags = ["--model", "policy", "--in", tmp_path / "changed.jsonl", "--queries", queries]
    flags += ["--queries-per-instruction", 4, "--k", 6, "--store", store, "--no-score"]
    flags += ["--out", tmp_path / "again" / "04_responses.jsonl"]
    call(tiny_models.stage("04_responses").main, list(map(str, flags)))
    assert store.read_bytes() == stored  # nothing was asked
    return first["id"]


def test_another_function_on_the_same_answers_asks_nothing_and_its_verdicts_are_told(
    whole_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    code = "def evaluate(response): return len(response) % 2 == 0"

    def change(row):
        row["verifiers"] = [{"code": code, "accuracy": 1.0}]

    identity = again(whole_run, tmp_path, change)
    wanted, shared = Counter(), 0
    for row in files.read(whole_run / "04_responses.jsonl"):
        shared += len(row["responses"])
        for response in row["responses"] if row["instruction_id"] == identity else []:
            accepted = len(response["text"]) % 2 == 0
            new, (old, *others) = "pass" if accepted else "fail", response["verdicts"]
            if old != new:
                wanted["1, changed", f"{old} -> {new}"] += 1
            for place, verdict in enumerate(others, 2):
                wanted[f"{place}, gone", f"{verdict} -> none"] += 1
            if accepted != (response["accuracy"] > 0.5):
                wanted["all", "now accepted" if accepted else "no longer accepted"] += 1
    capsys.readouterr()
    call(main, [str(tmp_path / "again"), "--against", str(whole_run)])
    said = capsys.readouterr().out
    assert said.startswith(f"{shared:,} answers of both")
    told = {}
    for line in said.splitlines()[3:]:
        if line.startswith("| "):
            title, function, verdicts, count = line.strip("| ").split(" | ")
            told[function, verdicts] = int(count)
            assert title.startswith(f"{identity}: ")
    assert told == wanted and {"1, changed", "all"} <= {function for function, _ in told}
    html = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    part = html.split('<section id="against">')[1].split("</section>")[0]
    for (function, verdicts), count in told.items():
        shown = verdicts.replace(">", "&gt;")
        assert f"<td>{function}</td><td>{shown}</td><td>{count}</td>" in part


def test_the_same_run_once_more_has_no_other_verdict(whole_run, tmp_path, capsys):
    call(main, [str(whole_run), "--against", str(whole_run), "--to", str(tmp_path / "page.html")])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No verdict changed." in html and "| i" not in capsys.readouterr().out


def test_a_run_on_other_answers_is_refused(whole_run, tmp_path):
    row = next(iter(files.read(whole_run / "04_responses.jsonl")))
    tiny_models.write(tmp_path / "04_responses.jsonl", [{**row, "prompt": "another"}])
    with pytest.raises(UserError, match="have no answer in common"):
        call(main, [str(whole_run), "--against", str(tmp_path)])
    with pytest.raises(UserError, match="none/04_responses.jsonl does not exist; run 04_resp"):
        call(main, [str(whole_run), "--against", str(tmp_path / "none")])


@pytest.mark.parametrize(
    "values, words",
    [
        ([0.5, 1.0, 1.0], "0.5 ▅▁▁▁▁▁▁▁▁█ 1, median 1"),
        ([3], "3 █▁▁▁▁▁▁▁▁▁ 3, median 3"),
        ([], "none"),
    ],
)
def test_a_distribution_is_a_line_of_signs(values, words):
    assert spread(values) == words


# ---- what models wrote ----


def test_a_response_cannot_leave_its_script_tag(html):
    assert HOSTILE not in html and html.count("<img") == html.count('<img alt="')
    texts = [each["text"] for row in data(html)["prompts"] for each in row["responses"]]
    assert HOSTILE in texts  # whole, as a text


def test_a_drop_reason_and_a_model_name_are_escaped(whole_run, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("01_instructions.jsonl", "stats.json", "07_results.json"):
        text = (whole_run / name).read_text(encoding="utf-8")
        (out / name).write_text(
            text.replace("near duplicate", "<i>near").replace('"offline"', '"<i>offline"')
        )
    call(main, [str(out)])
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<i>near" not in html and "<i>offline" not in html
    assert "&lt;i&gt;near" in html and "&lt;i&gt;offline" in html


# ---- parts of a run, and large ones ----


def test_a_partial_run_gives_a_page_of_what_is_there(whole_run, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("01_instructions", "01_instructions.dropped", "02_verifiers"):
        shutil.copy(whole_run / f"{name}.jsonl", out)
    call(main, [str(out)])
    html = (out / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', html) == ["verifiers", "samples"]
    assert not data(html)["prompts"] and len(data(html)["constraints"]) > 49


def test_functions_of_ones_own_need_no_cases(tmp_path):
    row = {"id": "i1", "instruction": "Be brief", "split": "train"}
    code = "def evaluate(response):\n    return len(response) < 9"
    files_of = tiny_models.write(
        tmp_path / "03_instructions.jsonl", [{**row, "verifiers": [{"code": code}]}]
    )
    call(main, [str(tmp_path)])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert files_of and len(data(html)["constraints"]) == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no row of a run"):
        call(main, [str(tmp_path)])
    with pytest.raises(UserError, match="is no folder"):
        call(main, [str(tmp_path / "absent")])


def test_many_rows_are_shown_by_a_sample_that_a_seed_repeats(whole_run, tmp_path):
    row = next(iter(files.read(whole_run / "04_responses.jsonl")))
    out = tmp_path / "run"
    with files.writer(out / "04_responses.jsonl") as write:
        for number in range(5000):
            write({**row, "id": f"i.{number}"})
    shown = []
    for seed in (0, 0, 1):
        made = responses(out, "stage 04", 200, seed)
        assert len(made["rates"]) == 5000
        shown.append([each["id"] for each in made["shown"]])
    assert shown[0] == shown[1] != shown[2] and len(shown[0]) == 200


# ---- in a browser ----


@needs_chromium
@pytest.mark.parametrize("outcome", ["kept", "accuracy", "chosen", "rejected"])
def test_the_filters_leave_what_they_name(page, html, tmp_path, outcome):
    url = f"{page.as_uri()}#view=responses&outcome={outcome}"
    dom, console = browser(url, "--dump-dom", folder=tmp_path)
    wanted = 0
    for row in data(html)["prompts"]:
        wanted += any(outcome in (each["outcome"], each["side"]) for each in row["responses"])
    assert not console and f"{wanted} of " in dom
    assert len(cards(dom)) == min(wanted, 40)
    for card in cards(dom):
        assert card.count('class="response"') == card.count(f">{outcome}</span>")


@needs_chromium
def test_the_search_finds_code_and_ids(page, html, tmp_path):
    url = f"{page.as_uri()}#view=constraints&q=i00011"
    dom, console = browser(url, "--dump-dom", folder=tmp_path)
    assert not console and len(cards(dom)) == 1 and "<pre>" in cards(dom)[0]


@needs_chromium
def test_hostile_text_is_shown_as_text(page, tmp_path):
    dom, console = browser(
        f"{page.as_uri()}#view=responses&q=onerror", "--dump-dom", folder=tmp_path
    )
    assert not console and cards(dom)
    assert "<title>AutoIF: run</title>" in dom
    assert dom.count("<img") == dom.count('<img alt="')  # the page's own
    assert "&lt;img src=x onerror" in dom


@needs_chromium
@pytest.mark.parametrize("size", ["1200,900", "390,844"])
def test_the_page_is_drawn_without_a_console_message(page, tmp_path, size):
    picture = tmp_path / "page.png"
    flags = (f"--window-size={size}", f"--screenshot={picture}", "--hide-scrollbars")
    _, console = browser(page.as_uri(), *flags, folder=tmp_path / "profile")
    assert not console and picture.stat().st_size > 20_000


def test_a_mean_length_is_shown_as_it_is():
    words = {"value": 31.5, "low": 30.0, "high": 33.0, "scale": 1}
    assert cell(words) == "31.50 [30.00, 33.00]"


# ---- the run's own thresholds ----


def threshold(whole_run, out, min_accuracy):
    """A copy of the run's responses whose settings say another --min-accuracy."""
    out.mkdir()
    for name in ("04_responses.jsonl", "04_responses.dropped.jsonl", "04_sft.jsonl"):
        shutil.copy(whole_run / name, out)
    settings = json.loads((whole_run / "04_responses.settings.json").read_text())
    settings["flags"]["min_accuracy"] = min_accuracy
    (out / "04_responses.settings.json").write_text(json.dumps(settings))
    return out


@pytest.mark.parametrize("min_accuracy", [0.5, 0.8])
def test_what_has_passed_is_coloured_by_the_runs_own_threshold(whole_run, tmp_path, min_accuracy):
    out = threshold(whole_run, tmp_path / "run", min_accuracy)
    accuracies = []
    for row in files.read(out / "04_responses.jsonl"):
        accuracies += [response["accuracy"] for response in row["responses"]]
    passed = sum(accuracy > min_accuracy for accuracy in accuracies)
    lengths = responses(out, "stage 04", 10, 0)["lengths"]
    assert {side: len(each) for side, each in lengths.items()} == {
        "passed": passed,
        "not passed": len(accuracies) - passed,
    }


def test_show_prints_rows_with_the_outcome_that_stage_04_noted(whole_run, tmp_path, capsys):
    out = threshold(whole_run, tmp_path / "run", 0.8)
    prompts = sum(1 for _ in files.read(out / "04_responses.jsonl"))
    call(main, [str(out), "--show", str(prompts)])
    shown = capsys.readouterr().out
    assert shown.startswith("kept: accuracy above 0.8, score (judge) at least 8\n")
    assert shown.count("  [kept] ") == sum(1 for _ in files.read(out / "04_sft.jsonl"))
    for row in files.read(out / "04_responses.dropped.jsonl"):
        assert f"  [{row['reason']}] accuracy {row['accuracy']:g}, score {row['score']}: " in shown
    assert "not accounted for" not in shown and not (out / "report.html").exists()


@pytest.mark.parametrize("flags", [["--only", "now passes"], ["--show", "1", "--models", "1"]])
def test_flags_that_do_not_go_together_are_refused(whole_run, flags):
    with pytest.raises(UserError, match="--only is of --models"):
        call(main, [str(whole_run), *flags])


def test_show_without_responses_names_the_stage_that_makes_them(tmp_path):
    with pytest.raises(UserError, match="04_responses.jsonl does not exist; run 04_responses.py"):
        call(main, [str(tmp_path), "--show", "1"])
