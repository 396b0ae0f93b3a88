"""Losses between the features at both ends of an edge: the outputs of its taps, in order."""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import NodeOutput, refuse_temperature

Pairs = list[tuple[Tensor, Tensor]]


def attention(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    p: float = 2.0,
) -> Tensor:
    """Return the squared distance of the two attention maps for every sample.

    A map is sum_c |F_c|^p [H, W], resized to the smaller of the two by adaptive average pooling,
    and scaled to length 1 over the positions. The loss is the mean over the positions, and over the
    pairs of taps if there are several.

    Eq. 2 of the paper has the distance itself, not its square, and no mean over the positions. The
    authors' code has both, as here, and adds up the pairs. Their weight is 1000 in these terms.

    Args:
        source: The node that teaches, features [B, C, H, W] of one or more taps, detached.
        destination: The node that learns, as many features [B, C', H', W'].
        labels: Not used.
        temperature: Should be 1, because features have none.
        p: Power, at least 1.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: The taps do not come in pairs of feature maps, p is out of its range, or there
            is a temperature.

    Reference:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, Sec. 3.1.
    """
    refuse_temperature("attention", temperature)
    if not 1 <= p < inf:  # below 1 the gradient at 0 is infinite
        raise ValueError(f"attention: p should be a number from 1. Found {p}.")
    return torch.stack(
        [_map_distances(s, t, p) for s, t in _pairs("attention", source, destination, (4,))]
    ).mean(0)


class Srd(nn.Module):
    """The log of the summed |difference|^alpha between normalized features, after a projection.

    The features are averaged over the positions. Those of the destination go through a linear layer
    to the source's width, which is trained with the destination; then BatchNorm without scale and
    shift is applied to both.

    The paper's loss is one number for the batch, L = log sum_n S_n with S_n = sum_c |d_nc|^alpha.
    Here row n gets L + B S_n / S - 1, with L and S = sum_n S_n held fixed. The mean over the rows
    has exactly L's value and gradient, and row n carries what sample n contributes to the
    gradient, so gates work. The batch is what one process sees in one forward.

    The authors' code for ImageNet is followed (its weight is 2). Their code for DeiT sums over the
    channels' correlations instead: |r_c - 1|^4, with r_c taken over the batch. The 1e-5 inside the
    logarithm is from there.

    Args:
        source: An example output of the node that teaches, with the features of one tap, [B, C] or
            [B, C, H, W].
        destination: An example output of the node that learns; its features may have another width.
        alpha: Power, at least 1.

    Raises:
        ValueError: There is not one tap at each end, its output is of another shape, or alpha is
            out of its range.

    Reference:
        Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation",
        AAAI 2024.
    """

    def __init__(self, source: NodeOutput, destination: NodeOutput, *, alpha: float = 4.0) -> None:
        super().__init__()
        if not 1 <= alpha < inf:  # below 1 the gradient at 0 is infinite
            raise ValueError(f"srd: alpha should be a number from 1. Found {alpha}.")
        features_s, features_t = self._features(source, destination)
        self.alpha = alpha
        self.projector = nn.Linear(features_t.shape[1], features_s.shape[1])
        self.norm_s = nn.BatchNorm1d(features_s.shape[1], eps=1e-4, affine=False)
        self.norm_t = nn.BatchNorm1d(features_s.shape[1], eps=1e-4, affine=False)

    def forward(
        self, source: NodeOutput, destination: NodeOutput, labels: Tensor, *, temperature: float
    ) -> Tensor:
        """Return the losses [B] in float32.

        Args:
            source: The node that teaches, detached.
            destination: The node that learns.
            labels: Not used.
            temperature: Should be 1, because features have none.

        Raises:
            ValueError: There is a temperature.
        """
        refuse_temperature("srd", temperature)
        features_s, features_t = self._features(source, destination)
        with torch.autocast(features_t.device.type, enabled=False):
            z_s = self.norm_s(_pooled(features_s))
            z_t = self.norm_t(self.projector(_pooled(features_t)))
        sums: Tensor = (z_t - z_s).abs().pow(self.alpha).sum(-1)
        fixed = sums.detach().sum()
        return (fixed + 1e-5).log() + (len(sums) * sums - fixed) / (fixed + 1e-5)

    def _features(self, source: NodeOutput, destination: NodeOutput) -> tuple[Tensor, Tensor]:
        pairs = _pairs("srd", source, destination, (2, 4))
        if len(pairs) != 1:
            raise ValueError(f"srd should get one tap at each end. Found {len(pairs)}.")
        return pairs[0]


def _pairs(
    name: str, source: NodeOutput, destination: NodeOutput, dimensions: tuple[int, ...]
) -> Pairs:
    """Return the features at both ends in pairs.

    Args:
        name: The loss, for messages.
        source: The node that teaches.
        destination: The node that learns.
        dimensions: How many dimensions the features may have.
    """
    ends = [list(each.features.values()) for each in (source, destination)]
    found = " and ".join(str([list(each.shape) for each in end]) for end in ends)
    if not ends[0] or len(ends[0]) != len(ends[1]):
        raise ValueError(
            f"{name} should get taps at both ends, equally many. Found features {found}."
        )
    if any(each.ndim not in dimensions for end in ends for each in end):
        forms = " or ".join({2: "[B, C]", 4: "[B, C, H, W]"}[each] for each in dimensions)
        raise ValueError(f"{name} should get features {forms}. Found features {found}.")
    return list(zip(*ends, strict=True))


def _map_distances(source: Tensor, destination: Tensor, p: float) -> Tensor:
    (h_s, w_s), (h_t, w_t) = source.shape[2:], destination.shape[2:]
    size = (min(h_s, h_t), min(w_s, w_t))
    difference = _attention_map(source, p, size) - _attention_map(destination, p, size)
    return difference.square().mean(-1)


def _attention_map(features: Tensor, p: float, size: tuple[int, int]) -> Tensor:
    """Return sum_c |F_c|^p, resized and scaled to length 1, [B, H * W]."""
    sums = torch.linalg.vector_norm(features.float(), p, dim=1).pow(p)
    return F.normalize(F.adaptive_avg_pool2d(sums, size).flatten(1))


def _pooled(features: Tensor) -> Tensor:
    """Return the mean over the positions, [B, C]."""
    features = features.float()
    return features.mean((2, 3)) if features.ndim == 4 else features
