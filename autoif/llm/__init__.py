"""Completions from any OpenAI-compatible server, each stored on disk and never asked for twice."""

from autoif.llm.client import SAMPLING, Client, Flags, key, variable  # noqa: F401  the room's door
from autoif.llm.reply import strip_think  # noqa: F401
