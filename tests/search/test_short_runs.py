"""Short runs by many workers: every promotion replayed from the journal; none lost or doubled."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from optuna import Study
from optuna.trial import TrialState

from tests.short_runs_cases import (
    EPOCHS,
    FACTOR,
    Entry,
    Seen,
    Trials,
    entries,
    promoted,
    ranked,
    short_runs,
    study_of,
    work_light,
    work_short,
)
from tests.study_cases import exit_codes, logs, start_all
from tests.training_cases import DEADLINE
from timm_ktg.search.storage import open_storage

pytestmark = pytest.mark.slow

GRAPHS = 200
MANY = 1500  # for thirty workers
TOP = len(EPOCHS) - 1


# Returns the trial that a free worker promotes.
Rule = Callable[[Trials], Seen | None]


def rule(view: Trials, factor: int = FACTOR, rounded_up: int = 0, sign: int = 1) -> Seen | None:
    """Of each rung's n complete trials the best n // 4 go up; from the highest rung first."""
    for rung in reversed(range(TOP)):
        complete = ranked(view.values(), rung)[::sign]
        best = complete[: (len(complete) + rounded_up) // factor]
        left = [each for each in best if each.number not in promoted(view.values())]
        if left:
            return left[0]
    return None


WRONG: dict[str, Rule] = {
    "best third": lambda view: rule(view, factor=3),
    "best fifth": lambda view: rule(view, factor=5),
    "rounded up": lambda view: rule(view, rounded_up=FACTOR - 1),
    "the worst": lambda view: rule(view, sign=-1),
    "never": lambda view: None,
}


def impossible(rule: Rule, made: list[Entry]) -> list[Entry]:
    """Return what no worker can have done by a rule, whatever it knew at the time."""
    known: dict[int, int | None] = {}  # what the rule says, by view

    def says(view: Trials) -> int | None:
        if id(view) not in known:
            found = rule(view)
            known[id(view)] = None if found is None else found.number
        return known[id(view)]

    def agrees(entry: Entry) -> bool:
        # A worker whose promotion was taken by another before it began draws at once.
        taken = entry.made.promotes is None and entry.last is not None
        return taken or any(says(view) == entry.made.promotes for view in entry.views)

    return [entry for entry in made if not agrees(entry)]


@dataclass(frozen=True)
class Outcome:
    """What eight workers came to, of which two were killed: in a draw and in a promotion."""

    study: Study
    made: list[Entry]
    trials: list[Seen]
    killed: list[int]


def study_at(folder: Path) -> Study:
    recipe = short_runs(1)
    return study_of(open_storage(recipe.search, folder), recipe)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder, recipe = tmp_path_factory.mktemp("eight"), short_runs(GRAPHS)
    files = [folder / f"hangs-{rung}" for rung in (0, 1)]
    work = [(folder, recipe, 0.02, True, files[place % 2], place % 2) for place in range(8)]
    workers = start_all(folder, *[(work_short, arguments) for arguments in work])
    killed = []
    for file in files:
        end = time.monotonic() + DEADLINE
        while not file.exists():
            assert time.monotonic() < end, logs(folder)
            time.sleep(0.05)
        killed.append(int(file.read_text()))
        os.kill(killed[-1], signal.SIGKILL)
    codes = Counter(exit_codes(folder, workers))
    assert codes == {-signal.SIGKILL: 2, 0: 6}, logs(folder)
    made = list(entries(folder))
    study = study_at(folder)
    trials = [
        Seen(trial.number, trial.state, trial.user_attrs, trial.value or 0.0)
        for trial in study.trials
    ]
    return Outcome(study, made, trials, killed)


def test_short_runs_concurrent_every_promotion_follows_the_rule(eight: Outcome) -> None:
    assert len(eight.made) == len(eight.trials)
    assert sum(entry.made.promotes is not None for entry in eight.made) > GRAPHS // FACTOR
    assert impossible(rule, eight.made) == []


@pytest.mark.parametrize("name", WRONG)
def test_short_runs_concurrent_by_a_wrong_rule_would_differ(eight: Outcome, name: str) -> None:
    assert impossible(WRONG[name], eight.made)


def test_short_runs_concurrent_nothing_is_lost_or_doubled(eight: Outcome) -> None:
    counted = [trial for trial in eight.trials if not trial.is_out]
    assert {each.state for each in counted} == {TrialState.COMPLETE, TrialState.FAIL}
    drawn = [trial for trial in counted if trial.promotes is None]
    assert len(drawn) == GRAPHS
    ups = Counter(trial.promotes for trial in counted if trial.promotes is not None)
    assert set(ups.values()) == {1}
    assert rule(dict(enumerate(eight.trials))) is None  # all that were due have gone up
    assert len(ranked(counted, TOP)) >= GRAPHS // FACTOR**2 // 2


def test_short_runs_concurrent_promotion_trains_the_same_graph_from_another_seed(
    eight: Outcome,
) -> None:
    trials = eight.study.trials
    ups = [trial for trial in eight.trials if trial.promotes is not None and not trial.is_out]
    for each in ups:
        assert each.promotes is not None
        parent = eight.trials[each.promotes]
        assert each.rung == parent.rung + 1 and parent.state == TrialState.COMPLETE
        assert trials[each.number].params == trials[parent.number].params
        assert each.attributes["graph"] == parent.attributes["graph"]
    seeds = [trial.attributes["seed"] for trial in eight.trials if not trial.is_out]
    assert len(set(seeds)) == len(seeds)
    for trial, seen in zip(trials, eight.trials, strict=True):
        if trial.state == TrialState.COMPLETE:
            assert trial.intermediate_values == {EPOCHS[seen.rung]: trial.value}


def test_short_runs_concurrent_work_of_killed_workers_is_done_by_others(eight: Outcome) -> None:
    dead = [
        trial
        for trial in eight.trials
        if trial.is_out
        and trial.attributes["worker"]["pid"] in eight.killed
        and trial.state == TrialState.FAIL
    ]
    assert len(dead) == 2 and {trial.promotes is None for trial in dead} == {True, False}
    lost = next(trial.promotes for trial in dead if trial.promotes is not None)
    (again,) = [t for t in eight.trials if t.promotes == lost and not t.is_out]
    assert again.attributes["worker"]["pid"] not in eight.killed
    # It is the same training, unless a worker that looked in between has made another promotion.
    (first,) = [t for t in dead if t.promotes == lost]
    others = [t for t in eight.trials if t.promotes == lost and t is not first]
    assert first.attributes["seed"] in {t.attributes.get("seed") for t in others}


def test_short_runs_concurrent_thirty_workers_lose_and_double_nothing(tmp_path: Path) -> None:
    recipe = short_runs(MANY)
    workers = start_all(tmp_path, *[(work_light, (tmp_path, recipe))] * 30)
    assert exit_codes(tmp_path, workers) == [0] * 30, logs(tmp_path)
    trials = [
        Seen(trial.number, trial.state, trial.user_attrs, trial.value or 0.0)
        for trial in study_at(tmp_path).trials
    ]
    counted = [trial for trial in trials if not trial.is_out]
    drawn = [trial for trial in counted if trial.promotes is None]
    assert len(drawn) == MANY == len({trial.attributes["graph"] for trial in drawn})
    ups = Counter(trial.promotes for trial in counted if trial.promotes is not None)
    assert set(ups.values()) == {1} and len(ups) > MANY // FACTOR
    assert {trial.state for trial in counted} == {TrialState.COMPLETE, TrialState.FAIL}
    assert rule(dict(enumerate(trials))) is None  # to replay them all takes minutes
