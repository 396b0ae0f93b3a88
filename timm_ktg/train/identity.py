"""What tells the states of a run from those of others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data import Splits
from ..recipe.longer import longer_problem
from ..recipe.recipe import Recipe, read_recipe
from ..recipe.resume import JUDGED, changed_fields, training_values
from ..recipe.train_config import TrainConfig
from ..records.run_directory import RunDirectory

_SHOWN = 3  # fields that a refusal names


@dataclass(frozen=True)
class Identity:
    """What a state must agree with to be one of a run's.

    Args:
        recipe: The run's recipe.
        values: The values in its recipe.yaml that decide the training.
        data: Fingerprint of the images and labels that the training sees.
        former: By what earlier versions identified the states of the run.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    data: str
    former: tuple[str, ...]

    def problem(self, values: Mapping[str, Any], data: str, epoch: int) -> str | None:
        """Return why a state is not one of this run; None: it is.

        Args:
            values: As `values`, when the state was written.
            data: As `data`, likewise.
            epoch: The epochs done.
        """
        changed = changed_fields(values, self.values)
        named = [name for name in changed if name not in JUDGED]
        if named:
            fields = (_said(name, *changed[name]) for name in named[:_SHOWN])
            more = f", and {len(named) - _SHOWN} more fields" * (len(named) > _SHOWN)
            return f"from another run (recipe.yaml has changed: {', '.join(fields)}{more})."
        if data != self.data:
            return "from another run (the data have changed: other images, labels or splits)."
        if not changed:
            return None
        said = longer_problem(TrainConfig.model_validate(values["train"]), self.recipe, epoch)
        return said and f"train.epochs: {said}"


def identity_of(recipe: Recipe, splits: Splits, directory: RunDirectory) -> Identity:
    """Return what identifies a run's states.

    Args:
        recipe: The run's recipe.
        splits: Its images.
        directory: Its directory.
    """
    values = training_values(read_recipe(directory.recipe))
    text = json.dumps(values, default=str)
    whole = directory.recipe.read_text(encoding="utf-8")
    former = (text + splits.without_test, whole + splits.fingerprint)
    hashes = tuple(hashlib.sha256(each.encode()).hexdigest() for each in former)
    return Identity(recipe, json.loads(text), splits.without_test, hashes)


def _said(name: str, before: Any, now: Any) -> str:
    return f"{name} was {before}, is {now}"
