"""A worker of a search that trains nothing, for the tests on a PostgreSQL server."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.storages import BaseStorage

from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.search import storage as storage_module
from timm_ktg.search.pruning import build_pruner, rungs
from timm_ktg.search.sampler import GraphSampler, suggest
from timm_ktg.search.space import build_choices
from timm_ktg.search.storage import open_storage
from timm_ktg.search.study import open_study, run_trials, wait_for_others
from timm_ktg.search.trials import finished, note

TRIALS = 24
HELD = 10  # this trial and later ones begin when the killed worker has been silent for GRACE
GRACE = 10
EPOCHS = 16


def section(url: str, grace_period: int = GRACE) -> SearchConfig:
    return SearchConfig(
        nodes=[2],
        target_model="resnet8_cifar",
        models=["resnet8_cifar", "resnet20_cifar"],
        storage=url,
        heartbeat_interval=1,
        grace_period=grace_period,
    )


def study_on(
    storage: BaseStorage,
    name: str = "study",
    prepare: Callable[[Study], None] = lambda study: None,
    **identity: Any,
) -> Study:
    search = section("unused")
    sampler = GraphSampler(build_choices(search), "random", 0, unique=True)
    pruner = build_pruner(search)
    return open_study(name, storage, sampler, pruner, identity, prepare)


def hang_while_making(url: str, hangs: Any) -> None:
    """Be a worker that stays for ever in the middle of making a study."""

    def prepare(study: Study) -> None:
        study.enqueue_trial({"x": 1})
        hangs.set()
        time.sleep(600)

    study_on(open_storage(section(url), Path()), prepare=prepare)


def begun(study: Study) -> Trial:
    """A new trial; Optuna's `ask` warns where there are heartbeats."""
    return Trial(study, study._storage.create_new_trial(study._study_id))


@dataclass(frozen=True)
class Signals:
    """What the workers and the test tell each other."""

    together: Any  # a barrier of all workers
    ready: Any  # the worker that will be killed is in mid-trial
    late: Any  # the killed worker has been silent long enough
    said: Any  # a queue of workers' numbers, and how often each waited for the server


class Waits(logging.Handler):
    """Counts the calls that waited for a server that was away."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def work(number: int, url: str, empty: list[str], signals: Signals) -> None:
    """One worker: it joins studies on empty databases, then works on the main one."""
    waits = Waits()
    logging.getLogger(storage_module.__name__).addHandler(waits)
    for each in empty:
        signals.together.wait(timeout=60)
        study_on(open_storage(section(each), Path()))
    search = section(url)
    choices = build_choices(search)

    def objective(trial: Trial) -> float:
        graph = choices.graph(suggest(trial, choices))
        assert graph is not None
        note(trial, graph=graph.key)
        if trial.number >= HELD:
            assert signals.late.wait(timeout=60)
        for epoch in rungs(EPOCHS):
            time.sleep(0.03 * epoch**0.5)
            value = accuracy(graph.key, epoch, trial.number)
            trial.report(value, epoch)
            stop = epoch < EPOCHS and trial.should_prune()
            if number == 0:
                signals.ready.set()
                time.sleep(600)
            if stop:
                raise TrialPruned
        return value

    study = study_on(open_storage(search, Path()))
    signals.together.wait(timeout=60)
    run_trials(study, objective, lambda study: len(finished(study)) >= TRIALS)
    wait_for_others(study)
    signals.said.put((number, waits.count))


def accuracy(key: str, epoch: int, number: int) -> float:
    """A graph's made up accuracy; the trial's number tells a trial from its repetition."""
    return int(sha256(key.encode()).hexdigest()[:4], 16) / 2000 + epoch + number / 1000
