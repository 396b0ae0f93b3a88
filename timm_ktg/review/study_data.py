"""A study as the report shows it: read once, changed by nobody."""

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
from optuna.trial import FrozenTrial, TrialState

from ..errors import RecipeError, did_you_mean, located
from ..recipe.build import epochs_of
from ..recipe.recipe import read_recipe
from ..recipe.train_config import TrainConfig
from ..search.final import spent
from ..search.objective import EDGES, EPOCHS, MODELS
from ..search.sampler import REASON
from ..search.space import GraphEdge
from ..search.storage import open_to_read
from ..search.study import DUPLICATE

RECIPE, RESULT = "search.yaml", "result.json"
COMPLETE, PRUNED, FAILED, DEAD = "complete", "pruned", "failed", "worker died"

# How the studies beside a search's own are called; see search.program.
_BESIDE = re.compile(r"(.+)/(pretrained|wandb-sweep|(final|teachers|wandb)-[0-9a-f]{8})")


@dataclass(frozen=True)
class TrialData:
    """A trial.

    Args:
        trial: As Optuna keeps it.
        epochs: Epochs of a whole trial.
    """

    trial: FrozenTrial
    epochs: int

    @property
    def number(self) -> int:
        """Optuna's number, from 0."""
        return self.trial.number

    @property
    def state(self) -> str:
        """What became of it, in a word or two."""
        attributes = self.trial.user_attrs
        if DUPLICATE in attributes:
            return "duplicate"
        if self.trial.state == TrialState.FAIL:
            return FAILED if REASON in attributes else DEAD
        return self.trial.state.name.lower()

    @cached_property
    def values(self) -> dict[int, float]:
        """The target's validation top-1 in percent by epoch: at the rungs, and at the end."""
        found = dict(sorted(self.trial.intermediate_values.items()))
        if self.trial.state == TrialState.COMPLETE and self.trial.value is not None:
            found.setdefault(self.epochs, self.trial.value)
        return found

    @property
    def last(self) -> float | None:
        """The last of the values."""
        return next(reversed(self.values.values()), None)

    @property
    def trained(self) -> int:
        """Epochs that were trained."""
        return int(self.trial.user_attrs.get(EPOCHS, 0))

    @property
    def models(self) -> dict[str, str]:
        """The nodes' models by name; nothing of a trial that did not get so far."""
        return dict(self.trial.user_attrs.get(MODELS, {}))

    @property
    def edges(self) -> tuple[GraphEdge, ...]:
        """The edges that exist."""
        return tuple(GraphEdge(*edge) for edge in self.trial.user_attrs.get(EDGES, ()))

    @property
    def reason(self) -> str:
        """Why it failed, or nothing."""
        return str(self.trial.user_attrs.get(REASON, ""))


@dataclass(frozen=True)
class StudyData:
    """A study.

    Args:
        name: Its name.
        directory: That of the search.
        recipe: The search's recipe, every field spelled out.
        trials: All trials, by number.
        epochs: Epochs of a whole trial.
        spent: What was spent; see `search.final.spent`.
        result: What result.json holds; None: the search has not come to its end.
    """

    name: str
    directory: Path
    recipe: Mapping[str, Mapping[str, Any]]
    trials: tuple[TrialData, ...]
    epochs: int
    spent: Mapping[str, int]
    result: Mapping[str, Any] | None

    @cached_property
    def stages(self) -> dict[int, tuple[TrialData, ...]]:
        """The trials that reached each rung and the end, by epoch; those that failed left out."""
        counted = [trial for trial in self.trials if trial.state not in (FAILED, DEAD)]
        epochs = sorted({epoch for trial in counted for epoch in trial.values})
        return {
            epoch: tuple(trial for trial in counted if epoch in trial.values) for epoch in epochs
        }

    @cached_property
    def best(self) -> tuple[TrialData, ...]:
        """The trials that got furthest, the best first, each graph once."""
        last = self.stages[max(self.stages)]
        first: dict[tuple[Any, ...], TrialData] = {}
        for trial in sorted(last, key=lambda trial: (-(trial.last or 0.0), trial.number)):
            first.setdefault((*trial.models.items(), *trial.edges), trial)
        return tuple(first.values())


@dataclass(frozen=True)
class FoundStudy:
    """A study and where it came from.

    Args:
        study: The study.
        directory: That of the search.
        recipe: What its search.yaml says, unchecked, for its gates and weights may be those of
            another machine.
    """

    study: Study
    directory: Path
    recipe: Mapping[str, Mapping[str, Any]]


def find_study(path: Path, storage: str | None = None, name: str | None = None) -> FoundStudy:
    """Return the study of a search.

    Args:
        path: The search's directory, or its search.yaml.
        storage: Where the study is kept; None: where search.yaml says.
        name: Name of the study; None: the only one that is kept there.

    Raises:
        RecipeError: There is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each of the little studies says hello
    directory = path.parent if path.is_file() else path
    recipe = _recipe(directory / RECIPE)
    opened = open_to_read(storage or recipe["search"]["storage"], directory)
    name = _name(opened, name or recipe["search"]["study"], directory)
    return FoundStudy(optuna.load_study(study_name=name, storage=opened), directory, recipe)


def read_study(path: Path, storage: str | None = None, name: str | None = None) -> StudyData:
    """Return what there is to show of a search.

    Args:
        path: The search's directory, or its search.yaml.
        storage: Where the study is kept; None: where search.yaml says.
        name: Name of the study; None: the only one that is kept there.

    Raises:
        RecipeError: There is no study, or nothing in it to show.
    """
    found = find_study(path, storage, name)
    study, directory = found.study, found.directory
    with located(f"{directory / RECIPE}: train"):
        epochs = epochs_of(TrainConfig.model_validate(found.recipe["train"]))
    trials = tuple(TrialData(trial, epochs) for trial in study.get_trials(deepcopy=False))
    _check_any(trials, f"{directory}: study `{study.study_name}`")
    file, result = directory / RESULT, None
    if file.is_file():
        with located(f"{file} cannot be read"):
            result = json.loads(file.read_text(encoding="utf-8"))
    return StudyData(
        study.study_name, directory, found.recipe, trials, epochs, spent(study, epochs), result
    )


def _recipe(path: Path) -> dict[str, Any]:
    """Return a search's recipe, unchecked but for what is needed here."""
    if not path.is_file():
        raise RecipeError([f"{path.parent}: should hold a search's {RECIPE}. Found none."])
    values = read_recipe(path)
    needed = {"search": ("storage", "study", "target_model"), "train": ("epochs",)}
    for section, fields in needed.items():
        for field in fields:
            if field not in (values.get(section) or {}):
                raise RecipeError([f"{path}: {section}.{field} should be given. Found nothing."])
    return values


def _name(storage: BaseStorage, name: str | None, directory: Path) -> str:
    with located(f"{directory}: the study cannot be read"):
        names = [study.study_name for study in storage.get_all_studies()]
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
    """Return the names of searches, without those of the studies beside them."""
    known = set(names)
    beside = {name: _BESIDE.fullmatch(name) for name in known}
    return sorted(name for name, match in beside.items() if match is None or match[1] not in known)


def _check_any(trials: Sequence[TrialData], where: str) -> None:
    """Raise RecipeError unless a trial has something to show."""
    if not trials:
        raise RecipeError([f"{where} has no trial yet."])
    failed = [trial for trial in trials if trial.state in (FAILED, DEAD)]
    if len(failed) == len(trials):
        reason = next((trial.reason for trial in failed if trial.reason), DEAD)
        raise RecipeError([f"{where} has failed trials only, {len(failed)}. The first: {reason}"])
    if not any(trial.values for trial in trials if trial.state not in (FAILED, DEAD)):
        raise RecipeError([f"{where} has no trial yet that reached its first rung."])
