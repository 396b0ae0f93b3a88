"""Disks of tests: small ones that fill up, and ones that are locked or lose a folder in use."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

DEADLINE = 240  # seconds


class Disk:
    """A file system in memory.

    Args:
        path: Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: str) -> None:
        """Change its size, such as to `8k` or `8192`."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        disk = os.statvfs(self.path)
        return disk.f_blocks * disk.f_frsize

    def fill(self) -> None:
        """Make it as small as what is on it."""
        self.resize(str(shutil.disk_usage(self.path).used))

    def lock(self) -> None:
        """Make it read-only. The kernel does so at an error of a disk, but not on demand.

        On demand it refuses as long as a file is open for writing. So a second mount of the disk
        is made read-only, where nobody writes, and comes over the first one.
        """
        path, second = str(self.path), f"{self.path}-read-only"
        os.mkdir(second)
        subprocess.run(["mount", "--bind", path, second], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", second], check=True)
        subprocess.run(["mount", "--bind", second, path], check=True)
        subprocess.run(["umount", "--lazy", second], check=True)
        os.rmdir(second)

    def unlock(self) -> None:
        """Make it writable again."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def empty(self) -> None:
        """Remove everything on it, whatever is in use."""
        for path in self.path.iterdir():
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk can only be mounted by root")
    yield Disk(path)
    while path.is_mount():  # twice if a test that failed has left it locked
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def wait_for(line: str, log: Path, process: BaseProcess) -> None:
    """Wait until a process that runs has written a line."""
    end = time.monotonic() + DEADLINE
    while line not in (log.read_text() if log.exists() else ""):
        assert process.is_alive() and time.monotonic() < end, log.read_text()
        time.sleep(0.01)
