"""The study: made once, joined by any number of workers, refused to those with other choices."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import optuna
import psutil
import tenacity
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    UpdateFinishedTrialError,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import fail_stale_trials, is_heartbeat_enabled
from optuna.trial import FrozenTrial, TrialState

from ..errors import RecipeError, one_line
from .sampler import REASON
from .storage import retry

READY = "ready"
IDENTITY = "identity"
WORKER = "worker"
DUPLICATE = "duplicate"  # a trial that was not trained, for its graph was seen before
CLOCK = 5.0  # seconds by which the clock may be set without a process seeming another
PATIENCE = 60.0  # seconds that a worker has to prepare a new study, or to sign a new trial

Objective = Callable[[Trial], float]
Identity = Mapping[str, Any]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Join:
    """How a study is made or joined.

    Args:
        name: Its name.
        storage: Where it is kept.
        sampler: Draws graphs.
        pruner: Stops trials.
        identity: What must not change while it lasts, by the place in the recipe.
        prepare: What else to do with a new study, once.
        again: Enqueue the trials of workers that are no more again.
    """

    name: str
    storage: BaseStorage
    sampler: BaseSampler
    pruner: BasePruner
    identity: Identity
    prepare: Callable[[Study], None] = lambda study: None
    again: bool = False


def open_study(join: Join, must_exist: bool = False) -> Study:
    """Return the study, made by the first worker that comes.

    Args:
        join: How.
        must_exist: Do not make it.

    Raises:
        RecipeError: It was made with other choices; a line for each difference. Or there is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is said by us
    options: dict[str, Any] = {
        "study_name": join.name,
        "storage": join.storage,
        "sampler": join.sampler,
        "pruner": join.pruner,
    }
    names = [study.study_name for study in join.storage.get_all_studies()] if must_exist else []
    if must_exist and join.name not in names:
        raise RecipeError([f"resume: there is no study `{join.name}`."])
    try:
        study = optuna.create_study(direction="maximize", **options)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        _wait_until_ready(study)
        _check_identity(study, join.identity)
        fail_dead(study, join.again or is_heartbeat_enabled(join.storage))
        return study
    study.set_user_attr(IDENTITY, dict(join.identity))
    join.prepare(study)
    study.set_user_attr(READY, True)
    return study


def run_trials(
    study: Study,
    objective: Objective,
    enough: Callable[[Study], bool],
    catch: tuple[type[Exception], ...] = (),
) -> None:
    """Run trials until there are enough of them, those of all workers and starts together.

    A trial that was given to another worker meanwhile, for the database was away too long, is left.

    Args:
        study: The study.
        objective: Takes a trial, and returns its value.
        enough: Says so; asked before the first trial and after each.
        catch: Exceptions that fail a trial and not the worker.
    """

    def stop(study: Study, trial: FrozenTrial) -> None:
        if enough(study):
            study.stop()

    def signed(trial: Trial) -> float:
        sign(trial)
        try:
            return objective(trial)
        except (TrialPruned, UpdateFinishedTrialError):
            raise
        except Exception as error:
            trial.set_user_attr(REASON, one_line(error))
            raise

    def held(trial: Trial) -> float:
        try:
            value = signed(trial)
            sign(trial)  # which cannot be done in one that was given to another worker
            return value
        except UpdateFinishedTrialError as error:
            raise _GivenAway(one_line(error)) from error
        except KeyboardInterrupt as interrupt:
            raise _Interrupted from interrupt

    while not enough(study):
        try:
            study.optimize(held, catch=catch, callbacks=[stop], gc_after_trial=True)
            return
        except _Interrupted:
            raise KeyboardInterrupt from None
        except (_GivenAway, UpdateFinishedTrialError) as error:
            _logger.warning("A trial was given to another worker meanwhile: %s", error)


def finished(study: Study) -> list[FrozenTrial]:
    """Return the trials that count: complete, pruned, or failed for a reason of their own.

    One whose worker died does not count, nor one whose graph had been seen before.
    """
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=ended)
        if DUPLICATE not in trial.user_attrs
        and (trial.state != TrialState.FAIL or REASON in trial.user_attrs)
    ]


def wait_for_others(study: Study, say: Callable[[str], None]) -> None:
    """Wait until no worker is in the middle of a trial.

    Args:
        study: The study.
        say: Prints a line.
    """

    def running() -> list[FrozenTrial]:
        fail_dead(study)
        return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    if running():
        say(f"Waiting for {len(running())} trials of other workers.")
    until(lambda: not running())


def until(over: Callable[[], bool]) -> None:
    """Wait for something that other workers do, looking every 2 seconds."""
    tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: not result), wait=tenacity.wait_fixed(2)
    )(over)


def sign(trial: Trial) -> None:
    """Note in a trial which process works on it."""
    trial.set_user_attr(WORKER, _process(psutil.Process()))


def fail_dead(study: Study, again: bool = False) -> list[int]:
    """Fail the trials of workers that are no more, as far as this host can tell.

    A database's heartbeats find those of all hosts, which are enqueued again. A journal has none.

    Args:
        study: The study.
        again: Enqueue them again.

    Returns:
        The numbers of those trials that it was this worker that failed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)  # Optuna does so before a trial, and not while one waits
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    failed = [trial for trial in running if _is_dead(trial) and _fail(study, trial)]
    for trial in failed if again else []:
        retry(study, trial)
    return [trial.number for trial in failed]


def _fail(study: Study, trial: FrozenTrial) -> bool:
    """Fail a trial, and say whether it was this worker that did; of several only one does."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # how Optuna says that it has ended
        return False
    return True


class _Interrupted(BaseException):
    """Ctrl-C, of which Optuna would make a trial that failed; this way it is one to do again."""


class _GivenAway(BaseException):
    """A trial has ended elsewhere; Optuna would tell the end of one that raises an Exception."""


def _is_dead(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed before it could sign
        began = trial.datetime_start or datetime.now()
        return datetime.now() - began > timedelta(seconds=PATIENCE)
    if worker["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(worker["pid"])
        # In a container there may be nobody who waits for a process that was killed.
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        # A clock that is set moves the time at which a process seems to have started.
        return bool(abs(process.create_time() - worker["started"]) > CLOCK)
    except psutil.NoSuchProcess:
        return True


def _process(process: psutil.Process) -> dict[str, Any]:
    """Return what tells a process from all others, a later one of the same number included."""
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _wait_until_ready(study: Study) -> None:
    """Wait for the worker that makes a study, which takes it no time at all."""
    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda ready: not ready),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_after_delay(PATIENCE),
        )(lambda: READY in study.user_attrs)
    except tenacity.RetryError:
        raise RecipeError(
            [
                f"study: `{study.study_name}` was begun by a worker that died before it was ready. "
                f"Delete it (optuna delete-study) or choose another name (--search.study)."
            ]
        ) from None


def _check_identity(study: Study, identity: Identity) -> None:
    made: Identity = study.user_attrs[IDENTITY]
    raised = [
        f"{where}: study `{study.study_name}` was made with {made.get(where)}. Found {found}."
        for where, found in identity.items()
        if made.get(where) != found
    ]
    if raised:
        raise RecipeError(
            [*raised, "Go on with the same choices, or make another study (--search.study)."]
        )
