"""The tiny data set of all tests, and random images for tests that need some in another form."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from datasets import Image as ImageFeature
from PIL import Image

from timm_ktg.data.sources import load_source

# Some of the bundled digits: 266 to train on, in 4 batches of 64 and one of 10. The validation and
# test images cannot be split evenly between two processes.
TRAIN, VAL, TEST = 266, 61, 63
UPDATES = 5  # per epoch


@cache
def small_digits() -> str:
    """The folder of the tiny data set: images of 8x8 in 10 classes, each with a text as `name`."""
    folder = tempfile.mkdtemp(prefix="digits-")
    atexit.register(shutil.rmtree, folder)
    disable_progress_bars()
    digits = load_source("digits")
    sizes = {"train": TRAIN + VAL, "test": TEST}
    splits = {name: digits[name].select(range(size)) for name, size in sizes.items()}
    named = {name: split.add_column("name", ["x"] * len(split)) for name, split in splits.items()}
    DatasetDict(named).save_to_disk(folder)
    return folder


def rows(
    size: int, classes: int = 3, keys: Sequence[str] = ("image", "label"), side: int = 8
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
    disable_progress_bars()
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
