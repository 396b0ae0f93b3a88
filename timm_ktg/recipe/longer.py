"""A run that goes on for other epochs than it was begun with."""

from __future__ import annotations

import torch

from ..graph.gates import create_gate, follows_progress
from .recipe import Recipe
from .schedule import build_scheduler, epochs_of
from .train_config import TrainConfig

OTHERWISE = "Start a new run from the weights of this one: --from."


def longer_problem(before: TrainConfig, recipe: Recipe, done: int) -> str | None:
    """Return why a run cannot go on for other epochs; None: it can.

    It can if it would have come to the same point with these epochs from the start, so its recipe
    still repeats it.

    Args:
        before: The section `train` that the run was trained with so far.
        recipe: The recipe with the other epochs.
        done: The epochs done.
    """
    train = recipe.train
    if epochs_of(train) < done:
        return f"should be {done} or more, the epochs done. Found {train.epochs}."
    if recipe.graph.trained_first:
        reason = "the run trained teachers for as many epochs first"
        return f"should stay {before.epochs}, because {reason}. {OTHERWISE}"
    for link, edge in recipe.graph.edges.items():
        if follows_progress(create_gate(edge.gate, **edge.gate_kwargs)):
            reason = f"the gate `{edge.gate}` of {link.name} depends on how long the run is"
            return f"should stay {before.epochs}, because {reason}. {OTHERWISE}"
    if _rates(before, done) != _rates(train, done):
        rates = f"the {done} epochs done would have had other learning rates"
        reason = f"with a {train.sched} schedule over {train.epochs} epochs, {rates}"
        return f"should stay {before.epochs}: {reason}. {OTHERWISE}"
    return None


def _rates(train: TrainConfig, done: int) -> list[float]:
    """Return the learning rate of each epoch done, and of the next."""
    optimizer = torch.optim.SGD([torch.zeros(())], lr=train.learning_rate)
    scheduler, _ = build_scheduler(train, optimizer, updates_per_epoch=1)
    rates = []
    for epoch in range(1, done + 2):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
        scheduler.step_update(epoch)
    return rates
