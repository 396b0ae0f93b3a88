"""A shorter schedule: the same rates at the same shares of the epochs."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from timm_ktg.recipe.schedule import build_scheduler, epochs_of
from timm_ktg.recipe.train_config import TrainConfig


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
