"""A stage on many machines: each takes its share of the rows, into a folder of its own.

    python 04_responses.py --shard 0/4 ...    # out/0-of-4/04_responses.jsonl; then 1/4, 2/4 and 3/4

Everything that a stage writes beside --out, completions too, lies in that folder. The rows of all
together are those of one run. What takes them gets all files: `--in out/*-of-4/04_sft.jsonl`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from autoif.files import UserError

FOLDER = r"\d+-of-\d+"


@dataclass(kw_only=True)
class Flags:
    shard: str | None = None  # I/N: only the rows I, I + N, ...; into the folder I-of-N by --out

    def __post_init__(self):
        if not self.shard:
            return
        _, count = self.share()
        for other in folders(Path(self.out).parent):
            if not other.name.endswith(f"-of-{count}"):
                raise UserError(
                    f"--shard {self.shard}: {other} is of another number of shards; go on with "
                    "that one, delete its folders, or give an --out in another folder"
                )
        self.out = self.placed(self.out)

    def refuse_made_in_shards(self) -> None:
        """UserError where shards have made what would be paid for once more."""
        if self.shard or Path(self.out).exists():
            return
        if made := parts(Path(self.out)):
            every = re.sub(r"\d+(-of-\d+/)", r"*\1", str(made[0]))
            raise UserError(
                f"{self.out} was made in shards ({made[0]}); join them (cat {every} > {self.out}, "
                "and what else is there), or delete them"
            )

    def share(self) -> tuple[int, int]:
        """ "1/4" -> (1, 4); without --shard all rows are the first of one share"""
        number, _, count = (self.shard or "0/1").partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise UserError(f"--shard must be I/N with I from 0 to N - 1, not {self.shard}")
        return int(number), int(count)

    def of_shard(self, rows: list) -> list:
        number, count = self.share()
        return rows[number::count]

    def placed(self, path: str) -> str:
        """out/04_sft.jsonl -> out/1-of-4/04_sft.jsonl, where there are shards"""
        if not self.shard:
            return path
        number, count = self.share()
        return str(Path(path).parent / f"{number}-of-{count}" / Path(path).name)

    def then(self, command: str) -> str:
        """The command that comes next: of shards, over the outputs of all."""
        if not self.shard:
            return command
        command = re.sub(rf"(--out \S*?){FOLDER}/", r"\1", command)
        return (
            f"the other shards, then {re.sub(rf'{FOLDER}/', f'*-of-{self.share()[1]}/', command)}"
        )


def run_of(path: str | Path) -> str:
    """What is the same for all shards of a run: out/1-of-4/04.jsonl -> out/04.jsonl"""
    return re.sub(rf"(^|/){FOLDER}/", r"\1", str(path))


def folders(out: Path) -> list[Path]:
    """The folders of a run's shards, in their order; none where it has no shards."""
    found = [path for path in out.glob("*-of-*") if re.fullmatch(FOLDER, path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[0]))


def missing(path: Path) -> list[str]:
    """The folders of shards that have not written their part of a file; [] where it is whole."""
    written = {part.parent.name for part in parts(path) if part != path}
    counts = {int(name.split("-")[-1]) for name in written}
    wanted = {f"{number}-of-{count}" for count in counts for number in range(count)}
    return sorted(wanted - written, key=lambda name: int(name.split("-")[0]))


def parts(path: Path) -> list[Path]:
    """The file, or those of its shards where there is none, in their order."""
    if path.is_file():
        return [path]
    found = [folder / path.name for folder in folders(path.parent)]
    return [part for part in found if part.exists()]
