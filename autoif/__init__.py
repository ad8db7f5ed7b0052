"""What would be the same in any paper; the method is in the numbered files."""

import sys
from pathlib import Path


def _say_goodbye(kind, error, trace) -> None:
    """Ctrl-C while a stage still imports what it needs: one line, as `stage.run` says it later."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted before anything was begun", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# only where a numbered file is the program: whoever imports this package keeps his own hook
if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1]:
    sys.excepthook = _say_goodbye
