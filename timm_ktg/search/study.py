"""The study: made once, joined by any number of workers, refused to those with other choices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import optuna
import tenacity
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import to_jsonable_python

from ..errors import DataError, RecipeError, one_line
from ..recipe.search_config import SearchRecipe, kinds_of
from .liveness import doubtful, fail_dead, sign
from .storage import making
from .trials import note

READY = "ready"
IDENTITY = "identity"

# A full disk, say, or an image that cannot be read: no fault of the trial, which is done again.
STOPS = (OSError, DataError)

Objective = Callable[[Trial], float]
Identity = Mapping[str, Any]

_logger = logging.getLogger(__name__)


class StoppedError(RuntimeError):
    """A search cannot go on for now."""


def say(line: str) -> None:
    """Print a line at once, even into a file."""
    print(line, flush=True)


def open_study(
    name: str,
    storage: BaseStorage,
    sampler: BaseSampler,
    pruner: BasePruner,
    identity: Identity,
    prepare: Callable[[Study], None] = lambda study: None,
    again: bool = False,
) -> Study:
    """Return the study; the first worker that comes makes it.

    Args:
        name: Its name.
        storage: Where it is kept.
        sampler: Draws graphs.
        pruner: Stops trials.
        identity: What must not change as long as the study lasts, by its place in the recipe.
        prepare: What else to do with a new study; if its worker dies meanwhile, another does it
            again.
        again: Enqueue again the trials whose worker died.

    Raises:
        RecipeError: It was made with other choices, a line for each difference.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is said by us
    with making(storage):
        with suppress(DuplicatedStudyError):
            storage.create_new_study([StudyDirection.MAXIMIZE], name)
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        if IDENTITY in study.user_attrs:
            _check_identity(study, identity)
        else:
            study.set_user_attr(IDENTITY, dict(identity))
        if READY not in study.user_attrs:  # new, or the worker that made it was killed
            prepare(study)
            study.set_user_attr(READY, True)
    fail_dead(study, again or is_heartbeat_enabled(storage))
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

    held = _held(objective, catch)
    while not enough(study):
        try:
            study.optimize(held, catch=catch, callbacks=[stop], gc_after_trial=True)
            return
        except _Interrupted:
            raise KeyboardInterrupt from None
        except _Stopped as stopped:
            assert isinstance(stopped.__cause__, STOPS)
            raise stopped.__cause__ from None
        # A bug in Optuna turns the error into one of these when it ends a trial.
        except (AssertionError, UnboundLocalError) as error:
            if isinstance(error.__context__, STOPS):
                raise error.__context__ from None
            raise
        except (_GivenAway, UpdateFinishedTrialError) as error:
            _logger.warning("A trial was given to another worker meanwhile: %s", error)


def _held(objective: Objective, catch: tuple[type[Exception], ...]) -> Objective:
    """Return an objective that signs its trial, and raises what Optuna does not take for its end.

    Args:
        objective: Takes a trial and returns its value.
        catch: Exceptions that fail a trial and not the worker.
    """

    def signed(trial: Trial) -> float:
        sign(trial)
        try:
            return objective(trial)
        except (TrialPruned, UpdateFinishedTrialError):
            raise
        except Exception as error:
            if isinstance(error, STOPS) and not isinstance(error, catch):
                raise _Stopped from error
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

    return held


def wait_for_others(study: Study) -> None:
    """Wait until no worker is in the middle of a trial."""

    def running() -> list[FrozenTrial]:
        fail_dead(study)
        return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    if running():
        say(f"Waiting for {len(running())} trials of other workers.")
        say_doubtful(study)
    until(lambda: not running())


def say_doubtful(study: Study) -> None:
    """Say which trials of dead workers could be waited for in vain, and the way out."""
    for line in doubtful(study):
        say(line)


def until(over: Callable[[], bool]) -> None:
    """Wait for something that other workers do, looking every 2 seconds."""
    tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: not result), wait=tenacity.wait_fixed(2)
    )(over)


class _Interrupted(BaseException):
    """Ctrl-C. Optuna would fail the trial for good; this way it is done again."""


class _Stopped(BaseException):
    """One of `STOPS`. Optuna would fail the trial for good, as after Ctrl-C."""


class _GivenAway(BaseException):
    """A trial has ended elsewhere. After an Exception, Optuna would try to end it once more."""


def _check_identity(study: Study, identity: Identity) -> None:
    stored: Identity = study.user_attrs[IDENTITY]
    kinds = list(kinds_of(stored.get("search.frozen", False)))
    made = {"search.kinds": kinds, **stored}
    raised = [
        f"{where}: study `{study.study_name}` was made with {before}. Found {found}."
        for where, found in identity.items()
        if (before := made[where] if where in made else _default(where)) != found
    ]
    if raised:
        raise RecipeError(
            [*raised, "Go on with the same choices, or make another study (--search.study)."]
        )


def _default(where: str) -> Any:
    """Return the default of a field that a study's version did not have, so it did the same.

    Who changes a default, or adds a field whose default does something else than before, has to
    give what such studies were made with.

    Args:
        where: The field by its place in the recipe, such as `train.lr`.
    """
    section, _, name = where.partition(".")
    fields: Any = SearchRecipe.model_fields[section].annotation
    return to_jsonable_python(fields.model_fields[name].default)
