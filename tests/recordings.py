"""Stages 01 to 03 on the study's recorded completions, without endpoint, key or network."""

import importlib
import importlib.util
from pathlib import Path

from autoif import files
from autoif.flags import call

STUDY = Path(__file__).resolve().parents[1] / "study"
spec = importlib.util.spec_from_file_location("rekey", STUDY / "rekey.py")
rekey = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rekey)
FILES = {
    "01_seed_augment": "01_instructions",
    "02_verifiers": "02_verifiers",
    "03_backtranslate": "03_instructions",
}
FEW = {**rekey.FLAGS}  # four of the recorded nine samples of 01 are enough for tests
FEW["01_seed_augment"] = [*rekey.FLAGS["01_seed_augment"][:2], "--k", "4", "--count", "20"]


def completions(name):
    return list(files.read(STUDY / "completions" / f"{name}.jsonl"))


def run_stage(name, out, *flags):
    """One of the three stages, in a folder that has the recordings in `completions`."""
    flags = ["--model", rekey.MODEL, "--out", str(out / f"{FILES[name]}.jsonl"), *FEW[name], *flags]
    if name == "02_verifiers":
        flags += ["--in", str(out / "01_instructions.jsonl")]
    if name == "03_backtranslate":
        flags += ["--in", str(out / "02_verifiers.jsonl")]
    call(importlib.import_module(name).main, flags)
