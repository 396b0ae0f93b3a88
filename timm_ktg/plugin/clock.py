"""The clock of a run in a user's training loop: counts the optimizer's updates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.optim import Lookahead
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

Owners = Mapping[str, Sequence[nn.Parameter]]


def check_optimizer(optimizer: Optimizer, owners: Owners) -> None:
    """Raise ValueError if an optimizer lacks the parameters of a node that need gradients.

    Args:
        optimizer: The optimizer.
        owners: Parameters by the name of the node.
    """
    held = _held(optimizer)
    for name, parameters in owners.items():
        if any(each.requires_grad and id(each) not in held for each in parameters):
            raise ValueError(
                f"The optimizer should hold the parameters of the whole graph. Found node "
                f"`{name}` left out; make it with create_optimizer_v2(graph, ...)."
            )


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


class Clock:
    """Counts the updates of an optimizer, so that gates know the progress of the run.

    Args:
        optimizer: The optimizer, or accelerate's wrapper of it. Or the parameters of each node, if
            there is no optimizer yet: then it is found at its first update.
        total_updates: k_end, the updates of the whole run.
        then: Called with the number of each update after it, from 1.

    Raises:
        ValueError: `total_updates` is not positive.
    """

    def __init__(
        self,
        optimizer: Optimizer | Owners,
        total_updates: int,
        then: Callable[[int], None] | None = None,
    ) -> None:
        if total_updates < 1:
            raise ValueError(f"total_updates should be at least 1. Found {total_updates}.")
        self.updates = 0
        self._handle: RemovableHandle
        self.total_updates = total_updates
        self._then = then
        if isinstance(optimizer, Mapping):
            self._owners = optimizer
            # The hook is torch's, for all optimizers, and should not keep a clock that is not used.
            found = weakref.WeakMethod(self._find)
            self._handle = register_optimizer_step_post_hook(
                lambda stepped, *_: find(stepped) if (find := found()) else None
            )
            weakref.finalize(self, self._handle.remove)
            return
        # accelerate's optimizer takes no hooks, but the one inside it does.
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
        if isinstance(inner, Lookahead):  # it skips torch's constructor, so no step calls hooks yet
            inner.__setstate__({})
        self._handle = inner.register_step_post_hook(self._advance)

    @property
    def progress(self) -> float:
        """Share k / k_end of the run done, including the current update; 1 at the end.

        Raises:
            ValueError: The run is longer than `total_updates`.
        """
        update = self.updates + 1
        if update > self.total_updates:
            raise ValueError(
                f"total_updates should be the updates of the whole run. Found "
                f"{self.total_updates}, and update {update} is being computed."
            )
        return update / self.total_updates

    def stop(self) -> None:
        """Remove the hook from the optimizer."""
        self._handle.remove()

    def _find(self, optimizer: Optimizer) -> None:
        """Count the update of an optimizer, and its later ones, if it is the graph's.

        Raises:
            ValueError: It lacks the parameters of a node.
        """
        held = _held(optimizer)
        if any(id(each) in held for parameters in self._owners.values() for each in parameters):
            check_optimizer(optimizer, self._owners)
            self.stop()
            self._handle = optimizer.register_step_post_hook(self._advance)
            self._advance()

    def _advance(self, *_: Any) -> None:
        self.updates += 1
        if self._then is not None:
            self._then(self.updates)
