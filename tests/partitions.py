"""Stage 05 in every form of ZeRO, one after the other; test_partitions.py starts it."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import tiny_models

from autoif.flags import call

# name: flags of 05_sft.py
FORMS = {
    f"zero{zero}-{recompute}{'-offload' if offload else ''}": [
        *("--zero", zero, "--activation-checkpointing", recompute, "--precision", "fp32"),
        *(["--offload"] if offload else []),
    ]
    for zero, recompute, offload in [
        ("3", "off", False),
        ("3", "on", False),
        ("3", "off", True),
        ("3", "on", True),
        ("2", "on", False),
        ("2", "off", True),
        ("1", "on", False),
        ("1", "off", True),
    ]
}
FORMS |= {f"zero{zero}-bf16": ["--zero", zero] for zero in "123"}
if shutil.which("g++"):  # the last one, since it compiles for good
    FORMS["zero3-on-compiled"] = [*FORMS["zero3-on"], "--compile"]


def main(folder: Path, *flags: str) -> None:
    sft = tiny_models.stage("05_sft")
    trainable, persistent, beside = sft.train.trainable, {}, {}

    def watched(model, config, **settings):
        engine = trainable(model, config, **settings)
        kept = [each for each in engine.module.parameters() if getattr(each, "ds_persist", False)]
        persistent[name] = len(kept)
        step = engine.step

        def counted():
            beside[name] = sum(each.grad is not None for each in engine.module.parameters())
            step()

        engine.step = counted
        return engine

    rmtree, held = shutil.rmtree, []

    def removed(path, *args, **more):  # NFS does not remove a folder of which a file is open
        for number in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                held.extend([name for name in [os.readlink(number)] if name.startswith(f"{path}/")])
        rmtree(path, *args, **more)

    sft.train.trainable, shutil.rmtree = watched, removed
    for name, form in FORMS.items():
        call(sft.main, [*flags, "--out", str(folder / name), *form])
    print("persistent weights:", sum(persistent.values()))
    print("open in folders that are removed:", held)
    print("gradients beside their sums:", beside["zero1-bf16"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
