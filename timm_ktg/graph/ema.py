"""An exponential moving average of a network that learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .node import Network, Node, Place
from .topology import EMA, Traits


@dataclass(frozen=True)
class Ema:
    """A slow copy of a network that learns; it can teach (mean teacher), and it can be the target.

    Its weights w follow those of the network, v: after every update, w <- d w + (1 - d) v, for
    floating-point buffers as well; other buffers are copied. It is always in evaluation mode.
    Decay and warm-up have the meaning of timm's ModelEmaV3, so the first update copies the network.

    Args:
        name: A letter, then letters, digits and `_`.
        source: Name of the network.
        decay: d in 0..1, below 1.
        warmup: Whether the decay grows to `decay` as 1 - k^(-2/3) with the number k of updates.

    Raises:
        ValueError: The decay is out of its range.

    Reference:
        Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """

    name: str
    source: str
    decay: float = 0.9998
    warmup: bool = False

    def __post_init__(self) -> None:
        """Check the decay."""
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"nodes.{self.name}.decay: should be at least 0 and below 1. Found {self.decay}."
            )

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""
        return Traits(self.name, needs=(self.source,), kind=EMA)

    def at_work(self, place: Place, others: Mapping[str, nn.Module]) -> Network:
        """Return a copy of the source's module that does not learn."""
        source = others[self.source]
        assert isinstance(source, Network)
        node = Node(
            self.name,
            source.copied_model(),
            mean=source.mean,
            std=source.std,
            img_size=source.size,
            heads=source.heads,
        )
        return Network(node, Place(True, place.mean, place.std, place.taps))

    def decay_at(self, update: float | Tensor) -> float | Tensor:
        """Return d at an update.

        Args:
            update: Number k of the update, from 1.

        Reference:
            `timm.utils.ModelEmaV3.get_decay`, where the first update copies, too.
        """
        if isinstance(update, Tensor):
            warm = 1 - update.double() ** (-2 / 3)
            decay = warm.clamp(max=self.decay) if self.warmup else torch.full_like(warm, self.decay)
            return torch.where(update > 1, decay, 0.0)
        if update <= 1:
            return 0.0
        return min(1 - update ** (-2 / 3), self.decay) if self.warmup else self.decay

    @torch.no_grad()
    def follow(self, source: nn.Module, average: nn.Module, update: float | Tensor) -> None:
        """Move the average towards the network, after an update.

        Args:
            source: The network's model.
            average: This node's model.
            update: Number k of the update, from 1; a tensor if the update is recorded.
        """
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for own, theirs in (
            *zip(average.parameters(), source.parameters(), strict=True),
            *zip(average.buffers(), source.buffers(), strict=True),
        ):
            if own.is_floating_point():
                averages.append(own)
                values.append(theirs)
            else:
                own.copy_(theirs)
        weight = 1 - self.decay_at(update)
        if isinstance(weight, Tensor):
            for own, theirs in zip(averages, values, strict=True):
                own.lerp_(theirs, weight.to(own.dtype))
        else:
            torch._foreach_lerp_(averages, values, weight)
        average.eval()  # some of timm's models cache what they make from their weights until then
