"""Work that the workers of a search share: each piece is done once, by whoever comes first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..errors import one_line
from .sampler import REASON
from .storage import RETRIES, retry
from .study import Join, fail_dead, open_study, run_trials, until

JOB = "job"
NOTHING = "nothing"  # what a trial gets that was not enqueued
ALIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)

# Does a job, within its trial, and returns its figure.
Do = Callable[[str, Trial], float]


class Jobs:
    """A study beside the search's, whose trials are all enqueued: one for each job.

    Optuna hands every one to one worker only, and again to another if that one dies.

    Args:
        name: Name of the study.
        storage: Where it is kept.
        names: The jobs.
        identity: What must not change; see `Join`.

    Raises:
        RecipeError: The study was made with other choices.
    """

    def __init__(
        self, name: str, storage: BaseStorage, names: Sequence[str], identity: Mapping[str, Any]
    ) -> None:
        self.names = list(names)

        def prepare(study: Study) -> None:
            for each in self.names:
                study.enqueue_trial({JOB: each})

        identity = {**identity, "jobs": self.names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = PartialFixedSampler({JOB: NOTHING}, RandomSampler())
        self.study = open_study(
            Join(name, storage, sampler, NopPruner(), identity, prepare, again=True)
        )
        self._try_again()

    def work(self, do: Do, catch: tuple[type[Exception], ...], say: Callable[[str], None]) -> None:
        """Do jobs until all are done, here or by other workers.

        Args:
            do: Does a job.
            catch: Exceptions that fail a job and not the worker.
            say: Prints a line.
        """

        def objective(trial: Trial) -> float:
            job = trial.suggest_categorical(JOB, [*self.names, NOTHING])
            if job == NOTHING or self._is_taken(trial, job):
                raise TrialPruned("Another worker took the last job.")
            try:
                return do(job, trial)
            except Exception as error:
                say(f"{job} failed: {one_line(error)}")
                raise

        while True:
            if self._waiting():
                run_trials(self.study, objective, lambda study: not self._waiting(), catch)
            elif self._running():
                say(f"Waiting for other workers: {', '.join(self._running())}.")
                self._wait()
            elif left := self._left():
                for trial in left:  # if the other does so, too, the later one is pruned
                    retry(self.study, trial)
            else:
                return

    def done(self) -> dict[str, FrozenTrial]:
        """Return the trials of jobs that succeeded, by job."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {trial.params[JOB]: trial for trial in complete}

    def failed(self) -> dict[str, str]:
        """Return the jobs that did not succeed, with the reason."""
        reasons = {
            trial.params[JOB]: trial.user_attrs[REASON]
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if JOB in trial.params and REASON in trial.user_attrs
        }
        done = self.done()
        return {
            name: reasons.get(name, "its workers died") for name in self.names if name not in done
        }

    def _try_again(self) -> None:
        """Enqueue what failed before this start, for a full disk may have room again."""
        trials = self.study.get_trials(deepcopy=False)  # one look, for they go on meanwhile
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        others = {_job_of(trial) for trial in trials if trial.state in ALIVE}
        for name in {_job_of(trial) for trial in failed if REASON in trial.user_attrs} - others:
            self.study.enqueue_trial({JOB: name})

    def _is_taken(self, trial: Trial, job: str) -> bool:
        """Say whether a job that two enqueued who started together has been taken before."""
        return any(
            each.number < trial.number and _job_of(each) == job
            for each in self.study.get_trials(deepcopy=False, states=ALIVE)
        )

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _running(self) -> list[str]:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [_job_of(trial) for trial in running]

    def _left(self) -> list[FrozenTrial]:
        """Return the jobs in which a worker died and that are not enqueued again so far.

        Who found that has yet to do so, or has died in between.
        """
        states = (*ALIVE, TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False, states=states)
        newest = {_job_of(trial): trial for trial in trials}
        return [
            trial
            for name, trial in newest.items()
            if name in self.names
            and trial.state == TrialState.FAIL
            and REASON not in trial.user_attrs
            and len(trial.system_attrs.get("retry_history", [])) < RETRIES
        ]

    def _wait(self) -> None:
        """Wait until a job ends, or is to be done again because its worker died."""

        def ended() -> bool:
            fail_dead(self.study, again=True)
            return bool(self._waiting()) or not self._running()

        until(ended)


def _job_of(trial: FrozenTrial) -> str:
    """Return the job of a trial, also where its worker has not asked for it yet."""
    enqueued: dict[str, str] = trial.system_attrs.get("fixed_params", {})
    return str(enqueued.get(JOB, trial.params.get(JOB, NOTHING)))
