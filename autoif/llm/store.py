"""Completions on disk: an append-only JSONL file, one record a sample, found again by request and sample index.

A record is `{"key", "index", "text", "finish_reason", "prompt_tokens", "completion_tokens"}`; other fields are ignored.
It is handed to the operating system before `put` returns, so that kill -9 costs nothing that was put. Reading needs no
lock and no write permission; the first `put` locks the file, and cuts off a last line that an earlier kill left torn.
"""

import bisect
import fcntl
import json
import os
import re
from pathlib import Path

from autoif.files import UserError, dump

# parsing every text would double the time to open a store; `put` writes these two fields first
HEAD = re.compile(rb'\{"key": "([0-9a-f]{16})[0-9a-f]{48}", "index": (\d+), .*\}\n$', re.DOTALL)


class Index:
    """Where each sample's record begins, in 16 bytes a sample: sorted arrays, and a dict of the newest.

    A sample is the number `_number(key) + index`: the samples of a request are neighbours.
    """

    def __init__(self):
        self._newest = {}
        self._sorted = (memoryview(b"").cast("Q"),) * 2

    def add(self, sample: int, offset: int) -> None:
        self._newest.setdefault(sample, offset)
        if len(self._newest) > 100_000 + len(self._sorted[0]) // 8:
            self._sort_in()

    def find(self, sample: int) -> int | None:
        """The offset of its first record: a stored answer never changes."""
        newest = (
            self._newest
        )  # before `_sorted`, or a sort in the other thread could hide a sample from both
        samples, offsets = self._sorted
        place = bisect.bisect_left(samples, sample)
        return (
            offsets[place]
            if place < len(samples) and samples[place] == sample
            else newest.get(sample)
        )

    def _sort_in(self) -> None:
        import numpy as np  # here, as --help has no use for it

        columns = [
            np.concatenate([old, np.fromiter(new, np.uint64, len(self._newest))])
            for old, new in zip(self._sorted, (self._newest.keys(), self._newest.values()))
        ]
        order = columns[0].argsort(kind="stable")
        self._sorted = tuple(memoryview(column[order]) for column in columns)
        self._newest = {}


class Store:
    """The completions of `path`, which need not exist. One thread may `put` while another asks."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._index = Index()
        self._file = None  # opened for appending by the first `lock`
        self._reader = None
        self._end = 0  # everything before this byte is whole lines in the index
        self._lines = 0
        if self.path.exists():
            self._scan()

    def _scan(self) -> None:
        """Index the whole lines after `_end`."""
        self._reader = self._reader or open(self.path, "rb")
        self._reader.seek(self._end)
        for line in self._reader:
            if match := HEAD.match(line):
                sample = _number(match[1]) + int(match[2])
            else:  # written by hand, or the torn last line
                try:
                    record = json.loads(line)
                    record["text"], record["finish_reason"]
                    sample = _number(record["key"]) + record["index"]
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):
                        return
                    raise UserError(
                        f"{self.path}:{self._lines + 1} is no completion ({error!r}): {line[:80]!r}; "
                        "delete the line, its sample is then asked again"
                    ) from None
            self._index.add(sample, self._end)
            self._end += len(line)
            self._lines += 1

    def get(self, key: str, first: int, k: int) -> dict[int, dict]:
        """The stored records of samples `first` .. `first + k - 1` by index; what is not stored is missing."""
        records = {}
        for index in range(first, first + k):
            if (offset := self._index.find(_number(key) + index)) is not None:
                self._reader.seek(offset)
                record = json.loads(self._reader.readline())
                if record["key"] == key and record["index"] == index:
                    records[index] = record
        return records

    def missing(self, key: str, first: int, k: int) -> list[int]:
        """The indices of `first` .. `first + k - 1` that are not stored."""
        return [
            index
            for index in range(first, first + k)
            if self._index.find(_number(key) + index) is None
        ]

    def put(self, records: list[dict]) -> None:
        """Append the records in one write."""
        self.lock()
        lines = [(dump(record) + "\n").encode() for record in records]
        data = b"".join(lines)
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; mend that and run the same command, "
                "what is stored is kept"
            ) from None
        if written < len(data):
            os.ftruncate(self._file, self._end)
            raise UserError(
                f"{self.path} cannot grow, the disk is full; make room and run the same command, what is "
                "stored is kept"
            )
        for record, line in zip(records, lines):
            self._index.add(_number(record["key"]) + record["index"], self._end)
            self._end += len(line)

    def lock(self) -> None:
        """Become the one writer: UserError when there is one; index what it wrote since, repair what it left torn."""
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise UserError(
                f"{self.path} is being written by another run; wait for it or give another --store"
            ) from None
        except OSError as error:  # Lustre without -o flock
            os.close(file)
            raise UserError(
                f"{self.path} cannot be locked ({error.strerror}); give a --store on a file system with locks"
            ) from None
        self._file = file
        self._scan()
        os.ftruncate(file, self._end)
        self._reader.close()
        self._reader = open(self.path, "rb")  # the old one may have buffered the torn line
        if self._end and os.pread(file, 1, self._end - 1) != b"\n":
            self._end += os.write(file, b"\n")

    def sync(self) -> None:
        """Ask for everything put so far to survive a power cut too."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
        if self._reader:
            self._reader.close()


def _number(key: str | bytes) -> int:
    """The first 63 bits, so that adding an index stays within 64; `get` compares the whole key."""
    return int(key[:16], 16) >> 1
