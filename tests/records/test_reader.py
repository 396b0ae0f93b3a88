"""What runs have left on disk, read back."""

from pathlib import Path

import pytest

from tests.records.result_cases import a_result
from timm_ktg.errors import RecipeError
from timm_ktg.records.reader import read_epochs, read_result, read_results, runs_in
from timm_ktg.records.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)


def test_epochs_are_read_but_for_one_that_is_being_written(run: RunDirectory) -> None:
    assert read_epochs(run) == []
    for epoch in (1, 2):
        run.log({"epoch": epoch, "lr": 0.1})
    with run.metrics.open("a") as file:
        file.write('{"epoch": 3, "l')
    assert read_epochs(run) == [{"epoch": 1, "lr": 0.1}, {"epoch": 2, "lr": 0.1}]


@pytest.mark.parametrize("line", ["epoch 1", "[1, 2]", "3"])
def test_line_that_holds_no_metrics_is_refused(line: str, run: RunDirectory) -> None:
    run.metrics.write_text(f"{line}\n")
    with pytest.raises(RecipeError, match="^.*run/metrics.jsonl: cannot be read: .+$"):
        read_epochs(run)


def test_result_is_there_when_the_run_is_complete(run: RunDirectory) -> None:
    assert read_result(run) is None
    run.write_result(a_result({"a": 50.0}))
    assert read_result(run) == a_result({"a": 50.0})


def test_result_that_cannot_be_read_is_refused(run: RunDirectory) -> None:
    run.summary.write_text("{")
    with pytest.raises(RecipeError, match="summary.json: cannot be read: Expecting"):
        read_result(run)
    run.summary.write_text('{"target": "a"}')
    with pytest.raises(RecipeError, match="summary.json: cannot be read: split: should be given"):
        read_result(run)


@pytest.mark.parametrize(("name", "whose"), [("result.json", "search"), ("results.csv", "suite")])
def test_directory_of_a_search_or_suite_names_its_figures(
    tmp_path: Path, name: str, whose: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RecipeError) as caught:
        read_results(tmp_path)
    (line,) = caught.value.problems
    assert line.endswith(f"the directory of a {whose}, whose figures are in {tmp_path / name}.")


def test_directory_of_seeds_holds_a_run_of_each(tmp_path: Path) -> None:
    assert runs_in(tmp_path) == (RunDirectory(tmp_path),)
    with pytest.raises(RecipeError, match="should hold a complete run .* Found none"):
        read_results(tmp_path)
    for seed in (0, 1, 2):
        (tmp_path / f"seed-{seed}").mkdir()
    runs = runs_in(tmp_path)
    assert [run.path.name for run in runs] == ["seed-0", "seed-1", "seed-2"]
    for run in runs[:2]:
        run.write_result(a_result({"a": 50.0}))
    assert len(read_results(tmp_path)) == 2
