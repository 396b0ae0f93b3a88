"""The clock of a run in a user's training loop: counts the optimizer's updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class Clock:
    """Counts the updates of an optimizer, so that gates know the progress of the run.

    Args:
        optimizer: The optimizer, or accelerate's wrapper of it.
        total_updates: k_end, the updates of the whole run.
        then: Called with the number of each update after it, from 1.

    Raises:
        ValueError: `total_updates` is not positive.
    """

    def __init__(
        self, optimizer: Optimizer, total_updates: int, then: Callable[[int], None] | None = None
    ) -> None:
        if total_updates < 1:
            raise ValueError(f"total_updates should be at least 1. Found {total_updates}.")
        self.updates = 0
        self.total_updates = total_updates
        self._then = then
        # accelerate's optimizer takes no hooks, but the one inside it does.
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
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

    def _advance(self, *_: Any) -> None:
        self.updates += 1
        if self._then is not None:
            self._then(self.updates)
