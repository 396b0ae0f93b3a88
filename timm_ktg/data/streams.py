"""Splits that are read in order, shard by shard: nothing is prepared, and little is held."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .images import read_image, undecoded
from .sources import is_image_folder, is_in_files, load_source, load_streamed
from .splits import Splits, check_columns, check_roles, choose, stated_classes

if TYPE_CHECKING:
    from datasets import IterableDataset

_SHARDS, _ROWS = 256, 64  # at most and at least, of a split that is not stored in shards


@dataclass(frozen=True)
class Stream:
    """A split that is read in order.

    Args:
        dataset: The shards.
        size: Images of an epoch of training, or of the split in evaluation.
    """

    dataset: IterableDataset
    size: int

    def __len__(self) -> int:
        """Return the number of images."""
        return self.size


def load_streams(
    dataset: str,
    *,
    dataset_config: str | None = None,
    input_key: str = "image",
    target_key: str = "label",
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = "test",
    train_num_samples: int | None = None,
    num_classes: int | None = None,
) -> Splits:
    """Open the splits of a data set as streams.

    What the data set does not state about itself, sizes and classes, is counted: in parquet files
    this reads the labels alone, in others everything. The fingerprint covers sizes, classes, and
    the names and sizes of local files, but no labels.

    Args:
        dataset: As in `load_splits`. Where every image can be read alone (a folder of image files,
            what `save_to_disk` wrote, `digits`), shards are drawn at random, always the same ones.
        dataset_config: The configuration of a data set that has several.
        input_key: The column of images.
        target_key: The column of class indices.
        train_split: The split to train on.
        val_split: The split for validation.
        test_split: The split for the final test.
        train_num_samples: Images of an epoch; None: as many as there are.
        num_classes: Classes C, where the column does not name them; None: counted.

    Raises:
        ValueError: A name does not exist, or the data do not fit what it names.
    """
    fields = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
    names = {field: name for field, name in fields.items() if name is not None}
    check_roles(names, holdout=0)
    chosen = choose(_open(dataset, dataset_config), names)
    check_columns(chosen, input_key, target_key)
    count = _Counter(dataset, dataset_config, target_key, names)
    classes = stated_classes(chosen, names, target_key)
    if not classes:
        number = num_classes or count.classes("train_split")
        classes = tuple(str(label) for label in range(number))
    elif num_classes not in (None, len(classes)):
        raise ValueError(
            f"data.num_classes: should be left out, or be the {len(classes)} classes that "
            f"`{target_key}` names. Found {num_classes}."
        )
    sizes = {
        field: _stated_size(split, names[field]) or count.images(field)
        for field, split in chosen.items()
        if field != "train_split" or not train_num_samples
    }
    sizes["train_split"] = train_num_samples or sizes["train_split"]
    streams = {field: Stream(split, sizes[field]) for field, split in chosen.items()}
    facts = (sorted(_files(dataset)), classes)
    return Splits(
        train=streams["train_split"],
        val=streams.get("val_split"),
        test=streams.get("test_split"),
        input_key=input_key,
        target_key=target_key,
        num_classes=len(classes),
        class_names=classes,
        fingerprint=_digest(sorted(sizes.items()), facts),
        without_test=_digest(sorted({**sizes, "test_split": 0}.items()), facts),
    )


def _open(dataset: str, dataset_config: str | None) -> Mapping[str, IterableDataset]:
    """Return the splits by name."""
    if not is_in_files(dataset):
        splits = load_streamed(dataset, dataset_config)
        if not is_image_folder(dataset, splits):
            return splits
    # Class comes after class in a folder of image files, so each shard takes images of all.
    return {
        name: split.shuffle(seed=0).to_iterable_dataset(min(-(-len(split) // _ROWS), _SHARDS))
        for name, split in load_source(dataset, dataset_config).items()
        if len(split)
    }


def _stated_size(split: IterableDataset, name: str) -> int | None:
    """Return how many images a split has, if the data set states it."""
    stated = (split.info.splits or {}).get(name)
    return stated.num_examples if stated else None


def check_first(stream: Stream, input_key: str, count: int = 8) -> None:
    """Check that the first images of a stream can be read.

    Args:
        stream: The split.
        input_key: The column of images.
        count: The number of images to read.

    Raises:
        ValueError: An image cannot be read.
    """
    for batch in undecoded(stream.dataset, input_key).take(count).iter(count):
        for row, stored in enumerate(batch[input_key]):
            read_image(stored, input_key, row)


class _Counter:
    """Counts images and classes by reading all labels of a split, once.

    Args:
        dataset: The data set.
        dataset_config: Its configuration.
        target_key: The column of class indices.
        names: The names of the splits by the fields that state them.
    """

    def __init__(
        self, dataset: str, dataset_config: str | None, target_key: str, names: Mapping[str, str]
    ) -> None:
        self._where = (dataset, dataset_config)
        self._key, self._names = target_key, names
        self._counts: dict[str, NDArray[np.int64]] = {}

    def images(self, field: str) -> int:
        """Return how many images a split has."""
        return int(self._count(field).sum())

    def classes(self, field: str) -> int:
        """Return how many classes a split has; they have to be 0 .. C - 1 without a gap."""
        gaps = np.flatnonzero(self._count(field) == 0)
        if len(gaps):
            raise ValueError(
                f"data.target_key: the labels in `{self._key}` should be 0 .. C - 1 without a gap. "
                f"Found none that is {gaps[0]}. Set data.num_classes if that is right."
            )
        return len(self._count(field))

    def _count(self, field: str) -> NDArray[np.int64]:
        """Return the number of images of each label of a split."""
        if field not in self._counts:
            self._counts[field] = self._read(field)
        return self._counts[field]

    def _read(self, field: str) -> NDArray[np.int64]:
        name, counts = self._names[field], np.zeros(0, np.int64)
        labels = self._labels()[name]
        with tqdm(desc=f"Counting {name}", unit="image", leave=False, disable=None) as bar:
            for batch in labels.iter(1000):
                found = np.array(batch[self._key], dtype=np.float64)  # None becomes NaN
                if not (found >= 0).all():
                    raise ValueError(
                        f"data.{field}: every image should have a label, 0 or more. "
                        f"Found {batch[self._key][int(np.argmin(found >= 0))]}."
                    )
                more = np.bincount(found.astype(np.int64), minlength=len(counts))
                more[: len(counts)] += counts
                counts = more
                bar.update(len(found))
        if not counts.sum():
            raise ValueError(f"data.{field}: `{name}` should hold images, it is empty.")
        return counts

    def _labels(self) -> Mapping[str, Any]:
        """Return the splits without their images, which parquet files let us leave unread."""
        splits = _open(*self._where)
        if any(split.info.builder_name == "parquet" for split in splits.values()):
            splits = load_streamed(*self._where, columns=[self._key])
        return {name: split.select_columns([self._key]) for name, split in splits.items()}


def _files(dataset: str) -> list[tuple[str, int]]:
    """Return names and sizes of a local data set's files."""
    folder = Path(dataset).expanduser()
    return [
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    ]


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
