"""Benchmark data: from the folder of --data-dir, else the hub; never a copy in this repository."""

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from autoif.files import NotSetUp, UserError, lines


class Source:
    """Finds a benchmark's files and remembers where each came from (`used`)."""

    # why the hub could not be reached, for all sources: each try takes half a minute
    unreachable = ""

    def __init__(self, data_dir: str | None):
        self.data_dir = Path(data_dir) if data_dir else None
        self.used: list[str] = []
        if self.data_dir and not self.data_dir.is_dir():
            raise UserError(f"--data-dir {data_dir} is no folder")

    def has(self, local: str) -> bool:
        return bool(self.data_dir and (self.data_dir / local).exists())

    def rows(
        self, local: str, repository: str, file: str = "", columns: Sequence[str] = ()
    ) -> list[dict]:
        """The rows of `<data_dir>/<local>`, else of the hub's dataset.

        `local` is a file or a folder of .csv files; on the hub it is `file`, or the train split.
        Rows of a folder, and of a .zip's folder of that name, say in `file` which they are from.
        """
        path = self.data_dir and self.data_dir / local
        if self.has(local):
            self.used.append(local)
            return read_file(path, columns)
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
            if not cls.unreachable and file:
                return hf_hub_download(repository, file, repo_type="dataset")
            if not cls.unreachable:
                return load_dataset(repository, split="train")
        except Exception as error:  # by version: requests', httpx's, the hub's own, OSError
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            if not isinstance(error, LocalEntryNotFoundError):
                raise NotSetUp(
                    f"no data: {wanted}, and the hub has no {repository}/{file} ({words})"
                ) from None
            cls.unreachable = words
        raise NotSetUp(
            f"no data: {wanted}, and the hub ({repository}) cannot be reached ({cls.unreachable})"
        )


def read_file(path: Path, columns: Sequence[str] = ()) -> list[dict]:
    """The rows of a .jsonl, .json (an array, or lines after all), .parquet, .gz, .csv or all .csv.

    A .csv file whose first line has none of `columns` has no header: they name its fields.
    """
    if path.is_dir():
        rows = []
        for file in sorted(path.glob("*.csv")):
            rows += [{"file": file.stem, **row} for row in read_file(file, columns)]
        return rows
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        text = "".join(line for _, line in lines(path, unpack))
    except (OSError, EOFError, zlib.error) as error:  # the latter of archives that are cut off
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from None
    if path.suffix == ".csv":
        return read_csv(text, columns)
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(
            f"{path} is neither a JSON array nor JSON lines ({error}); fetch it again"
        ) from None


def read_csv(text: str, columns: Sequence[str] = ()) -> list[dict]:
    first = next(csv.reader(io.StringIO(text, newline="")), [])
    headless = columns and not set(columns) & set(first)
    names = columns if headless else None  # None: those of the first line
    return list(csv.DictReader(io.StringIO(text, newline=""), names))


def read_zip(path: Path, folder: str) -> list[dict]:
    """The rows of all .csv files under a folder of that name in the archive."""
    rows = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if Path(name).parent.name == folder and name.endswith(".csv"):
                text = archive.read(name).decode("utf-8-sig")
                rows += [{"file": Path(name).stem, **row} for row in read_csv(text)]
    return rows
