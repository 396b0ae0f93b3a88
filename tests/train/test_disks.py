"""A disk that is full or locked ends a training's processes in a line, and `--resume` goes on."""

import os
import shutil
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.disks import Disk, disk, wait_for
from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.training_cases import (
    assert_same_run,
    build,
    finish,
    on_cpu,
    program,
    run_main,
    start,
    start_two,
    train_run,
    weights_of,
)
from timm_ktg.errors import StorageError
from timm_ktg.train.checkpoint import newest_state, save_state
from timm_ktg.train.identity import Identity

__all__ = ["disk"]
pytestmark = pytest.mark.slow

WIDE: Values = {
    "a": {"model": "ktg_tiny", "model_kwargs": {"width": 256}, "learns_from": {"label": "through"}}
}


def started(processes: int, folder: Path, *argv: str | Path) -> list[BaseProcess]:
    """Start a training, with its logs in a new folder."""
    folder.mkdir()
    if processes == 2:
        return start_two(folder, program, *argv)
    return [start(folder / "0.log", program, *argv)]


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def assert_ends_in_a_line(running: list[BaseProcess], folder: Path, run: Path) -> None:
    assert finish(*running) == [1] * len(running), said(folder)
    assert "Traceback" not in said(folder), said(folder)
    line = (folder / "0.log").read_text().splitlines()[-1]
    assert line.startswith(str(run)) and "cannot be written" in line, said(folder)


@pytest.mark.parametrize("size", ["8k", "60k", "200k", "400k"])
@on_cpu
def test_two_processes_on_a_full_disk_end_in_a_line_and_go_on_when_there_is_room(
    size: str, disk: Disk, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path / "r.yaml", recipe_values(WIDE)), disk.path / "run"
    new = (recipe, "--output-dir", run)
    disk.resize(size)
    assert_ends_in_a_line(started(2, tmp_path / "full", *new), tmp_path / "full", run)
    disk.resize("8m")
    again = ("--resume", run) if (run / "recipe.yaml").exists() else new
    assert finish(*started(2, tmp_path / "again", *again)) == [0, 0], said(tmp_path / "again")
    whole = started(2, tmp_path / "whole", recipe, "--output-dir", tmp_path / "run")
    assert finish(*whole) == [0, 0], said(tmp_path / "whole")
    assert_same_run(tmp_path / "run", run)


@pytest.mark.parametrize("processes", [1, 2])
@on_cpu
def test_training_whose_disk_is_locked_ends_in_a_line_and_goes_on(
    processes: int, disk: Disk, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path / "r.yaml", recipe_values(epochs=30)), disk.path / "run"
    running = started(processes, tmp_path / "locked", recipe, "--output-dir", run)
    wait_for("epoch  2/30", tmp_path / "locked" / "0.log", running[0])
    disk.lock()
    assert_ends_in_a_line(running, tmp_path / "locked", run)
    disk.unlock()
    again = started(processes, tmp_path / "again", "--resume", run)
    assert finish(*again) == [0] * processes, said(tmp_path / "again")
    assert "Resuming from " in said(tmp_path / "again")
    whole = started(processes, tmp_path / "whole", recipe, "--output-dir", tmp_path / "run")
    assert finish(*whole) == [0] * processes, said(tmp_path / "whole")
    assert_same_run(tmp_path / "run", run)


def program_in(folder: Path, *argv: str | Path) -> None:
    os.chdir(folder)
    program(*argv)


@on_cpu
def test_folder_of_runs_that_cannot_be_made_ends_both_processes_in_a_line(
    disk: Disk, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(WIDE))
    disk.lock()
    running = start_two(tmp_path, program_in, disk.path, recipe)
    assert finish(*running) == [2, 2], said(tmp_path)
    line = (tmp_path / "0.log").read_text().splitlines()[-1]
    assert line.startswith("output-dir: runs/r cannot be made: OSError: "), said(tmp_path)
    assert "Traceback" not in said(tmp_path), said(tmp_path)
    disk.unlock()


def test_nodes_for_which_there_is_no_room_are_exported_when_there_is(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(disk.path / "run", recipe_values(WIDE, epochs=1))
    weights = weights_of(run)
    shutil.rmtree(run / "nodes")
    (run / "summary.json").unlink()
    disk.fill()
    assert run_main("--resume", run) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{run / 'nodes'}: cannot be written: "), line
    disk.resize("8m")
    assert run_main("--resume", run) == 0
    assert weights_of(run) == weights


def test_state_whose_manifest_has_no_room_is_named(disk: Disk) -> None:
    training = build(recipe_values(WIDE))
    identity = Identity(training.recipe, {}, training.splits.without_test, ())
    training.state.epochs, folder = 1, disk.path / "checkpoint"
    save_state(training, folder, identity)
    disk.fill()
    shutil.rmtree(folder)
    disk.resize(f"{disk.size - 4096}")  # a page less
    with pytest.raises(StorageError, match=r"epoch-0001: cannot be written: .*No space left"):
        save_state(training, folder, identity)
    assert not (folder / "epoch-0001").exists()
    disk.resize("8m")
    save_state(training, folder, identity)
    assert newest_state(folder, identity) == (folder / "epoch-0001", [])
