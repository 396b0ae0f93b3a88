"""A file that lists the classes of a training, and other labels for a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


def read_class_map(path: str) -> tuple[str, ...]:
    """Return the classes that a file lists, one a line, in the order of their labels.

    timm reads pickled maps, too. They are refused, because reading them can run code.

    Raises:
        ValueError: The file cannot be read, or a class is missing or listed twice.
    """
    try:
        names = tuple(Path(path).read_text(encoding="utf-8-sig").split("\n"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"data.class_map: `{path}` cannot be read: {why}.") from error
    names = tuple(name.strip() for name in names)
    names = names[:-1] if names[-1] == "" else names
    twice = [name for name in names if names.count(name) > 1]
    if len(names) < 2 or "" in names or twice:
        found = f"`{twice[0]}` twice" if twice else f"{len(names)} lines"
        raise ValueError(
            f"data.class_map: `{path}` should have a class on each line. Found {found}."
        )
    return names


def other_class(found: Sequence[str], expected: Sequence[str]) -> tuple[str, str, bool] | None:
    """Return a class that has the label of another, if there is one.

    Args:
        found: Names of classes, by label.
        expected: The names that they should have.

    Returns:
        The class, the one whose label it has, and whether it is expected at another label. One that
        is comes before one that is unknown. None: all names agree.
    """
    known = set(expected)
    others = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
    moved = [pair for pair in others if pair[0] in known]
    return next(((*pair, bool(moved)) for pair in moved or others), None)


def relabel(split: Dataset, target_key: str, classes: Sequence[str], field: str) -> Dataset:
    """Return the images of the classes that are listed, labeled by their place in the list.

    Args:
        split: The split.
        target_key: The column of class indices. Without names, a class is called by its index.
        classes: The classes.
        field: The setting that the error message names.

    Raises:
        ValueError: The split has no image of these classes.
    """
    from datasets import ClassLabel

    column = split.select_columns([target_key]).with_format("arrow")[:].column(target_key)
    feature, places = split.features[target_key], {name: at for at, name in enumerate(classes)}
    names = dict(enumerate(feature.names)) if hasattr(feature, "names") else {}
    labels = [places.get(names.get(old, str(old)), -1) for old in column.to_pylist()]
    rows = np.flatnonzero(np.array(labels) >= 0)
    if not len(rows):
        raise ValueError(
            f"{field}: should have images of the classes in data.class_map. Found none."
        )
    # All rows get a label before some are selected, because a column cannot be added afterwards
    # without a copy of the images.
    others = split.remove_columns([target_key])
    changed = others.add_column(target_key, labels, feature=ClassLabel(names=list(classes)))
    return changed if len(rows) == len(split) else changed.select(rows)
