"""Large arrays in the user's cache folder, shared by the processes and the runs of a host."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
import psutil
from filelock import FileLock
from numpy.typing import NDArray

# Of the machine's memory, for all files of a folder; the oldest make room for new ones.
SHARE = 0.25


def cache_folder(kind: str) -> Path:
    """Return the folder for files of a kind, below XDG_CACHE_HOME."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "timm_ktg" / kind


def allowed_bytes() -> int:
    """Return how many bytes all files of a folder may take together."""
    return int(SHARE * psutil.virtual_memory().total)


def kept_bytes(
    path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]
) -> NDArray[np.uint8]:
    """Return an array in a file, whose pages all processes of the host share.

    If several processes want the same file, one writes it, and the others wait. A process that is
    killed leaves no half of a file. Writing to the array changes this process's copy alone.

    Args:
        path: The file.
        shape: The array's shape.
        fill: Writes the array's values.

    Raises:
        OSError: The file cannot be made, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        array = _opened(path, shape)
        if array is None:
            _write(path, shape, fill)
            array = np.load(path, mmap_mode="c")
        os.utime(path)
    make_room(path, allowed_bytes() - array.nbytes)
    return array


def make_room(kept: Path, others: int) -> None:
    """Remove the files that were opened longest ago; runs that use them keep what they have.

    Args:
        kept: A file that stays.
        others: Bytes that the other files of its folder may keep.
    """
    found = []
    for path in kept.parent.iterdir():
        with suppress(FileNotFoundError):  # another process makes room, too
            found += [(path.stat().st_mtime, path.stat().st_size, path)] * (path != kept)
    for _, size, path in sorted(found, reverse=True):
        others -= size
        if others < 0 and size:  # a lock is empty
            path.unlink(missing_ok=True)


def claim(file: IO[Any], size: int) -> None:
    """Give a file its size on the disk now: a full one would kill the process that writes later.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _opened(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the array in a file; None if the file is not there, or is damaged."""
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> None:
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        with partial.open("r+b") as file:
            claim(file, partial.stat().st_size)
        fill(array)
        array.flush()
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
