"""Losses between the logits of two networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .losses import NodeOutput, stackable


@stackable
def kl_div(
    source: NodeOutput, destination: NodeOutput, labels: Tensor, *, temperature: float
) -> Tensor:
    """Return T^2 KL(p_s || p_t) = T^2 sum_c p_s (log p_s - log p_t) for every sample (Eq. 1).

    The factor T^2 keeps the gradients' scale when T changes (Hinton et al. 2015, Sec. 2). The
    loss is computed in float32 from the log-softmax of both, even under autocast.

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
    log_p_s = source.log_probabilities(temperature)
    log_p_t = destination.log_probabilities(temperature)
    divergence = F.kl_div(log_p_t, log_p_s, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2
