"""Which process works on a trial, and what happens to the trials of workers that died."""

from __future__ import annotations

import socket
import warnings
from copy import copy
from datetime import datetime, timedelta

import psutil
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from .pruning import RUNG
from .trials import SEED, TrialRecord, note

RETRIES = 3  # of a trial whose worker died
CLOCK = 5.0  # seconds by which the clock may be set without a process seeming another
PATIENCE = 60.0  # seconds that a worker has to sign a new trial


def sign(trial: Trial, pid: int | None = None) -> None:
    """Note in a trial which process works on it; None: this one."""
    process = psutil.Process(pid)
    host, started = socket.gethostname(), process.create_time()
    note(trial, worker={"host": host, "pid": process.pid, "started": started})


def fail_dead(study: Study, again: bool = False) -> list[int]:
    """Fail the trials whose worker died, as far as this host can tell.

    A database's heartbeats find those of all hosts and enqueue them again. A journal has none.

    Args:
        study: The study.
        again: Enqueue them again.

    Returns:
        The numbers of the trials that this worker failed.
    """
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        fail_stale_trials(study)  # Optuna does so before a trial, but not while one waits
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    failed = [trial for trial in running if _is_dead(trial) and _fail(study, trial)]
    for trial in failed if again else []:
        retry(study, trial)
    return [trial.number for trial in failed]


def retry(study: Study, trial: FrozenTrial) -> None:
    """Enqueue the trial of a worker that died, as if it had not begun.

    Optuna's own callback would also hand on the rungs that the trial had reached, and with them
    it would never be pruned. The seed is kept: it is the same training.
    """
    clean = copy(trial)
    clean.system_attrs = {
        key: value for key, value in trial.system_attrs.items() if not key.startswith(RUNG)
    }
    clean.user_attrs = {k: v for k, v in trial.user_attrs.items() if k == SEED}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, clean)


def _fail(study: Study, trial: FrozenTrial) -> bool:
    """Fail a trial, and say whether it was this worker that did; of several only one does."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # how Optuna says that it has ended
        return False
    return True


def _is_dead(trial: FrozenTrial) -> bool:
    worker = TrialRecord(trial).attributes.get("worker")
    if worker is None:  # killed before it could sign
        began = trial.datetime_start or datetime.now()
        return datetime.now() - began > timedelta(seconds=PATIENCE)
    if worker["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(worker["pid"])
        # In a container there may be no parent that waits for a process that was killed.
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        # Setting the clock moves the time at which a process seems to have started.
        return bool(abs(process.create_time() - worker["started"]) > CLOCK)
    except psutil.NoSuchProcess:
        return True
