"""From the section `data` to splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..data import Splits, load_splits, load_streams
from ..errors import RecipeError
from .data_config import DataConfig

_WHICH = (
    *("dataset", "dataset_config", "input_key", "target_key"),
    *("train_split", "val_split", "test_split"),
)


def build_splits(data: DataConfig, classes: Sequence[str] | None = None) -> Splits:
    """Return the splits of the data set.

    Args:
        data: The section.
        classes: The classes that `class_map` lists, if they are known; None: its file is read.

    Raises:
        RecipeError: The data set or its splits are wrong.
    """
    try:
        splits = _load(data, classes)
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error
    if splits.num_classes < 2:
        said = f"should have two classes or more. Found only `{splits.class_names[0]}`."
        raise RecipeError([f"data.target_key: `{splits.target_key}` {said}"])
    return splits


def _load(data: DataConfig, classes: Sequence[str] | None) -> Splits:
    which = {name: getattr(data, name) for name in _WHICH}
    if data.streaming:
        return load_streams(
            **which, train_num_samples=data.train_num_samples, num_classes=data.num_classes
        )
    return load_splits(
        **which,
        holdout=data.holdout,
        split_seed=data.split_seed,
        images_per_class=data.images_per_class,
        class_map=classes or data.class_map,
    )


def data_problems(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the problems of a local data set, for a recipe that has other problems.

    Args:
        values: An unchecked recipe.
    """
    try:
        data = DataConfig.model_validate(values.get("data", {}))
    except ValidationError:  # already reported with the rest of the recipe
        return ()
    if "/" in data.dataset and not Path(data.dataset).exists():
        return ()  # on the hub: a recipe that cannot run downloads nothing
    try:
        build_splits(data)
    except RecipeError as error:
        return error.problems
    return ()
