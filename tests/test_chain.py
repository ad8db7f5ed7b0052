"""What stands against the plan of a run: settings files, inputs, flags that do not parse."""

import dataclasses
import hashlib
import importlib
import json
import types
from pathlib import Path

import pytest

from autoif import chain, files, flags, settings
from autoif.files import UserError
from autoif.training import engine

ROOT = Path(__file__).resolve().parents[1]
REMOVED = {"price_in", "price_out", "check", "drop_weak", "show", "constraints", "mc_mode"}
EARLIER = list(files.read(ROOT / "tests/earlier_settings.jsonl"))


@dataclasses.dataclass(kw_only=True)
class Flags:
    input: flags.Ins  # rows
    out: str = "o"  # rows
    model: str = "m"  # or a checkpoint
    epochs: flags.Positive = 3.0  # times
    betas: engine.Betas = (0.9, 0.95)  # Adam's
    score: str = "judge"  # or none
    no_score: bool = False  # as --score none
    concurrency: flags.Count = 64  # cannot change a row

    def __post_init__(self):
        if self.no_score:
            self.score = "none"


def changes(earlier: dict, args, **inputs: str) -> list[str]:
    settings.identity.cache_clear()
    return list(settings.changes({"flags": earlier, "inputs": inputs}, args))


def test_how_an_output_was_made_stands_beside_it(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}\n")
    source = str(tmp_path / "in.jsonl")
    url = "https://me:my-secret@host:80/v1"
    args = types.SimpleNamespace(k=8, model="m", input=source, command=print, base_url=url)
    settings.write_settings(args, tmp_path / "02.jsonl")
    made = json.loads((tmp_path / "02.settings.json").read_text())
    shown = "https://host:80/v1"  # nobody's password
    assert made["flags"] == {"k": 8, "model": "m", "input": source, "base_url": shown}
    assert made["versions"]["python"] and made["date"]
    assert made["inputs"] == {source: hashlib.sha256(b"{}\n").hexdigest()}
    args = Flags(input=[source])
    settings.write_settings(args, tmp_path / "folder")
    made = json.loads((tmp_path / "folder.settings.json").read_text())
    assert made["flags"]["betas"] == [0.9, 0.95] and changes(made["flags"], args) == []


def test_the_same_settings_of_an_earlier_version_are_the_same():
    args = Flags(input=["x"], no_score=True)
    earlier = {"input": ["x"], "out": "elsewhere", "model": "m", "epochs": 3, "betas": [0.9, 0.95]}
    earlier |= {"score": "none", "concurrency": 8, "price_in": 1.5, "constraints": [1, 1]}
    assert changes(earlier, args) == []
    assert changes({**earlier, "epochs": 2}, args) == ["--epochs was 2, is 3.0"]
    assert changes({**earlier, "score": "judge"}, args) == ["--score was judge, is none"]
    assert changes({**earlier, "input": ["x", "y"]}, args) == ["--in was ['x', 'y'], is ['x']"]


@pytest.mark.parametrize("earlier", EARLIER, ids=[row["command"][:60] for row in EARLIER])
def test_what_an_earlier_version_made_is_gone_on_with(earlier, monkeypatch):
    """The flags that the commands of 2026-11-28 wrote, against those that they are read as now."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    name, *words = earlier["command"].split()
    module = importlib.import_module(name)
    command = getattr(module, "COMMANDS", None) or module.main
    _, args = flags.parse(command, words)
    if "cpu_seconds" in earlier["flags"]:  # the default that changed (CHANGELOG.md)
        assert changes(earlier["flags"], args) == ["--cpu-seconds was 0.2, is 0.4"]
        _, args = flags.parse(command, [*words, "--cpu-seconds", "0.2"])
    assert changes(earlier["flags"], args) == []
    assert earlier["flags"].keys() - vars(args).keys() <= REMOVED


def test_an_input_is_told_by_what_is_in_it_not_by_where_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("1\n")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    digest = hashlib.sha256(b"1\n").hexdigest()
    assert changes({"input": [a]}, Flags(input=[b]), **{a: digest}) == []
    (tmp_path / "b").write_text("2\n")
    told = changes({"input": [a]}, Flags(input=[b]), **{a: digest})
    assert told == [f"--in ['{b}'] is not what it was made of"]


def test_a_checkpoint_that_was_trained_again_is_another_input(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1" * 9000)
    model = str(tmp_path)
    mark = settings.fingerprint(model)
    assert mark.startswith("checkpoint:") and settings.fingerprint("hub/name") == "hub/name"
    assert changes({"model": model}, Flags(input=["x"], model=model), **{model: mark}) == []
    (tmp_path / "model.safetensors").write_bytes(b"2" * 9000)
    assert changes({"model": model}, Flags(input=["x"], model=model), **{model: mark})
    # an earlier version recorded no checkpoints: of this one nothing is known
    assert changes({"model": model}, Flags(input=["x"], model=model)) == []


def plan(folder: Path, *lines: str) -> str:
    (folder / "plan").write_text("".join(line + "\n" for line in lines))
    return str(folder / "plan")


def test_what_is_made_of_an_output_out_of_date_is_out_of_date_too(tmp_path):
    out = {name: str(tmp_path / f"{name}.jsonl") for name in ("01", "02", "03")}
    lines = [
        f"01 {out['01']} python 01_seed_augment.py --model m --k 4 --out {out['01']}",
        f"03 {out['03']} python 03_backtranslate.py --model m --in {out['01']} --out {out['03']}",
    ]
    outputs, problems = chain.read(plan(tmp_path, *lines))
    assert [output.stage for output in outputs] == ["01", "03"] and problems == []
    for output in outputs:
        Path(output.path).write_text("{}\n")
        settings.write_settings(output.args, output.path)
    flags.call(chain.main, [plan(tmp_path, *lines)])
    lines[0] = lines[0].replace("--k 4", "--k 5")
    with pytest.raises(UserError) as error:
        flags.call(chain.main, [plan(tmp_path, *lines)])
    assert f"{out['01']}: --k was 4, is 5" in str(error.value)
    assert f"{out['03']}: made of {out['01']}, which is out of date" in str(error.value)
    assert "--redo-from 01" in str(error.value)
    flags.call(chain.main, [plan(tmp_path, *lines), "--redo-from", "01"])
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_flags_that_do_not_parse_are_told_once_with_where_to_mend_them(tmp_path):
    line = f"03 {tmp_path}/x python 03_backtranslate.py --model m --heldout 2"
    with pytest.raises(UserError) as error:
        flags.call(chain.main, [plan(tmp_path, line, line)])
    assert str(error.value) == (
        "03_backtranslate: argument --heldout: must be at least 0 and at most 1, not 2; "
        "mend the flags (FLAGS_03 or its like)"
    )
