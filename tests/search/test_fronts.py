"""Where accuracy meets cost: which trials are on the front, and which were ever the best."""

from datetime import datetime, timedelta
from typing import Any

from optuna.trial import TrialState, create_trial

from timm_ktg.search.cost_plots import cost_plots
from timm_ktg.search.fronts import IN_TRAINING, PER_IMAGE, best_so_far, front, points_of
from timm_ktg.search.trials import TrialRecord

START = datetime(2026, 1, 1)


def ended(
    number: int, value: float, flops: int | None, pruned: bool = False, at: int = 0
) -> TrialRecord:
    """A trial of 4 epochs that ended `at` seconds after the others began."""
    attributes: dict[str, Any] = {"epochs": 4}
    if flops is not None:
        attributes["cost"] = {"training_flops": flops * 10**9, "inference_flops": 10**6}
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE
    trial = create_trial(
        state=state, value=value, intermediate_values={4: value}, user_attrs=attributes
    )
    trial.number, trial.datetime_complete = number, START + timedelta(seconds=at or number)
    return TrialRecord(trial)


def numbers(points: Any) -> list[int]:
    return [point.trial.number for point in points]


def test_front_has_what_no_cheaper_trial_beats() -> None:
    trials = [
        ended(0, 70.0, 5),
        ended(1, 60.0, 2, pruned=True),
        ended(2, 65.0, 7),  # dearer and worse than trial 0
        ended(3, 70.0, 6),  # dearer and as good
        ended(4, 80.0, 9),
        ended(5, 75.0, 9),  # as dear and worse
        ended(6, 99.0, None),  # of an earlier version
    ]
    points = points_of(trials, IN_TRAINING)
    assert numbers(points) == [0, 1, 2, 3, 4, 5]
    assert numbers(front(points)) == [1, 0, 4]
    assert [point.cost for point in front(points)] == [2, 5, 9]


def test_front_of_one_inference_cost_is_its_best_trial() -> None:
    trials = [ended(0, 70.0, 5), ended(1, 72.0, 2)]
    assert numbers(front(points_of(trials, PER_IMAGE))) == [1]


def test_best_so_far_goes_by_when_trials_ended_and_counts_all_epochs() -> None:
    trials = [
        ended(0, 70.0, 5, at=3),
        ended(1, 60.0, 5, at=1),
        ended(2, 99.0, 5, pruned=True, at=2),  # no result of a whole trial
        ended(3, 65.0, 5, at=4),
        ended(4, 80.0, None, at=5),
    ]
    best = best_so_far(trials)
    assert numbers(best) == [1, 0, 4]
    assert [point.cost for point in best] == [4, 12, 20]


def test_plots_that_compare_nothing_are_left_out() -> None:
    assert cost_plots([]) == {}
    earlier = cost_plots([ended(0, 70.0, None), ended(1, 60.0, None)])
    assert list(earlier) == ["best-so-far"]
    trials = [ended(0, 70.0, 5), ended(1, 72.0, 2), ended(2, 60.0, 3, pruned=True)]
    plots = cost_plots(trials)
    assert list(plots) == ["front-training", "best-so-far"]
    assert [trace.name for trace in plots["front-training"].data] == [
        *("pruned", "complete", "no cheaper trial is better"),
    ]
    assert list(plots["best-so-far"].data[0].x) == [4, 8, 12]
