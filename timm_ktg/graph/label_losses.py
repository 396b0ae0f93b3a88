"""Losses on edges from the label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .losses import NodeOutput


def cross_entropy(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """Return H(y, p_t) for every sample: the KL divergence from a one-hot label (Eq. 1).

    Args:
        source: Not used; the labels are in `labels`.
        destination: The node that learns, logits [B, C].
        labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
        temperature: Always 1, because an edge from the label refuses any other.
        smoothing: Label smoothing in 0..1, as timm's.

    Returns:
        Losses [B] in float32.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, Eq. 1.
    """
    return F.cross_entropy(
        destination.logits.float(), labels, reduction="none", label_smoothing=smoothing
    )
