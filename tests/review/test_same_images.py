"""Runs on other images have no difference: `compare` refuses them, and a report says so."""

from pathlib import Path
from typing import Any

import pytest

from tests.records.result_cases import a_result
from tests.review.report_cases import write_run
from timm_ktg.records.result import DataFacts, RunResult
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.review.__main__ import main
from timm_ktg.review.run_data import read_run
from timm_ktg.review.run_page import runs_page


def result(
    top1: float, classes: tuple[str, ...] = (), split_seed: int | None = None, **others: Any
) -> RunResult:
    data = DataFacts("0123abcd", (0.5,), (0.1,), classes, split_seed=split_seed)
    return a_result({"a": top1, "b": 1.0}, data=data, **others)


def save(path: Path, *seeds: RunResult) -> None:
    for seed, each in enumerate(seeds):
        run = path / f"seed-{seed}"
        run.mkdir(parents=True)
        RunDirectory(run).write_result(each)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"images": 15, "classes": ("red", "blue")}, "one: 3,600 images, two: 15 images"),
        ({"images": 3600, "classes": ("red",)}, "one: 2 classes, two: 1 classes"),
        ({"images": 3600, "classes": ("red", "green")}, "class 1 is `blue`, two: class 1 is `gr"),
        ({"classes": ("blue", "red")}, "one: class 0 is `red`, two: class 0 is `blue`"),
    ],
)
def test_compare_refuses_other_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = result(70.0, ("red", "blue"), images=3600)
    save(Path("one"), base, base)
    save(Path("two"), base, result(80.0, **other))
    assert main(["compare", "one", "two"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "compare: all runs should be evaluated on the same images. Found one: " in line
    assert said in line


def test_compare_refuses_images_that_other_seeds_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("one"), result(70.0, split="val", split_seed=0))
    save(Path("two"), result(80.0, split="val", split_seed=1))
    assert main(["compare", "one", "two"]) == 2
    said = "Found one: held out by split_seed 0, two: by split_seed 1."
    assert said in capsys.readouterr().err


def test_compare_takes_what_earlier_versions_did_not_write_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "one", result(70.0))
    save(tmp_path / "two", result(80.0, ("red", "blue"), images=15))
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "+10.00" in capsys.readouterr().out


def test_report_shows_no_difference_to_a_run_on_other_images(tmp_path: Path) -> None:
    first, second, third = (write_run(tmp_path / name) for name in ("one", "two", "three"))
    for run, images in ((first, 3600), (second, 15), (third, 3600)):
        RunDirectory(run).write_result(result(70.0, images=images))
    page = runs_page([read_run(run) for run in (first, second, third)])
    gained = {row["run"]: row["gain"] for row in page["rows"] if row["gain"]}
    assert gained == {
        str(first): "-",
        str(second): "other images",
        str(third): "+0.00 [n too small]",
    }
    assert str(second) not in " ".join(page["lead"])
    said = page["figures"]["compared"][""].points
    assert str(second) not in said and str(third) in said


def test_compare_shows_the_names_of_directories_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # brackets are styles to Rich, and words in colons are pictures
    names = ["one[bold]", "two[/b]", "three:star:"]
    for name in names:
        save(Path(name), result(70.0))
    assert main(["compare", *names]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
