"""Which process works on a trial, and what happens to the trials of workers that died."""

from __future__ import annotations

import os
import socket
import warnings
from copy import copy
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from .journal import Journal, journal_of
from .pruning import RUNG
from .trials import KEPT, Process, TrialRecord, note

RETRIES = 3  # of a trial whose worker died
CLOCK = 5.0  # seconds by which the clock may be set without a process seeming another
PATIENCE = 60.0  # seconds that a worker has to sign a new trial


def sign(trial: Trial, pid: int | None = None) -> None:
    """Note in a trial which process works on it; None: this one, which holds a lock from now on."""
    worker = identify(psutil.Process(pid))
    journal = journal_of(trial.study._storage)
    lock = journal.workers.own() if journal is not None and pid is None else None
    note(trial, worker={**worker, "lock": lock} if lock is not None else worker)


def identify(process: psutil.Process) -> Process:
    """Return what tells a process from all others."""
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "since_boot": _since_boot(process.pid),
        "kernel": _kernel(),
        "namespace": _namespace(),
    }


def _kernel() -> str:
    """Return what tells the running kernel from others, also from itself before it was booted."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else socket.gethostname()


def _namespace() -> str:
    """Return what tells this process's namespace of process numbers from others of the kernel."""
    path = "/proc/self/ns/pid"
    return os.readlink(path) if os.path.lexists(path) else ""


def _since_boot(pid: int) -> float:
    """Return the seconds from boot to a process's start. Setting the clock does not move them."""
    booted = psutil.boot_time()  # first, because psutil computes the start with the last it read
    return float(psutil.Process(pid).create_time() - booted)


def fail_dead(study: Study, again: bool = False) -> list[int]:
    """Fail the trials whose worker died, as far as this process can tell.

    A database's heartbeats find those of all hosts and enqueue them again. For a journal the locks
    of its workers tell.

    Trials that were made to try a given graph are always enqueued again: nothing would draw it.

    Args:
        study: The study.
        again: Enqueue the others again, too.

    Returns:
        The numbers of the trials that this worker failed.
    """
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        fail_stale_trials(study)  # Optuna does so before a trial, but not while one waits
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    journal = journal_of(study._storage)
    failed = [trial for trial in running if _is_dead(trial, journal) and _fail(study, trial)]
    for trial in failed:
        record = TrialRecord(trial)
        # Promotions have given graphs, too, but the search finds out itself that one is missing.
        if again or (record.is_enqueued and record.promotes is None):
            retry(study, trial)
    return [trial.number for trial in failed]


def retry(study: Study, trial: FrozenTrial) -> None:
    """Enqueue the trial of a worker that died, as if it had not begun.

    Optuna's own callback would also hand on the rungs that the trial had reached, and with them
    it would never be pruned. What says which training it is stays, such as the seed.
    """
    clean = copy(trial)
    clean.system_attrs = {
        key: value for key, value in trial.system_attrs.items() if not key.startswith(RUNG)
    }
    clean.user_attrs = {k: v for k, v in trial.user_attrs.items() if k in KEPT}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, clean)


def _fail(study: Study, trial: FrozenTrial) -> bool:
    """Fail a trial, and say whether it was this worker that did; of several only one does."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # how Optuna says that it has ended
        return False
    return True


def doubtful(study: Study) -> list[str]:
    """Return a line for each running trial whose worker may be dead without anybody noticing.

    Args:
        study: The study.
    """
    journal = journal_of(study._storage)
    if journal is None:  # its heartbeats tell
        return []
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    workers = {
        trial.number: TrialRecord(trial).attributes.get("worker")
        for trial in running
        if _is_dead(trial, journal) is None
    }
    return [
        f"trial {number}: nothing here can tell whether its worker lives, process "
        f"{worker['pid']} on host {worker['host']}. If it does not, stop this one and add: "
        f"--lost {worker['host']}"
        for number, worker in workers.items()
        if worker is not None
    ]


def _is_dead(trial: FrozenTrial, journal: Journal | None) -> bool | None:
    """Say whether a trial's worker is dead; None: nothing here can tell."""
    worker = TrialRecord(trial).attributes.get("worker")
    if worker is None:  # killed before it could sign
        began = trial.datetime_start or datetime.now()
        return abs(datetime.now() - began) > timedelta(seconds=PATIENCE)
    if journal is not None and worker["host"] in journal.lost:
        return True
    if journal is None or "lock" not in worker:
        return _is_gone(worker)
    free = journal.workers.is_free(worker["lock"])
    if free is None:  # somebody has removed the file
        return _is_gone(worker)
    # Another kernel's locks are not always seen here. A host that was booted again is known by its
    # name.
    here = worker.get("kernel") == _kernel() or worker["host"] == socket.gethostname()
    return free if here or not free else None


def _is_gone(worker: Process) -> bool | None:
    """Say whether a process is gone, by its number; None: its number means nothing here."""
    if "kernel" in worker:
        near = (worker["kernel"], worker["namespace"]) == (_kernel(), _namespace())
    else:  # an earlier version signed
        near = worker["host"] == socket.gethostname()
    if not near:
        return None
    try:
        process = psutil.Process(worker["pid"])
        # In a container there may be no parent that waits for a process that was killed.
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        if "since_boot" in worker:
            return abs(_since_boot(process.pid) - worker["since_boot"]) > CLOCK
        # Setting the clock moves the time at which a process seems to have started.
        return bool(abs(process.create_time() - worker["started"]) > CLOCK)
    except psutil.NoSuchProcess:
        return True
