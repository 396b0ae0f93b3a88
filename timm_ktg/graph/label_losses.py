"""Losses on edges from the label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import NodeOutput, check_smoothing, refuse_temperature, stackable

JSD_SPLITS = 3  # views of an image, as in AugMix


@stackable
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
        temperature: Should be 1, because the label has none.
        smoothing: Label smoothing in 0..1, as timm's.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: There is a temperature, or the smoothing is out of its range.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, Eq. 1.
    """
    refuse_temperature("cross_entropy", temperature)
    check_smoothing("cross_entropy", smoothing)
    log_p_t = destination.log_probabilities()
    if labels.ndim == 1:
        own = log_p_t.gather(-1, labels.expand(log_p_t.shape[:-1])[..., None])[..., 0]
    else:
        own = (labels * log_p_t).sum(-1)
    return (smoothing - 1) * own - smoothing * log_p_t.mean(-1) if smoothing else -own


def jsd(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    splits: int = JSD_SPLITS,
    alpha: float = 12.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of an image's clean view, plus the divergence between its views.

    A batch has S views of B images: the clean view of every image, then the second view of every
    image, and so on (`data.aug_splits`). All views of an image get the same loss,
    H(y, p_1) + alpha JSD(p_1, ..., p_S), so the mean over the batch is that of
    `timm.loss.JsdCrossEntropy` with the same arguments.

    Args:
        source: Not used; the labels are in `labels`.
        destination: The node that learns, logits [S B, C].
        labels: Class indices [S B].
        temperature: Should be 1, because the label has none.
        splits: Views S of an image, at least 2.
        alpha: Factor of the Jensen-Shannon divergence.
        smoothing: Label smoothing in 0..1. timm's own default is 0.1.

    Returns:
        Losses [S B] in float32.

    Raises:
        ValueError: The batch cannot have that many views of each image, there is a temperature, or
            the smoothing is out of its range.

    Reference:
        Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and
        Uncertainty", ICLR 2020.
    """
    if splits < 2 or len(labels) % splits:
        raise ValueError(
            f"jsd: a batch should have {splits} views of each image, at least 2. Found "
            f"{len(labels)} images and views."
        )
    refuse_temperature("jsd", temperature)
    check_smoothing("jsd", smoothing)
    clean = NodeOutput(destination.logits[: len(labels) // splits])
    own = cross_entropy(
        source, clean, labels[: len(clean.logits)], temperature=1, smoothing=smoothing
    )
    views = torch.stack(destination.log_probabilities().chunk(splits))
    mixture = views.exp().mean(0).clamp(1e-7, 1).log()
    apart = (views.exp() * (views - mixture)).sum(-1).mean(0)
    return (own + alpha * apart).repeat(splits)


def bce(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Return the binary cross-entropy of every sample, each class against the rest, as timm's.

    The mean over the samples is `timm.loss.BinaryCrossEntropy` with the same arguments. Like there,
    `smoothing` is for class indices only, because mixed labels come smoothed already.

    The mean over C classes has a gradient C times smaller than their sum, so with SGD a learning
    rate that suits `cross_entropy` may be far too low for it; `sum_classes` is closer.

    Args:
        source: Not used; the labels are in `labels`.
        destination: The node that learns, logits [B, C].
        labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
        temperature: Should be 1, because the label has none.
        smoothing: Label smoothing in 0..1 of class indices.
        target_threshold: Labels above it, after smoothing, become 1 and the others 0; None: they
            stay as they are.
        sum_classes: Whether the classes are added up; otherwise they are averaged.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: There is a temperature, or the smoothing is out of its range.

    Reference:
        Wightman et al., "ResNet strikes back: An improved training procedure in timm", 2021.
    """
    refuse_temperature("bce", temperature)
    check_smoothing("bce", smoothing)
    logits = destination.logits.float()
    targets = labels.float()
    if labels.ndim == 1:
        one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
        targets = (1 - smoothing) * one_hot + smoothing / logits.shape[-1]
    if target_threshold is not None:
        targets = (targets > target_threshold).float()
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.sum(-1) if sum_classes else losses.mean(-1)
