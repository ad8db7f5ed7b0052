import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoif import files
from autoif.evaluation import responses
from autoif.files import UserError
from autoif.reward import Verifiers
from autoif.stage import Funnel, in_order

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


def test_blank_lines_hold_nothing_and_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"id": "a"}\n  \n\n{"id": "b"}\n\n')
    assert list(files.read(path)) == [{"id": "a"}, {"id": "b"}]
    assert list(files.numbered(path)) == [(2, {"id": "a"}), (5, {"id": "b"})]
    path.write_text('{"id": "a"}\n\n{"id": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:3 is no JSON object"):
        list(files.read(path))
    path.write_text('{"id": "a"}\n\n\n{"id": "a"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:4 has the id 'a' of line 1"):
        files.read_all(path, {"id": str})


def test_a_row_behind_blank_lines_is_named_by_its_line_wherever_rows_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n\n{"prompt": "p", "response": 5, "id": "x"}\n')
    for read in (responses.read, Verifiers.load):
        with pytest.raises(UserError, match=r"rows\.jsonl:3"):
            read(str(path))


def test_a_bad_byte_is_named_by_its_own_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n' * 40 + b'{"id": "caf\xe9"}\n' + b'{"id": "b"}\n' * 40)
    wanted = r"rows\.jsonl:41 is not UTF-8 \(the byte 0xe9 after '\{\"id\": \"caf'\).*iconv"
    with pytest.raises(UserError, match=wanted):
        list(files.read(path))


def test_a_device_or_a_pipe_is_refused_as_an_output(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "to_null"
    link.symlink_to(os.devnull)
    for path in (pipe, Path(os.devnull), link):
        with pytest.raises(UserError, match="is a device or a pipe, not a file; choose another"):
            files.write_whole(path, "")
    assert link.is_symlink() and pipe.is_fifo() and not Path(os.devnull).is_file()
    with pytest.raises(UserError, match="is a device or a pipe"):  # before any request
        Funnel("01_seed_augment", pipe)


def test_a_symlink_is_written_through_and_stays(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old.txt").write_text("old")
    for name in ("old.txt", "new.txt"):
        link = tmp_path / name
        link.symlink_to(Path("store", name))
        files.write_whole(link, "new")
        assert link.is_symlink() and (tmp_path / "store" / name).read_text() == "new"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"old.txt", "new.txt"}
    with pytest.raises(RuntimeError), files.writer(tmp_path / "old.txt"):
        raise RuntimeError
    assert (tmp_path / "old.txt").read_text() == "new"


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "out.jsonl"
    full = pytest.raises(UserError, match=r"out\.jsonl cannot be written, the disk is full")
    with full, files.writer(path):
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


def test_nothing_is_written_beside_an_output_before_the_stage_has_finished(tmp_path):
    (tmp_path / "05.dropped.jsonl").write_text('{"reason": "old"}\n')
    funnel = Funnel("05_x", tmp_path / "05.jsonl")
    funnel.drop("odd", {"n": 1})
    assert (tmp_path / "05.dropped.jsonl").read_text() == '{"reason": "old"}\n'
    (tmp_path / "05.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing was kept.*1 in -> 0 kept .odd 1.. Why"):
        funnel.refuse_empty("Why")
    assert (tmp_path / "05.dropped.jsonl").read_text() == '{"reason": "old"}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"05.jsonl", "05.dropped.jsonl"}


def test_broken_stats_are_named_before_any_work(tmp_path):
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(UserError, match="stats.json cannot be read.*mend or delete it"):
        Funnel("05_x", tmp_path / "05.jsonl")


def test_an_output_that_cannot_be_a_file_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/05.dropped.jsonl cannot be written"):
        Funnel("05_x", tmp_path / "file" / "05.jsonl")
    with pytest.raises(UserError, match="is a directory; name a file in it"):
        files.write_whole(tmp_path, "")
    # where the rights would let root write, and the file system does not
    with pytest.raises(UserError, match="/sys/05.dropped.jsonl cannot be written: /sys"):
        Funnel("05_x", "/sys/05.jsonl")


def test_a_row_is_checked_against_the_form_that_it_must_have():
    form = {"id": str, "split": {"train", "heldout"}, "verifiers": [{"code": str}]}
    good = {"id": "a", "split": "train", "verifiers": [{"code": "x", "accuracy": 1.0}], "more": 1}
    assert files.mismatch(good, form) is None
    for change, words in (
        ({"id": 5}, "has 'id', which must be a text"),
        ({"split": None}, "has 'split', which must be one of heldout, train"),
        ({"verifiers": [{"code": None}]}, "must be a text"),
        ({"verifiers": {}}, "must be a list with at least one element"),
        ({"verifiers": ["x"]}, "must be an object with code"),
    ):
        assert words in files.mismatch({**good, **change}, form)


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


@pytest.mark.parametrize("command", [["01_seed_augment.py"], ["-m", "autoif.report", "out"]])
def test_a_package_that_is_missing_is_named_with_the_environment_to_activate(command, tmp_path):
    (tmp_path / "jsonlines.py").write_text("import no_such_package")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no package 'no_such_package'" in done.stderr and ".venv/bin/activate" in done.stderr


@pytest.mark.parametrize("module", ["dataclasses", "jsonlines"])  # among the first, and later
@pytest.mark.parametrize("stage", sorted(path.name for path in ROOT.glob("0*.py")))
def test_an_interrupt_during_the_imports_is_one_line(stage, module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / stage), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stderr == "\ninterrupted before anything was begun\n" and done.returncode != 0


ORDER = [0.03, 0.0, 0.02, 0.01, 0.0]


def test_rows_come_in_order_however_long_each_takes_and_no_more_than_asked_are_under_way():
    under_way, most, read = 0, 0, []

    async def work(seconds):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(seconds)
        under_way -= 1
        return seconds

    def items():
        for seconds in ORDER * 3:
            read.append(seconds)
            yield seconds

    async def collect():
        results = []
        async for result in in_order(work, items(), 4):
            results.append(result)
            assert len(read) <= len(results) + 4
        return results

    async def nothing():
        return [result async for result in in_order(work, [], 4)]

    assert asyncio.run(collect()) == ORDER * 3 and most == 4
    assert asyncio.run(nothing()) == []


def test_an_error_or_an_early_end_leaves_no_row_under_way():
    ended = []

    async def work(n):
        try:
            await asyncio.sleep(0.01 if n == 1 else 60)
        finally:
            ended.append(n)
        raise UserError("no")

    async def fail():
        async for _ in in_order(work, range(1, 9), 4):
            pass

    with pytest.raises(UserError, match="no"):
        asyncio.run(asyncio.wait_for(fail(), 10))
    assert sorted(ended) == [1, 2, 3, 4]
