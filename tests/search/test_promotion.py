"""The rule of promotion, on trials that are made up: who goes up, when, and when it ends."""

from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from timm_ktg.search.promotion import Ladder, Step
from timm_ktg.search.trials import TrialRecord, records

LADDER = Ladder(costs=(5, 10, 20), factor=4, graphs=16)
Made = optuna.trial.FrozenTrial


def complete(value: float, rung: int = 0, promotes: int | None = None) -> Made:
    return create_trial(value=value, user_attrs=_attributes(rung, promotes))


def going(state: str, rung: int = 0, promotes: int | None = None) -> Made:
    return create_trial(state=TrialState[state], user_attrs=_attributes(rung, promotes))


def failed(rung: int = 0, promotes: int | None = None, epochs: int = 3) -> Made:
    attributes = {**_attributes(rung, promotes), "reason": "diverged", "epochs": epochs}
    return create_trial(state=TrialState.FAIL, user_attrs=attributes)


def dead(rung: int = 0, promotes: int | None = None) -> Made:
    return create_trial(state=TrialState.FAIL, user_attrs=_attributes(rung, promotes))


def _attributes(rung: int, promotes: int | None) -> dict[str, object]:
    return {"rung": rung, "promotes": promotes} if promotes is not None else {}


def of(*trials: Made) -> list[TrialRecord]:
    """Return trials numbered from 0."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return records(study)


def promoted(found: TrialRecord | Step) -> int:
    assert isinstance(found, TrialRecord)
    return found.number


def test_promotion_nobody_waits_for_a_rung_to_fill() -> None:
    running = [going("RUNNING")] * 15
    assert LADDER.next(of(*running)) is Step.ASK
    assert LADDER.next(of(*running, going("RUNNING"))) is Step.WAIT  # all graphs are drawn
    assert LADDER.next(of(*running, going("WAITING"))) is Step.ASK


def test_promotion_best_quarter_goes_up_and_of_equal_ones_the_earliest() -> None:
    assert LADDER.next(of(*map(complete, (1, 2, 3)))) is Step.ASK
    assert promoted(LADDER.next(of(*map(complete, (1, 9, 3, 9))))) == 1
    eight = [*map(complete, (1, 9, 3, 9, 5, 5, 5, 5)), going("RUNNING", 1, 1)]
    assert promoted(LADDER.next(of(*eight))) == 3
    assert LADDER.next(of(*eight, going("WAITING", 1, 3))) is Step.ASK


def test_promotion_highest_rung_comes_first() -> None:
    first = [*map(complete, range(16)), *(complete(50 + n, 1, n) for n in (15, 14, 13))]
    assert promoted(LADDER.next(of(*first))) == 12
    second = [*first[:-1], complete(0, 1, 13), complete(0, 1, 12)]
    assert promoted(LADDER.next(of(*second))) == 16  # the trial that promotes trial 15
    better = [*second, complete(99)]
    assert promoted(LADDER.next(of(*better))) == 16  # though a new one has come to the first rung


def test_promotion_failed_trials_are_no_base_and_are_not_tried_again() -> None:
    assert LADDER.next(of(failed(), *map(complete, (1, 2, 3)))) is Step.ASK
    four = [*map(complete, (1, 2, 3, 4)), failed(1, 3)]
    assert LADDER.next(of(*four)) is Step.ASK


def test_promotion_of_a_dead_worker_is_made_again_but_not_for_ever() -> None:
    four = list(map(complete, (1, 2, 3, 4)))
    assert promoted(LADDER.next(of(*four, *[dead(1, 3)] * 3))) == 3
    assert LADDER.next(of(*four, *[dead(1, 3)] * 4)) is Step.ASK


def test_promotion_best_graph_goes_up_to_the_top_though_there_are_too_few() -> None:
    ladder = Ladder((5, 10, 20), 4, graphs=3)
    three = list(map(complete, (1, 3, 2)))
    assert promoted(ladder.next(of(*three))) == 1
    assert ladder.next(of(*three, going("RUNNING", 1, 1))) is Step.WAIT
    assert promoted(ladder.next(of(*three, failed(1, 1)))) == 2  # the next best
    up = [*three, complete(7, 1, 1)]
    assert promoted(ladder.next(of(*up))) == 3
    assert promoted(ladder.next(of(*up, failed(2, 3)))) == 2
    assert ladder.next(of(*up, complete(8, 2, 3))) is Step.END
    assert ladder.next(of(*[failed()] * 3)) is Step.END


def test_promotion_goes_on_when_there_is_nothing_left_to_draw() -> None:
    four = of(*map(complete, (1, 2, 3, 4)))
    assert promoted(LADDER.next(four, draws=False)) == 3
    assert promoted(LADDER.next(four[:1], draws=False)) == 0


@pytest.mark.parametrize("budget, graphs", [(35, 1), (39, 1), (40, 2), (55, 5), (60, 6), (84, 8)])
def test_promotion_draws_as_many_graphs_as_their_promotions_leave_room_for(
    budget: int, graphs: int
) -> None:
    """Eight graphs at 5 epochs are 40, their best two at 10 are 20, the best of these at 20."""
    ladder = Ladder((5, 10, 20), 4, 100, budget)
    assert _run(ladder, lambda number: -float(number))[0] == graphs


@pytest.mark.parametrize("order", [float, lambda number: -float(number)])
@pytest.mark.parametrize("budget", [35, 100, 200, 435])
def test_promotion_stays_within_the_budget_and_ends_with_a_whole_training(
    budget: int, order: Callable[[int], float]
) -> None:
    """The worst order has each graph better than all before: as many as possible go up."""
    ladder = Ladder((5, 10, 20), 4, 10_000, budget)
    drawn, second, top = _run(ladder, order)
    assert top >= 1
    spent = 5 * drawn + 10 * second + 20 * top
    assert spent <= budget < spent + 35


def test_promotion_of_100_graphs_at_a_quarter_costs_43_whole_trainings() -> None:
    """If the best come first, nobody goes up in vain."""
    assert _run(Ladder((5, 10, 20), 4, 100), lambda number: -float(number)) == [100, 25, 6]


def _run(ladder: Ladder, value: Callable[[int], float]) -> list[int]:
    """Run a search with one worker; return how many trials each rung had."""
    made: list[Made] = []
    values: list[float] = []
    study = optuna.create_study(direction="maximize")
    while (step := ladder.next(records(study))) is not Step.END:
        if isinstance(step, TrialRecord):
            values.append(values[step.number])
            study.add_trial(complete(values[-1], step.rung + 1, step.number))
        else:
            values.append(value(len(made)))
            study.add_trial(complete(values[-1]))
            made.append(study.trials[-1])
    rungs = [trial.rung for trial in records(study)]
    return [rungs.count(rung) for rung in range(len(ladder.costs))]


def test_promotion_that_an_earlier_trial_makes_is_needless() -> None:
    four = list(map(complete, (1, 2, 3, 4)))
    twice = of(*four, going("RUNNING", 1, 3), going("RUNNING", 1, 3))
    assert [LADDER.is_needless(trial, twice) for trial in twice[4:]] == [False, True]
    again = of(*four, dead(1, 3), going("RUNNING", 1, 3))
    assert not LADDER.is_needless(again[5], again)


def test_promotion_draw_beyond_the_last_graph_is_needless() -> None:
    trials = of(*[going("RUNNING")] * 17)
    assert [LADDER.is_needless(trial, trials) for trial in trials[15:]] == [False, True]
