"""Where a run goes, and what it may write over."""

import json
from pathlib import Path

import pytest

from tests.records.result_cases import a_result
from timm_ktg.errors import RecipeError
from timm_ktg.records import run_directory
from timm_ktg.records.run_directory import RunDirectory, create_run_directory


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_run(path: str) -> RunDirectory:
    """Make what a run leaves behind."""
    run = RunDirectory(Path(path))
    (run.checkpoint / "epoch-0001").mkdir(parents=True)
    run.nodes.mkdir()
    (run.nodes / "student.safetensors").write_bytes(b"weights")
    run.recipe.write_text("graph: {}\n")
    run.log({"epoch": 1, "train/top1/student": 50.0})
    run.write_result(a_result({"student": 50.0}))
    for picture in (run.graph, run.curves):
        picture.write_bytes(b"picture")
    return run


def content(path: str) -> dict[str, bytes]:
    return {
        str(each): each.read_bytes() for each in sorted(Path(path).rglob("*")) if each.is_file()
    }


def test_run_goes_to_the_next_free_number() -> None:
    paths = [create_run_directory("digits", None).path for _ in range(3)]
    assert paths == [Path("runs/digits"), Path("runs/digits-2"), Path("runs/digits-3")]
    assert all(path.is_dir() for path in paths)
    paths[1].rmdir()
    assert create_run_directory("digits", None, overwrite=True).path == Path("runs/digits-2")
    nested = [create_run_directory("cifar100/kd", None).path for _ in range(2)]
    assert nested == [Path("runs/cifar100/kd"), Path("runs/cifar100/kd-2")]


def test_run_beside_others_leaves_them_alone() -> None:
    a_run("runs/digits")
    before = content("runs/digits")
    assert create_run_directory("digits", None, overwrite=True).path == Path("runs/digits-2")
    assert content("runs/digits") == before


def test_chosen_directory_is_made_or_filled_when_empty() -> None:
    assert create_run_directory("digits", Path("deep/er")).path == Path("deep/er")
    assert Path("deep/er").is_dir()
    assert create_run_directory("digits", Path("deep/er")).path == Path("deep/er")


def test_run_is_replaced_only_by_overwrite() -> None:
    a_run("mine")
    before = content("mine")
    with pytest.raises(
        RecipeError, match=r"output-dir: mine holds a run\. .*--resume mine.*--over"
    ):
        create_run_directory("digits", Path("mine"))
    run = create_run_directory("digits", Path("mine"), overwrite=True)
    with pytest.raises(RecipeError, match="output-dir: mine holds a run"):
        run.clear()  # as if the run had come between the two calls
    assert content("mine") == before
    run.clear(overwrite=True)
    assert run.path == Path("mine") and list(run.path.iterdir()) == []


def test_directory_is_held_by_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "_PATIENCE", 0.0)
    run = create_run_directory("digits", Path("mine"))
    said = r"mine is in use by another command\. If it is not, remove mine/\.lock\."
    with run.held(), pytest.raises(RecipeError, match=f"output-dir: {said}"), run.held():
        pass
    with run.held():  # what was refused, or has ended, holds nothing
        run.clear()
    # The file stays, and hinders no run.
    run = create_run_directory("digits", Path("mine"))
    run.clear()
    assert list(run.path.iterdir()) == [run.lock]


def test_folder_that_is_no_run_is_never_deleted() -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years")
    Path("notes").write_text("days")
    for path in ("thesis", "notes"):
        for overwrite in (False, True):
            with pytest.raises(RecipeError, match=rf"output-dir: {path} is there and is no run"):
                create_run_directory("digits", Path(path), overwrite)
    assert Path("thesis/chapter.tex").read_text() == "years" and Path("notes").is_file()


def test_folder_of_a_recipe_and_other_files_is_never_deleted() -> None:
    Path("experiment").mkdir()
    Path("experiment/recipe.yaml").write_text("# written by hand\n")
    Path("experiment/chapter.tex").write_text("years")
    with pytest.raises(RecipeError, match="output-dir: experiment"):
        create_run_directory("experiment", Path("experiment"), overwrite=True)
    assert Path("experiment/chapter.tex").read_text() == "years"


def test_directory_that_cannot_be_made_is_refused() -> None:
    Path("notes").write_text("days")
    with pytest.raises(RecipeError, match="output-dir: notes/run"):
        create_run_directory("digits", Path("notes/run"))


def test_run_behind_a_link_can_be_replaced_or_is_refused() -> None:
    a_run("elsewhere/mine")
    Path("link").symlink_to("elsewhere/mine")
    try:
        run = create_run_directory("digits", Path("link"), overwrite=True)
        run.clear(overwrite=True)
    except RecipeError as error:
        assert "output-dir: link" in str(error)
    else:
        assert list(run.path.iterdir()) == []


def test_metrics_are_a_line_an_epoch() -> None:
    run = create_run_directory("digits", None)
    for epoch in (1, 2):
        run.log({"epoch": epoch, "lr": 0.1})
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"epoch": 1, "lr": 0.1},
        {"epoch": 2, "lr": 0.1},
    ]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resumed_run_forgets_later_and_half_written_lines(epoch: int) -> None:
    run = create_run_directory("digits", None)
    for number in (1, 2, 3):
        run.log({"epoch": number})
    with run.metrics.open("a") as file:
        file.write('{"epoch": 4, "lr"')
    run.forget_after(epoch)
    run.log({"epoch": epoch + 1})
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epoch + 2))


def test_run_without_metrics_has_nothing_to_forget() -> None:
    run = create_run_directory("digits", None)
    run.forget_after(1)
    assert list(run.path.iterdir()) == []
