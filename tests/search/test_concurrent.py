"""Many workers on one journal: Optuna's halving, replayed; nothing is lost or doubled."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from tests.study_cases import (
    EPOCHS,
    exit_codes,
    fails,
    hang,
    joined,
    journal,
    kill,
    lines,
    logs,
    search_of,
    start_all,
    work,
)
from timm_ktg.search.liveness import fail_dead, sign
from timm_ktg.search.pruning import rungs
from timm_ktg.search.trials import finished

pytestmark = pytest.mark.slow

# Successive halving, replayed from the journal.


@dataclass(frozen=True)
class Decision:
    """The decision of a trial at a rung, and what the trial may have known.

    Args:
        number: Number of the trial.
        epoch: Epoch of the rung.
        value: Value of the trial.
        went_on: Whether the trial went on.
        others: The others' values at the rung, for every moment at which it may have read them.
    """

    number: int
    epoch: int
    value: float
    went_on: bool
    others: tuple[tuple[float, ...], ...]


Rule = Callable[[float, tuple[float, ...]], bool]


def best_half(value: float, others: tuple[float, ...]) -> bool:
    """Of n values the best n // 2 go on, but at least 1; so do those equal to one of them."""
    return sum(other > value for other in others) < max(1, (len(others) + 1) // 2)


WRONG: dict[str, Rule] = {
    "best third": lambda value, others: (
        sum(other > value for other in others) < max(1, (len(others) + 1) // 3)
    ),
    "rounded up": lambda value, others: (
        sum(other > value for other in others) < (len(others) + 2) // 2
    ),
    "equal ones stop": lambda value, others: (
        sum(other >= value for other in others) < max(1, (len(others) + 1) // 2)
    ),
    "the lowest": lambda value, others: (
        sum(other < value for other in others) < max(1, (len(others) + 1) // 2)
    ),
    "without its own": lambda value, others: (
        sum(other > value for other in others) < max(1, len(others) // 2)
    ),
}


# By trial and epoch: the place in the journal, and the value.
Values = dict[tuple[int, int], tuple[int, float]]


def happened(folder: Path) -> tuple[Values, Values, dict[int, tuple[int, TrialState]]]:
    """Return which values a journal says were written, came to a rung, and how trials ended."""
    written: Values = {}
    came: Values = {}
    ended: dict[int, tuple[int, TrialState]] = {}
    for place, entry in enumerate(journal(folder)):
        operation = JournalOperation(entry["op_code"])
        if operation == JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE:
            written[entry["trial_id"], entry["step"]] = place, entry["intermediate_value"]
        elif operation == JournalOperation.SET_TRIAL_SYSTEM_ATTR:
            ((name, value),) = entry["system_attr"].items()
            epoch = 2 ** int(name.removeprefix("completed_rung_"))
            assert (entry["trial_id"], epoch) not in came
            came[entry["trial_id"], epoch] = place, value
        elif operation == JournalOperation.SET_TRIAL_STATE_VALUES:
            state = TrialState(entry["state"])
            if state.is_finished():
                assert entry["trial_id"] not in ended
                ended[entry["trial_id"]] = place, state
    assert came.keys() == written.keys()  # every report was a decision
    return written, came, ended


def replay(folder: Path, failed_count: bool = False) -> list[Decision]:
    """Return every decision, from the order in which a journal was written.

    A worker read the others' values after it wrote its trial's value and before it wrote that the
    trial had come to the rung.
    """
    written, came, ended = happened(folder)
    failed = {
        number: place
        for number, (place, state) in ended.items()
        if state == TrialState.FAIL and not failed_count
    }
    at_rung = {
        rung: [
            (when, other, value) for (other, epoch), (when, value) in came.items() if epoch == rung
        ]
        for rung in rungs(EPOCHS)
    }

    def known(number: int, epoch: int, place: int) -> tuple[float, ...]:
        return tuple(
            value
            for when, other, value in at_rung[epoch]
            if when < place and other != number and failed.get(other, place) >= place
        )

    def decision(number: int, epoch: int) -> Decision:
        (first, value), (last, copied) = written[number, epoch], came[number, epoch]
        assert value == copied and first < last
        steps = [step for other, step in written if other == number]
        stopped = ended[number][1] == TrialState.PRUNED and max(steps) == epoch
        changes = [*failed.values(), *(when for when, _, _ in at_rung[epoch])]
        moments = [first + 1, *(place + 1 for place in changes if first < place < last)]
        others = dict.fromkeys(known(number, epoch, place) for place in moments)
        return Decision(number, epoch, value, not stopped, tuple(others))

    return [decision(*key) for key in written]


def outcomes(rule: Rule, decision: Decision) -> set[bool]:
    return {rule(decision.value, others) for others in decision.others}


def impossible(rule: Rule, decisions: list[Decision]) -> list[Decision]:
    return [each for each in decisions if each.went_on not in outcomes(rule, each)]


def running_at_once(folder: Path) -> int:
    running, most = 0, 0
    for entry in journal(folder):
        operation = JournalOperation(entry["op_code"])
        running += operation == JournalOperation.CREATE_TRIAL
        running -= operation == JournalOperation.SET_TRIAL_STATE_VALUES
        most = max(most, running)
    return most


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 400 trials by 8 workers, of which some fail at high values."""
    folder = tmp_path_factory.mktemp("eight")
    workers = start_all(folder, *[(work, (folder, search_of(400), 0.01, True, 0))] * 8)
    assert exit_codes(folder, workers) == [0] * 8, logs(folder)
    return folder


def test_search_concurrent_halving_replayed_decides_the_same(eight: Path) -> None:
    decisions = replay(eight)
    assert running_at_once(eight) == 8
    for epoch in rungs(EPOCHS)[:4]:  # further on there are few
        at = [decision.went_on for decision in decisions if decision.epoch == epoch]
        assert True in at and False in at
    assert impossible(best_half, decisions) == []
    known = sum(len(outcomes(best_half, decision)) == 1 for decision in decisions)
    assert known >= 0.9 * len(decisions)


@pytest.mark.parametrize("name", WRONG)
def test_search_concurrent_halving_by_a_wrong_rule_would_differ(eight: Path, name: str) -> None:
    assert impossible(WRONG[name], replay(eight))


def test_search_concurrent_halving_with_failed_trials_would_differ(eight: Path) -> None:
    assert impossible(best_half, replay(eight, failed_count=True))


def test_search_concurrent_trials_that_fail_count_as_trials(eight: Path) -> None:
    study = joined(eight, search_of(400), lambda study: None)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert len(failed) > 10
    assert all(fails(trial.number) for trial in failed)
    assert {trial.user_attrs["reason"] for trial in failed} == {"TrainingError: diverged"}
    assert 400 <= len(finished(study)) < 408


# Nothing lost, nothing doubled.


def test_search_concurrent_thirty_workers_lose_and_double_nothing(tmp_path: Path) -> None:
    search = search_of(1500)
    workers = start_all(tmp_path, *[(work, (tmp_path, search, 0.0, False, 5))] * 30)
    assert exit_codes(tmp_path, workers) == [0] * 30, logs(tmp_path)
    study = joined(tmp_path, search, lambda study: None)
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert 1500 <= len(finished(study)) < 1530
    assert len(finished(study)) == len([t for t in trials if "duplicate" not in t.user_attrs])
    ran = lines(tmp_path, "numbers")
    assert len(ran) > 20  # on a busy machine a worker can come too late
    assert sorted(int(number) for numbers in ran for number in numbers) == list(range(len(trials)))
    assert [trial.number for trial in trials if "fixed_params" in trial.system_attrs] == [
        *range(5)
    ]  # made ready once
    assert impossible(best_half, replay(tmp_path)) == []


# A worker that is killed.


def test_search_concurrent_trial_of_a_killed_worker_does_not_count(tmp_path: Path) -> None:
    search = search_of(40)
    worker = start_all(tmp_path, (hang, (tmp_path, search, 10)))
    kill(tmp_path)
    assert exit_codes(tmp_path, worker) == [-signal.SIGKILL]
    study = joined(tmp_path, search, lambda study: None)
    dead = study.trials[10]
    assert (dead.state, dead.value) == (TrialState.FAIL, None)
    assert len(study.trials) == 11 and len(finished(study)) == 10
    worker = start_all(tmp_path, (work, (tmp_path, search, 0.0, False, 0)))
    assert exit_codes(tmp_path, worker) == [0], logs(tmp_path)
    assert len(study.trials) == 41 and len(finished(study)) == 40
    assert {trial.state for trial in finished(study)} == {"complete", "pruned"}
    assert impossible(best_half, replay(tmp_path)) == []


def test_search_concurrent_trial_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    study = joined(tmp_path, search_of(1), lambda study: None)
    sign(study.ask())
    assert fail_dead(joined(tmp_path, search_of(1), lambda study: None)) == []


def test_search_concurrent_worker_that_nobody_waits_for_is_dead(tmp_path: Path) -> None:
    study = joined(tmp_path, search_of(1), lambda study: None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        trial = study.ask()
        sign(trial, process.pid)
        assert fail_dead(study) == []
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert fail_dead(study) == [trial.number]
