"""`python -m timm_ktg.validate`: what a run reaches on its own images and on others."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel

import timm_ktg as ktg
from tests.recipe_cases import MUTUAL, PLAIN, recipe_values
from tests.tiny_data import TEST, VAL, rows, save, save_images
from tests.training_cases import build, metrics_of, on_cpu, summary_of, train_run
from timm_ktg.data.sources import load_source
from timm_ktg.errors import RecipeError
from timm_ktg.validate import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workplace")]


def validated(*argv: str | Path) -> Any:
    """Run the program, and return validation.json."""
    assert main([*map(str, argv), "-o", "found"]) == 0
    return json.loads(Path("found/validation.json").read_text())


def table(name: str) -> list[list[str]]:
    with Path("found", name).open(newline="") as file:
        return list(csv.reader(file))


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line that a wrong command costs."""
    capsys.readouterr()
    assert main([*map(str, argv)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown.err
    return shown.err.strip()


def test_accuracies_are_those_of_the_run(run: Path) -> None:
    found, summary = validated(run), summary_of(run)
    assert (found["split"], found["images"]) == ("test", TEST)
    assert list(found["nodes"]) == ["a", "b", "crowd", "all-networks"]
    for name, node in found["nodes"].items():
        expected = summary["nodes"][name]
        assert {top: node[top] for top in ("top1", "top5")} == pytest.approx(expected)


def test_run_is_used_without_the_package_of_its_gate_and_loss(run: Path, tmp_path: Path) -> None:
    expected = validated(run)["nodes"]
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    recipe: Any = yaml.safe_load((moved / "recipe.yaml").read_text())
    recipe["graph"]["nodes"]["a"]["learns_from"] = {
        "label": {"loss": "of_elsewhere", "temperature": 2},  # with the label, our losses have none
        "b": {"loss": "of_elsewhere", "loss_kwargs": {"width": 3}, "taps": "layer3", "weight": 2},
        "b/again": "of_elsewhere",
    }
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert validated(moved)["nodes"] == expected
    with pytest.raises(RecipeError, match="of_elsewhere"):  # which training needs
        ktg.load_recipe(str(moved / "recipe.yaml"))


def test_validation_images_are_those_of_the_last_epoch(run: Path) -> None:
    found = validated(run, "--split", "val", "--node", "b")
    assert (found["images"], list(found["nodes"])) == (VAL, ["b"])
    last = metrics_of(run)[-1]
    assert found["nodes"]["b"]["top1"] == pytest.approx(last["val/top1/b"])
    assert found["nodes"]["b"]["loss"] == pytest.approx(last["val/loss/b"], rel=1e-5)


@on_cpu
def test_tables_agree_with_the_nodes_predictions(run: Path) -> None:
    found = validated(run)
    loader = build(recipe_values()).images.test
    assert loader is not None
    images, labels = (torch.cat(each) for each in zip(*loader(), strict=True))
    with torch.inference_mode():
        a, b = (ktg.load_run(run, name)(images) for name in "ab")
    same = 100 * (a.argmax(-1) == b.argmax(-1)).double().mean().item()
    assert (
        found["agreement"]["a"]["b"] == pytest.approx(same) and found["agreement"]["a"]["a"] == 100
    )
    header, *body = table("agreement.csv")
    assert header[1:] == [row[0] for row in body] and float(body[0][2]) == pytest.approx(same)
    header, *body = table("confusion-a.csv")
    for label, row in enumerate(body):
        counts = torch.bincount(a.argmax(-1)[labels == label], minlength=10)
        assert row == [str(label), *map(str, counts.tolist())]
    header, *body = table("per-class.csv")
    assert header == ["class", "images", "a", "b", "crowd", "all-networks"]
    expected = found["nodes"]["b"]["per_class"]
    assert {row[0]: float(row[3]) for row in body} == pytest.approx(expected)


def test_folder_whose_name_is_not_utf8_is_shown_with_escapes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--node", "b", "-o", os.fsdecode(b"caf\xe9")]) == 0
    assert r"caf\udce9/validation.json" in capsys.readouterr().out.splitlines()
    assert Path(os.fsdecode(b"caf\xe9"), "validation.json").is_file()


def test_terminal_shows_nodes_agreement_and_classes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run)]) == 0
    shown = capsys.readouterr().out
    for wanted in ("crowd (target)", "ECE %", "Same top-1", "Classes of crowd", f"{TEST} test"):
        assert wanted in shown


def test_other_images_are_prepared_as_the_runs_were(run: Path) -> None:
    digits = load_source("digits")["test"]
    large = digits.map(lambda row: {"image": row["image"].resize((24, 16))})
    save(Path("here"), train=digits.select(range(20)), test=digits)
    save(Path("large"), train=digits.select(range(20)), test=large)
    flags = ["--data.holdout", "0", "--data.dataset"]
    small, resized = (validated(run, *flags, name) for name in ("here", "large"))
    assert small["images"] == resized["images"] == len(digits)
    # Resized there and back, most digits look the same.
    assert abs(small["nodes"]["a"]["loss"] - resized["nodes"]["a"]["loss"]) < 0.5
    assert small["nodes"]["a"]["loss"] != resized["nodes"]["a"]["loss"]


def test_data_may_have_test_images_alone(
    run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_source("digits")["test"]
    save(Path("both"), train=digits.select(range(20)), test=digits)
    save(Path("alone"), test=digits)
    both = validated(run, "--data.holdout", "0", "--data.dataset", "both")
    caplog.clear()
    flags = ["--data.images_per_class", "2", "--data.dataset", "alone"]
    alone = validated(run, *flags)
    assert caplog.messages == ["There are no training images: the classes are those of `test`."]
    assert {**alone, "dataset": "both"} == both and alone["images"] == len(digits)
    line = said(capsys, run, "--data.test_split", "valid", "--data.dataset", "alone")
    assert line.startswith("data.test_split: `valid` is no split. Splits: test.")
    line = said(capsys, run, "--split", "val", "--data.dataset", "alone")
    assert line.startswith("data.train_split: `train` is no split. Splits: test.")


def test_other_test_images_need_not_fit_the_training_images_that_the_run_took(run: Path) -> None:
    digits = load_source("digits")["test"]
    save(Path("few"), train=digits.select(range(20)), test=digits)  # the run held more out
    assert validated(run, "--data.dataset", "few")["images"] == len(digits)


def test_classes_named_otherwise_are_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    digits = load_source("digits")
    save_images(Path("named"), **{name: digits[name].select(range(99)) for name in digits})
    validated(run, "--data.dataset", "named", "--data.holdout", "0")
    (told,) = caplog.messages
    assert told == "data.target_key: `class 0` is taken for the run's class `0`."


def test_classes_that_moved_to_other_labels_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = rows(30, classes=10).cast_column(
        "label", ClassLabel(names=["ten", *map(str, range(9))])
    )
    save(Path("moved"), train=moved, test=moved)
    line = said(capsys, run, "--data.dataset", "moved", "--data.holdout", "0")
    assert line.startswith("data.target_key: should have the run's classes in its order. Found `0`")


def test_class_map_may_be_gone_and_another_named(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Path("photos"), train=rows(30), test=rows(21))
    Path("classes.txt").write_text("class 2\nclass 0\n")
    values = recipe_values(PLAIN, epochs=1, batch_size=4)
    values["data"] = {"dataset": "photos", "class_map": "classes.txt"}
    run = train_run(Path("mapped"), values)
    expected = validated(run)
    assert expected["images"] == 14
    assert list(expected["nodes"]["a"]["per_class"]) == ["class 2", "class 0"]
    Path("classes.txt").rename("moved.txt")
    assert validated(run) == expected
    assert validated(run, "--data.class_map", "moved.txt") == expected
    Path("turned.txt").write_text("class 0\nclass 2\n")
    line = said(capsys, run, "--data.class-map", "turned.txt")
    assert line.startswith("data.target_key: should have the run's classes in its order.")


def test_images_of_a_stream_are_counted_as_they_are_read() -> None:
    save(Path("photos"), train=rows(30, classes=10), test=rows(20, classes=10))
    values = recipe_values(MUTUAL, epochs=1, batch_size=4)
    stream = {"streaming": True, "train_num_samples": 8, "img_size": 8, "workers": 0}
    values["data"] = {"dataset": "photos", "pipeline": "timm", **stream}
    found = validated(train_run(Path("streamed"), values), "--split", "train")
    assert found["images"] == 30
    assert all(row[name] == 100.0 for name, row in found["agreement"].items())


def test_wrong_input_costs_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("three"), train=rows(9), test=rows(9))
    digits = load_source("digits")["test"]
    reverse = digits.cast_column("label", ClassLabel(names=list("9876543210")))
    save(Path("turned"), train=reverse, test=reverse)
    none = ("--data.holdout", "0")
    for argv, expected in {
        ("nowhere",): "nowhere: should be a finished run (summary.json). Found none.",
        (run, "--node", "crowds"): "Nodes: a, b, crowd. Did you mean `crowd`?",
        (run, "--split", "val", *none): "--split: the data have no val images. Found train, test.",
        (run, *none, "--data.dataset", "three"): "the 10 classes of the run. Found 3.",
        (run, *none, "--data.dataset", "turned"): "classes in its order. Found `9` for `0`.",
        (run, "--data.pad", "0"): "--data.pad should choose images, as do --data.dataset, ",
        (run, "--data.datasett", "x"): "Did you mean `--data.dataset`?",
        (run, "--train.lr", "1"): "--train.lr should choose images, as do --data.dataset, ",
        (run, "--device", "quantum"): "--device: ",
    }.items():
        assert expected in said(capsys, *argv)


def test_run_of_an_earlier_version_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = summary_of(run)
    del summary["data"]["preparation"]
    Path("old").mkdir()
    for name in ("recipe.yaml", "nodes"):
        Path("old", name).symlink_to(run / name)
    Path("old/summary.json").write_text(json.dumps(summary))
    assert "old: does not say how it prepared images." in said(capsys, "old")
