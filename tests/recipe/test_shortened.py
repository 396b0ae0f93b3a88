"""A shorter schedule: the same rates at the same shares of the epochs."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from optuna.trial import create_trial

from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.recipe import check_section
from timm_ktg.recipe.schedule import build_scheduler, epochs_of
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.recipe.train_config import TrainConfig
from timm_ktg.search.canonical import all_through
from timm_ktg.search.methods import build_method
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.trials import TrialRecord


def rates(train: TrainConfig) -> list[float]:
    """Return the learning rate of every epoch."""
    optimizer = torch.optim.SGD([torch.zeros(())], lr=train.lr)
    scheduler, epochs = build_scheduler(train, optimizer, updates_per_epoch=1)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    return found


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 200, "decay_epochs": 60},
        {"epochs": 80, "sched": "multistep", "decay_milestones": [41, 61, 73]},
        {"epochs": 80, "sched": "cosine"},
        {"epochs": 80, "sched": "wsd", "decay_epochs": 20},
        {"epochs": 80, "sched": "wsd", "decay_epochs": 0.25},
        {"epochs": 80, "sched": "cosine", "warmup_epochs": 8, "cooldown_epochs": 4},
    ],
)
def test_shortened_schedule_has_the_rates_of_the_whole_at_equal_shares(
    values: dict[str, Any], share: float
) -> None:
    whole = TrainConfig(**values)
    short, step = rates(whole.shortened(share)), round(1 / share)
    expected = rates(whole)[::step]
    assert len(short) == len(expected) == epochs_of(whole) * share
    warmup = round(whole.warmup_epochs * share)  # its steps are the same, but the first rate is not
    assert short[warmup:] == pytest.approx(expected[warmup:])
    assert all(low < high for low, high in pairwise(short[: warmup + 1]))


def test_shortened_schedule_rounds_halves_up_and_keeps_an_epoch() -> None:
    train = TrainConfig(epochs=10, sched="cosine", warmup_epochs=1, cooldown_epochs=2)
    assert [train.shortened(share).epochs for share in (0.01, 0.24, 0.25, 1)] == [1, 2, 3, 10]
    short = train.shortened(0.5)
    assert (short.warmup_epochs, short.cooldown_epochs) == (1, 1)
    assert TrainConfig(**train.shortened(0.5).model_dump()) == train.shortened(0.5)
    assert train.shortened(1) == train.model_copy(update={"decay_epochs": 60.0})


def test_shortened_training_mixes_for_as_large_a_part() -> None:
    data = DataConfig(mixup=0.2, mixup_off_epoch=15)
    offs = [data.shortened(share).mixup_off_epoch for share in (0.01, 0.1, 0.5, 1)]
    assert offs == [1, 2, 8, 15]
    assert DataConfig().shortened(0.5) == DataConfig()  # 0: it never ends
    recipe = check_section(
        SearchRecipe,
        {
            "search": {
                "nodes": 1,
                "target_model": "ktg_tiny",
                "method": "short_runs",
                "rungs": [0.1, 1.0],
            },
            "data": {"holdout": 100, "mixup": 0.2, "mixup_off_epoch": 15},
            "train": {"epochs": 20},
        },
    )
    whole = RecipeBuilder(recipe, lambda teacher: None, 0).recipe_of(all_through("ktg_tiny", ()))
    short, rungs = build_method(recipe).training(whole, TrialRecord(create_trial(value=1.0)))
    assert (short.train.epochs, short.data.mixup_off_epoch, rungs) == (2, 2, (2,))


def test_shortened_training_without_a_warm_up_has_no_settings_of_one() -> None:
    train = TrainConfig(epochs=40, warmup_epochs=2, warmup_lr=0.01, warmup_prefix=True)
    assert train.shortened(0.5).warmup_lr == 0.01
    short = train.shortened(0.1)
    assert (short.warmup_epochs, short.warmup_lr, short.warmup_prefix) == (0, 1e-5, False)
    assert TrainConfig(**short.model_dump()) == short


@pytest.mark.parametrize(("decay", "expected"), [(0.2, 0.2), (40, 4), (2, 1)])
def test_decay_at_the_end_that_is_a_share_stays_one_and_no_other_becomes_one(
    decay: float, expected: float
) -> None:
    train = TrainConfig(epochs=80, sched="wsd", decay_epochs=decay)
    assert train.shortened(0.1).decay_epochs == pytest.approx(expected)
