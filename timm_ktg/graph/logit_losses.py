"""Losses between the logits of two networks.

All are stackable: they also take the logits of several edges at once, [E, B, C], and return [E, B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import (
    NodeOutput,
    between_networks,
    check_smoothing,
    refuse_temperature,
    stackable,
)


@stackable
@between_networks
def kl_div(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    standardize: bool = False,
) -> Tensor:
    """Return T^2 KL(p_s || p_t) = T^2 sum_c p_s (log p_s - log p_t) for every sample (Eq. 1).

    The factor T^2 keeps the gradients' scale when T changes (Hinton et al. 2015, Sec. 2). The
    loss is computed in float32 from the log-softmax of both, even under autocast.

    Args:
        source: The node that teaches, logits [B, C], detached.
        destination: The node that learns, logits [B, C].
        labels: Not used.
        temperature: T > 0.
        standardize: Whether the logits of both are first brought to mean 0 and standard deviation
            1 over the classes (Sun et al.). Their recipes for CIFAR-100 mostly use T = 2 and
            weight 9. As in their code, the deviation is the unbiased one, plus 1e-7.

    Returns:
        Losses [B] in float32.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020, Eq. 1.
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """
    if standardize:
        # Logits and log-probabilities differ by a shift, which standardizing takes away.
        log_p_s, log_p_t = (
            F.log_softmax(_z_scores(each.log_probabilities()) / temperature, dim=-1)
            for each in (source, destination)
        )
        return _divergence(log_p_s, log_p_t) * temperature**2
    difference = source.log_probabilities(temperature) - destination.log_probabilities(temperature)
    return (source.probabilities(temperature) * difference).sum(-1) * temperature**2


@stackable
@between_networks
def dkd(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD) for every sample: decoupled knowledge distillation.

    With y the label: TCKD = KL between the two (p_y, 1 - p_y), and NCKD = KL between the two
    distributions over the other classes, p_c / (1 - p_y). Plain KL is TCKD + (1 - p_y) NCKD with
    the source's p_y, so a sure teacher's opinion of the other classes hardly counts there.

    The authors also raise the weight of this loss linearly over the first 20 epochs (1 on
    ImageNet); here it is constant. Their T is 4 on CIFAR-100 and 1 on ImageNet; their beta is
    between 2 and 8 on CIFAR-100 and 0.5 or 2 on ImageNet, depending on the teacher.

    Args:
        source: The node that teaches, logits [B, C], detached.
        destination: The node that learns, logits [B, C].
        labels: Class indices [B].
        temperature: T > 0.
        alpha: Weight of TCKD, the class of the label against the rest.
        beta: Weight of NCKD, the other classes among themselves.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: The labels are mixed, so there is no class to set apart.

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, Eq. 7.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"dkd should get class indices [B]. Found mixed labels {list(labels.shape)}; "
            "it does not go with mixup or cutmix."
        )
    binary_s, others_s = _decoupled(source.log_probabilities(temperature), labels)
    binary_t, others_t = _decoupled(destination.log_probabilities(temperature), labels)
    tckd, nckd = _divergence(binary_s, binary_t), _divergence(others_s, others_t)
    return (alpha * tckd + beta * nckd) * temperature**2


@stackable
@between_networks
def dist(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    beta: float = 2.0,
    gamma: float = 2.0,
) -> Tensor:
    """Return T^2 (beta (1 - r over classes) + gamma (1 - r over the batch)) for every sample.

    r is Pearson's correlation between the probabilities of source and destination: over the classes
    for each sample, and over the samples of the batch for each class, averaged over the classes.
    The second term couples the samples. It is a sum over them, so it is split exactly: row n gets
    1 - B mean_c(a_nc b_nc), where a and b are the columns, centered and scaled to length 1. The
    batch is what one process sees in one forward.

    The factor T^2 is in the authors' code for classification. The defaults are those of their
    recipes for CIFAR-100 (T = 4) and ImageNet (T = 1); their code spells them 1 and 1, times 2.

    Args:
        source: The node that teaches, logits [B, C], detached.
        destination: The node that learns, logits [B, C].
        labels: Not used.
        temperature: T > 0.
        beta: Weight of the relations between classes.
        gamma: Weight of the relations between samples.

    Returns:
        Losses [B] in float32.

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    """
    p_s = source.probabilities(temperature)
    p_t = destination.probabilities(temperature)
    between_classes = 1 - _correlation_terms(p_s, p_t, dim=-1).sum(-1)
    between_samples = 1 - p_t.shape[-2] * _correlation_terms(p_s, p_t, dim=-2).mean(-1)
    return (beta * between_classes + gamma * between_samples) * temperature**2


@stackable
def hard(
    source: NodeOutput,
    destination: NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy with the source's top-1 for every sample: hard distillation.

    Args:
        source: The node that teaches, logits [B, C].
        destination: The node that learns, logits [B, C].
        labels: Not used.
        temperature: Should be 1, because the top-1 is the same at every temperature.
        smoothing: Label smoothing of the top-1 in 0..1.

    Returns:
        Losses [B] in float32.

    Raises:
        ValueError: There is a temperature, or the smoothing is out of its range.

    Reference:
        Touvron et al., "Training data-efficient image transformers & distillation through
        attention", ICML 2021, Eq. 3.
    """
    refuse_temperature("hard", temperature)
    check_smoothing("hard", smoothing)
    top1 = source.log_probabilities().argmax(-1, keepdim=True)
    log_p_t = destination.log_probabilities()
    return (smoothing - 1) * log_p_t.gather(-1, top1)[..., 0] - smoothing * log_p_t.mean(-1)


@stackable
@between_networks
def separate(
    source: NodeOutput, destination: NodeOutput, labels: Tensor, *, temperature: float
) -> Tensor:
    """Return T^2 cos(p_s, p_t) for every sample: minimized, it drives the two networks apart.

    It makes the networks of an ensemble differ. Unlike -KL, it is bounded: by 0 and T^2.

    Args:
        source: The node to keep away from, logits [B, C], detached.
        destination: The node that learns, logits [B, C].
        labels: Not used.
        temperature: T > 0. The factor T^2 is in the authors' code.

    Returns:
        Losses [B] in float32.

    Reference:
        Okamoto et al., "Deep Ensemble Learning by Diverse Knowledge Distillation for Fine-Grained
        Object Classification", ECCV 2022.
    """
    p_s = source.probabilities(temperature)
    p_t = destination.probabilities(temperature)
    return F.cosine_similarity(p_s, p_t, dim=-1) * temperature**2


def _divergence(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """Return KL(p_s || p_t) over the last dimension."""
    return F.kl_div(log_p_t, log_p_s, reduction="none", log_target=True).sum(-1)


def _z_scores(logits: Tensor) -> Tensor:
    mean, deviation = logits.mean(-1, keepdim=True), logits.std(-1, keepdim=True)
    return (logits - mean) / (deviation + 1e-7)


def _decoupled(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p_y, 1 - p_y) [..., B, 2], and log p_c / (1 - p_y), c not y, [..., B, C - 1]."""
    *batch, num_classes = log_p.shape
    label = labels[:, None]
    # Indices, not a mask: a mask would make the host wait for the device.
    others = torch.arange(num_classes - 1, device=log_p.device).expand(len(labels), -1)
    others = others + (others >= label)
    own = log_p.gather(-1, label.expand(*batch, 1))
    rest = log_p.gather(-1, others.expand(*batch, num_classes - 1))
    binary = torch.cat([own, rest.logsumexp(-1, keepdim=True)], dim=-1)
    return F.log_softmax(binary, dim=-1), F.log_softmax(rest, dim=-1)


def _correlation_terms(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return the terms whose sum over `dim` is Pearson's correlation of a and b over `dim`."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    length_a, length_b = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (a, b))
    # The authors' epsilon matters: a class that is improbable across the whole batch counts less.
    terms: Tensor = a * b / (length_a * length_b + 1e-8)
    return terms
