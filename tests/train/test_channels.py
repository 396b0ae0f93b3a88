"""Gray images as gray, and images with four channels: from the file to what is exported."""

import json
from pathlib import Path

import pytest
import torch
from timm.data import create_transform, resolve_model_data_config

from tests.recipe_cases import Values, problems_of, recipe, recipe_values, save_weights
from tests.tiny_data import save_images
from tests.train.test_exporting import used_alone
from tests.training_cases import build, on_cpu, summary_of, train_run
from timm_ktg.data import decode_image
from timm_ktg.data.sources import load_source
from timm_ktg.predict import main as predict
from timm_ktg.validate import main as validate

pytestmark = pytest.mark.slow

NODES: Values = {
    "student": {"model": "test_resnet", "learns_from": {"label": "through", "helper": "through"}},
    "helper": {"model": "resnet8_cifar", "learns_from": {"label": "through"}},
}
BY_TIMM: Values = {"pipeline": "timm", "workers": 0, "pad": 4, "img_size": 8, "hflip": 0.0}
GRAPH: Values = {"target": "student"}


@pytest.mark.parametrize("data", [BY_TIMM, {}], ids=["timm", "memory"])
def test_gray_images_stay_gray_from_training_to_use(
    data: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"dataset": "digits", "in_chans": 1, "holdout": 0, **data}
    values = recipe_values(NODES, data, GRAPH, opt="adamw", lr=0.003)
    run = train_run(tmp_path / "run", values)
    summary = summary_of(run)
    assert summary["data"]["preparation"]["input_size"] == [1, 8, 8]
    assert len(summary["data"]["mean"]) == 1 and summary["nodes"]["student"]["top1"] > 30
    save_images(tmp_path, images=load_source("digits")["test"])
    said = used_alone(run / "nodes" / "student", tmp_path / "images")
    assert said["config"]["input_size"] == [1, 8, 8]
    assert said["found"] == pytest.approx(summary["nodes"]["student"], abs=1e-9)
    assert validate([str(run), "-o", "found"]) == 0
    nodes = json.loads(Path("found/validation.json").read_text())["nodes"]
    assert nodes["helper"]["top1"] == pytest.approx(summary["nodes"]["helper"]["top1"])
    assert predict([str(run), "images/class 0", "-o", "found.csv"]) == 0
    assert "class 0" in Path("found.csv").read_text()


@on_cpu
def test_gray_pixels_are_those_of_timms_reader() -> None:
    training = build(recipe(data={"in_chans": 1, "dataset": "digits", **BY_TIMM}))
    images = training.images
    assert images.test is not None
    found = torch.cat([batch for batch, _ in images.test()])
    test = load_source("digits")["test"]
    config = resolve_model_data_config(training.graph.model("student"))
    assert images.mean == pytest.approx([sum(config["mean"]) / 3])
    normalized = {"mean": images.mean, "std": images.std}
    transform = create_transform(**{**config, "input_size": (1, 8, 8), **normalized})
    expected = torch.stack([transform(row["image"].convert("L")) for row in test])
    # timm's prefetcher normalizes bytes, its transform numbers in 0..1.
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)


def test_four_channels_are_read_and_trained(tmp_path: Path) -> None:
    for data in (BY_TIMM, {"mean": [0.5] * 4, "std": [0.5] * 4}):
        training = build(recipe(data={"in_chans": 4, **data}))
        images, _ = next(iter(training.images.train))
        assert images.shape[1] == 4
        assert training.graph.model("student").stem.conv.weight.shape[1] == 4
    split = load_source("digits")["test"].select(range(1))
    image = split[0]["image"].convert("RGBA")
    image.putalpha(77)
    image.save(tmp_path / "a.png")
    read = decode_image({"bytes": None, "path": str(tmp_path / "a.png")}, 4)
    assert read.mode == "RGBA" and read.getchannel("A").getextrema() == (77, 77)


def test_what_does_not_go_with_the_channels_is_refused() -> None:
    gray = {"in_chans": "1", "mean": [0.5, 0.4, 0.3], "std": [0.5]}
    (line,) = problems_of(recipe(data=gray))
    assert line == "data.mean: should have 1 numbers, as many as in_chans."
    for field, value in (("aa", "rand-m9"), ("grayscale_prob", 0.1)):
        (line,) = problems_of(recipe(data={**BY_TIMM, "in_chans": 4, field: value}))
        assert line.startswith(f"data.{field}: should be left out")


def test_teacher_of_other_channels_is_refused_in_a_line(tmp_path: Path) -> None:
    teacher = {"checkpoint_path": save_weights(str(tmp_path / "rgb.safetensors"))}
    learns = {"learns_from": {"label": "through", "helper": "through"}}
    with pytest.raises(ValueError, match=r"graph\.nodes\.helper\.checkpoint_path: "):
        build(recipe(learns, teacher, data={"in_chans": 1}))
