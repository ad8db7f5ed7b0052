"""A command's flags as a dataclass: a field a flag, its comment the help, its type the range.

    @dataclass(kw_only=True)
    class Flags(llm.Flags, sandbox.Flags):
        input: In = "out/03_instructions.jsonl"
        min_accuracy: Threshold = 0.5  # keep a response above this share of functions (3.3)

        def __post_init__(self):
            ...  # what depends on several flags: UserError, or a default made of another flag

    async def main(args: Flags) -> None: ...

    if __name__ == "__main__":
        cli(main, __doc__)

A module with several commands has them in `COMMANDS = {"pairs": pairs, "train": learn}`.
`call(main, argv)` is the same for tests and other programs: it raises UserError.
"""

import asyncio
import inspect
import math
import os
import re
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro
from tyro import _errors

from autoif.files import UserError

OTHERS_WAIT = 5  # seconds in which torchrun ends all processes when one has ended


def primitive(nargs: int | str, metavar: str, parse: Callable[[list[str]], object]):
    """A flag's type as tyro wants it: how many words it has, and what they mean."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: True,
        str_from_instance=lambda value: list(map(str, value if nargs != 1 else [value])),
    )


def within(kind: type, low: float, high: float = math.inf, *, above: bool = False, count: int = 1):
    """A number of `kind` from `low` (with `above`: above it) to `high`, or `count` of them."""
    bounds = f"above {low}" if above else f"at least {low}"
    if high < math.inf:
        bounds += f" and at most {high}"

    def parse(words: list[str]) -> float | tuple[float, ...]:
        numbers = []
        for word in words:
            try:
                number = int(word) if kind is int else float(Fraction(word))  # 1/64 as well
            except (ValueError, ZeroDivisionError, OverflowError):  # x, 1/0, 1e400
                number = math.nan
            if not low <= number <= high or (above and number == low):
                raise ValueError(f"must be {bounds}, not {word}")
            numbers.append(number)
        return numbers[0] if count == 1 else tuple(numbers)

    metavar = " ".join([kind.__name__.upper()] * count)
    return Annotated[kind if count == 1 else tuple, primitive(count, metavar, parse)]


def some(words: list[str]) -> list[str]:
    if not words:
        raise ValueError("must be at least one value")
    for word in words:
        if words.count(word) > 1:
            raise ValueError(f"must not have {word} twice")
    return words


Natural, Count = within(int, 0), within(int, 1)
NonNegative, Positive = within(float, 0), within(float, 0, above=True)
Threshold = within(float, 0, 0.9999)  # of a share that has to lie above it; above 1 there is none
Share, PositiveShare = within(float, 0, 1), within(float, 0, 1, above=True)
# tyro's own lists take no value as well
Texts = Annotated[list[str], primitive("*", "STR [STR ...]", some)]
In = Annotated[str, tyro.conf.arg(name="in")]
Ins = Annotated[Texts, tyro.conf.arg(name="in")]


def refuse(event: _errors.ParseErrorEvent) -> None:
    """UserError in one line, in argparse's words, where tyro would draw a box around several."""
    argument = getattr(event, "argument", None)
    where = f"argument {argument.display_name()}: " if argument else ""
    if isinstance(event, _errors.MissingArgs):
        names = ", ".join(missing.arg.display_name() for missing in event.missing_arguments)
        typos = " ".join(event.unrecognized_tokens)
        wrong = f"the following arguments are required: {names}"
        wrong += f"; unrecognized arguments: {typos}" if typos else ""
    elif isinstance(event, _errors.UnrecognizedArgs):
        wrong = f"unrecognized arguments: {' '.join(event.tokens)}"
    elif isinstance(event, _errors.InvalidChoice):
        wrong = f"invalid choice: {event.value!r} (choose from {', '.join(event.choices)})"
    elif isinstance(event, _errors.BadValue):
        wrong = f"expected {argument.lowered.nargs} value(s)"
    else:
        # of a flag that may be None as well, tyro tells what each of its types says
        wrong = re.findall("must be .*|^.*", getattr(event, "message", str(event)))[-1]
    raise UserError(f"{where}{wrong}; see --help")


def program() -> str:
    """What runs: 02_verifiers.py, or report where it is `-m autoif.report`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def parse(command: Callable | dict[str, Callable], argv: list[str], doc: str = ""):
    """(the command, its flags); UserError says in one line what is wrong with them."""
    name, help_wanted = program(), {"-h", "--help"} & set(argv)
    if isinstance(command, dict) and argv[:1] and argv[0] in command:
        command, argv = command[argv[0]], argv[1:]
    if help_wanted:
        print(doc)  # as it stands: tyro would fill its lines
    if isinstance(command, dict):
        choices = ", ".join(command)
        if not help_wanted:
            raise UserError(f"name one of the commands {choices}")
        print(f"usage: {name} COMMAND --help; the commands are {choices}")
        sys.exit()
    flags = next(iter(get_type_hints(command, include_extras=True).values()))  # of `args`
    config = (tyro.conf.FlagCreatePairsOff,)  # no --no-no-score
    with _errors.on_parse_error(refuse):
        return command, tyro.cli(flags, args=argv, description=" ", prog=name, config=config)


def call(command: Callable | dict[str, Callable], argv: list[str], doc: str = ""):
    """Read a command's flags and call it; what is a coroutine is run to its end."""
    chosen, args = parse(command, argv, doc)
    result = chosen(args)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def cli(command: Callable | dict[str, Callable], doc: str) -> None:
    """`call` as a program: UserError ends it with 2, Ctrl-C with 130, without a traceback."""
    name = program()
    try:
        call(command, sys.argv[1:], doc)
    except UserError as error:
        end(f"{name}: error: {error}", 2)
    except KeyboardInterrupt:
        what = "interrupted; what was finished is kept, run the same command to go on"
        end(f"\n{name}: {what}", 130)


def end(words: str, code: int) -> None:
    """Exit with a last line, which the first of several processes on a machine says for all."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # where the first says the same, torchrun ends this one meanwhile
        time.sleep(OTHERS_WAIT)
    print(words, file=sys.stderr)
    sys.exit(code)
