"""Where benchmark data comes from: a folder given with --data-dir, else the hub; never a copy in this repository."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

from autoif.files import UserError


class Source:
    """Finds a benchmark's files and remembers where each came from (`used`)."""

    unreachable = (
        ""  # why the hub could not be reached, for all sources: each try takes half a minute
    )

    def __init__(self, data_dir: str | None):
        self.data_dir = Path(data_dir) if data_dir else None
        self.used: list[str] = []
        if self.data_dir and not self.data_dir.is_dir():
            raise UserError(f"--data-dir {data_dir} is no folder")

    def has(self, local: str) -> bool:
        return bool(self.data_dir and (self.data_dir / local).exists())

    def rows(self, local: str, repository: str, file: str = "") -> list[dict]:
        """The rows of `<data_dir>/<local>` (a file, or a folder of .csv files), else of the hub's dataset: of its `file`,
        or of its train split.

        Rows of a folder, and of a .zip (its members under a folder named like `local`), say in `file` which they are
        from.
        """
        path = self.data_dir / local if self.data_dir else None
        if self.has(local):
            self.used.append(local)
            return read_folder(path) if path.is_dir() else read_file(path)
        wanted = f"{path} does not exist" if path else "no --data-dir"
        found = Source.download(repository, file, wanted)
        self.used.append(f"{repository}/{file}")
        if not file:
            return found.to_list()
        path = Path(found)
        return read_zip(path, Path(local).name) if path.suffix == ".zip" else read_file(path)

    @classmethod
    def download(cls, repository: str, file: str, wanted: str):
        """The path of the hub's file, or the train split of its dataset."""
        from datasets import load_dataset
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            if not cls.unreachable:
                return (
                    hf_hub_download(repository, file, repo_type="dataset")
                    if file
                    else load_dataset(repository, split="train")
                )
        except Exception as error:  # by version: requests', httpx's, the hub's own, OSError
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            if not isinstance(error, LocalEntryNotFoundError):
                raise UserError(
                    f"no data: {wanted}, and the hub has no {repository}/{file} ({words})"
                ) from None
            cls.unreachable = words
        raise UserError(
            f"no data: {wanted}, and the hub ({repository}) cannot be reached ({cls.unreachable})"
        )


def read_file(path: Path) -> list[dict]:
    """The rows of a .jsonl, .json (an array, or lines after all), .csv (with a header) or .parquet file, or one .gz."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else open(path, encoding="utf-8") as file
    ):
        text = file.read()
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(
            f"{path} is neither a JSON array nor JSON lines ({error}); fetch it again"
        ) from None


def read_folder(path: Path) -> list[dict]:
    return [
        {"file": file.stem, **row} for file in sorted(path.glob("*.csv")) for row in read_file(file)
    ]


def read_zip(path: Path, folder: str) -> list[dict]:
    with zipfile.ZipFile(path) as archive:
        members = sorted(
            name
            for name in archive.namelist()
            if Path(name).parent.name == folder and name.endswith(".csv")
        )
        return [
            {"file": Path(name).stem, **row}
            for name in members
            for row in csv.DictReader(io.StringIO(archive.read(name).decode("utf-8"), newline=""))
        ]
