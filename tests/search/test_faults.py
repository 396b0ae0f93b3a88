"""A search whose disk fails under it ends with a line, and the same command goes on."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import Disk, disk, wait_for
from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from tests.training_cases import DEADLINE, finish, start

__all__ = ["disk"]
pytestmark = pytest.mark.slow

GOES_ON = "The same command again goes on with the search."
MOMENTS = ["Training ktg_tiny_wide", "trial 1:", "on all training images"]


def searching(recipe: Path, run: Path, temporary: str = tempfile.gettempdir()) -> None:
    """Be a search, with its temporary files in a folder."""
    tempfile.tempdir = temporary
    sys.exit(run_search(recipe, "--output-dir", run))


def search_recipe(folder: Path, epochs: int = 12) -> Path:
    values = search_values(
        nodes=2, trials=4, final_seeds=[0], pruner="none", models=["ktg_tiny_wide"], frozen=True
    )
    values["train"]["epochs"] = epochs
    return write_recipe(folder / "s.yaml", values)


def last_line(log: Path) -> str:
    text = log.read_text()
    assert "Traceback" not in text, text
    return text.splitlines()[-1]


def gone_on(recipe: Path, run: Path, log: Path) -> None:
    """Give the same command again, and check that the search comes to its end."""
    assert finish(start(log, searching, recipe, run), deadline=DEADLINE) == [0], log.read_text()
    studies = [study_in(run, "s"), study_in(run, "s/teachers")]
    trials = [trial for study in studies for trial in study.trials]
    assert all("reason" not in trial.user_attrs for trial in trials)
    assert result_in(run)["rows"][0]["test top1"]["n"] == 1


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", [Disk.lock, Disk.empty])
def test_search_whose_folder_is_locked_or_removed_ends_in_a_line_and_goes_on(
    fault: Callable[[Disk], None], moment: str, disk: Disk, tmp_path: Path
) -> None:
    recipe, log, run = search_recipe(tmp_path), tmp_path / "log", disk.path / "run"
    process = start(log, searching, recipe, run)
    wait_for(moment, log, process)
    fault(disk)
    assert finish(process, deadline=DEADLINE) == [1], log.read_text()
    line = last_line(log)
    assert line.startswith(str(run)) and line.endswith(GOES_ON), line
    if fault is Disk.lock:
        disk.unlock()
    gone_on(recipe, run, tmp_path / "again")


@pytest.mark.parametrize("where", ["temporary files", "artifacts", "everything"])
def test_search_that_has_no_room_for_weights_ends_in_a_line_and_goes_on(
    where: str, disk: Disk, tmp_path: Path
) -> None:
    recipe, log, run = search_recipe(tmp_path, epochs=1), tmp_path / "log", tmp_path / "run"
    temporary = disk.path if where == "temporary files" else tmp_path
    if where == "artifacts":
        run.mkdir()
        os.symlink(disk.path, run / "artifacts")
    elif where == "everything":
        run = disk.path / "run"
    disk.resize("20k" if where == "everything" else "4k")
    process = start(log, searching, recipe, run, str(temporary))
    assert finish(process, deadline=DEADLINE) == [1], log.read_text()
    line = last_line(log)
    assert "No space left on device" in line and line.endswith(GOES_ON), line
    disk.resize("8m")
    gone_on(recipe, run, tmp_path / "again")
