"""What one stage learned is what the next one trains from, compares with, and serves."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from in_a_row import NEXT

from autoif import weights
from autoif.files import UserError
from autoif.flags import call
from autoif.training import kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model on the grid of bf16, as published ones are, and one row."""
    folder = tmp_path_factory.mktemp("handover")
    model = tiny_models.model("qwen2").bfloat16()
    model.save_pretrained(folder / "base")
    tiny_models.tokenizer("qwen2").save_pretrained(folder / "base")
    text = {"user": "Count to three.", "assistant": "one two three"}
    row = {"messages": [{"role": role, "content": words} for role, words in text.items()]}
    tiny_models.write(folder / "rows.jsonl", [row])
    return folder


# Adam without memory: a step depends on nothing but the weights
SFT = "--batch 1 --micro-tokens 64 --weight-decay 0 --betas 0 0 --warmup-steps 0"
SFT += " --schedule constant_with_warmup"
# which stage of ZeRO, on how many nodes
FORMS = [("3", 1), ("3", 2), ("2", 2), ("1", 1)]


def handed_over(zero, nodes):
    """Two trainings; the rate of the second changes nothing: it hands on what it was given."""
    one, two, flags = f"one{zero}{nodes}", f"two{zero}{nodes}", f"--epochs 1 --zero {zero}"
    return [("base", one, f"{flags} --lr 1e-5"), (one, two, f"{flags} --lr 1e-30")]


def train(folder, trainings, nodes):
    """{out: what was said} of trainings (start, out, further flags), one after the other."""
    lines, port, runs = [], tiny_models.free_port(), []
    for start, out, flags in trainings:
        own = f"--model {folder / start} --out {folder / out} {flags}"
        lines.append(f"--in {folder / 'rows.jsonl'} {SFT} {own}")
    for node in range(nodes):
        started = tiny_models.start("tests/in_a_row.py", *lines, node=node, nodes=nodes, port=port)
        runs.append(started)
    output, *_ = [tiny_models.finish(run, timeout=600) for run in runs]
    return dict(zip([out for _, out, _ in trainings], output.split(NEXT)[1:], strict=True))


@pytest.fixture(scope="module")
def said(folder):
    """{out: what was said} of all trainings, alone and then on two nodes."""
    alone = [
        ("base", "half", "--epochs 1 --lr 1e-5"),
        ("half", "again", "--epochs 1 --lr 1e-5"),
        ("base", "whole", "--epochs 2 --lr 1e-5"),
        ("base", "bf16", "--epochs 1 --lr 1e-6 --export-dtype bf16"),
    ]
    of_nodes = {1: alone, 2: []}
    for zero, nodes in FORMS:
        of_nodes[nodes] += handed_over(zero, nodes)
    return train(folder, of_nodes[1], 1) | train(folder, of_nodes[2], 2)


def tensors(path):
    return {name: tensor[:] for name, tensor in weights.stored(str(path)).items()}


@pytest.mark.parametrize("zero, nodes", FORMS)
def test_a_small_update_survives_export_load_and_the_next_stage(folder, said, zero, nodes):
    one, two = f"one{zero}{nodes}", f"two{zero}{nodes}"
    assert "keeps 100.0%" in said[one]
    base, first, second = (tensors(folder / name) for name in ("base", one, two))
    survived = weights.Kept()
    for name in first:
        survived.add(base[name], first[name], second[name])
    assert survived.rms > 5e-6 and survived.share > 0.99


def test_two_stages_in_a_row_equal_one_that_went_on(folder, said):
    again, whole = tensors(folder / "again"), tensors(folder / "whole")
    for name in whole:
        assert torch.equal(again[name], whole[name]), name
    first = tiny_models.metrics(folder / "again")[0]["loss"]
    assert first == tiny_models.metrics(folder / "whole")[1]["loss"]


def test_a_plain_from_pretrained_loads_all_that_was_learned(folder, said):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "half")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors(folder / "half")[name])


def test_an_export_in_bf16_says_how_little_it_keeps(folder, said):
    share = float(said["bf16"].split("(bf16) keeps ")[1].split("%")[0])
    assert share < 20
    assert {tensor.dtype for tensor in tensors(folder / "bf16").values()} == {torch.bfloat16}
    assert json.loads((folder / "bf16/config.json").read_text())["dtype"] == "bfloat16"


def test_stochastic_rounding_is_unbiased_reproducible_and_leaves_the_grid_alone():
    grid = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    master = grid + 1e-5 * grid.sign()

    def rounded():
        generator = torch.Generator().manual_seed(1)
        return weights.exported(master, "bf16-stochastic", generator)

    assert torch.equal(rounded(), rounded())
    stochastic, nearest = weights.Kept(), weights.Kept()
    stochastic.add(grid, master, rounded())
    nearest.add(grid, master, weights.exported(master, "bf16", None))
    assert stochastic.share == pytest.approx(1, abs=0.1) and nearest.share < 0.1
    step = (rounded().float() - master).abs() / master.abs()
    assert step.max() < 2**-7
    same = weights.exported(grid, "bf16-stochastic", torch.Generator().manual_seed(1))
    assert torch.equal(same.float(), grid)


def test_a_gpu_engine_gets_bf16_that_keeps_the_update_and_a_bf16_model_as_it_is(folder, said):
    copy = Path(weights.half(str(folder / "half")))
    made = copy.stat().st_mtime_ns
    assert Path(weights.half(str(folder / "half"))).stat().st_mtime_ns == made
    base, master = tensors(folder / "base"), tensors(folder / "half")
    survived = weights.Kept()
    for name, left in tensors(copy).items():
        assert left.dtype == torch.bfloat16
        survived.add(base[name], master[name], left)
    # of 17,000 weights: the mean of a draw each
    assert survived.share == pytest.approx(1, abs=0.3)
    assert transformers.AutoModelForCausalLM.from_pretrained(copy).dtype == torch.bfloat16
    assert weights.half(str(folder / "base")) == str(folder / "base")


def test_a_model_that_is_none_is_named_before_its_weights_are_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in (str(tmp_path / "empty"), "no/such"):
        with pytest.raises(UserError, match=f"{wrong} is no"):
            call(kept.main, [wrong, tiny_models.checkpoint(tmp_path / "base")])


def test_what_each_format_keeps_is_told_with_its_worth_on_the_rows(folder, said, capsys):
    rows = str(folder / "rows.jsonl")
    call(kept.main, [str(folder / "whole"), str(folder / "base"), "--rows", rows])
    lines = capsys.readouterr().out.splitlines()
    told = {line.split(" | ")[0].strip(): line for line in lines}
    assert "100.0% of the update kept" in told["fp32"]
    assert float(told["bf16"].split("|")[2].split("%")[0]) < 50
    loss = {name: float(line.split("loss ")[1]) for name, line in told.items() if "loss" in line}
    assert loss["fp32"] < loss["bf16"] < loss["start"]
