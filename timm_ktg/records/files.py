"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from ..errors import StorageError, one_line


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a killed process leaves the old file or the new one.

    Args:
        path: The file; its content is replaced.
        text: The new content.

    Raises:
        StorageError: The file cannot be written.
    """
    with writing(path), replace_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error raised while a file or folder is written into a StorageError that names it.

    Args:
        path: The file or folder.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError
        raise StorageError(f"{path}: cannot be written: {one_line(error)}") from error


@contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the file's place when the block ends well.

    If the block raises, the file stays as it was and nothing is left of the new one.

    Args:
        path: The file; its content is replaced.
    """
    # The name is unique, because other processes, on other hosts too, may write the same file.
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
