"""What an edge measures: functions of two nodes' outputs and the labels, to one loss a sample [B].

A loss has the form `loss(source, destination, labels, *, temperature, ...) -> [B]`, where `source`
and `destination` are `NodeOutput`s and the source is detached. A loss with parameters of its own is
a class of modules whose `forward` has that form; see `Registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from .registry import Registry


class NodeOutput(NamedTuple):
    """What a node makes of a batch.

    Args:
        logits: [B, C]. For the label: the one-hot [B, C], or the mixed labels themselves.
        features: Outputs of the node's taps by module name; empty without taps.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = {}

    def detach(self) -> NodeOutput:
        """Return the same output, cut from the graph of autograd."""
        features = {name: value.detach() for name, value in self.features.items()}
        return NodeOutput(self.logits.detach(), features)


class EdgeLoss(Protocol):
    """Measures how far the destination is from the source, sample by sample."""

    def __call__(
        self, source: NodeOutput, destination: NodeOutput, labels: Tensor, /, *, temperature: float
    ) -> Tensor:
        """Return the losses [B] in float32."""


def problem_of(values: Any, batch: int, attached: bool) -> str | None:
    """Say what should have been returned for a batch and what was, if that is wrong.

    Looks at no values, so that it costs a training step no synchronisation with the device.

    Args:
        values: What a loss or a gate returned.
        batch: B.
        attached: Whether gradients should flow through it.
    """
    if not isinstance(values, Tensor):
        return f"a tensor. Found {type(values).__name__}"
    if values.shape != (batch,):
        return f"one loss a sample [{batch}]. Found {list(values.shape)}"
    if not values.is_floating_point():
        return f"floating-point numbers. Found {values.dtype}"
    if attached and not values.requires_grad:
        return "losses that gradients flow through. Found an output detached from them"
    return None


def cross_entropy(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """Return H(y, p_t) of every sample; the KL divergence from a one-hot label (Eq. 1).

    Args:
        source: Not used; the labels are in `labels`.
        destination: The node that learns, logits [B, C].
        labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
        temperature: Always 1; the graph refuses another one on an edge from the label.
        smoothing: Label smoothing in 0..1, as timm's.

    Returns:
        Losses [B] in float32.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, Eq. 1.
    """
    return F.cross_entropy(
        destination.logits.float(), labels, reduction="none", label_smoothing=smoothing
    )


def kl_div(
    source: NodeOutput, destination: NodeOutput, labels: Tensor, *, temperature: float
) -> Tensor:
    """Return T^2 KL(p_s || p_t) = T^2 sum_c p_s (log p_s - log p_t) of every sample (Eq. 1).

    The factor T^2 keeps the gradients' scale when T changes (Hinton et al. 2015, Sec. 2). Computed
    in float32 from the log-softmax of both, whatever the autocast.

    Args:
        source: The node that teaches, logits [B, C], detached.
        destination: The node that learns, logits [B, C].
        labels: Not used.
        temperature: T > 0.

    Returns:
        Losses [B] in float32.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, Eq. 1.
    """
    log_p_s = F.log_softmax(source.logits.float() / temperature, dim=-1)
    log_p_t = F.log_softmax(destination.logits.float() / temperature, dim=-1)
    divergence = F.kl_div(log_p_t, log_p_s, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2


registry = Registry(
    "loss", "timm_ktg.losses", data=("source", "destination", "labels"), call=("temperature",)
)
register_loss, list_losses, create_loss = registry.register, registry.names, registry.create
