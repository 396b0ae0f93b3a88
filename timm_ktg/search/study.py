"""The study: made once, joined by any number of workers, refused to those with other choices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import tenacity
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import FrozenTrial, TrialState

from ..errors import RecipeError, one_line
from .liveness import fail_dead, sign
from .trials import note

READY = "ready"
IDENTITY = "identity"
PATIENCE = 60.0  # seconds that a worker has to prepare a new study

Objective = Callable[[Trial], float]
Identity = Mapping[str, Any]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyOptions:
    """How a study is made or joined.

    Args:
        name: Its name.
        storage: Where it is kept.
        sampler: Draws graphs.
        pruner: Stops trials.
        identity: What must not change as long as the study lasts, by its place in the recipe.
        prepare: What else to do with a new study, once.
        again: Enqueue again the trials whose worker died.
    """

    name: str
    storage: BaseStorage
    sampler: BaseSampler
    pruner: BasePruner
    identity: Identity
    prepare: Callable[[Study], None] = lambda study: None
    again: bool = False


def say(line: str) -> None:
    """Print a line at once, even into a file."""
    print(line, flush=True)


def open_study(options: StudyOptions, must_exist: bool = False) -> Study:
    """Return the study; the first worker that comes makes it.

    Args:
        options: How.
        must_exist: Do not make it.

    Raises:
        RecipeError: It was made with other choices, a line for each difference; or there is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is said by us
    name, storage = options.name, options.storage
    if must_exist and name not in [study.study_name for study in storage.get_all_studies()]:
        raise RecipeError([f"resume: there is no study `{name}`."])
    keywords: dict[str, Any] = {
        "study_name": name,
        "storage": storage,
        "sampler": options.sampler,
        "pruner": options.pruner,
    }
    try:
        study = optuna.create_study(direction="maximize", **keywords)
    except DuplicatedStudyError:
        study = optuna.load_study(**keywords)
        _wait_until_ready(study)
        _check_identity(study, options.identity)
        fail_dead(study, options.again or is_heartbeat_enabled(storage))
        return study
    study.set_user_attr(IDENTITY, dict(options.identity))
    options.prepare(study)
    study.set_user_attr(READY, True)
    return study


def run_trials(
    study: Study,
    objective: Objective,
    enough: Callable[[Study], bool],
    catch: tuple[type[Exception], ...] = (),
) -> None:
    """Run trials until all workers and all starts together have run enough of them.

    A trial that another worker was given because the database was away too long is left to it.

    Args:
        study: The study.
        objective: Takes a trial and returns its value.
        enough: Says whether there are enough; asked before the first trial and after each.
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
            note(trial, reason=one_line(error))
            raise

    def held(trial: Trial) -> float:
        try:
            value = signed(trial)
            sign(trial)  # this fails if the trial was given to another worker
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


def wait_for_others(study: Study) -> None:
    """Wait until no worker is in the middle of a trial."""

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


class _Interrupted(BaseException):
    """Ctrl-C. Optuna would fail the trial for good; this way it is done again."""


class _GivenAway(BaseException):
    """A trial has ended elsewhere. After an Exception, Optuna would try to end it once more."""


def _wait_until_ready(study: Study) -> None:
    """Wait for the worker that is making a study, which takes it no time at all."""
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
