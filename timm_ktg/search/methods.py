"""The methods of a search: what a trial trains, and how a worker comes from trial to trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from optuna import Study
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import TrialState

from ..recipe.recipe import Recipe
from ..recipe.schedule import epochs_of
from ..recipe.search_config import SearchConfig, SearchRecipe
from .liveness import fail_dead
from .promotion import Ladder, Step
from .pruning import rungs
from .storage import making
from .study import Objective, run_trials, say, say_doubtful, until, wait_for_others
from .trials import TrialRecord, enqueue, finished, records

Catch = tuple[type[Exception], ...]


class Method(Protocol):
    """What the methods have in common."""

    @property
    def title(self) -> str:
        """What it does, in a line."""

    def run(self, study: Study, objective: Objective, catch: Catch) -> None:
        """Run trials until all workers have run enough, and none is in the middle of one.

        Args:
            study: The study.
            objective: Takes a trial and returns its value.
            catch: Exceptions that fail a trial and not the worker.
        """

    def is_needless(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> bool:
        """Say whether a trial that begins does what others of the study's trials do already."""

    def training(self, recipe: Recipe, trial: TrialRecord) -> tuple[Recipe, tuple[int, ...]]:
        """Return what a trial trains, and the epochs at which it reports.

        Args:
            recipe: A whole training of its graph.
            trial: The trial.
        """


class Asha:
    """Every trial begins a whole training, and is stopped at the rungs by Optuna's pruner.

    Args:
        search: The section of the recipe.
        epochs: Epochs of a whole training.

    Raises:
        ValueError: Trials should be stopped, but no rung is before the last epoch.
    """

    def __init__(self, search: SearchConfig, epochs: int) -> None:
        if search.pruner == "asha" and epochs > 1 and search.min_resource >= epochs:
            raise ValueError(
                f"min_resource should be below {epochs}, the epochs of a trial, which otherwise is "
                f"never stopped; for that, say `pruner: none`. Found {search.min_resource}."
            )
        self._search = search

    @property
    def title(self) -> str:
        """What it does, in a line."""
        search = self._search
        stops = "stopped at the rungs" if search.pruner == "asha" else "never stopped"
        limit = f" or {search.budget:,} epochs" if search.budget else ""
        return f"asha: {search.trials:,} trials{limit}, {stops}."

    def run(self, study: Study, objective: Objective, catch: Catch) -> None:
        """Run trials until there are enough, and none goes on."""
        run_trials(study, objective, self._enough, catch)
        wait_for_others(study)

    def is_needless(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> bool:
        """Return False: every worker may finish one more trial than asked for."""
        return False

    def training(self, recipe: Recipe, trial: TrialRecord) -> tuple[Recipe, tuple[int, ...]]:
        """Return the whole training, and the epochs of the rungs."""
        search = self._search
        return recipe, rungs(epochs_of(recipe.train), search.min_resource, search.reduction_factor)

    def _enough(self, study: Study) -> bool:
        trials, budget = finished(study), self._search.budget
        spent = sum(each.epochs for each in trials)
        return len(trials) >= self._search.trials or (budget is not None and spent >= budget)


class ShortRuns:
    """Every trial is a whole training on the short schedule of its rung; see `Ladder`.

    Args:
        recipe: The search's recipe.

    Raises:
        ValueError: Two rungs have equal epochs, or the budget is too small for a single graph.
    """

    def __init__(self, recipe: SearchRecipe) -> None:
        search, train = recipe.search, recipe.train
        costs = tuple(epochs_of(train.shortened(share)) for share in search.rungs)
        if len(set(costs)) < len(costs):
            raise ValueError(
                f"rungs should differ in epochs. Found {_listed(costs)}, of {train.epochs}."
            )
        if search.budget is not None and search.budget < sum(costs):
            raise ValueError(
                f"budget should have room for a graph on every rung, {_listed(costs)} epochs: "
                f"{sum(costs)}. Found {search.budget}."
            )
        self.shares = search.rungs
        self.ladder = Ladder(costs, search.reduction_factor, search.trials, search.budget)
        self._draws = True  # until the sampler finds nothing new
        self._step: TrialRecord | Step = Step.ASK

    @property
    def title(self) -> str:
        """What it does, in a line."""
        ladder = self.ladder
        limit = f", {ladder.budget:,} epochs at most" if ladder.budget else ""
        return (
            f"short_runs: {ladder.graphs:,} graphs, the best 1 in {ladder.factor} promoted, for "
            f"{_listed(ladder.costs)} epochs{limit}."
        )

    def run(self, study: Study, objective: Objective, catch: Catch) -> None:
        """Promote and draw until there is nothing left to do, here or elsewhere."""
        while True:
            run_trials(study, objective, self._is_idle, catch)
            if self._step is Step.END:
                return
            if self._step is Step.WAIT:
                self._wait(study)
            elif self._step is Step.ASK:  # so it was the sampler that stopped
                self._draws = False

    def is_needless(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> bool:
        """Say whether others promote the same trial, or have drawn the last graph."""
        return self.ladder.is_needless(trial, trials)

    def training(self, recipe: Recipe, trial: TrialRecord) -> tuple[Recipe, tuple[int, ...]]:
        """Return the training on the schedule of the trial's rung, and its last epoch."""
        share = self.shares[trial.rung]
        short = {"train": recipe.train.shortened(share), "data": recipe.data.shortened(share)}
        return recipe.model_copy(update=short), (self.ladder.costs[trial.rung],)

    def _is_idle(self, study: Study) -> bool:
        """Enqueue the best promotion, if there is one; say whether there is nothing to do."""
        self._step = self._next(study)
        if isinstance(self._step, TrialRecord):
            with making(study._storage):  # no two workers enqueue the same
                self._step = self._next(study)
                if isinstance(self._step, TrialRecord):
                    rung, parent = self._step.rung + 1, self._step
                    enqueue(study, parent.trial.params, rung=rung, promotes=parent.number)
        return self._step in (Step.WAIT, Step.END)

    def _next(self, study: Study) -> TrialRecord | Step:
        return self.ladder.next(records(study), self._draws)

    def _wait(self, study: Study) -> None:
        """Wait until a trial of another worker ends, which may leave something to do."""

        def over() -> bool:
            # A database's heartbeats would do the lost training again, from its own seed. So does
            # a worker that sees the other's death before them.
            fail_dead(study, again=is_heartbeat_enabled(study._storage))
            return self._next(study) is not Step.WAIT

        if over():
            return
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        say(f"Waiting for {len(running)} trials of other workers.")
        say_doubtful(study)
        until(over)


def build_method(recipe: SearchRecipe) -> Method:
    """Return the method that a recipe asks for.

    Raises:
        ValueError: Its rungs, its budget or `min_resource` do not fit the schedule.
    """
    if recipe.search.method == "short_runs":
        return ShortRuns(recipe)
    return Asha(recipe.search, epochs_of(recipe.train))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
