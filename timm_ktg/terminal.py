"""The terminal that all programs write to: tables, progress, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO, TypeVar

from accelerate import PartialState
from rich.console import Console
from tqdm import tqdm

T = TypeVar("T")

# Piped into a file there is no width to ask for, and a table folded to 80 columns is hard to read.
_FILE_WIDTH = 120


def console() -> Console:
    """Return the console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


def progress(items: Iterable[T], total: int, epoch: int, epochs: int, show: bool) -> Iterable[T]:
    """Iterate under a progress bar; in a file the bar is a line now and then.

    Args:
        items: What to iterate over.
        total: How many there are.
        epoch: The epoch, from 1.
        epochs: All epochs.
        show: Whether this process shows anything.
    """
    in_file = not sys.stderr.isatty()
    bar: Iterable[T] = tqdm(
        items,
        desc=f"epoch {epoch}/{epochs}",
        total=total,
        unit="update",
        leave=False,
        disable=not show,
        mininterval=30 if in_file else 0.2,
        maxinterval=60,  # else tqdm draws an unchanged bar again after 10 s
        file=_Lines(sys.stderr) if in_file else sys.stderr,
    )
    return bar


def fail(lines: Sequence[str], code: int) -> int:
    """Say what is wrong, a line each, and return the exit code."""
    # Every process comes here; one speaks. Without accelerate's state there is only one.
    if PartialState().is_main_process:
        for line in lines:
            print(line, file=sys.stderr)
    return code


class _Lines:
    """A stream that makes lines of what a progress bar would draw over itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the bar's text as a line, and nothing where the bar only clears itself."""
        text = text.replace("\r", "").strip()
        if text and " 0/" not in text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
