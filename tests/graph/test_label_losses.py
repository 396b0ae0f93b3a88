from typing import Any

import numpy as np
import pytest
import torch
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import Tensor

import timm_ktg as ktg
from tests.loss_cases import call, logits
from tests.nets import Array, array, ce_reference, hard_labels, output, soft_labels


def cross_entropy(destination: Tensor, labels: Tensor, **arguments: float) -> Tensor:
    loss = ktg.create_loss("cross_entropy", **arguments)
    return loss(output(destination), output(destination), labels, temperature=1.0)


# softmax([log 3, 0]) = (3/4, 1/4).
SHARP = torch.tensor([[3.0, 1.0]]).log()


# cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_cross_entropy_equals_the_reference(labels: Tensor, smoothing: float) -> None:
    found = cross_entropy(logits(0), labels, smoothing=smoothing)
    assert found.shape == (8,)
    np.testing.assert_allclose(
        array(found), ce_reference(logits(0), labels, smoothing), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "smoothing", "golden"),
    [
        (torch.tensor([0]), 0.0, 0.287682),  # -log(3/4)
        (torch.tensor([1]), 0.0, 1.386294),  # -log(1/4)
        (torch.tensor([[0.25, 0.75]]), 0.0, 1.111641),  # 1/4 log(4/3) + 3/4 log 4
        (torch.tensor([0]), 0.2, 0.397543),  # 0.9 log(4/3) + 0.1 log 4
    ],
)
def test_cross_entropy_has_golden_values(labels: Tensor, smoothing: float, golden: float) -> None:
    found = cross_entropy(SHARP, labels, smoothing=smoothing)
    assert found.item() == pytest.approx(golden, abs=1e-6)


def test_cross_entropy_smooths_as_timm_does() -> None:
    found = cross_entropy(logits(0), hard_labels(), smoothing=0.1).mean()
    expected = LabelSmoothingCrossEntropy(0.1)(logits(0), hard_labels())
    torch.testing.assert_close(found, expected)


def test_cross_entropy_takes_soft_labels_as_timm_does() -> None:
    found = cross_entropy(logits(0), soft_labels()).mean()
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(logits(0), soft_labels()))


def test_cross_entropy_is_the_divergence_from_the_one_hot_label() -> None:
    # Eq. 1 for the label: its logits 60 e_y stand for the one-hot, whose entropy is 0.
    one_hot = 60 * torch.eye(4)[hard_labels()]
    torch.testing.assert_close(
        cross_entropy(logits(0), hard_labels()),
        call("kl_div", one_hot, logits(0)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    extreme = torch.tensor([[1e4, -1e4]])
    assert cross_entropy(extreme, torch.tensor([1])).tolist() == [2e4]


# jsd


def jsd(labels: Tensor, destination: Tensor, **arguments: Any) -> Tensor:
    loss = ktg.create_loss("jsd", **arguments)
    return loss(output(destination), output(destination), labels, temperature=1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("splits", "alpha"), [(2, 12), (4, 3)])
def test_jsd_is_timms(splits: int, alpha: int, smoothing: float) -> None:
    labels = hard_labels()[: 8 // splits].repeat(splits)
    ours, theirs = (logits(1).requires_grad_() for _ in range(2))
    found = jsd(labels, ours, splits=splits, alpha=alpha, smoothing=smoothing)
    expected = JsdCrossEntropy(splits, alpha, smoothing)(theirs, labels)
    torch.testing.assert_close(found.mean(), expected)
    torch.testing.assert_close(
        *torch.autograd.grad(found.mean(), ours), *torch.autograd.grad(expected, theirs)
    )
    assert torch.equal(found, found[: 8 // splits].repeat(splits))


def test_jsd_has_a_golden_value() -> None:
    # The views (3/4, 1/4) and (1/4, 3/4) are log 2 - H(1/4) = 0.130812 from their mean.
    pair = torch.cat([SHARP, SHARP.flip(-1)])
    found = jsd(torch.tensor([0, 0]), pair, splits=2, alpha=10.0)
    assert found.tolist() == pytest.approx([0.287682 + 1.30812] * 2, abs=1e-5)


@pytest.mark.parametrize("splits", [1, 3])
def test_jsd_refuses_batches_that_have_not_all_views(splits: int) -> None:
    with pytest.raises(ValueError, match=f"should have {splits} views .* Found 8 images"):
        jsd(hard_labels(), logits(1), splits=splits)


# bce


def bce(labels: Tensor, destination: Tensor | None = None, **arguments: Any) -> Tensor:
    destination = logits(1) if destination is None else destination
    loss = ktg.create_loss("bce", **arguments)
    return loss(output(logits(0)), output(destination), labels, temperature=1.0)


def bce_reference(destination: Tensor, targets: Array) -> Array:
    """- t log sigmoid(z) - (1 - t) log (1 - sigmoid(z)), for every sample and class."""
    z = array(destination)
    return np.asarray(targets * np.logaddexp(0, -z) + (1 - targets) * np.logaddexp(0, z))


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_bce_equals_the_reference(labels: Tensor, sum_classes: bool) -> None:
    targets = array(labels) if labels.ndim == 2 else np.eye(4)[labels.numpy()]
    expected = bce_reference(logits(1), targets)
    found = bce(labels, sum_classes=sum_classes)
    assert found.shape == (8,)
    np.testing.assert_allclose(
        array(found), expected.sum(-1) if sum_classes else expected.mean(-1), rtol=1e-5
    )


def test_bce_has_golden_values() -> None:
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2: (log(4/3) + log 2) / 2, (log 4 + log 2) / 2.
    assert bce(torch.tensor([0]), SHARP).tolist() == pytest.approx([0.490415], abs=1e-6)
    assert bce(torch.tensor([1]), SHARP).tolist() == pytest.approx([1.039721], abs=1e-6)


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.1, 0.2)])
@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_bce_is_timms(
    labels: Tensor, smoothing: float, threshold: float | None, sum_classes: bool
) -> None:
    arguments = {"smoothing": smoothing, "target_threshold": threshold, "sum_classes": sum_classes}
    ours, theirs = (logits(1).requires_grad_() for _ in range(2))
    found = bce(labels, ours, **arguments).mean()
    expected = BinaryCrossEntropy(**arguments)(theirs, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *torch.autograd.grad(found, ours), *torch.autograd.grad(expected, theirs)
    )


def test_bce_of_extreme_logits_is_right_and_finite() -> None:
    extreme = torch.tensor([[1e4, -1e4]])
    assert bce(torch.tensor([0]), extreme).tolist() == [0.0]
    assert bce(torch.tensor([1]), extreme, sum_classes=True).tolist() == [2e4]


def test_bce_refuses_a_smoothing_above_one() -> None:
    with pytest.raises(ValueError, match=r"^bce: smoothing should be in 0\.\.1\. Found 1\.5\.$"):
        bce(hard_labels(), smoothing=1.5)


# All of them.


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["cross_entropy", "bce", "jsd", "hard"])
def test_smoothing_out_of_its_range_is_refused(name: str, smoothing: float) -> None:
    ends, loss = output(logits(0)[:6]), ktg.create_loss(name, smoothing=smoothing)
    with pytest.raises(ValueError, match=r"smoothing should be in 0\.\.1"):
        loss(ends, ends, hard_labels()[:6], temperature=1.0)


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "jsd"])
def test_temperature_that_would_not_be_used_is_refused(name: str) -> None:
    ends = output(logits(0)[:6])
    with pytest.raises(ValueError, match=f"{name} should have temperature 1. Found 4"):
        ktg.create_loss(name)(ends, ends, hard_labels()[:6], temperature=4.0)
