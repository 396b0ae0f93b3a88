"""The schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from timm.scheduler import create_scheduler_v2
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..errors import located
from .train_config import PLATEAU, TrainConfig


class Schedule(Protocol):
    """Changes the learning rates of an optimizer, as timm's schedulers do."""

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Set the rates after so many epochs."""

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the rates after so many updates."""


class Plateau:
    """Lowers the learning rate when a metric has stopped rising.

    The rates are those of timm's scheduler, which timm has deprecated because it does not save its
    state. This one has a state, so that a resumed run goes on as if nothing had happened.

    Args:
        train: The section of the recipe.
        optimizer: The optimizer.
    """

    def __init__(self, train: TrainConfig, optimizer: torch.optim.Optimizer) -> None:
        self._first, self._warmup = train.warmup_lr, train.warmup_epochs
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._bases = [group["initial_lr"] for group in optimizer.param_groups]
        self._rule = ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=train.decay_rate,
            patience=train.patience_epochs,
            min_lr=train.min_lr,
        )
        self._set([self._first] * len(self._bases) if self._warmup else self._bases)

    @property
    def state(self) -> tuple[float, int]:
        """The best metric so far, and the number of epochs since then."""
        return self._rule.best, self._rule.num_bad_epochs

    def load(self, state: tuple[float, int]) -> None:
        """Go on from a state; the rates themselves are the optimizer's."""
        self._rule.best, self._rule.num_bad_epochs = state

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Raise the rates in the warm-up; afterwards, lower them if the metric says so.

        Args:
            epoch: The number of epochs done.
            metric: What the epoch has reached; None: not known yet.
        """
        if epoch <= self._warmup:
            steps = ((base - self._first) / self._warmup for base in self._bases)
            self._set([self._first + epoch * step for step in steps])
        elif metric is not None:
            self._rule.step(metric)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Do nothing, because only epochs have a metric."""

    def _set(self, rates: Sequence[float]) -> None:
        # The optimizer makes new groups whenever it loads a state, as it does for accelerate.
        for group, rate in zip(self._rule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * group.get("lr_scale", 1.0)


def build_scheduler(
    train: TrainConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Schedule, int]:
    """Return the schedule and the number of epochs, warm-up and cool-down included.

    Raises:
        RecipeError: The schedule's lengths do not fit together.
    """
    if train.sched == PLATEAU:
        return Plateau(train, optimizer), train.epochs
    with located("train.sched"):
        built: tuple[Schedule, int] = create_scheduler_v2(
            optimizer,
            sched=train.sched,
            num_epochs=train.epochs,
            decay_epochs=train.decay_epochs,
            decay_milestones=train.decay_milestones,
            cooldown_epochs=train.cooldown_epochs,
            decay_rate=train.decay_rate,
            min_lr=train.min_lr,
            warmup_lr=train.warmup_lr,
            warmup_epochs=train.warmup_epochs,
            warmup_prefix=train.warmup_prefix,
            noise=train.lr_noise,  # type: ignore[arg-type] # its default is None
            noise_pct=train.lr_noise_pct,
            noise_std=train.lr_noise_std,
            noise_seed=train.seed,
            cycle_mul=train.lr_cycle_mul,
            cycle_decay=train.lr_cycle_decay,
            cycle_limit=train.lr_cycle_limit,
            k_decay=train.lr_k_decay,
            step_on_epochs=not train.sched_on_updates,
            updates_per_epoch=updates_per_epoch,
        )
        return built


def epochs_of(train: TrainConfig) -> int:
    """Return the number of epochs of a whole training, warm-up and cool-down included."""
    nothing = torch.optim.SGD([torch.zeros(())], lr=train.learning_rate)
    return build_scheduler(train, nothing, updates_per_epoch=1)[1]
