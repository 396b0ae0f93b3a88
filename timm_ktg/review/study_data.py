"""A study as the report shows it: read once, and never changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.storages import BaseStorage

from ..errors import RecipeError, did_you_mean, located
from ..recipe.recipe import SEARCH, read_recipe
from ..recipe.schedule import epochs_of
from ..recipe.train_config import TrainConfig
from ..search.result import spent
from ..search.storage import open_to_read
from ..search.trials import DEAD, FAILED, TrialRecord, best_first, records

RESULT = "result.json"

# What the studies beside a search's own are called; see `Worker.jobs`.
_BESIDE = re.compile(r"(.+)/(pretrained|teachers|wandb-sweep|(final|teachers|wandb)-[0-9a-f]{8})")


@dataclass(frozen=True)
class StudyData:
    """A study.

    Args:
        name: Its name.
        recipe: What the search's search.yaml says; see `find_study`.
        trials: All trials, by number.
        epochs: Epochs of a whole trial.
        spent: What was spent; see `search.result.spent`.
        result: What result.json holds; no rows if the search has not come to its end.
    """

    name: str
    recipe: Mapping[str, Mapping[str, Any]]
    trials: tuple[TrialRecord, ...]
    epochs: int
    spent: Mapping[str, int]
    result: Mapping[str, Any]

    @property
    def tested(self) -> Sequence[Mapping[str, Any]]:
        """The graphs that were trained again, and tested."""
        rows: Sequence[Mapping[str, Any]] = self.result["rows"]
        return rows

    @cached_property
    def stages(self) -> dict[int, tuple[TrialRecord, ...]]:
        """The trials that reached each rung and the end, by epoch, without those that failed."""
        counted = [trial for trial in self.trials if trial.state not in (FAILED, DEAD)]
        epochs = sorted({epoch for trial in counted for epoch in trial.values})
        return {
            epoch: tuple(trial for trial in counted if epoch in trial.values) for epoch in epochs
        }

    @cached_property
    def best(self) -> list[TrialRecord]:
        """The trials that got furthest, the best first, each graph once."""
        return best_first(self.stages[max(self.stages)])


def find_study(
    path: Path, storage: str | None = None, name: str | None = None
) -> tuple[Study, dict[str, Any]]:
    """Return the study of a search.

    Args:
        path: The search's directory, or its search.yaml.
        storage: Where the study is kept; None: where search.yaml says.
        name: Name of the study; None: the only one that is kept there.

    Returns:
        The study, and what search.yaml says, unchecked, because the gates and weights that it
        names may be on another machine.

    Raises:
        RecipeError: There is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each of the studies for jobs says hello
    directory = directory_of(path)
    recipe = _recipe(directory / SEARCH)
    opened = open_to_read(storage or recipe["search"]["storage"], directory)
    name = _name(opened, name or recipe["search"]["study"], directory)
    return optuna.load_study(study_name=name, storage=opened), recipe


def read_study(path: Path, storage: str | None = None, name: str | None = None) -> StudyData:
    """Return what there is to show of a search.

    Args:
        path: The search's directory, or its search.yaml.
        storage: Where the study is kept; None: where search.yaml says.
        name: Name of the study; None: the only one that is kept there.

    Raises:
        RecipeError: There is no study, or nothing in it to show.
    """
    study, recipe = find_study(path, storage, name)
    directory = directory_of(path)
    with located(f"{directory / SEARCH}: train"):
        epochs = epochs_of(TrainConfig.model_validate(recipe["train"]))
    trials = tuple(records(study))
    _check_any(trials, f"{directory}: study `{study.study_name}`")
    file = directory / RESULT
    result: dict[str, Any] = {"rows": []}
    if file.is_file():
        with located(f"{file} cannot be read"):
            found = json.loads(file.read_text(encoding="utf-8"))
            result = {**found, "rows": found["rows"]}
    cost = spent(study, epochs)
    return StudyData(study.study_name, recipe, trials, epochs, cost, result)


def directory_of(path: Path) -> Path:
    """Return the directory of a search, which may be given by a file in it."""
    return path.parent if path.is_file() else path


def _recipe(path: Path) -> dict[str, Any]:
    """Return a search's recipe, of which only what is needed here is checked."""
    if not path.is_file():
        raise RecipeError([f"{path.parent}: should hold a search's {SEARCH}. Found none."])
    values = read_recipe(path)
    for where in ("search.storage", "search.study", "search.target_model", "train.epochs"):
        section, field = where.split(".")
        if field not in (values.get(section) or {}):
            raise RecipeError([f"{path}: {where} should be given. Found nothing."])
    return values


def _name(storage: BaseStorage, name: str | None, directory: Path) -> str:
    with located(f"{directory}: the study cannot be read"):
        names = optuna.get_all_study_names(storage)
    own = _own(names)
    if name is None and len(own) == 1:
        return own[0]
    listed = ", ".join(own) or "none"
    if name is None:
        raise RecipeError([f"{directory}: --study should name one. Studies: {listed}."])
    if name not in names:
        near = did_you_mean(name, own)
        raise RecipeError([f"{directory}: there is no study `{name}`. Studies: {listed}.{near}"])
    return name


def _own(names: Iterable[str]) -> list[str]:
    """Return the names of searches, without the studies that belong to their jobs."""
    known = set(names)
    beside = {name: _BESIDE.fullmatch(name) for name in known}
    return sorted(name for name, match in beside.items() if match is None or match[1] not in known)


def _check_any(trials: Sequence[TrialRecord], where: str) -> None:
    """Raise RecipeError if no trial has anything to show."""
    if not trials:
        raise RecipeError([f"{where} has no trial yet."])
    failed = [trial for trial in trials if trial.state in (FAILED, DEAD)]
    if len(failed) == len(trials):
        reason = next((trial.reason for trial in failed if trial.reason), DEAD)
        raise RecipeError([f"{where} has failed trials only, {len(failed)}. The first: {reason}"])
    if not any(trial.values for trial in trials if trial.state not in (FAILED, DEAD)):
        raise RecipeError([f"{where} has no trial yet that reached its first rung."])
