"""The table: what stands beside the paper, and under whose judge."""

import json

import pytest

from autoif.evaluation import results, table
from autoif.files import UserError
from autoif.flags import call

PAPER = {"Paper's model": [50.0, 60.0, None]}
COLUMNS = ["Pr(S)", "FB SSR", "MMLU"]


def metric(value, low=0.25, high=0.75) -> dict:
    return {"value": value, "low": low, "high": high, "n": 9, "clusters": 9, "interval": "Wilson"}


def row(model, benchmark, metrics, **settings) -> dict:
    return {
        "model": model,
        "benchmark": benchmark,
        "metrics": metrics,
        "n": 9,
        "words": 12.34,
        "truncated": 0.25,
        "empty": 0.0,
        "unparsable": 0.0,
        "missing": 0,
        "unanswered": 0,
        "partial": False,
        "settings": settings,
        "versions": {"python": "3"},
    }


def written(tmp_path, rows, paper=PAPER) -> list[str]:
    return table.write(tmp_path / "07_results.json", rows, paper, COLUMNS).splitlines()


def line(text: list[str], *parts: str) -> list[str]:
    """The cells of the first line with all `parts`."""
    found = next(one for one in text if all(part in one for part in parts))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_judged_column_names_its_judge_and_two_judges_have_two_columns(tmp_path):
    rows = [row(name, "mtbench", {"MT-Bench": metric(6.5, 6, 7)}, judge=name * 3) for name in "ab"]
    text = written(tmp_path, rows)
    assert line(text, "model") == ["model", "MT-Bench (judge aaa)", "MT-Bench (judge bbb)"]
    assert line(text, "| a |") == ["a", "6.50 [6.00, 7.00]", ""]


def test_another_judges_figures_do_not_stand_under_the_papers(tmp_path):
    rows = [
        row("ours", "ifeval", {"Pr(S)": metric(0.5)}),
        row("ours", "followbench", {"FB SSR": metric(0.625)}, judge="small-judge"),
    ]
    text = written(tmp_path, rows)
    assert line(text, "model", "judge small-judge") == ["model", "FB SSR (judge small-judge)"]
    assert line(text, "**ours**") == ["**ours**", "50.0 [25.0, 75.0]", "", ""]
    assert line(text, "Paper's model") == ["Paper's model", "50.0", "60.0", ""]


def test_the_owners_own_judge_stands_beside_the_paper_by_name(tmp_path):
    rows = [row("ours", "followbench", {"FB SSR": metric(0.625)}, judge="gpt-4-0613")]
    text = written(tmp_path, rows)
    assert line(text, "Pr(S)")[2] == "FB SSR (judge gpt-4-0613)"
    assert line(text, "**ours**")[2] == "62.5 [25.0, 75.0]"


def test_no_paper_leaves_its_rows_out_and_keeps_ours(tmp_path):
    rows = [row("ours", "ifeval", {"Pr(S)": metric(0.5)})]
    text = written(tmp_path, rows, paper={})
    assert not any("Paper's model" in one or "beside" in one for one in text)
    assert line(text, "| ours |") == ["ours", "50.0 [25.0, 75.0]"]


def test_an_interval_of_one_cluster_is_shown_as_none(tmp_path):
    text = written(tmp_path, [row("ours", "gsm8k", {"GSM8K": metric(1 / 3, None, None)})])
    assert line(text, "| ours |")[1] == "33.3 [n/a]"
    table.write_bars(tmp_path / "07_results.json", [row("m", "gsm8k", {"GSM8K": metric(1, None)})])
    assert (tmp_path / "07_results.png").stat().st_size > 1000


def test_mean_length_and_truncation_of_every_benchmark_are_in_the_table(tmp_path):
    text = written(tmp_path, [row("ours", "ifeval", {"Pr(S)": metric(0.5)}, temperature=0.0)])
    cells = dict(zip(line(text, "| benchmark |"), line(text, "| ours | ifeval |")))
    assert (cells["words"], cells["truncated"]) == ("12.3", "25.0%")


def test_held_out_kinds_relevance_and_length_are_columns_with_intervals(tmp_path):
    names = ["Held-out", "Held-out length", "Held-out other", "by constraint", "relevance"]
    metrics = {name: metric(0.5) for name in [*names, "truncated"]}
    metrics["words"] = metric(31.5, 30, 33)
    text = written(tmp_path, [row("ours", "heldout", metrics)])
    assert line(text, "model") == ["model", *names, "words", "truncated"]
    assert line(text, "| ours |")[6] == "31.50 [30.00, 33.00]"


def test_what_was_not_run_has_its_reason_and_no_table_without_rows(tmp_path):
    gap = {"model": "ours", "benchmark": "gsm8k", "gap": "no data"}
    text = written(tmp_path, [gap])
    assert "- **ours, gsm8k: not run**: no data" in text
    assert not any(one.startswith("|") for one in text)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", '[{"model": "m"}]'])
def test_a_results_file_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "07_results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="07_results.json"):
        results.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        results.read(tmp_path)


def test_a_comparison_of_one_cluster_claims_nothing(tmp_path, capsys):
    path = tmp_path / "07_results.json"
    rows = []
    for name, verdict in (("a", 0), ("b", 1)):
        items = tmp_path / f"{name}.jsonl"
        items.write_text(json.dumps({"points": {"GSM8K": [["", "q", verdict, 1]]}}) + "\n")
        data = {"data": {"sha256": "x"}, "items": items.name}
        rows.append({**row(name, "gsm8k", {"GSM8K": metric(verdict)}), **data})
    path.write_text(json.dumps(rows))
    call(results.main, ["a", "b", "--out", str(path)])
    assert line(capsys.readouterr().out.splitlines(), "GSM8K")[2:] == ["+100.00", "n/a", "1", "n/a"]
