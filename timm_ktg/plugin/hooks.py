"""Hooks on the model of a user's loop, and the autocast that it runs under."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Hook:
    """A hook that does nothing in a copy of its module.

    A bound method would take its whole object along whenever the model is copied (timm's
    `ModelEmaV3`) or pickled.

    Args:
        call: What the hook calls; None: nothing.
    """

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    @property
    def works(self) -> bool:
        """Whether it calls anything."""
        return self._call is not None

    def __call__(self, *arguments: Any) -> None:
        """Pass on what torch gives to the hook."""
        if self._call is not None:
            self._call(*arguments)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        """Tell `copy` and `pickle` to make an idle hook."""
        return Hook, ()


def autocast_now(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that brings back the autocast of this moment.

    Args:
        device: A device of the kind that computes.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(
        kind,
        torch.get_autocast_dtype(kind),
        torch.is_autocast_enabled(kind),
        torch.is_autocast_cache_enabled(),
    )
