"""Workers of a search by short runs that train nothing: real processes that share a journal."""

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.storages import BaseStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from tests.study_cases import GATES, MODELS, journal
from timm_ktg.recipe.recipe import Recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.canonical import CanonicalGraph
from timm_ktg.search.methods import ShortRuns, build_method
from timm_ktg.search.objective import GraphObjective, claim
from timm_ktg.search.processes import Log, Report
from timm_ktg.search.pruning import build_pruner
from timm_ktg.search.recipes import label_only
from timm_ktg.search.sampler import GraphSampler, suggest
from timm_ktg.search.space import build_choices
from timm_ktg.search.storage import open_storage
from timm_ktg.search.study import open_study
from timm_ktg.search.tracking import StudyTracking, WandbRunIds
from timm_ktg.search.trials import (
    NEEDLESS,
    Attributes,
    note,
    record_of,
    records,
)
from timm_ktg.train.metrics import TrainingError

EPOCHS = (10, 20, 40)  # of the rungs
FACTOR = 4


def short_runs(graphs: int, **search: Any) -> SearchRecipe:
    """Return a search among 2,564 graphs."""
    values = {"nodes": 2, "target_model": MODELS[0], "models": MODELS, "gates": GATES}
    values |= {"method": "short_runs", "reduction_factor": FACTOR, "trials": graphs}
    values |= {"rungs": [epochs / EPOCHS[-1] for epochs in EPOCHS]}
    return SearchRecipe.model_validate(
        {
            "search": {**values, **search},
            "data": {"dataset": "digits", "holdout": 400},
            "train": {"epochs": EPOCHS[-1]},
        }
    )


class MadeUpProcesses:
    """Reports figures made up from a trial's seed: few different ones, so that some are equal.

    Args:
        pause: Seconds that a trial takes at most.
        failing: Whether one trial in nine fails.
        hangs: File for the number of the first process that has a trial on `rung`: it hangs there.
        rung: See `hangs`.
    """

    def __init__(
        self, pause: float, failing: bool = False, hangs: Path | None = None, rung: int = 0
    ) -> None:
        self.pause, self.failing, self.hangs, self.rung = pause, failing, hangs, rung
        self.spent: Attributes = {"epochs": 0}

    def trial(self, recipe: Recipe, rungs: tuple[int, ...], *, report: Report, log: Log) -> float:
        (epochs,) = rungs
        assert epochs == recipe.train.epochs
        if self.hangs is not None and epochs == EPOCHS[self.rung] and self._is_first(self.hangs):
            threading.Event().wait()
        time.sleep(self.pause * random.random())
        self.spent = {"epochs": epochs // 2}
        if self.failing and recipe.train.seed % 9 == 0:
            raise TrainingError("diverged")
        self.spent = {"epochs": epochs}
        value = float(random.Random(recipe.train.seed).randrange(60))
        assert not report(epochs, value, True)
        return value

    @staticmethod
    def _is_first(file: Path) -> bool:
        own = file.with_suffix(f".{os.getpid()}")
        own.write_text(str(os.getpid()))
        try:
            file.hardlink_to(own)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class SameRecipe:
    """Makes one recipe for all graphs, because to make and check one takes 10 ms.

    Args:
        recipe: The search's.
        made: What it makes.
    """

    recipe: SearchRecipe
    made: Recipe

    def recipe_of(self, graph: CanonicalGraph) -> Recipe:
        return self.made


def study_of(storage: BaseStorage, recipe: SearchRecipe) -> Study:
    """Make or join the study, as a worker of a search does."""
    search = recipe.search
    sampler = GraphSampler(build_choices(search), search.sampler, search.seed, search.unique)
    return open_study("study", storage, sampler, build_pruner(search), {"search.nodes": 2})


def run_short(
    storage: BaseStorage, folder: Path, recipe: SearchRecipe, processes: MadeUpProcesses
) -> Study:
    """Run a worker's part of a search, and return the study."""
    study, choices = study_of(storage, recipe), build_choices(recipe.search)
    builder = SameRecipe(recipe, label_only(recipe, recipe.search.target_model))
    tracking = StudyTracking(recipe.tracking, WandbRunIds("study", "id", None), choices, folder)
    method, trains = build_method(recipe), processes  # type: Any, Any
    assert isinstance(method, ShortRuns)
    made: Any = builder
    objective = GraphObjective(made, choices, trains, tracking, method)
    method.run(study, objective, (TrainingError,))
    return study


def work_short(folder: Path, recipe: SearchRecipe, *processes: Any) -> None:
    """Be a worker of a search by short runs; see `MadeUpProcesses`."""
    storage = open_storage(recipe.search, folder)
    run_short(storage, folder, recipe, MadeUpProcesses(*processes))


def work_light(folder: Path, recipe: SearchRecipe) -> None:
    """Be a worker that notes as little as possible, so that many of them take seconds."""
    choices, method = build_choices(recipe.search), build_method(recipe)

    def objective(trial: Trial) -> float:
        this, others = record_of(trial), records(trial.study)
        if method.is_needless(this, others):
            note(trial, duplicate=NEEDLESS)
            raise TrialPruned
        graph = choices.graph(suggest(trial, choices))
        assert graph is not None
        claim(trial, graph.key, unique=this.promotes is None)
        if trial.number % 9 == 0:
            raise TrainingError("diverged")
        return float(random.Random(trial.number).randrange(60))

    method.run(study_of(open_storage(recipe.search, folder), recipe), objective, (TrainingError,))


# The journal, read without the package's own reader of trials.


@dataclass(frozen=True)
class Seen:
    """A trial as far as a journal has told of it."""

    number: int
    state: TrialState
    attributes: dict[str, Any] = field(default_factory=dict)
    value: float = 0.0

    @property
    def rung(self) -> int:
        return int(self.attributes.get("rung", 0))

    @property
    def promotes(self) -> int | None:
        return self.attributes.get("promotes")

    @property
    def is_out(self) -> bool:
        """Whether it does not count: a duplicate, or its worker died."""
        failed = self.state == TrialState.FAIL and "reason" not in self.attributes
        return failed or "duplicate" in self.attributes


Trials = dict[int, Seen]


@dataclass(frozen=True)
class Entry:
    """A trial that a worker has made, and what the worker may have known of the others.

    Args:
        made: The trial, as it was made.
        last: The trial that the same worker made before, if it had not begun with it yet.
        views: The trials, at every moment since the worker last wrote anything.
    """

    made: Seen
    last: Seen | None
    views: tuple[Trials, ...]


def entries(folder: Path) -> Iterator[Entry]:
    """Yield the trials that workers made, from the order in which a journal was written."""
    trials: Trials = {}
    wrote: dict[str, int] = {}  # by worker: where the history began when it last wrote
    waiting: dict[str, Seen] = {}
    history: list[Trials] = []
    for entry in journal(folder):
        worker = entry["worker_id"]
        history.append(trials)
        if JournalOperation(entry["op_code"]) == JournalOperation.CREATE_TRIAL:
            state = TrialState(entry.get("state", TrialState.RUNNING))
            made = Seen(len(trials), state, dict(entry.get("user_attrs", {})))
            views = {id(view): view for view in history[wrote.get(worker, 0) :]}
            yield Entry(made, waiting.pop(worker, None), tuple(views.values()))
            trials = {**trials, made.number: made}
            if state == TrialState.WAITING:
                waiting[worker] = made
        elif "trial_id" in entry:
            before = trials[entry["trial_id"]]
            now = _after(before, entry)
            if now is not before:
                trials = {**trials, now.number: now}
            if entry.get("state") == TrialState.RUNNING:
                if before.state != TrialState.WAITING:  # another worker was faster
                    continue
                waiting.pop(worker, None)
        wrote[worker] = len(history)


def _after(trial: Seen, entry: dict[str, Any]) -> Seen:
    """Return a trial after an operation, which has no effect once the trial has ended."""
    if trial.state.is_finished():
        return trial
    if {"duplicate", "reason"} & entry.get("user_attr", {}).keys():
        return replace(trial, attributes={**trial.attributes, **entry["user_attr"]})
    if "state" not in entry:
        return trial
    state = TrialState(entry["state"])
    if state == TrialState.RUNNING:
        return replace(trial, state=state)
    return replace(trial, state=state, value=(entry["values"] or [0.0])[0])


def ranked(trials: Iterable[Seen], rung: int) -> list[Seen]:
    """Return the complete trials of a rung, the best first."""
    complete = [each for each in trials if each.rung == rung and each.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda each: (-each.value, each.number))


def promoted(trials: Iterable[Seen]) -> set[int | None]:
    return {each.promotes for each in trials if not each.is_out}
