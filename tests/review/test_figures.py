"""The figures of a page stay within what they show."""

import re
from datetime import datetime, timedelta
from importlib import resources

from optuna.trial import create_trial

from timm_ktg.records.sample import Sample
from timm_ktg.review.figures import samples_figure
from timm_ktg.review.study_data import StudyData
from timm_ktg.review.study_page import _tiles
from timm_ktg.search.trials import TrialRecord

SPENT = ("complete", "pruned", "failed", "epochs", "epochs without pruning")
SPENT += ("duplicates avoided", "invalid graphs drawn again")


def test_accuracy_has_no_bar_and_no_axis_beyond_all_or_none() -> None:
    samples = {"high": Sample((60.0, 100.0, 100.0)), "low": Sample((0.0, 0.0, 50.0))}
    svg = samples_figure(samples, "test top-1 %", "Accuracy").svg
    ticks = [float(text) for text in re.findall(r">(-?\d+)</text>", svg.replace("−", "-"))]
    assert min(ticks) == 0 and max(ticks) == 100


def tile_of(seconds: float) -> tuple[str, str]:
    trial = create_trial(value=90.0)
    trial.datetime_start = datetime(2025, 1, 1)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    spent = dict.fromkeys(SPENT, 1)
    study = StudyData("s", {}, (TrialRecord(trial),), 1, spent, {"rows": []})
    [tile] = [tile for tile in _tiles(study) if tile[1].endswith("of workers")]
    return tile


def test_hours_of_workers_are_minutes_where_they_are_few() -> None:
    assert tile_of(90.0) == ("1.5", "minutes of workers")
    assert tile_of(5400.0) == ("1.50", "hours of workers")


def test_the_column_of_edges_is_the_widest() -> None:
    style = resources.files("timm_ktg.review").joinpath("page", "page.css").read_text("utf-8")
    rules = dict(re.findall(r"^(\.trials td\S+) \{ min-width: (\d\d)rem; \}$", style, re.M))
    assert list(rules.values()) == ["12", "22"]
    one, other = (selector.count(":") for selector in rules)  # the more, the stronger
    assert one == other  # so the last rule is applied
