"""A run directory that is damaged costs a line, and a disk that is full costs no more than time."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import timm_ktg.train.run
from tests.disks import Disk
from tests.recipe_cases import PLAIN, recipe_values, write_recipe
from tests.training_cases import (
    assert_same_run,
    build,
    finish,
    metrics_of,
    program,
    run_main,
    start,
    stop_run,
    train_run,
)
from timm_ktg.errors import StorageError
from timm_ktg.train.checkpoint import save_state
from timm_ktg.train.identity import Identity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, stopped in the last."""
    values = recipe_values(PLAIN, epochs=3)
    return stop_run(tmp_path_factory.mktemp("stopped") / "run", values, epoch=3)


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def folder(path: Path) -> None:
    if path.exists():
        path.unlink()
    path.mkdir()


def file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.touch()


BINARY = bytes(range(256))
DAMAGE: list[tuple[str, Callable[[Path], object], int]] = [
    ("recipe.yaml", text(""), 2),
    ("recipe.yaml", text(BINARY), 2),
    ("recipe.yaml", text("- a\n- b\n"), 2),
    ("recipe.yaml", text("graph: 5\n"), 2),
    ("recipe.yaml", text("graph: {target: é}\n".encode("latin-1")), 2),
    ("recipe.yaml", text("a: " + "[" * 3000), 2),
    ("recipe.yaml", Path.unlink, 2),
    ("recipe.yaml", folder, 2),
    ("summary.json", folder, 2),
    ("seeds.json", text("[]"), 2),
    ("seeds.json", text('{"seeds": "012"}'), 2),
    ("seeds.json", text('{"seeds": [0, 1.5]}'), 2),
    ("seeds.json", text('{"seeds": []}'), 2),
    ("seeds.json", text('{"seeds": [0, 0]}'), 2),
    ("seeds.json", text(BINARY), 2),
    ("seeds.json", text("[" * 100_000), 2),
    ("seeds.json", folder, 2),
    ("metrics.jsonl", folder, 2),
    ("checkpoint", file, 2),
    ("nodes", file, 2),
    ("metrics.jsonl", text(BINARY), 0),
    ("metrics.jsonl", Path.unlink, 0),
    ("checkpoint", shutil.rmtree, 0),
]


@pytest.mark.parametrize(("name", "damage", "code"), DAMAGE)
def test_damaged_run_directory_costs_a_line(
    name: str,
    damage: Callable[[Path], object],
    code: int,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(run / name)
    capsys.readouterr()
    assert run_main("--resume", run) == code
    said = capsys.readouterr()
    if code:
        lines = said.err.splitlines()
        assert len({line.partition(":")[0] for line in lines}) == 1, lines
        assert "Traceback" not in said.err and str(run.name) in said.err or "graph" in said.err
    else:
        assert len(metrics_of(run)) == (3 if name == "checkpoint" else 1)


@pytest.mark.parametrize("content", ["[]", '{"target": 5}', "{", BINARY, "[" * 100_000, "null"])
def test_result_of_another_type_is_refused(
    content: str | bytes, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--resume", run) == 0
    text(content)(run / "summary.json")
    capsys.readouterr()
    assert run_main("--resume", run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run / 'summary.json'}: cannot be read: ")


def test_lost_and_damaged_metrics_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(lines[0][:-9] + b"\n" + lines[1] + b"\n\xff\x00\n" + b'{"e')
    assert run_main("--resume", run) == 0
    assert f"{run / 'metrics.jsonl'}: the lines of epoch 1 are lost." in capsys.readouterr().out
    assert [line["epoch"] for line in metrics_of(run)] == [2, 3]


# A disk that is full, a folder that is gone.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system; calling it changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")

    def resize(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        return disk

    yield resize
    subprocess.run(["umount", "-l", str(disk)], check=True)


WIDE: dict[str, Any] = {
    "a": {"model": "ktg_tiny", "model_kwargs": {"width": 256}, "learns_from": {"label": "through"}}
}


@pytest.mark.parametrize("size", ["16k", "60k", "200k", "400k", "600k"])
def test_full_disk_ends_in_a_line_and_the_run_goes_on_when_there_is_room(
    size: str, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    values = recipe_values(WIDE, epochs=3)
    recipe = write_recipe(tmp_path / "r.yaml", values)
    run = small_disk(size) / "run"
    process = start(tmp_path / "full.log", program, recipe, "--output-dir", run)
    assert finish(process) == [1], (tmp_path / "full.log").read_text()
    said = (tmp_path / "full.log").read_text()
    lines = [line for line in said.splitlines() if "cannot be written" in line]
    assert len(lines) == 1 and str(run) in lines[0] and "Traceback" not in said, said
    small_disk("8m")
    if (run / "recipe.yaml").exists():
        process = start(tmp_path / "go.log", program, "--resume", run)
    else:  # there was not even room for the recipe
        process = start(tmp_path / "go.log", program, recipe, "--output-dir", run)
    assert finish(process) == [0], (tmp_path / "go.log").read_text()
    whole = train_run(tmp_path / "whole", values)
    assert_same_run(whole, run)
    assert "lost" not in (tmp_path / "go.log").read_text()
    assert list(run.glob(".*")) == [run / ".lock"]


def gone(run: Path) -> None:
    shutil.rmtree(run)


def read_only(run: Path) -> None:
    Disk(run.parent).lock()


@pytest.mark.parametrize("what", [gone, read_only])
def test_folder_that_vanishes_or_is_locked_ends_the_run_in_a_line(
    what: Callable[[Path], None],
    small_disk: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = small_disk("4m") / "run"
    train_epoch = timm_ktg.train.run.train_epoch

    def spoil(training: Any, *arguments: Any) -> Any:
        if training.state.epochs == 1:
            what(run)
        return train_epoch(training, *arguments)

    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(PLAIN))
    with monkeypatch.context() as patch:
        patch.setattr(timm_ktg.train.run, "train_epoch", spoil)
        assert run_main(recipe, "--output-dir", run) == 1
    err = capsys.readouterr().err
    (line,) = [each for each in err.splitlines() if "cannot be written" in each]
    assert line.startswith(str(run)) and "Traceback" not in err
    assert run.exists() == (what is read_only)
    if what is read_only:
        Disk(run.parent).unlock()
        assert run_main("--resume", run) == 0
        assert len(metrics_of(run)) == 2


def test_directory_that_may_not_be_written_costs_a_line(
    small_disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(PLAIN))
    run = small_disk("4m,ro") / "run"
    capsys.readouterr()
    assert run_main(recipe, "--output-dir", run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"output-dir: {run} cannot be made: OSError: ")


def test_overwrite_replaces_what_a_killed_run_left(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", recipe_values(PLAIN, epochs=1))
    for name in ("recipe.yaml", "metrics.jsonl", "summary.json", "graph.svg"):
        (run / f".{name}.{'0' * 32}.partial").write_text("half")
    recipe = tmp_path / "run.yaml"
    assert run_main(recipe, "--output-dir", run) == 2
    assert run_main(recipe, "--output-dir", run, "--overwrite") == 0
    assert list(run.glob(".*")) == [run / ".lock"]
    # And where nothing but a leftover is there, nothing needs to be replaced.
    other = tmp_path / "other"
    other.mkdir()
    (other / f".recipe.yaml.{'0' * 32}.partial").write_text("half")
    assert run_main(recipe, "--output-dir", other) == 0
    assert json.loads((other / "summary.json").read_text())["epochs"] == 1


def test_run_that_is_gone_is_not_made_again_by_its_states(tmp_path: Path) -> None:
    training = build(recipe_values(PLAIN, epochs=1))
    identity = Identity(training.recipe, {}, training.splits.without_test, ())
    with pytest.raises(StorageError, match="cannot be written"):
        save_state(training, tmp_path / "run" / "checkpoint", identity)
    assert not (tmp_path / "run").exists()
