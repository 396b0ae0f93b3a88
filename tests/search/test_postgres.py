"""Searches on a real PostgreSQL server: workers that are killed, a server that goes away."""

import gc
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study, Trial
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from tests.search.postgres_server import Server, binaries, free_port, serve
from tests.search.postgres_worker import (
    EPOCHS,
    GRACE,
    TRIALS,
    Signals,
    begun,
    hang_while_making,
    section,
    study_on,
    work,
)
from timm_ktg.errors import RecipeError
from timm_ktg.search import storage as storage_module
from timm_ktg.search.liveness import retry
from timm_ktg.search.pruning import RUNG, rungs
from timm_ktg.search.storage import making, open_storage
from timm_ktg.search.study import run_trials, wait_for_others
from timm_ktg.search.trials import finished, note

pytestmark = pytest.mark.slow

WORKERS = 4  # the first is killed
AWAY = 2.5  # seconds without a server
EMPTY = 3  # empty databases that the workers join together
PROCESSES = multiprocessing.get_context("forkserver")  # imports once, for all workers
IMPORTS = ("tests.search.postgres_worker", "psycopg", "alembic.command", "sqlalchemy.orm")

Opened = Callable[..., RDBStorage]


@dataclass(frozen=True)
class Outcome:
    """The outcome of the main study."""

    trials: list[FrozenTrial]
    counted: int
    killed: int  # process id
    codes: list[int | None]
    waits: dict[int, int]
    empty: list[list[str]]  # names of the studies on each database that was empty


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server on this host")
    # The workers' imports take a while, and go on beside the tests that come first.
    PROCESSES.set_forkserver_preload(list(IMPORTS))
    multiprocessing.forkserver.ensure_running()
    with serve(programs) as running:
        yield running


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    """Opens storages, whose connections are closed at the end."""
    storages: list[RDBStorage] = []

    def storage_at(url: str, grace_period: int = GRACE) -> RDBStorage:
        storage = open_storage(section(url, grace_period), Path())
        assert isinstance(storage, RDBStorage)
        storages.append(storage)
        return storage

    yield storage_at
    for storage in storages:
        storage.scoped_session.remove()
        storage.engine.dispose()


@pytest.fixture
def storage(server: Server, opened: Opened, request: pytest.FixtureRequest) -> RDBStorage:
    """A storage on a new database."""
    return opened(server.create(request.node.name.removeprefix("test_postgres_")))


@pytest.fixture(scope="module")
def outcome(server: Server, opened: Opened) -> Outcome:
    """The main study: a worker is killed, then the server goes away and comes back."""
    empty = [server.create(f"empty{number}") for number in range(EMPTY)]
    url = server.create("main")
    signals = Signals(
        PROCESSES.Barrier(WORKERS), PROCESSES.Event(), PROCESSES.Event(), PROCESSES.SimpleQueue()
    )
    workers = [
        PROCESSES.Process(target=work, args=(number, url, empty, signals), daemon=True)
        for number in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    try:
        assert signals.ready.wait(timeout=120), [worker.exitcode for worker in workers]
        os.kill(workers[0].pid or 0, signal.SIGKILL)
        killed = time.monotonic()
        server.stop()
        time.sleep(AWAY)
        server.start()
        time.sleep(max(0.0, killed + GRACE + 1.5 - time.monotonic()))
        signals.late.set()
        for worker in workers:
            worker.join(timeout=60)
    finally:
        codes = [worker.exitcode for worker in workers]
        for worker in workers:
            worker.kill()
            worker.join()
    assert codes == [-signal.SIGKILL, 0, 0, 0]
    study = optuna.load_study(study_name="study", storage=opened(url))
    studies = [[study.study_name for study in opened(each).get_all_studies()] for each in empty]
    waits = dict(signals.said.get() for _ in workers[1:])
    return Outcome(
        study.get_trials(), len(finished(study)), workers[0].pid or 0, codes, waits, studies
    )


def of_state(trials: list[FrozenTrial], *states: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in states]


def reported_rungs(trial: FrozenTrial) -> dict[str, float]:
    """The rungs that a trial should have, from its own reports alone."""
    values = trial.intermediate_values
    passed = [epoch for epoch in rungs(EPOCHS) if epoch in values and epoch < EPOCHS]
    return {f"{RUNG}{number}": values[epoch] for number, epoch in enumerate(passed)}


def kept_rungs(trial: FrozenTrial) -> dict[str, float]:
    return {key: value for key, value in trial.system_attrs.items() if key.startswith(RUNG)}


def test_postgres_study_of_other_choices_is_refused_by_what_differs(storage: RDBStorage) -> None:
    study_on(storage, **{"train.epochs": 16, "data.holdout": 0.1})
    study_on(storage, **{"train.epochs": 16, "data.holdout": 0.1})
    with pytest.raises(RecipeError, match="train.epochs: .*made with 16. Found 8") as raised:
        study_on(storage, **{"train.epochs": 8, "data.holdout": 0.1})
    assert "data.holdout" not in str(raised.value)


def test_postgres_study_whose_maker_was_killed_is_completed(server: Server, opened: Opened) -> None:
    url = server.create("making")
    hangs = PROCESSES.Event()
    maker = PROCESSES.Process(target=hang_while_making, args=(url, hangs), daemon=True)
    maker.start()
    assert hangs.wait(timeout=120)
    killer = threading.Timer(1.0, maker.kill)
    killer.start()

    def prepare(study: Study) -> None:
        for value in (1, 2):
            study.enqueue_trial({"x": value}, skip_if_exists=True)

    study = study_on(opened(url), prepare=prepare)  # it waits for the one that is killed
    assert not maker.is_alive()
    assert [trial.system_attrs["fixed_params"]["x"] for trial in study.trials] == [1, 2]
    maker.join()
    killer.join()


def test_postgres_lock_is_that_of_the_database_for_a_study_too(storage: RDBStorage) -> None:
    study = study_on(storage)
    assert study._storage is not storage  # but Optuna's cache around it
    entered = threading.Event()

    def enter() -> None:
        with making(storage):
            entered.set()

    other = threading.Thread(target=enter)
    with making(study._storage):
        other.start()
        assert not entered.wait(1)
    assert entered.wait(30)
    other.join()


def test_postgres_sqlite_is_refused() -> None:
    with pytest.raises(RecipeError, match="search.storage: .*Found SQLite"):
        open_storage(section("sqlite:///study.db"), Path())


def test_postgres_closed_port_is_one_line_at_once(server: Server) -> None:
    assert_one_line_at_once(f"postgresql://ktg:{{a}}@127.0.0.1:{free_port()}/study", "refused")


def test_postgres_port_in_letters_is_one_line_at_once() -> None:
    with pytest.raises(ValidationError, match="a URL that cannot be read: .* port") as raised:
        section("postgresql://ktg:secret@127.0.0.1:port/study")
    assert "secret" not in str(raised.value)


def test_postgres_silent_server_is_one_line_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "CONNECT_TIMEOUT", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert_one_line_at_once(f"postgresql://ktg@127.0.0.1:{port}/study", "timeout")


def test_postgres_missing_database_is_one_line_at_once(server: Server) -> None:
    url = f"postgresql://ktg@127.0.0.1:{server.port}/nowhere"
    assert_one_line_at_once(url, '"nowhere" does not exist')


def test_postgres_tables_of_another_optuna_are_one_line(storage: RDBStorage) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    assert_one_line_at_once(str(storage.url), "optuna storage upgrade")


def assert_one_line_at_once(url: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(RecipeError) as raised:
        open_storage(section(url), Path())
    assert time.monotonic() - began < 10
    (problem,) = raised.value.problems
    del raised
    with warnings.catch_warnings():  # the connections that go with the storage, closed by nobody
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert problem.startswith("search.storage: ") and said in problem and "\n" not in problem


def test_postgres_connection_may_break_in_any_statement(
    server: Server, storage: RDBStorage
) -> None:
    study = study_on(storage)
    study.enqueue_trial({})
    statements = broken_at(server, storage, study, 0)
    assert statements > 3
    for statement in range(1, statements + 1):
        assert broken_at(server, storage, study, statement) > statements


def broken_at(server: Server, storage: RDBStorage, study: Study, broken: int) -> int:
    """Read a study over a connection that is cut at a statement; return their number."""
    import psycopg
    from sqlalchemy import event

    count = 0

    def cut(connection: Any, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == broken:
            backend = connection.connection.dbapi_connection.info.backend_pid
            where = f"postgresql://ktg@127.0.0.1:{server.port}/postgres"
            with psycopg.connect(where, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))

    event.listen(storage.engine, "before_cursor_execute", cut)
    try:
        assert len(storage.get_all_trials(study._study_id)) == 1
    finally:
        event.remove(storage.engine, "before_cursor_execute", cut)
    return count


def test_postgres_rungs_of_failed_trials_do_not_count(storage: RDBStorage) -> None:
    study = study_on(storage)

    def stops(value: float) -> tuple[Trial, bool]:
        trial = begun(study)
        trial.report(value, 1)
        return trial, trial.should_prune()

    failed, _ = stops(90)
    study.tell(failed, state=TrialState.FAIL)
    assert kept_rungs(study.trials[0]) == {f"{RUNG}0": 90}
    assert [stops(value)[1] for value in (50, 40)] == [False, True]


def test_postgres_worker_goes_on_when_its_trial_was_given_away(storage: RDBStorage) -> None:
    """As after an outage of more than the grace period."""
    study = study_on(storage)

    def objective(trial: Trial) -> float:
        if trial.number == 0:
            study.tell(trial.number, state=TrialState.FAIL)
            retry(study, study.trials[0])
        trial.report(1, 1)
        return 1

    run_trials(study, objective, lambda study: len(finished(study)) >= 2)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_postgres_worker_of_another_host_is_not_waited_for_in_vain(
    server: Server, opened: Opened
) -> None:
    storage = opened(server.create("elsewhere"), grace_period=2)
    study = study_on(storage)
    trial = begun(study)
    note(trial, worker={"host": "elsewhere", "pid": 1, "started": 0.0})
    storage.record_heartbeat(trial._trial_id)
    began = time.monotonic()
    wait_for_others(study)
    assert 2 <= time.monotonic() - began < 10
    assert study.trials[0].state == TrialState.FAIL


def test_postgres_workers_get_into_an_empty_database_together(outcome: Outcome) -> None:
    assert outcome.empty == [["study"]] * EMPTY


def test_postgres_study_comes_to_its_end(outcome: Outcome) -> None:
    assert TRIALS <= outcome.counted < TRIALS + WORKERS
    ended = of_state(outcome.trials, TrialState.COMPLETE, TrialState.PRUNED)
    assert len(ended) == outcome.counted
    assert {trial.state for trial in ended} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({trial.user_attrs["graph"] for trial in ended}) == len(ended)


def test_postgres_no_trial_is_lost(outcome: Outcome) -> None:
    assert [trial.number for trial in outcome.trials] == list(range(len(outcome.trials)))
    assert of_state(outcome.trials, TrialState.RUNNING, TrialState.WAITING) == []
    assert len(of_state(outcome.trials, TrialState.FAIL)) == 1


def test_postgres_survivors_wait_for_the_server(outcome: Outcome) -> None:
    assert outcome.waits.keys() == {1, 2, 3}
    assert all(count > 0 for count in outcome.waits.values())


def test_postgres_trial_of_a_killed_worker_is_run_again_from_the_beginning(
    outcome: Outcome,
) -> None:
    (failed,) = of_state(outcome.trials, TrialState.FAIL)
    assert failed.user_attrs["worker"]["pid"] == outcome.killed
    assert kept_rungs(failed) == reported_rungs(failed) != {}
    (again,) = [t for t in outcome.trials if t.system_attrs.get("failed_trial") == failed.number]
    assert again.params == failed.params
    assert again.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert again.user_attrs["worker"]["pid"] != outcome.killed
    assert kept_rungs(again) == reported_rungs(again)
    assert kept_rungs(again)[f"{RUNG}0"] != kept_rungs(failed)[f"{RUNG}0"]
