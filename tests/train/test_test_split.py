"""Images are checked before training; what does not change the training can change at resume."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

import timm_ktg.train.run
from tests.recipe_cases import PLAIN, Values, recipe_values, write_recipe
from tests.tiny_data import small_digits
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    run_main,
    stop_run,
    summary_of,
    train_run,
    weights_of,
)
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.train.identity import identity_of

pytestmark = pytest.mark.slow

TIMM: Values = {"pipeline": "timm", "workers": 0, "img_size": 8, "pad": 4}


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def with_bad(split: Dataset, label: int | None = None, image: bytes | None = None) -> Dataset:
    """Return a split whose last row has another label or another image."""
    stored = split.cast_column("image", ImageFeature(decode=False))
    rows = [{"image": row["image"], "label": row["label"]} for row in stored]
    if label is not None:
        rows[-1]["label"] = label
    if image is not None:
        rows[-1]["image"] = {"bytes": image, "path": None}
    features = Features({"image": ImageFeature(), "label": split.features["label"]})
    if isinstance(split.features["label"], ClassLabel):
        features["label"] = Value("int64")
    return Dataset.from_list(rows, features)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"label": -1}, "data.test_split: the labels in `label` should be 0 .. 9"),
    "truncated": ({"image": encoded(Image.effect_noise((8, 8), 60))[:60]}, "data.input_key: row "),
    "16 bits": ({"image": encoded(Image.new("I;16", (8, 8)))}, "should have 8 bits a channel"),
    "size": ({"image": encoded(Image.new("RGB", (9, 8)))}, "data.img_size: images should be of"),
}


def digits_with(folder: Path, split: str, what: str) -> str:
    """Save the small digits, one image of a split spoiled, and return where."""
    digits = load_from_disk(small_digits())
    spoiled = {name: with_bad(each) for name, each in digits.items()}
    spoiled[split] = with_bad(digits[split], **BAD[what][0])
    DatasetDict(spoiled).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize("pipeline", [{}, TIMM], ids=["memory", "timm"])
@pytest.mark.parametrize("what", BAD)
def test_bad_test_image_is_a_line_before_anything_is_written(
    what: str, pipeline: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "size" and pipeline:
        return  # timm's pipeline takes images of any size
    data = {"dataset": digits_with(tmp_path / "digits", "test", what), **pipeline}
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(PLAIN, data=data))
    capsys.readouterr()
    for more in (["--output-dir", tmp_path / "run"], ["--dry-run"]):
        assert run_main(recipe, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert BAD[what][1] in line
        assert what == "label" or line.endswith("Found in the test images.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pipeline", [{}, TIMM], ids=["memory", "timm"])
def test_bad_training_image_is_a_line_before_anything_is_written(
    pipeline: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = digits_with(tmp_path / "digits", "train", "truncated")
    values = recipe_values(PLAIN, data={"dataset": where, "holdout": 0, **pipeline})
    capsys.readouterr()
    assert run_main(write_recipe(tmp_path / "r.yaml", values), "--output-dir", tmp_path / "r") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data.input_key: row ")
    assert line.endswith(". Found in the training images.") and ".." not in line


def test_test_images_of_another_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_from_disk(small_digits())
    larger = digits["test"].map(lambda row: {"image": row["image"].resize((10, 10))})
    DatasetDict(train=digits["train"], test=larger).save_to_disk(str(tmp_path / "digits"))
    values = recipe_values(PLAIN, data={"dataset": str(tmp_path / "digits")})
    capsys.readouterr()
    assert run_main(write_recipe(tmp_path / "r.yaml", values), "--dry-run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Found 8x8 in the training images and 10x10 in the test images." in line


def test_nodes_are_exported_before_the_test_images_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, bytes]] = []
    evaluate = timm_ktg.train.run.evaluate

    def spy(training: Any, loader: Any, split: str) -> Any:
        if split == "test":
            found.append(weights_of(tmp_path / "run"))
        return evaluate(training, loader, split)

    monkeypatch.setattr(timm_ktg.train.run, "evaluate", spy)
    run = train_run(tmp_path / "run", recipe_values(PLAIN, epochs=1))
    assert found == [weights_of(run)]


# What a resumed run can change.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stop_run(tmp_path_factory.mktemp("stopped") / "run", recipe_values(), epoch=2)


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def recipe_of(run: Path) -> Values:
    values: Values = yaml.safe_load((run / "recipe.yaml").read_text())
    return values


def test_resumed_run_can_go_without_its_test_split(run: Path) -> None:
    whole = train_run(run.parent / "whole", recipe_values(data={"test_split": None}))
    flags = ["--data.test_split", "null", "--tracking.tags", "late", "--train.epochs", "2"]
    assert run_main("--resume", run, *flags) == 0
    assert_same_run(whole, run)
    assert len(metrics_of(run)) == 2 and summary_of(run)["split"] == "val"
    before = recipe_of(run)
    assert before["data"]["test_split"] is None and before["tracking"]["tags"] == ["late"]
    # From here, with no flags, it is the run without a test split.
    (run / "summary.json").unlink()
    assert run_main("--resume", run) == 0
    assert summary_of(run)["split"] == "val" and recipe_of(run) == before


def test_complete_run_is_evaluated_on_another_test_split(tmp_path: Path) -> None:
    values = recipe_values(data={"test_split": None})
    run = train_run(tmp_path / "run", values)
    assert summary_of(run)["split"] == "val"
    weights = weights_of(run)
    assert run_main("--resume", run, "--data.test_split", "test") == 0
    assert summary_of(run)["split"] == "test" and weights_of(run) == weights
    assert (
        summary_of(run)["nodes"]
        == summary_of(train_run(tmp_path / "tested", recipe_values()))["nodes"]
    )


def test_data_set_can_move(run: Path) -> None:
    moved = shutil.copytree(small_digits(), run.parent / "moved")
    assert run_main("--resume", run, "--data.dataset", moved) == 0
    assert recipe_of(run)["data"]["dataset"] == str(moved)


def test_several_seeds_change_together(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(PLAIN, epochs=1))
    assert run_main(recipe, "--seeds", "0", "1", "--output-dir", tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "run" / "seed-1")
    assert run_main("--resume", tmp_path / "run", "--data.test_split", "null") == 0
    runs = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 1)]
    assert [summary_of(each)["split"] for each in runs] == ["val", "val"]
    assert all(recipe_of(each)["data"]["test_split"] is None for each in (*runs, runs[0].parent))


CHANGES: list[tuple[list[str], str]] = [
    (["--train.lr", "0.2"], "resume: train.lr decides the training, so it stays as it was. Only"),
    (["--data.holdout", "60"], "resume: data.holdout decides the training"),
    (
        ["--graph.nodes.a.learns_from.b.gate", "through"],
        "resume: graph.nodes.a.learns_from.b decides the training",
    ),
    (["--output-dir", "x"], "resume: a resumed run keeps its recipe and directory. Found --output"),
    (["digits"], "resume: a resumed run keeps its recipe and directory. Found a recipe."),
    (["--seeds", "1"], "resume: a resumed run keeps its recipe and directory. Found --seeds."),
]


@pytest.mark.parametrize(("flags", "said"), CHANGES)
def test_field_that_decides_the_training_is_refused_by_name(
    flags: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "recipe.yaml").read_bytes()
    capsys.readouterr()
    assert run_main("--resume", run, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said) and (run / "recipe.yaml").read_bytes() == before


def test_states_of_an_earlier_version_go_on_but_not_for_longer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are identified by hashes of recipe.yaml and the data, in one of two ways."""
    whole = train_run(run.parent / "whole", recipe_values())
    training = build(recipe_values())
    identity = identity_of(training.recipe, training.splits, RunDirectory(run))
    assert len({*identity.former}) == 2
    for number, former in enumerate(identity.former):
        old = Path(shutil.copytree(run, run.parent / f"old-{number}"))
        (manifest,) = old.glob("checkpoint/*/manifest.json")
        values = json.loads(manifest.read_text())
        del values["recipe"], values["data"]
        manifest.write_text(json.dumps({**values, "run": "0" * 64}))
        assert run_main("--resume", old) == 2
        capsys.readouterr()
        assert run_main("--resume", old, "--train.epochs", "3") == 2
        said = "train.epochs: should stay 2: an earlier version began the run."
        assert capsys.readouterr().err.startswith(said)
        manifest.write_text(json.dumps({**values, "run": former}))
        assert run_main("--resume", old) == 0
        assert_same_run(whole, old)
