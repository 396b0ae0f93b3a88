"""What a run exports, used without the package: by timm alone, in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from datasets import Dataset, load_from_disk
from timm.data import resolve_model_data_config

from tests.nets import TinyNet
from tests.recipe_cases import Values, recipe_values
from tests.tiny_data import TEST, save_images, small_digits
from tests.training_cases import summary_of, train_run
from timm_ktg.data.sources import load_source
from timm_ktg.graph.folder import export_folder
from timm_ktg.graph.weights import export_node

pytestmark = pytest.mark.slow

# Prints the top-1 and top-5 of a folder's model on folders of images, and what its config says.
TIMM_ALONE = """
import importlib, json, sys
from pathlib import Path
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

folder, images, registers = sys.argv[1:]
if registers:
    importlib.import_module(registers)  # the package that the architecture comes from
assert registers or not any(name.startswith("timm_ktg") for name in sys.modules)
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = resolve_model_data_config(model)
transform = create_transform(**config)
names = model.pretrained_cfg["label_names"]
files = sorted(Path(images).rglob("*.png"))
labels = torch.tensor([names.index(file.parent.name.removeprefix("class ")) for file in files])
mode = {1: "L", 3: "RGB"}[config["input_size"][0]]
pixels = torch.stack([transform(Image.open(file).convert(mode)) for file in files])
with torch.inference_mode():
    hits = model(pixels).topk(5).indices == labels[:, None]
found = {f"top{k}": 100 * hits[:, :k].any(1).double().mean().item() for k in (1, 5)}
print(json.dumps({"images": len(files), "found": found, "config": config}))
"""


def used_alone(folder: Path, images: Path, registers: str = "") -> Values:
    """What timm measures with a folder's model in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", TIMM_ALONE, folder, images, registers]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: Values = json.loads(done.stdout)
    return said


STOCK: Values = {
    # The arguments must be in the folder, because the model cannot be built without them.
    "vit": {
        "model": "test_vit",
        "model_kwargs": {"img_size": 8, "patch_size": 2},
        "learns_from": {"label": "through", "resnet": "through"},
    },
    "resnet": {"model": "test_resnet", "img_size": 16, "learns_from": {"label": "through"}},
    "slow": {"ema": "vit", "decay": 0.5},
}


def test_digits_have_the_runs_accuracy_with_timm_alone(tmp_path: Path) -> None:
    nodes: Values = {
        "student": {
            "model": "test_resnet",
            "model_kwargs": {"output_stride": 8},
            "learns_from": {"label": "through"},
        },
        "slow": {"ema": "student", "decay": 0.9},
    }
    data = {"dataset": "digits", "hflip": 0.0}
    train: Values = {"epochs": 4, "batch_size": 32, "opt": "adamw", "lr": 0.003}
    run = train_run(tmp_path / "run", recipe_values(nodes, data, {"target": "student"}, **train))
    test = load_source("digits")["test"]
    save_images(tmp_path, images=test)
    summary = summary_of(run)
    assert summary["nodes"]["student"]["top1"] > 90  # it has learned something
    for name in nodes:
        said = used_alone(run / "nodes" / name, tmp_path / "images")
        assert said["images"] == len(test) == 360
        assert said["found"] == pytest.approx(summary["nodes"][name], abs=1e-9)
        assert said["config"]["input_size"] == [3, 8, 8] and said["config"]["crop_pct"] == 1.0
        assert said["config"]["mean"] == pytest.approx(summary["data"]["mean"])


def test_architectures_of_the_package_need_only_its_import(tmp_path: Path) -> None:
    nodes = {"a": {"model": "resnet8_cifar", "learns_from": {"label": "through"}}}
    run = train_run(tmp_path / "run", recipe_values(nodes))
    save_images(tmp_path, images=load_from_disk(small_digits())["test"])
    said = used_alone(run / "nodes" / "a", tmp_path / "images", "timm_ktg")
    assert said["images"] == TEST
    assert said["found"] == pytest.approx(summary_of(run)["nodes"]["a"], abs=1e-9)


def enlarged(split: Dataset) -> Dataset:
    """The images of a split in several sizes, not square."""

    def enlarge(row: Values, index: int) -> Values:
        return {**row, "image": row["image"].resize((24 + index % 9, 20 + index % 5))}

    return split.select(range(60)).map(enlarge, with_indices=True)


@pytest.mark.parametrize(
    "data",
    [{"pipeline": "timm", "workers": 0, "crop_pct": 0.8, "pad": 4}, {"img_size": 8, "hflip": 0.0}],
    ids=["timm", "memory"],
)
def test_crop_and_resize_of_a_run_are_exported(data: Values, tmp_path: Path) -> None:
    digits = load_source("digits")
    splits = {name: enlarged(digits[name]) for name in ("train", "test")}
    save_images(tmp_path / "data", **splits)
    nodes = {"a": STOCK["vit"] | {"learns_from": {"label": "through"}}}
    data = {"dataset": str(tmp_path / "data"), "holdout": 0, "img_size": 8, **data}
    values = recipe_values(nodes, data, {"target": "a"}, batch_size=20)
    run = train_run(tmp_path / "run", values)
    names = summary_of(run)["data"]["class_names"]
    assert names == [f"class {number}" for number in range(10)]
    config = json.loads((run / "nodes/a/config.json").read_text())
    assert config["label_names"] == names and config["model_args"]["patch_size"] == 2
    config["label_names"] = [name.removeprefix("class ") for name in names]
    (run / "nodes/a/config.json").write_text(json.dumps(config))
    said = used_alone(run / "nodes" / "a", tmp_path / "data" / "test")
    assert said["found"] == pytest.approx(summary_of(run)["nodes"]["a"], abs=1e-9)
    modes = {"timm": ("center", 0.8), "memory": ("squash", 1.0)}
    expected = modes[data.get("pipeline", "memory")]
    assert (said["config"]["crop_mode"], said["config"]["crop_pct"]) == expected


def test_node_with_an_image_size_of_its_own_gets_images_of_that_size(tmp_path: Path) -> None:
    values = recipe_values(STOCK, {}, {"target": "vit"}, epochs=1)
    run = train_run(tmp_path / "run", values)
    model = timm.create_model(f"local-dir:{run / 'nodes' / 'resnet'}", pretrained=True)
    assert resolve_model_data_config(model)["input_size"] == (3, 16, 16)


DATA_CONFIG: Values = {
    **{"input_size": (3, 8, 8), "interpolation": "bicubic", "crop_pct": 1.0},
    **{"crop_mode": "squash", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)},
}


def test_weights_in_the_folder_take_no_space_of_their_own(tmp_path: Path) -> None:
    model, weights = timm.create_model("resnet8_cifar", num_classes=3), tmp_path / "a.safetensors"
    for _ in range(2):  # a run that was killed writes them again
        torch.nn.init.normal_(model.fc.weight)
        export_node(model, weights)
        export_folder(model, weights, DATA_CONFIG, "xyz")
        assert (tmp_path / "a" / "model.safetensors").samefile(weights)
        read = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
        assert torch.equal(read.fc.weight, model.fc.weight)
        assert read.pretrained_cfg["label_names"] == ["x", "y", "z"]


def test_weights_are_copied_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    model, weights = timm.create_model("resnet8_cifar", num_classes=3), tmp_path / "a.safetensors"
    export_node(model, weights)
    export_folder(model, weights, DATA_CONFIG, "xyz")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_model_that_timm_did_not_build_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="should have a `pretrained_cfg`"):
        export_folder(TinyNet(), tmp_path / "a.safetensors", DATA_CONFIG, "xyz")
    assert not (tmp_path / "a").exists()
