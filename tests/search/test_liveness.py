"""Which workers are alive: other namespaces, host names and clocks do not make them dead."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from optuna import Study, Trial

from tests.recipe_cases import write_recipe
from tests.search_cases import run_search, search_values, study_in
from tests.study_cases import JOBS, jobs_of, joined, pid_of, search_of, tell_pid
from timm_ktg.recipe.search_command import parse_search
from timm_ktg.search.journal import Journal, journal_of
from timm_ktg.search.liveness import _is_dead, doubtful, fail_dead, identify, sign
from timm_ktg.search.storage import open_storage
from timm_ktg.search.study import open_study, wait_for_others
from timm_ktg.search.trials import note

pytestmark = pytest.mark.slow

ELSEWHERE = {"kernel": "another", "host": "elsewhere"}
LOST: dict[str, Any] = {**ELSEWHERE, "pid": 7, "started": 0.0, "namespace": "pid:[1]"}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return joined(tmp_path, search_of(1), lambda study: None)


@pytest.fixture
def trial(study: Study) -> Trial:
    """A trial of this process."""
    trial = study.ask()
    sign(trial)
    return trial


def signed(trial: Trial, **other: Any) -> None:
    note(trial, worker={**trial.user_attrs["worker"], **other})


def unlocked(journal: Journal) -> str:
    """Return the name of a file that no worker holds."""
    (journal.workers.folder / "7-dead").touch()
    return "7-dead"


def hang_in_a_trial(folder: Path) -> None:
    sign(joined(folder, search_of(1), lambda study: None).ask())
    tell_pid(folder)
    signal.pause()


@pytest.fixture(params=["same name", "new name"])
def contained(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    """A worker in the middle of a trial, among processes of its own."""
    rename = "hostname renamed; " if request.param == "new name" else ""
    code = f"from tests.search.test_liveness import *; hang_in_a_trial(Path({str(tmp_path)!r}))"
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--uts"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("namespaces can only be made by root")
    with subprocess.Popen(
        [*unshare, "sh", "-c", f'{rename}exec "$0" -c "$1"', sys.executable, code]
    ) as process:
        assert pid_of(tmp_path) == 1
        (worker,) = psutil.Process(process.pid).children()
        yield worker
        process.kill()


def test_search_worker_in_other_namespaces_is_alive_until_it_is_killed(
    study: Study, contained: psutil.Process
) -> None:
    assert fail_dead(study) == [] and doubtful(study) == []
    contained.kill()
    psutil.wait_procs([contained])
    assert fail_dead(study) == [0]


@pytest.mark.parametrize("step", [-3600.0, -10.0, 10.0, 3600.0])
def test_search_worker_is_alive_though_the_clock_is_set(
    study: Study, trial: Trial, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + step)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + step)
    assert fail_dead(study) == []
    assert _is_dead(study.trials[0], None) is False  # as in a database, where there are no locks
    signed(trial, since_boot=0.0)  # another process has its number by now
    assert _is_dead(study.trials[0], None) is True


def test_search_worker_in_another_namespace_of_a_database_is_left_to_heartbeats(
    study: Study, trial: Trial
) -> None:
    signed(trial, namespace="pid:[1]", pid=2**22 + 1)
    assert _is_dead(study.trials[0], None) is None
    signed(trial, pid=2**22 + 1)
    assert _is_dead(study.trials[0], None) is None
    worker = identify(psutil.Process())
    note(trial, worker={**worker, "pid": 2**22 + 1})
    assert _is_dead(study.trials[0], None) is True


def test_search_worker_elsewhere_is_said_and_given_up_when_the_user_says_so(
    tmp_path: Path,
    study: Study,
    trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = journal_of(study._storage)
    assert journal is not None
    signed(trial, **ELSEWHERE)
    assert fail_dead(study) == [] and doubtful(study) == []  # the lock is seen here
    signed(trial, **ELSEWHERE, lock=unlocked(journal))
    assert fail_dead(study) == []
    monkeypatch.setattr("timm_ktg.search.study.until", lambda over: None)
    wait_for_others(study)
    assert capsys.readouterr().out.splitlines() == [
        "Waiting for 1 trials of other workers.",
        f"trial 0: nothing here can tell whether its worker lives, process {os.getpid()} on host "
        "elsewhere. If it does not, stop this one and add: --lost elsewhere",
    ]
    command = parse_search(["digits-search", "--lost", "b", "--lost", "elsewhere"], "prog")
    assert command.lost == ("b", "elsewhere")
    storage = open_storage(search_of(1), tmp_path, command.lost)
    opened = open_study("study", storage, study.sampler, study.pruner, {"search.nodes": 2})
    assert opened.trials[0].state.name == "FAIL"


@pytest.mark.parametrize(("promotes", "again"), [({}, True), ({"promotes": 0}, False)])
def test_search_worker_that_died_on_a_given_graph_leaves_it_to_others(
    study: Study, promotes: dict[str, int], again: bool
) -> None:
    journal = journal_of(study._storage)
    assert journal is not None
    given = {"x": 0.25}
    study.enqueue_trial(given, user_attrs=promotes)
    for trial in (study.ask(), study.ask()):  # the second draws
        trial.suggest_float("x", 0.0, 1.0)
        sign(trial)
        signed(trial, kernel="before", lock=unlocked(journal))
    assert fail_dead(study) == [0, 1]
    waiting = [each for each in study.trials if each.state.name == "WAITING"]
    assert [each.system_attrs["fixed_params"] for each in waiting] == [given] * again


def test_search_worker_of_an_earlier_boot_is_dead(study: Study, trial: Trial) -> None:
    journal = journal_of(study._storage)
    assert journal is not None
    signed(trial, kernel="before", lock=unlocked(journal))
    assert fail_dead(study) == [0]


@pytest.mark.parametrize(
    ("seconds", "dead"), [(0, False), (59, False), (-59, False), (61, True), (-61, True)]
)
def test_search_trial_that_no_worker_has_signed_is_dead_after_a_minute(
    seconds: int, dead: bool, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.ask()
    began = study.trials[0].datetime_start
    assert began is not None
    clock = SimpleNamespace(now=lambda: began + timedelta(seconds=seconds))
    monkeypatch.setattr("timm_ktg.search.liveness.datetime", clock)
    assert _is_dead(study.trials[0], None) is dead


def test_search_program_gives_up_the_workers_of_a_lost_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values(trials=1, final_seeds=[0], top_k=0))
    assert run_search(recipe, "--output-dir", tmp_path / "run") == 0
    study = study_in(tmp_path / "run", "s")
    number = study.ask().number
    note(Trial(study, study.trials[number]._trial_id), worker=LOST)
    monkeypatch.setattr("timm_ktg.search.study.until", lambda over: None)
    lost = ("--lost", LOST["host"])
    assert run_search(recipe, "--output-dir", tmp_path / "run", *lost) == 0
    assert study.trials[number].state.name == "FAIL"


def test_search_job_of_a_worker_elsewhere_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(tmp_path)
    for _ in JOBS:
        note(jobs.study.ask(), worker=LOST)

    def until(over: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("timm_ktg.search.jobs.until", until)
    with pytest.raises(InterruptedError):
        jobs.work(lambda job, trial: 0.0)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "Waiting for other workers",
        *(f"trial {number}" for number in range(len(JOBS))),
    ]
    assert all(line.endswith("add: --lost elsewhere") for line in said[1:])


@pytest.mark.parametrize("new", [{}, {"lock": "removed"}])
def test_search_worker_without_a_lock_is_known_by_its_number(
    study: Study, trial: Trial, new: dict[str, str]
) -> None:
    worker = {key: trial.user_attrs["worker"][key] for key in ("host", "pid", "started")}
    note(trial, worker={**worker, **new})
    assert fail_dead(study) == [] and doubtful(study) == []
    note(trial, worker={**worker, **new, "host": "elsewhere"})
    assert fail_dead(study) == [] and len(doubtful(study)) == 1
    note(trial, worker={**worker, **new, "pid": 2**22 + 1})
    assert fail_dead(study) == [0]


def test_search_worker_that_asks_is_not_taken_for_the_holder(study: Study) -> None:
    journal = journal_of(study._storage)
    assert journal is not None
    journal.workers.own()
    with (journal.workers.folder / unlocked(journal)).open() as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        assert journal.workers.is_free("7-dead")
    assert journal.workers.is_free(journal.workers.own() or "") is False


def hang_with_a_child(folder: Path) -> None:
    study = joined(folder, search_of(1), lambda study: None)
    sign(study.ask())
    if os.fork() == 0:
        (folder / "child").write_text(str(os.getpid()))
        signal.pause()
    tell_pid(folder)
    signal.pause()


def test_search_worker_is_dead_though_its_child_lives(tmp_path: Path, study: Study) -> None:
    code = f"from tests.search.test_liveness import *; hang_with_a_child(Path({str(tmp_path)!r}))"
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        pid_of(tmp_path)
        worker.kill()
    child = psutil.Process(int((tmp_path / "child").read_text()))
    assert child.is_running() and fail_dead(study) == [0]
    child.kill()
