"""A command's flags as a dataclass: a field a flag, its comment the help, its type the range.

    @dataclass(kw_only=True)
    class Flags(llm.Flags, sandbox.Flags):
        input: In = "out/03_instructions.jsonl"
        min_accuracy: Share = 0.5  # keep a response above this share of functions (3.3)

        def __post_init__(self):
            ...  # what depends on several flags: UserError, or a default made of another flag

    async def main(args: Flags) -> None: ...

    if __name__ == "__main__":
        cli(main, __doc__)

A module with several commands has them in `COMMANDS = {"pairs": pairs, "train": learn}` and ends
with `cli(COMMANDS, __doc__)`. `call(main, argv)` is the same for tests and other programs: it
raises UserError.
"""

import asyncio
import contextlib
import inspect
import io
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro

from autoif.files import UserError

CONFIG = (
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
)
FRAME = "│╭╮╰╯─ "  # around tyro's errors


def within(kind: type, low: float, high: float = math.inf, *, above: bool = False):
    """A number of `kind` from `low` (with `above`: above it) to `high`; 1/64 is a number too."""
    bounds = f"above {low}" if above else f"at least {low}"
    if high < math.inf:
        bounds += f" and at most {high}"

    def parse(words: list[str]) -> float:
        try:
            number = int(words[0]) if kind is int else float(Fraction(words[0]))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{words[0]!r} is no {kind.__name__}") from None
        if not low <= number <= high or (above and number == low):
            raise ValueError(f"must be {bounds}, not {words[0]}")
        return number

    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}" if kind is float else str(value)],
    )
    return Annotated[kind, spec]


Natural, Count = within(int, 0), within(int, 1)
NonNegative, Positive = within(float, 0), within(float, 0, above=True)
Share, PositiveShare = within(float, 0, 1), within(float, 0, 1, above=True)
Betas = tuple[within(float, 0, 0.999999), within(float, 0, 0.999999)]
In = Annotated[str, tyro.conf.arg(name="in")]
Ins = Annotated[list[str], tyro.conf.arg(name="in")]


def parse(command: Callable | dict[str, Callable], argv: list[str], doc: str | None = None):
    """(the command, its flags); UserError says in one line what is wrong with them."""
    name = Path(sys.argv[0]).name
    if isinstance(command, dict):
        if argv and argv[0] in command:
            return parse(command[argv[0]], argv[1:], doc)
        if {"-h", "--help"} & set(argv[:1]):
            print(f"{doc}\nusage: {name} {{{','.join(command)}}} --help")
            sys.exit()
        raise UserError(f"name one of the commands {', '.join(command)}")
    flags = next(iter(get_type_hints(command, include_extras=True).values()))  # of `args`
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return command, tyro.cli(flags, args=argv, description=doc, prog=name, config=CONFIG)
    except SystemExit as end:
        if not end.code:
            raise
    # tyro's box on one line: its title and its advice behind the error are left out
    lines = [line.strip(FRAME) for line in said.getvalue().splitlines()[1:]]
    words = re.split("Argument helptext|For full helptext", " ".join(filter(None, lines)))[0]
    raise UserError(f"{words.strip(' .')}; see --help")


def call(command: Callable | dict[str, Callable], argv: list[str], doc: str | None = None):
    """Read a command's flags and call it; what is a coroutine is run to its end."""
    chosen, args = parse(command, argv, doc)
    result = chosen(args)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def cli(command: Callable | dict[str, Callable], doc: str) -> None:
    """`call` as a program: UserError ends it with 2, Ctrl-C with 130, without a traceback."""
    name = Path(sys.argv[0]).name
    try:
        call(command, sys.argv[1:], doc)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; what was finished is kept, run the same command to go on",
            file=sys.stderr,
        )
        sys.exit(130)
