"""Losses: functions that map two nodes' outputs and the labels to one loss per sample [B].

A loss has the form `loss(source, destination, labels, *, temperature, ...) -> [B]`, where `source`
and `destination` are `NodeOutput`s and the source is detached. A loss with parameters of its own is
a module class whose `forward` has that form; see `Registry`. Our own losses are in `label_losses`,
`logit_losses` and `feature_losses`, and are registered as entry points, like anybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch.nn.functional as F
from torch import Tensor

from .registry import Bound, Registry

L = TypeVar("L", bound=Callable[..., Tensor])


class NodeOutput(NamedTuple):
    """A node's output for a batch.

    Args:
        logits: [B, C]. For the label: the one-hot [B, C], or the mixed labels themselves.
        features: Outputs of the node's taps by module name; empty without taps.
        heads: Further logits [B, C] by the name of the head, of a model that has several.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = {}
    heads: Mapping[str, Tensor] = {}

    def log_probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return log softmax(z / T) [B, C] in float32, whatever the type of the logits.

        Args:
            temperature: T > 0.
        """
        return F.log_softmax(self.logits.float() / temperature, dim=-1)

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return softmax(z / T) [B, C] in float32.

        Args:
            temperature: T > 0.
        """
        return self.log_probabilities(temperature).exp()

    def detach(self) -> NodeOutput:
        """Return the same output, detached from autograd's graph."""
        features = {name: value.detach() for name, value in self.features.items()}
        heads = {name: value.detach() for name, value in self.heads.items()}
        return NodeOutput(self.logits.detach(), features, heads)


class EdgeLoss(Protocol):
    """Measures how far the destination is from the source, sample by sample."""

    def __call__(
        self, source: NodeOutput, destination: NodeOutput, labels: Tensor, /, *, temperature: float
    ) -> Tensor:
        """Return the losses [B] in float32."""


def problem_of(values: Any, shape: tuple[int, ...], attached: bool) -> str | None:
    """Return what should have been returned and what was found; None if it is right.

    Reads no values, so a training step need not synchronize with the device.

    Args:
        values: The return value of a loss or a gate.
        shape: (B,), or (E, B) for several edges at once.
        attached: Whether gradients should flow through it.
    """
    if not isinstance(values, Tensor):
        return f"a tensor. Found {type(values).__name__}"
    if values.shape != shape:
        return f"one loss per sample {list(shape)}. Found {list(values.shape)}"
    if not values.is_floating_point():
        return f"floating-point numbers. Found {values.dtype}"
    if attached and not values.requires_grad:
        return "losses that gradients flow through. Found an output detached from them"
    return None


def stackable(loss: L) -> L:
    """Mark a loss that can compute several edges at once; usable as a decorator.

    The graph calls it once for all E edges with the same arguments and temperature. Such a loss
    reads the outputs only through `NodeOutput.log_probabilities` and `probabilities`, which are
    then [E, B, C], and returns losses [E, B].
    """
    loss.stackable = True  # type: ignore[attr-defined]
    return loss


def ignores_taps(loss: EdgeLoss | None) -> bool:
    """Return whether a loss reads logits alone, so that taps would have no effect."""
    return getattr(loss.function if isinstance(loss, Bound) else loss, "stackable", False)


def between_networks(loss: L) -> L:
    """Mark a loss that compares two networks' logits, which the label has none of; a decorator.

    An edge from the label refuses it.
    """
    loss.between_networks = True  # type: ignore[attr-defined]
    return loss


def check_smoothing(name: str, smoothing: float) -> None:
    """Raise ValueError if label smoothing is not in 0..1.

    Args:
        name: The loss.
        smoothing: Label smoothing.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{name}: smoothing should be in 0..1. Found {smoothing}.")


def refuse_temperature(name: str, temperature: float) -> None:
    """Raise ValueError if there is a temperature, for losses that would not use it.

    Args:
        name: The loss.
        temperature: T of the edge.
    """
    if temperature != 1:
        raise ValueError(f"{name} should have temperature 1. Found {temperature}.")


registry = Registry(
    "loss", "timm_ktg.losses", data=("source", "destination", "labels"), call=("temperature",)
)
register_loss, list_losses, create_loss = registry.register, registry.names, registry.create
