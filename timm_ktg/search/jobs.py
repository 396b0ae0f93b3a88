"""Work that the workers of a search share: each piece is done once, by the first who is free."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import BaseStorage

from ..errors import one_line
from .liveness import RETRIES, fail_dead, retry
from .study import open_study, run_trials, say, say_doubtful, until
from .trials import COMPLETE, DEAD, FAILED, RUNNING, WAITING, TrialRecord, records

JOB = "job"
NOTHING = "nothing"  # what a trial gets that was not enqueued
ALIVE = (WAITING, RUNNING, COMPLETE)

# Does a job, within its trial, and returns its figure.
Do = Callable[[str, Trial], float]


class Jobs:
    """A study beside the search's, whose trials are all enqueued: one for each job.

    Optuna hands each to one worker only, and again to another if that one dies.

    Args:
        name: Name of the study.
        storage: Where it is kept.
        names: The jobs.
        identity: What must not change; see `open_study`.

    Raises:
        RecipeError: The study was made with other choices.
    """

    def __init__(
        self, name: str, storage: BaseStorage, names: Sequence[str], identity: Mapping[str, Any]
    ) -> None:
        self.names = list(names)

        def prepare(study: Study) -> None:
            for each in self.names:
                study.enqueue_trial({JOB: each}, skip_if_exists=True)

        identity = {**identity, "jobs": self.names}
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            sampler = PartialFixedSampler({JOB: NOTHING}, RandomSampler())
        self.study = open_study(name, storage, sampler, NopPruner(), identity, prepare, again=True)
        self._try_again()

    def work(self, do: Do, catch: tuple[type[Exception], ...] = ()) -> None:
        """Do jobs until all are done, here or by other workers.

        Args:
            do: Does a job.
            catch: Exceptions that fail a job and not the worker.
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
            trials = records(self.study)  # one look, because others go on meanwhile
            running = [_job_of(each) for each in trials if each.state == RUNNING]
            if any(each.state == WAITING for each in trials):
                run_trials(self.study, objective, lambda study: not self._waiting(), catch)
            elif running:
                say(f"Waiting for other workers: {', '.join(running)}.")
                say_doubtful(self.study)
                until(self._one_ended)
            elif left := self._left(trials):
                for each in left:  # if another worker does so too, the later one is pruned
                    retry(self.study, each.trial)
            else:
                return

    def done(self) -> dict[str, TrialRecord]:
        """Return the trials of jobs that succeeded, by job."""
        return {_job_of(each): each for each in self._in(COMPLETE)}

    def failed(self) -> dict[str, str]:
        """Return the jobs that did not succeed, with the reason."""
        reasons = {_job_of(each): each.reason for each in self._in(FAILED)}
        done = self.done()
        return {
            name: reasons.get(name, "its workers died") for name in self.names if name not in done
        }

    def _in(self, *states: str) -> list[TrialRecord]:
        return [each for each in records(self.study) if each.state in states]

    def _try_again(self) -> None:
        """Enqueue what failed before this start: a full disk, say, may have room again."""
        trials = self._in(*ALIVE, FAILED)  # one look, because trials go on meanwhile
        failed = {_job_of(each) for each in trials if each.state == FAILED}
        for name in failed - {_job_of(each) for each in trials if each.state in ALIVE}:
            self.study.enqueue_trial({JOB: name})

    def _is_taken(self, trial: Trial, job: str) -> bool:
        """Say whether an earlier trial has the job: workers that start together may enqueue two."""
        earlier = [each for each in self._in(*ALIVE) if each.number < trial.number]
        return job in map(_job_of, earlier)

    def _waiting(self) -> list[TrialRecord]:
        return self._in(WAITING)

    def _left(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Return the trials of dead workers whose jobs are not enqueued again so far.

        The worker that found them has yet to do so, or has died too.
        """
        states = (*ALIVE, FAILED, DEAD)
        newest = {_job_of(each): each for each in trials if each.state in states}
        return [
            each
            for name, each in newest.items()
            if name in self.names
            and each.state == DEAD
            and len(each.trial.system_attrs.get("retry_history", [])) < RETRIES
        ]

    def _one_ended(self) -> bool:
        """Say whether no job is being done, or one waits because its worker died."""
        fail_dead(self.study, again=True)
        return bool(self._waiting()) or not self._in(RUNNING)


def _job_of(record: TrialRecord) -> str:
    """Return the job of a trial, even if its worker has not asked for it yet."""
    trial = record.trial
    enqueued: dict[str, str] = trial.system_attrs.get("fixed_params", {})
    return str(enqueued.get(JOB, trial.params.get(JOB, NOTHING)))
