"""Asynchronous successive halving: at which epochs a trial reports, and which results count."""

from __future__ import annotations

from collections.abc import Container
from itertools import count, takewhile
from typing import Any, cast

from optuna import Study
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from ..recipe.search_config import SearchConfig

RUNG = "completed_rung_"  # how the names of the attributes begin that hold a trial's rungs


def rungs(epochs: int, min_resource: int = 1, reduction_factor: int = 2) -> tuple[int, ...]:
    """Return the epochs, from 1, at which a trial reports: the paper's 1, 2, 4, ..., 2^k.

    Args:
        epochs: How many epochs a whole trial has.
        min_resource: Epoch of the first rung.
        reduction_factor: The factor from the epoch of each rung to that of the next.
    """
    later = (min_resource * reduction_factor**step for step in count())
    return tuple(takewhile(lambda epoch: epoch <= epochs, later))


def build_pruner(search: SearchConfig) -> BasePruner:
    """Return the pruner that a recipe asks for."""
    if search.pruner == "none" or search.method == "short_runs":
        return NopPruner()
    return Asha(search.min_resource, search.reduction_factor)


class Asha(BasePruner):
    """Optuna's successive halving with the paper's settings, where failed trials do not count.

    Optuna keeps a rung's value even if the trial fails later. A trial whose worker died is run
    again, so it would otherwise stand twice on every rung that it had reached.

    Args:
        min_resource: Epoch of the first rung.
        reduction_factor: One in this many trials passes a rung.

    Reference:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
    """

    def __init__(self, min_resource: int = 1, reduction_factor: int = 2) -> None:
        self._halving = SuccessiveHalvingPruner(
            min_resource=min_resource,
            reduction_factor=reduction_factor,
            min_early_stopping_rate=0,
            bootstrap_count=0,
        )

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Say whether a trial that has just reported should stop."""
        return self._halving.prune(cast(Study, _Counting(study)), trial)


class _Counting:
    """A study without its failed trials, as successive halving sees it."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [trial for trial in trials if trial.state != TrialState.FAIL]
