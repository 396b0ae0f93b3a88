"""Jobs that the workers of a search share: done once each even if a worker dies, and retried."""

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna import Study
from optuna.trial import TrialState

from tests.study_cases import (
    JOBS,
    do_jobs,
    exit_codes,
    jobs_of,
    kill,
    lines,
    logs,
    pid_of,
    start_all,
)
from timm_ktg.search import liveness
from timm_ktg.search.jobs import _job_of
from timm_ktg.search.liveness import RETRIES, fail_dead, retry
from timm_ktg.search.trials import TrialRecord, records

pytestmark = pytest.mark.slow


def done(folder: Path) -> Counter[str]:
    return Counter(job for jobs in lines(folder, "done") for job in jobs)


def test_search_jobs_are_done_once_each(tmp_path: Path) -> None:
    workers = start_all(tmp_path, *[(do_jobs, (tmp_path,))] * 3)
    assert exit_codes(tmp_path, workers) == [0] * 3, logs(tmp_path)
    assert done(tmp_path) == Counter(JOBS)
    assert {job: trial.value for job, trial in jobs_of(tmp_path).done().items()} == {
        job: float(place) for place, job in enumerate(JOBS)
    }


def test_search_job_of_a_killed_worker_is_done_by_another(tmp_path: Path) -> None:
    hanging = (do_jobs, (tmp_path, "a"))
    workers = start_all(tmp_path, hanging)
    pid_of(tmp_path)
    others = tmp_path / "others"
    others.mkdir()
    (others / "study.journal").symlink_to(tmp_path / "study.journal")
    more = start_all(others, *[(do_jobs, (others,))] * 2)
    while sum(done(others).values()) < 4:  # they wait for the one that hangs
        time.sleep(0.05)
    kill(tmp_path)
    assert exit_codes(tmp_path, workers) == [-signal.SIGKILL]
    assert exit_codes(others, more) == [0, 0], logs(others)
    assert done(others) == Counter(JOBS)


def test_search_job_is_done_after_all_workers_were_killed(tmp_path: Path) -> None:
    worker = start_all(tmp_path, (do_jobs, (tmp_path, "b")))
    kill(tmp_path)
    assert exit_codes(tmp_path, worker) == [-signal.SIGKILL]
    assert done(tmp_path) == Counter("a")
    worker = start_all(tmp_path, (do_jobs, (tmp_path,)))
    assert exit_codes(tmp_path, worker) == [0], logs(tmp_path)
    assert done(tmp_path) == Counter(JOBS)
    assert [trial.state for trial in jobs_of(tmp_path).study.trials].count(TrialState.FAIL) == 1


def test_search_jobs_two_that_find_a_dead_worker_do_its_job_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_all(tmp_path, (do_jobs, (tmp_path, "a")))
    kill(tmp_path)
    assert exit_codes(tmp_path, worker) == [-signal.SIGKILL]
    monkeypatch.setattr(liveness, "_is_dead", lambda trial, journal: False)
    first, second = jobs_of(tmp_path).study, jobs_of(tmp_path).study

    def found_by_both(trial: Any, journal: Any) -> bool:
        monkeypatch.setattr(liveness, "_is_dead", lambda trial, journal: True)
        assert fail_dead(second, again=True) == [0]
        return True

    monkeypatch.setattr(liveness, "_is_dead", found_by_both)
    assert fail_dead(first, again=True) == []
    assert len(first.get_trials(states=(TrialState.WAITING,))) == len(JOBS)


def test_search_job_is_done_though_who_found_its_worker_dead_died_too(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path)
    worker = start_all(tmp_path, (do_jobs, (tmp_path, "a")))
    kill(tmp_path)
    assert exit_codes(tmp_path, worker) == [-signal.SIGKILL]
    assert fail_dead(jobs.study) == [0]
    asked = []
    jobs.work(lambda job, trial: asked.append(job) or 1.0)
    assert sorted(asked) == JOBS and asked.count("a") == 1


def test_search_job_in_which_all_workers_die_is_given_up(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path)
    for _ in range(1 + RETRIES):
        trial = next(each.trial for each in jobs._waiting() if _job_of(each) == "a")
        jobs.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        jobs.study.tell(trial.number, state=TrialState.FAIL)
        for left in jobs._left(records(jobs.study)):
            retry(jobs.study, left.trial)
    jobs.work(lambda job, trial: 1.0)
    assert jobs.failed() == {"a": "its workers died"}


def test_search_job_that_another_worker_retries_at_this_moment_is_not_left_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path)
    dead = next(each.trial for each in jobs._waiting() if _job_of(each) == "a")
    jobs.study._storage.set_trial_state_values(dead._trial_id, TrialState.RUNNING)
    jobs.study.tell(dead.number, state=TrialState.FAIL)
    retried = []

    def look(study: Study) -> list[TrialRecord]:
        found = records(study)
        if not retried and all(each.trial.state.is_finished() for each in found):
            retried.append(dead)  # the other worker is as fast as this one
            retry(study, dead)
        return found

    monkeypatch.setattr("timm_ktg.search.jobs.records", look)
    jobs.work(lambda job, trial: 1.0)
    assert retried and sorted(jobs.done()) == JOBS


def test_search_job_that_failed_is_tried_again_at_the_next_start(tmp_path: Path) -> None:
    def fails(job: str, trial: Any) -> float:
        if job == "b":
            raise OSError("No space left on device")
        return 1.0

    jobs = jobs_of(tmp_path)
    jobs.work(fails, (OSError,))
    assert jobs.failed() == {"b": "OSError: No space left on device"}
    for _ in range(2):  # two workers that start together
        jobs = jobs_of(tmp_path)
        assert list(map(_job_of, jobs._waiting())) == ["b"]
    jobs.study.enqueue_trial({"job": "b"})  # as where both had looked before either enqueued it
    asked = []
    jobs.work(lambda job, trial: asked.append(job) or 2.0)
    assert asked == ["b"]
    assert {name: trial.value for name, trial in jobs.done().items()} == {
        name: 2.0 if name == "b" else 1.0 for name in JOBS
    }
    assert jobs.failed() == {} and jobs_of(tmp_path)._waiting() == []
