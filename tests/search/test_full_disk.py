"""A search on a disk that is full: nothing is lost, and it goes on once there is room."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna import Trial
from optuna.storages import JournalStorage

from tests.recipe_cases import write_recipe
from tests.search_cases import run_search, search_values
from tests.study_cases import (
    exit_codes,
    joined,
    lines,
    logs,
    search_of,
    start_all,
    work,
)
from tests.training_cases import DEADLINE, finish, start
from timm_ktg.errors import DataError, StorageError
from timm_ktg.search.journal import JOURNAL, Journal
from timm_ktg.search.study import run_trials
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
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # its lock is held here


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


def run_on(folder: Path, disk: Path) -> None:
    """Be a search whose journal lies on the disk."""
    values = search_values(storage=str(disk / JOURNAL), trials=4, final_seeds=[0], top_k=0)
    recipe = write_recipe(folder / "s.yaml", values)
    sys.exit(run_search(recipe, "--output-dir", folder / "run"))


def test_search_program_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path
) -> None:
    log = tmp_path / "log"
    resize(disk, "8k")
    assert finish(start(log, run_on, tmp_path, disk), deadline=DEADLINE) == [1]
    assert log.read_text().splitlines()[-1] == (
        f"{disk / JOURNAL}: No space left on device. "
        "The same command again goes on with the search."
    )
    assert "Traceback" not in log.read_text()
    resize(disk, "1m")
    assert finish(start(log, run_on, tmp_path, disk), deadline=DEADLINE) == [0], log.read_text()
    study = optuna.load_study(study_name="s", storage=JournalStorage(Journal(str(disk / JOURNAL))))
    assert len(finished(study)) == 4
    assert all(trial.state != "failed" for trial in finished(study))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "weights"),
        StorageError("weights: cannot be written: SafetensorError: No space left on device"),
        DataError("data.input_key: row 5 of `image` (weights.png): image file is truncated"),
    ],
)
def test_search_trial_that_is_not_at_fault_is_done_again(tmp_path: Path, error: Exception) -> None:
    study = joined(tmp_path, search_of(2), lambda study: None)

    def full(trial: Trial) -> float:
        raise error

    with pytest.raises(type(error), match="weights"):
        run_trials(study, full, lambda study: bool(finished(study)))
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    assert finished(study) == []


@pytest.mark.parametrize("readable", [True, False])
def test_search_trial_whose_end_cannot_be_written_is_not_lost_in_a_slip_of_optuna(
    readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = joined(tmp_path, search_of(2), lambda study: None)

    def full(*arguments: object, **values: object) -> None:
        if not readable:
            monkeypatch.setattr(study._storage, "get_trial", full)
        raise OSError(errno.ENOSPC, "No space left on device", "journal")

    monkeypatch.setattr(study._storage, "set_trial_state_values", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_trials(study, lambda trial: 1.0, lambda study: bool(finished(study)))
    monkeypatch.undo()
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
