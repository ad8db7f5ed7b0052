"""What a run is about to make: do its flags parse, and was what is there made in this way?

    python -m autoif.chain PLAN [--redo-from 05]

PLAN has a line for each output in the order of the run, shell-quoted: its stage, its path, the
command that makes it. An output that is there stays only if the flags that its command has now, the
files and the checkpoints that they name are those in its settings file (`stage.write_settings`),
and nothing that it is made of is made anew. Flags of speed and price (`stage.FREE`) do not count.
Exit code 2 names what is out of date. An output without a settings file is taken as it is.
"""

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoif.files import UserError
from autoif.stage import FREE, Help, flags_of, identity, listed, run, settings_path


class Output(NamedTuple):
    """A line of the plan; `args` are its command's flags, None where no parser is known."""

    stage: str
    path: str
    args: argparse.Namespace | None

    def paths(self) -> list[str]:
        """All that the command writes: what later commands read, and `--redo-from` deletes."""
        named = [self.path, *(getattr(self.args, name, None) for name in ("out", "folder"))]
        return list(dict.fromkeys(filter(None, named)))

    def settings(self) -> dict | None:
        """How it was made; None where no settings file is beside it."""
        for path in map(settings_path, self.paths()):
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
        return None


def parser_of(words: list[str]) -> tuple[str, list[str]] | None:
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
        args, found = None, parser_of(words)
        if found:
            parse, said = importlib.import_module(found[0]).parse, io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    args = parse(found[1])
            except SystemExit:
                error = said.getvalue().rpartition("error: ")[2].strip()
                problems.append(f"{found[0]}: {error}; mend the flags (FLAGS_{stage} or its like)")
        outputs.append(Output(stage, output, args))
    return outputs, list(dict.fromkeys(problems))


def named_by(args: argparse.Namespace) -> set[str]:
    """The texts in flags that can be what a command reads: paths, names of models."""
    named = set()
    for name, value in flags_of(args).items():
        if name not in FREE:
            named.update(each for each in listed(value) if isinstance(each, str))
    return named


def changes(settings: dict, args: argparse.Namespace) -> Iterator[str]:
    """How the flags, and the files that they name, differ from those of a settings file."""
    flags, inputs = settings["flags"], settings["inputs"]
    for name, value in flags_of(args).items():
        # a flag that came with a later version says nothing about an earlier output
        if name in FREE or name not in flags:
            continue
        before, after = [], []
        for each in listed(flags[name]):
            before.append(inputs.get(each, each) if isinstance(each, str) else each)
        for each in listed(value):
            after.append((identity(each) or each) if isinstance(each, str) else each)
        recorded = inputs.keys() & set(map(str, listed(flags[name])))
        # earlier versions recorded no checkpoints: of one at the same path nothing is known
        if before == after or (flags[name] == value and not recorded):
            continue
        flag = "--in" if name == "input" else f"--{name.replace('_', '-')}"
        if recorded:
            yield f"{flag} {value} is not what it was made of"
        else:
            yield f"{flag} was {flags[name]}, is {value}"


def outdated(outputs: list[Output]) -> tuple[dict[str, str], list[str]]:
    """({path: reason} of the outputs that were made otherwise, those of which nobody knows how)."""
    stale, unknown, renewed = {}, [], set()
    for output in outputs:
        if not output.args or not output.path:
            continue
        old = sorted(named_by(output.args) & renewed)
        reasons = [f"made of {path}, which is out of date or gone" for path in old]
        if not Path(output.path).exists():
            renewed.update(output.paths())
            continue
        settings = output.settings()
        if settings is None and not reasons:
            unknown.append(output.path)
        elif settings is not None and not reasons:
            reasons = list(changes(settings, output.args))
        if reasons:
            stale[output.path] = "; ".join(reasons)
            renewed.update(output.paths())
    return stale, unknown


def problems(plan: str, redo: str | None) -> list[str]:
    """What stands against a plan: flags that do not parse, and outputs that are out of date."""
    outputs, found = read(plan)
    stale, unknown = outdated([each for each in outputs if not redo or each.stage < redo])
    for path in unknown:
        print(f"note: no settings beside {path}: it is taken as it is, whatever made it")
    if stale:
        first = min(each.stage for each in outputs if each.path in stale)
        lines = "".join(f"\n     {path}: {reason}" for path, reason in stale.items())
        found.append(
            f"made with other settings or inputs than this command's:{lines}\n     go back to "
            f"those, set another OUT, or make all from there on again: --redo-from {first}"
        )
    return found


def delete(outputs: list[Output]) -> None:
    """Delete the outputs with their settings and resume points, the last of the chain first."""
    for output in reversed(outputs):
        for path in map(Path, output.paths()):
            beside = [settings_path(path), Path(f"{path}.state")]
            if path.suffix == ".json":  # the table and the bars of results
                beside += [path.with_suffix(".md"), path.with_suffix(".png")]
            for each in [path, *beside]:
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                elif each.exists() or each.is_symlink():
                    each.unlink()
                else:
                    continue
                print(f"deleted {each}, to be made again")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.chain", description=__doc__, formatter_class=Help
    )
    parser.add_argument("plan", help="file with a line for each output; run_all.sh writes it")
    parser.add_argument("--redo-from", help="delete the outputs of this stage and the later ones")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if found := problems(args.plan, args.redo_from):
        raise UserError("\n".join(found))
    if args.redo_from:
        outputs, _ = read(args.plan)
        delete([each for each in outputs if each.stage >= args.redo_from])


if __name__ == "__main__":
    run(main)
