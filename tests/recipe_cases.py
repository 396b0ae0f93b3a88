"""Recipes and data of a few images on disk, for the tests of recipes and of the command line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from timm_ktg.errors import RecipeError
from timm_ktg.graph.weights import export_node
from timm_ktg.recipe.recipe import check_recipe

Values = Mapping[str, Any]
Refused = Callable[..., list[str]]

CLASSES = 3
TWO: Values = {"learns_from": {"label": "through", "helper": "through"}}
LABEL_ONLY: Values = {"learns_from": {"label": "through"}}


def recipe(student: Values = LABEL_ONLY, helper: Values | None = None, **sections: Values) -> Any:
    """The values of a recipe of one or two small nets on the images in `pets`."""
    nodes = {"student": {"model": "resnet8_cifar", **student}}
    if helper is not None:
        nodes["helper"] = {"model": "resnet8_cifar", **helper}
    return {
        "graph": {"target": "student", "nodes": nodes, **sections.get("graph", {})},
        "data": {"dataset": "pets", "pad": 1, **sections.get("data", {})},
        "train": {"batch_size": 4, "epochs": 1, **sections.get("train", {})},
    }


def changed(path: str, value: Any) -> Any:
    """The values of a recipe of two nets, with the value at one path replaced."""
    values = recipe(TWO, LABEL_ONLY)
    section = values
    *parents, last = path.split(".")
    for key in parents:
        # A copy, because the nets share what they learn from.
        section[key] = dict(section[key])
        section = section[key]
    section[last] = value
    return values


def write(values: Values | str, path: str = "recipe.yaml") -> str:
    text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
    Path(path).write_text(text)
    return path


def problems_of(values: Values) -> tuple[str, ...]:
    """All problems of a recipe's values; nothing is built."""
    try:
        check_recipe(values)
    except RecipeError as error:
        return error.problems
    return ()


def rows(
    size: int, classes: int = CLASSES, keys: Sequence[str] = ("image", "label"), side: int = 8
) -> Dataset:
    """Random images, their classes in turn, and a column of text."""
    image, *labels = keys
    noise = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    names = ClassLabel(names=[f"class {number}" for number in range(classes)])
    columns = {image: [Image.fromarray(each) for each in noise], "name": ["x"] * size}
    columns |= {key: [row % classes for row in range(size)] for key in labels}
    kinds = {image: ImageFeature(), "name": Value("string")} | dict.fromkeys(labels, names)
    return Dataset.from_dict(columns, Features(kinds))


def save(folder: Path, **splits: Dataset) -> None:
    """Save the splits as parquet files, with the card that names them, as a data set on the hub."""
    datasets.disable_progress_bars()
    folder.mkdir(parents=True)
    card = [{"split": name, "path": f"{name}-*"} for name in splits]
    configs = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": card}]})
    (folder / "README.md").write_text(f"---\n{configs}---\n")
    for name, split in splits.items():
        split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))


def save_images(folder: Path, **splits: Dataset) -> None:
    """Save the splits as folders of images, one per class."""
    for name, split in splits.items():
        for number, row in enumerate(split):
            path = folder / name / f"class {row['label']}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)


def save_weights(path: str, model: str = "resnet8_cifar", classes: int = CLASSES) -> str:
    """Export a net's random weights, and return where they are."""
    export_node(timm.create_model(model, num_classes=classes), Path(path))
    return path
