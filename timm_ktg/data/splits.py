"""Which images are for training, for validation and for the test: chosen once, and checked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import did_you_mean
from .class_map import read_class_map, relabel
from .sources import load_source, split_named

if TYPE_CHECKING:
    from datasets import Dataset

    from .streams import Stream

T = TypeVar("T")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The splits of one data set, with undecoded images; all are streams, or none.

    Args:
        train: The training images, without those held out.
        val: The validation images, if any.
        test: The test images, if any; their labels have not been checked yet.
        input_key: The column of images.
        target_key: The column of class indices.
        num_classes: Classes C.
        class_names: [C] names.
        fingerprint: SHA-256 of the sizes of all splits and of the indices and labels of train and
            val: two runs with the same fingerprint trained and validated on the same images.
        without_test: The same without the size of the test split, which a resumed run may change.
    """

    train: Dataset | Stream
    val: Dataset | Stream | None
    test: Dataset | Stream | None
    input_key: str
    target_key: str
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str
    without_test: str


def load_splits(
    dataset: str,
    *,
    dataset_config: str | None = None,
    input_key: str = "image",
    target_key: str = "label",
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = "test",
    holdout: int = 0,
    split_seed: int = 0,
    images_per_class: int | None = None,
    class_map: str | Sequence[str] | None = None,
) -> Splits:
    """Open a data set and choose the images for training, validation and test.

    Args:
        dataset: `digits`, a folder (parquet, arrow or images) or a hub id.
        dataset_config: The configuration of a data set that has several.
        input_key: The column of images.
        target_key: The column of class indices.
        train_split: The split to train on.
        val_split: The split for validation.
        test_split: The split for the final test.
        holdout: How many training images become `val`, where there is no `val_split`.
        split_seed: Decides which images `holdout` and `images_per_class` take; 0 or more.
        images_per_class: How many training images of each class to keep; None: all. What is kept
            does not depend on `holdout`, as long as that leaves enough.
        class_map: A file that lists the classes, one a line, or the classes; None: all that the
            data set has.

    Returns:
        The splits, checked. Only schema and size of the test split are; see `check_labels`.

    Raises:
        ValueError: A name does not exist, or the data do not fit what it names.
    """
    fields = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
    names = {field: name for field, name in fields.items() if name is not None}
    check_roles(names, holdout)
    chosen = choose(load_source(dataset, dataset_config), names)
    check_columns(chosen, input_key, target_key)
    if class_map is not None:
        listed = read_class_map(class_map) if isinstance(class_map, str) else class_map
        chosen = {
            field: relabel(split, target_key, listed, f"data.{field}")
            for field, split in chosen.items()
        }
    classes = stated_classes(chosen, names, target_key)
    classes = classes or _count_classes(chosen["train_split"], target_key)
    train, val, record = _divide(
        chosen, target_key, len(classes), holdout, split_seed, images_per_class
    )
    sizes = {field: len(split) for field, split in chosen.items()}
    return Splits(
        *(train, val, chosen.get("test_split"), input_key, target_key, len(classes), classes),
        fingerprint=_fingerprint([*sizes.values()], record),
        without_test=_fingerprint([n for f, n in sizes.items() if f != "test_split"], record),
    )


def check_labels(
    split: Dataset, target_key: str, num_classes: int, *, field: str = "data.test_split"
) -> NDArray[np.int64]:
    """Read the labels of a split and check that each is a class.

    `load_splits` does it for train and val. Call it for the test split before training, because
    many test splits on the hub have no labels (-1).

    Args:
        split: The split.
        target_key: The column of class indices.
        num_classes: Classes C.
        field: The setting that the error message names.

    Returns:
        [N] class indices, 0 .. C - 1.

    Raises:
        ValueError: A label is missing or is not a class.
    """
    column = split.select_columns([target_key]).with_format("arrow")[:].column(target_key)
    if column.null_count:
        raise ValueError(
            f"{field}: every image should have a label, `{target_key}` lacks {column.null_count} "
            f"of {len(split)}."
        )
    labels: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"{field}: the labels in `{target_key}` should be 0 .. {num_classes - 1}, the classes "
            f"of the training split. Found {wrong[0]}."
        )
    return labels


def check_roles(names: Mapping[str, str], holdout: int) -> None:
    """Refuse a split with two purposes, such as training and validation."""
    if holdout and "val_split" in names:
        raise ValueError(
            f"data.holdout: should be 0 beside data.val_split, found {holdout} and "
            f"`{names['val_split']}`. Drop one of the two."
        )
    roles: dict[str, str] = {}
    for field, name in names.items():
        if name in roles:
            raise ValueError(
                f"data.{field}: should differ from data.{roles[name]}, both are `{name}`."
            )
        roles[name] = field


_LOOSE = (
    " Image files get a label where every image lies in a folder of its class, all at one depth, "
    "with two classes or more."
)
_NO_TEST = (
    " If there is no test, say `test_split: null`; `holdout: n` holds n training images out for "
    "validation."
)


def choose(source: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return the chosen splits by the field that names them."""
    for field, name in names.items():
        if name not in source:
            near = did_you_mean(split_named(name), source)
            no_test = _NO_TEST if field == "test_split" and "test" not in source else ""
            raise ValueError(
                f"data.{field}: `{name}` is no split. Splits: {', '.join(source)}.{near}{no_test}"
            )
        split = source[name]
        if isinstance(split, Sized) and not len(split):
            raise ValueError(f"data.{field}: `{name}` should hold images, it is empty.")
    return {field: source[name] for field, name in names.items()}


def check_columns(chosen: Mapping[str, Any], input_key: str, target_key: str) -> None:
    """Raise ValueError with all that is wrong with the two columns in any split."""
    problems: dict[str, None] = {}
    for split in chosen.values():
        for field, key, wants, fits in (
            ("input_key", input_key, "images", _is_image),
            ("target_key", target_key, "integer classes", _is_class),
        ):
            try:
                _check_column(split, field, key, wants, fits)
            except ValueError as error:
                problems[str(error)] = None
    if problems:
        raise ValueError("\n".join(problems))


def _check_column(
    split: Any, field: str, key: str, wants: str, fits: Callable[[Any], bool]
) -> None:
    columns = split.features or {}
    if key not in columns:
        loose = _LOOSE if field == "target_key" and set(columns) == {"image"} else ""
        raise ValueError(
            f"data.{field}: `{key}` is no column. Columns: {', '.join(columns)}."
            f"{did_you_mean(key, columns)}{loose}"
        )
    if not fits(columns[key]):
        fitting = [name for name, feature in columns.items() if fits(feature)]
        found = getattr(columns[key], "dtype", type(columns[key]).__name__)
        raise ValueError(
            f"data.{field}: `{key}` should be a column of {wants}, found {found}. "
            f"Columns of {wants}: {', '.join(fitting) or 'none'}."
        )


def _is_image(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def _is_class(feature: Any) -> bool:
    from datasets import ClassLabel, Value

    is_integer = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    return is_integer or isinstance(feature, ClassLabel)


def stated_classes(
    chosen: Mapping[str, Any], names: Mapping[str, str], target_key: str
) -> tuple[str, ...]:
    """Return the names of the ClassLabel; none, if the labels are plain numbers."""
    stated = {
        field: tuple(split.features[target_key].names)
        for field, split in chosen.items()
        if hasattr(split.features[target_key], "names")
    }
    if "train_split" not in stated:
        return ()
    classes = stated["train_split"]
    for field, others in stated.items():
        if others != classes:
            raise ValueError(
                f"data.{field}: `{names[field]}` should have the classes of "
                f"`{names['train_split']}`, found {len(others)} classes where it has "
                f"{len(classes)}, or the same under other names."
            )
    return classes


def _count_classes(split: Dataset, target_key: str) -> tuple[str, ...]:
    """Return plain integer labels as names; they have to be 0 .. C - 1 without a gap."""
    labels = check_labels(split, target_key, np.iinfo(np.int64).max, field="data.target_key")
    distinct = np.unique(labels)
    gaps = np.flatnonzero(distinct != np.arange(len(distinct)))
    if len(gaps):
        raise ValueError(
            f"data.target_key: the labels in `{target_key}` should be 0 .. {distinct[-1]} without "
            f"a gap, found {len(distinct)} distinct ones without {gaps[0]}."
        )
    return tuple(str(label) for label in distinct)


def _divide(
    chosen: Mapping[str, Dataset],
    target_key: str,
    num_classes: int,
    holdout: int,
    seed: int,
    images_per_class: int | None,
) -> tuple[Dataset, Dataset | None, list[NDArray[np.int64]]]:
    """Check labels, hold images out, and return train, val and the arrays that identify them."""
    labels = {
        field: check_labels(split, target_key, num_classes, field=f"data.{field}")
        for field, split in chosen.items()
        if field != "test_split"
    }
    train, val = chosen["train_split"], chosen.get("val_split")
    rows, val_rows = _hold_out(len(train), holdout, seed)
    if images_per_class is not None:
        rows = _last_of_each(rows, labels["train_split"], num_classes, images_per_class)
    _warn_of_empty(labels["train_split"][rows], chosen["train_split"].features[target_key])
    # Sorted, because reading rows in order is faster; the choice is the same.
    rows, val_rows = np.sort(rows), np.sort(val_rows)
    record = [rows, labels["train_split"][rows], val_rows, labels["train_split"][val_rows]]
    if len(rows) < len(train):
        train = train.select(rows)
    if holdout:
        val = chosen["train_split"].select(val_rows)
    elif val is not None:
        record[2:] = [np.arange(len(val)), labels["val_split"]]
    return train, val, record


def _warn_of_empty(labels: NDArray[np.int64], feature: Any) -> None:
    """Warn of classes with names that have no training image, as one that is misspelled."""
    names = getattr(feature, "names", ())
    counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=False) if not count]
    if empty:
        said = f"`{empty[0]}`" + f" and {len(empty) - 1} more" * (len(empty) > 1)
        _logger.warning("data.train_split: no training image has the class %s.", said)


def _hold_out(size: int, holdout: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a random order of 0 .. size - 1 into rows to train on and rows held out."""
    if not 0 <= holdout < size:
        raise ValueError(
            f"data.holdout: should be below the {size} training images and not negative, "
            f"found {holdout}."
        )
    if seed < 0:
        raise ValueError(f"data.split_seed: should be 0 or more, found {seed}.")
    order = np.random.default_rng(seed).permutation(size)
    return order[holdout:], order[:holdout]


def _last_of_each(
    rows: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int, count: int
) -> NDArray[np.int64]:
    """Return the last rows of each class, because a holdout takes the first ones."""
    kept = [rows[labels[rows] == label][-count:] for label in range(num_classes)]
    fewest = min(range(num_classes), key=lambda label: len(kept[label]))
    if len(kept[fewest]) < count:
        raise ValueError(
            f"data.images_per_class: every class should have {count} training images that are not "
            f"held out. Found {len(kept[fewest])} of class {fewest}."
        )
    return np.concatenate(kept)


def _fingerprint(sizes: list[int], arrays: list[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256(repr((sizes, [len(array) for array in arrays])).encode())
    for array in arrays:
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()
