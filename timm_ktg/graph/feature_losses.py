"""Losses between the features at both ends of an edge: the outputs of its taps, in order."""

from __future__ import annotations

from math import inf
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .logit_losses import kl_div, separate
from .losses import NodeOutput, refuse_temperature

Direction = Literal["close", "apart"]
WINDOWS = (5, 3)  # sides of the windows that `attention_windows` looks into
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


def attention_windows(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    attention: Direction = "close",
    logits: Direction | None = None,
) -> Tensor:
    """Return how close, or how far apart, two attention maps are, for every sample.

    A map is sum_c |F_c|^2 [H, W], resized as in `attention`. It is compared as a whole and in two
    windows, 5 x 5 and 3 x 3, round the maximum of the source's map, each scaled to length 1 over
    its positions. `close` is the mean squared distance over the positions, `apart` the cosine,
    which drives two networks apart when it is minimized. The loss is the mean over the three.

    `logits` adds a loss of the logits: `close` KL, `apart` the loss `separate`. The authors search
    among six losses: logits alone, maps alone, or both, each close or apart.

    Args:
        source: The node that teaches, logits [B, C], features [B, C, H, W] of one tap, detached.
        destination: The node that learns, likewise.
        labels: Not used.
        temperature: T > 0 of the logits; 1 if there is no loss of the logits.
        attention: What to do with the maps.
        logits: What to do with the logits; None: nothing.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: The taps are no pair of feature maps, or an argument is out of its range.

    Reference:
        Okamoto et al., "Deep Ensemble Learning by Diverse Knowledge Distillation for Fine-Grained
        Object Classification", ECCV 2022.
    """
    name = "attention_windows"
    for what, found in (("attention", attention), ("logits", logits)):
        if found not in get_args(Direction) and (what, found) != ("logits", None):
            raise ValueError(f"{name}: {what} should be close or apart. Found {found}.")
    features = _only_pair(name, source, destination, (4,))
    of_maps = _window_losses(*features, apart=attention == "apart")
    if logits is None:
        refuse_temperature(name, temperature)
        return of_maps
    of_logits = kl_div if logits == "close" else separate
    return of_maps + of_logits(source, destination, labels, temperature=temperature)


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
        return _only_pair("srd", source, destination, (2, 4))


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
    size = _smaller(source, destination)
    difference = _attention_map(source, p, size) - _attention_map(destination, p, size)
    return difference.square().mean(-1)


def _window_losses(source: Tensor, destination: Tensor, apart: bool) -> Tensor:
    """Return the mean over the windows, [B]; see `attention_windows`."""
    size = _smaller(source, destination)
    maps = [_attention_map(each, 2, size).view(-1, *size) for each in (source, destination)]
    top = maps[0].flatten(1).argmax(-1)
    losses = []
    for side in (max(size), *WINDOWS):
        a, b = (F.normalize(_window(each, top, side).flatten(1)) for each in maps)
        losses.append((a * b).sum(-1) if apart else (a - b).square().mean(-1))
    return torch.stack(losses).mean(0)


def _window(maps: Tensor, top: Tensor, side: int) -> Tensor:
    """Return a window of each map [B, H, W] round a position, moved inside where it sticks out.

    Args:
        maps: The maps.
        top: [B] positions in the flattened maps.
        side: Height and width of the window, if the map is as large.
    """
    rows, columns = (min(side, length) for length in maps.shape[1:])
    row = (top // maps.shape[2] - rows // 2).clamp(0, maps.shape[1] - rows)
    column = (top % maps.shape[2] - columns // 2).clamp(0, maps.shape[2] - columns)
    every = torch.arange(len(maps), device=maps.device)
    return maps.unfold(1, rows, 1).unfold(2, columns, 1)[every, row, column]


def _only_pair(
    name: str, source: NodeOutput, destination: NodeOutput, dimensions: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the features of a loss that compares one tap at each end; see `_pairs`."""
    pairs = _pairs(name, source, destination, dimensions)
    if len(pairs) != 1:
        raise ValueError(f"{name} should get one tap at each end. Found {len(pairs)}.")
    return pairs[0]


def _smaller(source: Tensor, destination: Tensor) -> tuple[int, int]:
    (h_s, w_s), (h_t, w_t) = source.shape[2:], destination.shape[2:]
    return min(h_s, h_t), min(w_s, w_t)


def _attention_map(features: Tensor, p: float, size: tuple[int, int]) -> Tensor:
    """Return sum_c |F_c|^p, resized and scaled to length 1, [B, H * W]."""
    sums = torch.linalg.vector_norm(features.float(), p, dim=1).pow(p)
    return F.normalize(F.adaptive_avg_pool2d(sums, size).flatten(1))


def _pooled(features: Tensor) -> Tensor:
    """Return the mean over the positions, [B, C]."""
    features = features.float()
    return features.mean((2, 3)) if features.ndim == 4 else features
