"""A search on a disk that is full: nothing is lost, and it goes on once there is room."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study_cases import (
    exit_codes,
    joined,
    lines,
    logs,
    search_of,
    start_all,
    work,
)
from timm_ktg.search.journal import JOURNAL
from timm_ktg.search.trials import finished

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("pages", [1, 2, 3, 5, 8, 13, 21, 34])
def test_search_on_a_full_disk_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path, pages: int
) -> None:
    resize(disk, f"{4 * pages}k")
    search = search_of(100, storage=str(disk / JOURNAL))
    workers = start_all(tmp_path, *[(work, (tmp_path, search, 0.001, False, 0))] * 2)
    assert exit_codes(tmp_path, workers) == [1, 1]
    assert logs(tmp_path).count("No space left on device") >= 2
    text = (disk / JOURNAL).read_bytes()
    assert text.endswith(b"\n") and len(text) > 4096 * (pages - 1) - 2000
    resize(disk, "4m")
    workers = start_all(tmp_path, *[(work, (tmp_path, search, 0.0, False, 0))] * 2)
    assert exit_codes(tmp_path, workers) == [0, 0], logs(tmp_path)
    study = joined(tmp_path, search, lambda study: None)
    assert (disk / JOURNAL).read_bytes().startswith(text)
    assert 100 <= len(finished(study)) < 102
    ran = [int(number) for numbers in lines(tmp_path, "numbers") for number in numbers]
    assert len(ran) == len(set(ran)) and set(ran) <= set(range(len(study.trials)))
