"""What mattered among the trials that got as far as a given epoch."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from ..search.parameters import NODES
from ..search.trials import TrialRecord

BEST = 0.25  # the share of the trials whose choices are compared with those of all
ABSENT = "-"  # the choice of a trial whose graph is too small to have one
FEWEST = 20  # trials, which makes five in the best quarter, as Optuna recommends


def importances(trials: Sequence[TrialRecord], epoch: int) -> dict[str, float]:
    """Return the share of each choice in what makes the best quarter differ from the rest.

    This is Optuna's PED-ANOVA, which fits no forest and handles choices that only some trials
    have. It looks at the values at the epoch, so trials that were stopped later count too.

    Args:
        trials: Trials that reached the epoch.
        epoch: The epoch.

    Returns:
        The shares by parameter, the largest first; they add up to 1. None if there are too few
        trials to say, or all are alike.

    Reference:
        Watanabe, Bansal, Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
        Arbitrary Subspaces", IJCAI 2023.
    """
    if len(trials) < FEWEST or len({trial.values[epoch] for trial in trials}) == 1:
        return {}
    study = optuna.create_study(direction="maximize", sampler=RandomSampler())
    study.add_trials(
        optuna.create_trial(
            state=TrialState.COMPLETE,
            params=trial.trial.params,
            distributions=trial.trial.distributions,
            value=trial.values[epoch],
        )
        for trial in trials
    )
    # Optuna warns of a choice that fewer than two trials have.
    with warnings.catch_warnings(action="ignore"):
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
        return get_param_importances(study, evaluator=evaluator)


def best_quarter(trials: Sequence[TrialRecord], epoch: int) -> list[TrialRecord]:
    """Return the best of the trials at an epoch, the best first."""
    ranked = sorted(trials, key=lambda trial: (-trial.values[epoch], trial.number))
    return ranked[: math.ceil(BEST * len(ranked))]


def means(trials: Sequence[TrialRecord], epoch: int, name: str) -> dict[str, tuple[float, int]]:
    """Return, for each category of a choice, the mean at an epoch and the number of trials."""
    values: dict[str, list[float]] = {}
    for trial in trials:
        values.setdefault(choice_of(trial, name), []).append(trial.values[epoch])
    return {category: (statistics.fmean(each), len(each)) for category, each in values.items()}


def parameters(trials: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """Return each parameter's categories: number of nodes, models, roles, gates, losses."""
    found: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, distribution in trial.trial.distributions.items():
            choices = getattr(distribution, "choices", ())
            found.setdefault(name, {}).update(dict.fromkeys(map(str, choices)))
    for name, choices in found.items():
        if not all(name in trial.trial.params for trial in trials):
            found[name] = {ABSENT: None, **choices}
    kinds = [NODES, "model", "role", "gate", "loss"]
    return {
        name: list(found[name])
        for name in sorted(found, key=lambda name: kinds.index(name.partition("/")[0]))
    }


def choice_of(trial: TrialRecord, name: str) -> str:
    """Return a trial's category of a parameter, which only larger graphs may have."""
    return str(trial.trial.params.get(name, ABSENT))


def label(name: str) -> str:
    """Return what a parameter is called on the page: `label → target`, or `model of aux1`."""
    kind, _, what = name.partition("/")
    if kind == "gate":
        return what.replace("->", " → ")
    if kind == "loss":
        return f"loss of {what.replace('->', ' → ')}"
    return "number of nodes" if name == NODES else f"{kind} of {what}"
