"""Programs that are killed with kill -9 while they work."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def after(seconds: float) -> Callable[[float], bool]:
    return lambda age: age > seconds


def killed(command: list[str], when: Callable[[float], bool], **options) -> bool:
    """Start a program and kill it once `when(its age in seconds)`; False where it ended before."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    with subprocess.Popen(command, **quiet, **options) as process:
        began = time.monotonic()
        while (alive := process.poll() is None) and not when(time.monotonic() - began):
            time.sleep(0.01)
        process.kill()
    return alive
