"""Terminal output of all programs: tables, progress and errors."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from accelerate import PartialState
from rich.console import Console
from tqdm import tqdm

from .errors import masked

# A file has no width, and a table folded to 80 columns is hard to read.
_FILE_WIDTH = 120


def console() -> Console:
    """Return the console on standard output; names in brackets stay as they are."""
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def printable(path: Path) -> str:
    r"""Return a path as text that can be printed and written as UTF-8.

    Bytes of a name that are not UTF-8 become escapes such as `\udce9`, as they do in JSON.
    """
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def run_bar(done: int, total: int, show: bool) -> tqdm:
    """Return a bar over a whole run; in a file it becomes an occasional line.

    The remaining time is that of the whole run. It counts what updates, evaluations and checkpoints
    took on average so far.

    Args:
        done: The updates that were done before.
        total: The updates of the whole run.
        show: Whether this process shows the bar.
    """
    in_file = not sys.stderr.isatty()
    return tqdm(
        initial=done,
        total=total,
        unit="update",
        smoothing=0,  # the average over all updates, or an evaluation would distort it
        leave=False,
        disable=not show,
        mininterval=30 if in_file else 0.2,
        maxinterval=60,  # otherwise tqdm redraws an unchanged bar after 10 s
        file=_Lines(sys.stderr) if in_file else sys.stderr,
    )


def fail(lines: Sequence[str], code: int) -> int:
    """Print the problems, a line each, and return the exit code."""
    # All processes get here, but only one prints.
    if PartialState().is_main_process:
        for line in lines:
            print(masked(line), file=sys.stderr)
    return code


class Parser(ArgumentParser):
    """A parser of arguments that may be passwords."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        super().error(masked(message))


class _Lines:
    """A stream that writes a progress bar as lines instead of redrawing it in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the bar's text as a line; skip the writes that only clear the bar."""
        text = text.replace("\r", "").strip()
        if text and " 0/" not in text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
