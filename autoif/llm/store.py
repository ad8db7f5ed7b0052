"""Completions on disk: an append-only JSONL file, found again by request and sample index.

    {"key", "index", "text", "finish_reason", "prompt_tokens", "completion_tokens"}

is a record, one a sample; other fields are ignored, and tokens that the server did not count are
null. It is handed to the operating system before `put` returns, so that kill -9 costs nothing that
was put. Reading needs no lock and no write permission; the first `put` locks the file, and cuts off
a last line that an earlier kill left torn. A sample without text that was not cut off is no answer:
unless `keep_empty` it is not stored, and not seen in a store that has it.
"""

import fcntl
import json
import os
import re
from pathlib import Path

from autoif.files import UserError, absent, dump, refuse_unwritable
from autoif.llm.reply import is_answer

# `put` writes these fields first: parsing every text would double the time to open a store. A text
# that begins with a quote (is empty) or white space is parsed.
HEAD = re.compile(rb'\{"key": "([0-9a-f]{64})", "index": (\d+), "text": "(?:[^" \\]|\\[^nrt])')
AGAIN = "run the same command, what is stored is kept"


class Store:
    """The completions of `path`, which need not exist. One thread may `put` while another asks."""

    def __init__(self, path: str | Path, keep_empty: bool = False):
        self.path, self.keep_empty = Path(path), keep_empty
        self._offsets = {}  # where each sample's first answer begins
        self._empty = {}  # with `keep_empty`: where the first record of one without begins
        self._file = None  # opened for appending by the first `lock`
        self._reader = None
        self._end = 0  # everything before this byte is whole lines, known to `_offsets`
        self._lines = 0
        if self.path.exists():
            if why := absent(self.path):
                raise UserError(f"--store {self.path} {why}; give another --store")
            self._scan()

    def _scan(self) -> None:
        """Read the whole lines after `_end`."""
        self._reader = self._reader or open(self.path, "rb")
        self._reader.seek(self._end)
        for line in self._reader:
            head, answer = HEAD.match(line), True
            if head and line.endswith(b"}\n"):
                name = sample(head[1], int(head[2]))
            else:  # written by hand, perhaps empty, or the torn last line
                try:
                    record = json.loads(line)
                    answer = is_answer(record)
                    name = sample(record["key"], record["index"])
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    if not line.endswith(b"\n"):
                        return
                    raise UserError(
                        f"{self.path}:{self._lines + 1} is no completion ({error!r}): "
                        f"{line[:80]!r}; delete the line, its sample is then asked again"
                    ) from None
            self._index(name, answer, len(line))
            self._lines += 1

    def _index(self, name: int, answer: bool, size: int) -> None:
        """Note the record of `size` bytes that begins at `_end`."""
        if answer:
            self._offsets.setdefault(name, self._end)  # a stored answer never changes
        elif self.keep_empty:
            self._empty.setdefault(name, self._end)
        self._end += size

    def _offset(self, key: str, index: int) -> int | None:
        name = sample(key, index)
        return self._offsets.get(name, self._empty.get(name))

    def get(self, key: str, first: int, k: int) -> dict[int, dict]:
        """The records of samples `first` .. `first + k - 1` by index, without those not stored."""
        records = {}
        for index in range(first, first + k):
            offset = self._offset(key, index)
            if offset is not None:
                self._reader.seek(offset)
                records[index] = json.loads(self._reader.readline())
        return records

    def missing(self, key: str, first: int, k: int) -> list[int]:
        """The indices of `first` .. `first + k - 1` that are not stored."""
        indices = range(first, first + k)
        return [index for index in indices if self._offset(key, index) is None]

    def put(self, records: list[dict]) -> int:
        """Append the records that are answers in one write; returns how many these are."""
        self.lock()
        records = [record for record in records if self.keep_empty or is_answer(record)]
        lines = [(dump(record) + "\n").encode() for record in records]
        data = b"".join(lines)
        try:
            written = os.write(self._file, data)
        except OSError as error:
            wrong = f"{self.path} cannot be written: {error.strerror}; mend that"
            raise UserError(f"{wrong} and {AGAIN}") from None
        if written < len(data):
            os.ftruncate(self._file, self._end)
            raise UserError(f"{self.path} cannot grow, the disk is full; make room and {AGAIN}")
        for record, line in zip(records, lines):
            self._index(sample(record["key"], record["index"]), is_answer(record), len(line))
        return len(records)

    def lock(self) -> None:
        """Become the one writer; index what an earlier one wrote, repair what it left torn."""
        if self._file is not None:
            return
        refuse_unwritable(self.path)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            wrong = "is being written by another run; wait for it or give another --store"
            if not isinstance(error, BlockingIOError):  # Lustre without -o flock
                wrong = f"cannot be locked ({error.strerror}); "
                wrong += "give a --store on a file system with locks"
            raise UserError(f"{self.path} {wrong}") from None
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


def sample(key: str | bytes, index: int) -> int:
    """One number for a sample: half the memory of a tuple, and digests are never neighbours."""
    return int(key, 16) + index
