"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, text: str) -> None:
    """Write a text so that a process that is killed leaves the old file or the new one.

    Args:
        path: The file; what it held is replaced.
        text: All that it will hold.
    """
    with replace_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the file's place when the block ends well.

    When it does not, nothing is left of it.

    Args:
        path: The file; what it held is replaced.
    """
    # Of this process alone, for others, on other hosts too, may be writing the same file.
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
