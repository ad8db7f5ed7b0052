import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoif import files
from autoif.files import UserError
from autoif.stage import Funnel, through

ROOT = Path(__file__).resolve().parents[1]


def test_a_broken_line_is_named_with_file_line_and_value(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is no JSON object.*mend or delete"):
        list(files.read(path))
    path.write_text("[1, 2]\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:1"):
        list(files.read(path))


def test_a_missing_field_or_file_names_the_stage_to_run(tmp_path):
    path = tmp_path / "01.jsonl"
    path.write_text('{"id": "x"}\n')
    with pytest.raises(
        UserError,
        match=r"01\.jsonl:1 has no 'verifiers' \(it has \['id'\]\); run 02_verifiers.py first",
    ):
        list(files.read(path, ["verifiers"], "02_verifiers.py"))
    with pytest.raises(UserError, match="does not exist; run 02_verifiers.py first"):
        list(files.read(tmp_path / "none", [], "02_verifiers.py"))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError), files.writer(path) as write:
        write({"a": 1})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.writer(path) as write:
        write({"text": "ü \ud83d"})
    assert list(files.read(path)) == [{"text": "ü \ud83d"}]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"out\.jsonl cannot be written, the disk is full"):
        with files.writer(path):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_reasons_add_up_to_the_input(tmp_path, capsys):
    funnel = Funnel("05_x", tmp_path / "05.jsonl")
    for n in range(7):
        funnel.drop("odd", {"n": n}) if n % 2 else funnel.keep()
    funnel.finish(extra=3)
    assert capsys.readouterr().out == "05_x: 7 in -> 4 kept (odd 3)\n"
    assert json.loads((tmp_path / "stats.json").read_text()) == {
        "05_x": {"in": 7, "kept": 4, "dropped": {"odd": 3}, "extra": 3}
    }
    assert [row["n"] for row in files.read(tmp_path / "05.dropped.jsonl")] == [1, 3, 5]


def test_results_of_a_stream_return_to_their_items_in_order_and_lazily():
    read = []

    def items():
        for n in [0, 2, 0, 3, 0]:
            read.append(n)
            yield n

    def double(parts):
        for part in parts:
            yield 2 * part

    stream = through(double, items(), lambda n: list(range(n)))
    assert next(stream) == (0, []) and read == [0, 2]
    assert list(stream) == [(2, [0, 2]), (0, []), (3, [0, 2, 4]), (0, [])]
    assert list(through(double, [], lambda n: [n])) == []


@pytest.mark.parametrize("stage", sorted(path.name for path in ROOT.glob("0?_*.py")))
def test_help_needs_neither_torch_nor_transformers(stage):
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'deepspeed', 'sklearn', 'openai']));"
        f"sys.argv = ['{stage}', '--help']; runpy.run_path('{stage}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_bad_input_ends_a_stage_with_exit_code_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "02_verifiers.py",
            "--model",
            "m",
            "--in",
            str(tmp_path / "none"),
            "--out",
            str(tmp_path / "02.jsonl"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and "02_verifiers.py: error:" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "02.jsonl").exists()
