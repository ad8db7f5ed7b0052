"""What a run is about to make: do its flags parse, and was what is there made in this way?

    python -m autoif.chain PLAN [--redo-from 05]

PLAN has a line for each output in the order of the run, shell-quoted: its stage, its path, the
command that makes it. An output stays only if its command's flags (but `settings.FREE`), and the
files and checkpoints that they name, are those in its settings file, and nothing that it is made of
is made anew; without a settings file it is taken as it is. Exit code 2 names what is out of date.
"""

import importlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from autoif import flags, settings
from autoif.files import UserError, read_json, remove


@dataclass(kw_only=True)
class Flags:
    plan: tyro.conf.Positional[str]  # file with a line for each output; run_all.sh writes it
    redo_from: str | None = None  # delete the outputs of this stage and the later ones


class Output(NamedTuple):
    """A line of the plan; `args` are its command's flags, None where no command is known."""

    stage: str
    path: str
    args: Any

    def paths(self) -> list[str]:
        """All that the command writes: what later commands read, and `--redo-from` deletes."""
        named = [self.path, *(getattr(self.args, name, None) for name in ("out", "folder"))]
        return list(dict.fromkeys(filter(None, named)))

    def settings(self) -> dict | None:
        """How it was made; None where no settings file is beside it."""
        for path in map(settings.settings_path, self.paths()):
            if path.is_file():
                return read_json(path)
        return None


def command_of(words: list[str]) -> tuple[str, list[str]] | None:
    """(module, its arguments) of a command: of a numbered file, or of `-m autoif...`."""
    # a numbered file may stand behind a server or a launcher, which are modules too
    for place, word in enumerate(words):
        if re.fullmatch(r"0\d_\w+\.py", word):
            return word.removesuffix(".py"), words[place + 1 :]
    for place, word in enumerate(words):
        if word == "-m" and words[place + 1].startswith("autoif."):
            return words[place + 1], words[place + 2 :]
    return None


def read(path: str) -> tuple[list[Output], list[str]]:
    """(outputs, problems): each line of a plan, and what the parsers say of its flags."""
    outputs, problems = [], []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        stage, output, *words = shlex.split(line)
        args = None
        if command := command_of(words):
            name, argv = command
            module = importlib.import_module(name)
            try:
                _, args = flags.parse(getattr(module, "COMMANDS", None) or module.main, argv)
            except UserError as error:
                wrong = f"{name}: {str(error).removesuffix('; see --help')}"
                problems.append(f"{wrong}; mend the flags (FLAGS_{stage} or its like)")
        outputs.append(Output(stage, output, args))
    return outputs, list(dict.fromkeys(problems))


def outdated(outputs: list[Output]) -> tuple[dict[str, str], list[str]]:
    """({path: reason} of the outputs that were made otherwise, those of which nobody knows how)."""
    stale, unknown, renewed = {}, [], set()
    for output in outputs:
        if not output.args or not output.path:
            continue
        if not Path(output.path).exists():
            renewed.update(output.paths())
            continue
        old = sorted(settings.named_by(output.args) & renewed)
        reasons = [f"made of {path}, which is out of date or gone" for path in old]
        recorded = output.settings()
        if recorded is None and not reasons:
            unknown.append(output.path)
        elif not reasons:
            reasons = list(settings.changes(recorded, output.args))
        if reasons:
            stale[output.path] = "; ".join(reasons)
            renewed.update(output.paths())
    return stale, unknown


def problems(outputs: list[Output], redo: str | None) -> list[str]:
    """What stands against going on with a plan's outputs: those that are out of date."""
    stale, unknown = outdated([output for output in outputs if not redo or output.stage < redo])
    for path in unknown:
        print(f"note: no settings beside {path}: it is taken as it is, whatever made it")
    if not stale:
        return []
    first = min(output.stage for output in outputs if output.path in stale)
    lines = "".join(f"\n     {path}: {reason}" for path, reason in stale.items())
    return [
        f"made with other settings or inputs than this command's:{lines}\n     go back to "
        f"those, set another OUT, or make all from there on again: --redo-from {first}"
    ]


def delete(outputs: list[Output]) -> None:
    """Delete the outputs with their settings and resume points, the last of the chain first."""
    for output in reversed(outputs):
        for path in map(Path, output.paths()):
            beside = [settings.settings_path(path), Path(f"{path}.state")]
            if path.suffix == ".json":  # the table and the bars of results
                beside += [path.with_suffix(".md"), path.with_suffix(".png")]
            for file in [path, *beside]:
                if file.exists() or file.is_symlink():
                    remove(file)
                    print(f"deleted {file}, to be made again")


def main(args: Flags) -> None:
    outputs, wrong = read(args.plan)
    if wrong := wrong + problems(outputs, args.redo_from):
        raise UserError("\n".join(wrong))
    if args.redo_from:
        delete([output for output in outputs if output.stage >= args.redo_from])


if __name__ == "__main__":
    flags.cli(main, __doc__)
