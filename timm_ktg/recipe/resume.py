"""The recipe of a run to resume: what of it may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError
from ..records.files import write_whole
from .recipe import PLACE, Recipe, check_recipe, read_recipe, without

# Fields that a resumed run can change, because its training does not depend on them.
RESUMABLE = {
    **PLACE,
    "data": {*PLACE["data"], "test_split"},
    "train": {*PLACE["train"], "eval_interval"},
}

# Further fields that it can change; whether these epochs can is for `longer_problem` to say.
JUDGED = ("train.epochs",)


def resumed_recipe(values: Mapping[str, Any], changed: Recipe) -> Recipe:
    """Check what is changed in the recipe of a run to resume, and return the changed recipe.

    Args:
        values: The run's own recipe, unchecked.
        changed: The recipe with its overrides.

    Raises:
        RecipeError: A field that decides the training is changed; names all such fields.
    """
    before = training_values(check_recipe(values).model_dump(mode="json"))
    after = training_values(changed.model_dump(mode="json"))
    names = [name for name in changed_fields(before, after) if name not in JUDGED]
    if names:
        free = (f"{section}.{name}" for section in RESUMABLE for name in _free_fields(section))
        can = f"Only these can change: {', '.join(free)}."
        raise RecipeError(
            [f"resume: {name} decides the training, so it stays as it was. {can}" for name in names]
        )
    return changed


def change_recipe(path: Path, recipe: Recipe) -> None:
    """Write the fields that a resumed run can change into its recipe.yaml.

    Everything else in the file stays as it is, because it identifies the states of the run.

    Args:
        path: The file.
        recipe: The recipe with the new values.
    """
    new = read_recipe(path)
    for section, values in recipe.model_dump(mode="json").items():
        free = {key: values[key] for key in _free_fields(section)}
        if free:
            new[section] = {**new.get(section, {}), **free}
    write_whole(path, yaml.safe_dump(new, sort_keys=False))


def outdates_result(path: Path, recipe: Recipe) -> bool:
    """Return whether a run's result is none of a changed recipe: of other epochs or images.

    Args:
        path: The run's recipe.yaml, before it is changed.
        recipe: The recipe with the new values.
    """
    former = Recipe.model_validate(read_recipe(path))
    asked = recipe.data.test_split, recipe.train.epochs
    return (former.data.test_split, former.train.epochs) != asked


def training_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values without those that do not change its training."""
    return without(RESUMABLE, values)


def changed_fields(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the values of the fields that differ in two recipes, by their path: `train.lr`.

    Args:
        before: A recipe's values.
        after: The other's.
    """
    first, second = _flat(before), _flat(after)
    return {
        name: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }


def _free_fields(section: str) -> list[str]:
    """Return the fields of a section that a resumed run can change."""
    fields = Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    names = [field.alias or name for name, field in fields.items()]
    free = RESUMABLE.get(section, ())
    return [name for name in names if name in free or f"{section}.{name}" in JUDGED]


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values by their path, such as `train.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{path}{key}.") if nested else {f"{path}{key}": value}
    return found
