"""What would be the same in any paper; the method is in the numbered files."""

import os
import sys


def _say_goodbye(kind, error, trace) -> None:
    """Ctrl-C while a stage still imports what it needs, or lacks it: one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted before anything was begun", file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError):
        name = "autoif" if sys.argv[0] == "-m" else os.path.basename(sys.argv[0])
        print(
            f"{name}: error: no package {error.name!r} in {sys.executable}; activate the "
            "environment: source .venv/bin/activate (bash run_all.sh --env makes it)",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        sys.__excepthook__(kind, error, trace)


# only where a numbered file or `-m autoif...` is the program: others keep their own hook
checkout = os.path.realpath(os.path.dirname(__file__) + "/..")
numbered = os.path.dirname(os.path.realpath(sys.argv[0])) == checkout
if numbered or (sys.argv[0] == "-m" and any(w.startswith("autoif") for w in sys.orig_argv)):
    sys.excepthook = _say_goodbye
