"""The journal: a study in a file, a line for each operation, for the workers of one host."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Generator
from functools import cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

JOURNAL = "study.journal"

_BLOCK = 1 << 12  # bytes
_SHOWN = 80  # characters of a line that is dropped

_logger = logging.getLogger(__name__)


class KernelLock(BaseJournalFileLock):
    """A lock that the kernel gives back when its holder is killed.

    Optuna's `JournalFileOpenLock` is a file, which a killed holder leaves behind. The others then
    wait for 30 s and take it by force, several of them at once.

    Args:
        path: The file that is locked; it is made where there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        import fcntl

        self._file = open(self._path, "a", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give the lock back."""
        assert self._file is not None
        self._file.close()


def lock_of(path: str) -> BaseJournalFileLock:
    """Return a lock for the workers of one host; Optuna's own where the kernel has none.

    Args:
        path: What is locked. The lock is a file beside it.
    """
    return JournalFileOpenLock(path) if sys.platform == "win32" else KernelLock(f"{path}.lock")


class WorkerLocks:
    """Files that workers hold locked as long as they live; the kernel unlocks those of the dead.

    Args:
        folder: Where they lie. All workers of a journal see it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def own(self) -> str | None:
        """Return the name of this process's file, which stays locked until the process ends.

        None where the kernel has no such locks.
        """
        return None if sys.platform == "win32" else _held(self.folder, os.getpid()).name

    def is_free(self, name: str) -> bool | None:
        """Say whether nobody holds a file locked that this kernel knows of; None: it is gone.

        Args:
            name: Of the file.
        """
        import fcntl

        try:
            with (self.folder / name).open("rb") as file:
                # Shared, so that two who ask at once do not take each other for the holder.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return False
        return True


@cache
def _held(folder: Path, pid: int) -> Path:
    """Lock a new file for as long as this process lives, and return its path."""
    import fcntl

    folder.mkdir(exist_ok=True)
    path = folder / f"{pid}-{uuid4().hex[:12]}"
    file = path.open("xb")
    fcntl.flock(file, fcntl.LOCK_EX)
    # A child, such as a loader's, would else hold the lock longer than this process lives. The
    # hook also keeps the file open.
    os.register_at_fork(after_in_child=file.close)
    return path


class Journal(JournalFileBackend):
    """A journal that holds whole lines only.

    Optuna's own joins its next line onto what a crash or a full disk left of the last one, and
    nobody can read the journal from then on.

    Args:
        path: The file.
        lost: Hosts whose workers are dead, as the user says.
    """

    def __init__(self, path: str, lost: Collection[str] = ()) -> None:
        self.path = path
        self.lost = frozenset(lost)
        place = os.path.realpath(path)  # one lock, also for those who come by a link
        self._lock = lock_of(place)
        self.making = lock_of(f"{place}.making")  # held by the worker that makes a study
        self.workers = WorkerLocks(f"{place}.workers")
        super().__init__(path, lock_obj=self._lock)

    def repair(self) -> None:
        """Drop what follows the last whole line."""
        with get_lock_file(self._lock), open(self.path, "r+b", buffering=0) as file:
            self._cut(file)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the operations from a line on.

        Raises:
            ValueError: A line that is not the last one is damaged.
        """
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            whole = len(self._log_number_offset) - 1
            raise ValueError(
                f"{self.path}: line {whole + 1} is damaged, and others follow it. To go on from "
                f"the {whole} lines before it: head -n {whole} {self.path} > repaired"
            ) from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations; if that fails, the journal is as it was.

        Raises:
            OSError: There is no room, no permission, or no journal any more.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        # Opened this way, a journal that is gone is an error, not begun anew.
        with get_lock_file(self._lock), open(self.path, "r+b", buffering=0) as file:
            end = file.seek(self._cut(file))
            try:
                left = memoryview(text.encode())
                while left:
                    left = left[file.write(left) :]
            except BaseException as error:
                file.truncate(end)
                if isinstance(error, OSError):
                    error.filename = self.path  # a write does not name its file
                raise
            os.fsync(file.fileno())

    def _cut(self, file: IO[bytes]) -> int:
        """Drop what follows the last whole line, say so, and return the size."""
        end = file.seek(0, os.SEEK_END)
        start, line = _last_line(file, end)
        if not line or _is_whole(line):
            return end
        file.truncate(start)
        shown = line.decode(errors="replace").strip()[:_SHOWN]
        _logger.warning("%s: the last line was cut off, and is dropped: %s", self.path, shown)
        return start


def journal_of(storage: BaseStorage) -> Journal | None:
    """Return the journal in which a storage keeps its studies, if it does.

    Args:
        storage: The storage.
    """
    backend = getattr(storage, "_backend", None)  # Optuna has no public name for it
    return backend if isinstance(backend, Journal) else None


def _last_line(file: IO[bytes], end: int) -> tuple[int, bytes]:
    """Return where the last line before `end` begins, and the line."""
    line, start = b"", end
    while start > 0:
        size = min(_BLOCK, start)
        start -= size
        file.seek(start)
        line = file.read(size) + line
        newline = line.rfind(b"\n", 0, len(line) - 1)
        if newline >= 0:
            return start + newline + 1, line[newline + 1 :]
    return start, line


def _is_whole(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
