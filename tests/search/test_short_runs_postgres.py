"""Short runs on a real PostgreSQL server: a worker is killed in the middle of a promotion."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from tests.search.postgres_server import Server, binaries, serve
from tests.short_runs_cases import EPOCHS, FACTOR, short_runs, study_of, work_short
from tests.training_cases import DEADLINE
from timm_ktg.search.liveness import identify
from timm_ktg.search.methods import ShortRuns, build_method
from timm_ktg.search.promotion import Step
from timm_ktg.search.storage import open_storage
from timm_ktg.search.trials import DUPLICATE, note, records

pytestmark = pytest.mark.slow

WORKERS, GRAPHS, GRACE = 4, 24, 5
PROCESSES = multiprocessing.get_context("forkserver")  # imports once, for all workers


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server on this host")
    PROCESSES.set_forkserver_preload(["tests.short_runs_cases", "psycopg"])
    with serve(programs) as running:
        yield running


def test_short_runs_postgres_promotion_of_a_killed_worker_is_made_by_another(
    server: Server, tmp_path: Path
) -> None:
    url = server.create("short")
    recipe = short_runs(GRAPHS, storage=url, heartbeat_interval=1, grace_period=GRACE)
    hangs = tmp_path / "hangs"
    arguments = (tmp_path, recipe, 0.1, True, hangs, 1)
    workers = [
        PROCESSES.Process(target=work_short, args=arguments, daemon=True) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + DEADLINE
        while not hangs.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(int(hangs.read_text()), signal.SIGKILL)
        for worker in workers:
            worker.join(timeout=DEADLINE)
        codes = Counter(worker.exitcode for worker in workers)
        assert codes == {-signal.SIGKILL: 1, 0: WORKERS - 1}
    finally:
        for worker in workers:
            worker.kill()
    storage = open_storage(recipe.search, tmp_path)
    trials = records(study_of(storage, recipe))
    storage.scoped_session.remove()  # type: ignore[attr-defined]
    storage.engine.dispose()  # type: ignore[attr-defined]
    dead = [each for each in trials if each.state == "worker died"]
    counted = [each for each in trials if each.state not in ("worker died", DUPLICATE)]
    assert {each.state for each in counted} == {"complete", "failed"}
    assert len(dead) == 1 and dead[0].rung == 1
    drawn = [each for each in counted if each.promotes is None]
    assert len(drawn) == GRAPHS
    ups = Counter(each.promotes for each in counted if each.promotes is not None)
    assert set(ups.values()) == {1}
    complete = [each for each in drawn if each.state == "complete"]
    assert len([each for each in counted if each.rung == 1]) >= len(complete) // FACTOR
    # Optuna enqueues what a lost worker had, with what says which training it is. A worker that
    # looked just before has promoted the same trial itself: the later of the two is needless.
    again = [each for each in trials if each.promotes == dead[0].promotes and each not in dead]
    (retried,) = [each for each in again if "failed_trial" in each.trial.system_attrs]
    assert retried.trial.system_attrs["failed_trial"] == dead[0].number
    assert (retried.rung, retried.seed) == (1, dead[0].seed)
    assert retried.trial.params == dead[0].trial.params
    (made,) = [each for each in again if each.state != DUPLICATE]
    assert (made.rung, made.graph) == (1, dead[0].graph)
    assert all(each.is_needless for each in again if each is not made)
    for each in counted:
        if each.trial.state == TrialState.COMPLETE:
            assert each.values == {EPOCHS[each.rung]: each.value}


def test_short_runs_postgres_worker_killed_before_its_first_heartbeat_is_made_up_for(
    server: Server, tmp_path: Path
) -> None:
    url = server.create("early")
    recipe = short_runs(1, storage=url, heartbeat_interval=1, grace_period=600)
    storage = open_storage(recipe.search, tmp_path)
    study = study_of(storage, recipe)
    with pytest.warns(UserWarning, match="Heartbeat"):
        lost = study.ask()  # no heartbeat goes with it
    note(lost, seed=5, worker={**identify(psutil.Process()), "pid": 2**22 + 1})
    method = build_method(recipe)
    assert isinstance(method, ShortRuns) and method.ladder.next(records(study)) is Step.WAIT
    method._wait(study)
    dead, again = records(study)
    storage.scoped_session.remove()  # type: ignore[attr-defined]
    storage.engine.dispose()  # type: ignore[attr-defined]
    assert (dead.state, again.state) == ("worker died", "waiting")
    assert (again.trial.system_attrs["failed_trial"], again.seed) == (dead.number, 5)
