import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

import timm_ktg as ktg
from tests.nets import array, ce_reference, hard_labels, kl_reference, output, soft_labels

few = settings(deadline=None, max_examples=25, database=None)
NO_LABELS = torch.zeros(1, dtype=torch.int64)


def logits(seed: int, batch: int = 8, num_classes: int = 4, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, num_classes, generator=generator)


def kl_div(source: Tensor, destination: Tensor, temperature: float = 1.0) -> Tensor:
    loss = ktg.create_loss("kl_div")
    return loss(output(source), output(destination), NO_LABELS, temperature=temperature)


def cross_entropy(destination: Tensor, labels: Tensor, **arguments: float) -> Tensor:
    loss = ktg.create_loss("cross_entropy", **arguments)
    return loss(output(destination), output(destination), labels, temperature=1.0)


# kl_div


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_kl_div_equals_the_reference(temperature: float) -> None:
    source, destination = logits(0), logits(1)
    expected = kl_reference(source, destination, temperature)
    found = kl_div(source, destination, temperature)
    assert found.shape == (8,)
    np.testing.assert_allclose(array(found), expected, rtol=1e-5)


# softmax([log 3, 0]) = (3/4, 1/4) and softmax([0, 0]) = (1/2, 1/2).
SHARP = torch.tensor([[math.log(3), 0.0]])
FLAT = torch.tensor([[0.0, 0.0]])


def test_kl_div_has_the_golden_value_of_source_over_destination() -> None:
    # 3/4 log((3/4)/(1/2)) + 1/4 log((1/4)/(1/2)) = 3/4 log(3/2) - 1/4 log 2
    assert kl_div(SHARP, FLAT).item() == pytest.approx(0.130812, abs=1e-6)


def test_kl_div_is_not_symmetric() -> None:
    # 1/2 log((1/2)/(3/4)) + 1/2 log((1/2)/(1/4)) = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3)
    assert kl_div(FLAT, SHARP).item() == pytest.approx(0.143841, abs=1e-6)


def test_kl_div_carries_the_factor_t_squared() -> None:
    # With T = 2, 2 [log 3, 0] / T gives the same two distributions: 2^2 * 0.130812.
    assert kl_div(2 * SHARP, FLAT, temperature=2.0).item() == pytest.approx(0.523248, abs=1e-6)


def test_kl_div_gradient_is_t_times_the_difference_of_probabilities() -> None:
    # d/dz_t T^2 KL = T^2 (p_t - p_s) / T = 2 ((1/2, 1/2) - (3/4, 1/4)) = (-1/2, 1/2)
    destination = FLAT.clone().requires_grad_()
    kl_div(2 * SHARP, destination, temperature=2.0).sum().backward()
    assert destination.grad is not None
    assert destination.grad[0].tolist() == pytest.approx([-0.5, 0.5], abs=1e-6)


def test_kl_div_gradient_keeps_its_scale_when_the_temperature_grows() -> None:
    # Hinton et al. 2015, Eq. 4: for large T and logits of mean zero it tends to (z_t - z_s) / C.
    source, destination = (z - z.mean(-1, keepdim=True) for z in (logits(0), logits(1)))
    destination.requires_grad_()
    kl_div(source, destination, temperature=1000.0).sum().backward()
    expected = (destination.detach() - source) / 4
    torch.testing.assert_close(destination.grad, expected, rtol=0.02, atol=5e-3)


def test_kl_div_is_zero_without_gradient_for_equal_logits() -> None:
    destination = logits(0).requires_grad_()
    found = kl_div(logits(0), destination, temperature=2.0)
    found.sum().backward()
    assert destination.grad is not None
    assert torch.equal(found, torch.zeros(8))
    assert destination.grad.abs().max() < 1e-6


def test_kl_div_of_extreme_logits_is_right_and_finite() -> None:
    # p_s = (1, 0), p_t = (0, 1): log p_t = (-2e4, 0), so KL = 1 (0 - -2e4) + 0.
    extreme = torch.tensor([[1e4, -1e4]])
    destination = (-extreme).requires_grad_()
    found = kl_div(extreme, destination)
    found.sum().backward()
    assert destination.grad is not None
    assert found.tolist() == [2e4]
    assert destination.grad.tolist() == [[-1.0, 1.0]]


def test_kl_div_sends_no_gradient_to_the_detached_source() -> None:
    source, destination = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = ktg.create_loss("kl_div")
    loss(
        ktg.NodeOutput(source).detach(), ktg.NodeOutput(destination), NO_LABELS, temperature=1.0
    ).sum().backward()
    assert source.grad is None
    assert destination.grad is not None


rows = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3)


@few
@given(rows, rows, st.floats(0.5, 8.0))
def test_kl_div_is_never_negative(source: list[float], other: list[float], t: float) -> None:
    assert kl_div(torch.tensor([source]), torch.tensor([other]), t).item() >= -1e-4


@few
@given(rows, rows, st.floats(-50, 50, width=32), st.floats(-50, 50, width=32))
def test_kl_div_does_not_see_a_shift_of_the_logits(
    source: list[float], other: list[float], first: float, second: float
) -> None:
    s, t = torch.tensor([source]), torch.tensor([other])
    torch.testing.assert_close(kl_div(s + first, t + second), kl_div(s, t), rtol=1e-3, atol=1e-3)


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
        cross_entropy(logits(0), hard_labels()), kl_div(one_hot, logits(0)), rtol=1e-5, atol=1e-5
    )


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    extreme = torch.tensor([[1e4, -1e4]])
    assert cross_entropy(extreme, torch.tensor([1])).tolist() == [2e4]


# Precision


@pytest.mark.parametrize("name", ktg.list_losses())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    loss = ktg.create_loss(name)
    half = [ktg.NodeOutput(logits(seed).to(dtype)) for seed in (0, 1)]
    full = [ktg.NodeOutput(each.logits.float()) for each in half]
    found = loss(*half, hard_labels(), temperature=1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*full, hard_labels(), temperature=1.0))


@pytest.mark.parametrize("name", ktg.list_losses())
@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_loss_under_autocast_is_that_of_float32(name: str, labels: Tensor) -> None:
    loss = ktg.create_loss(name)
    outputs = [output(logits(seed)) for seed in (0, 1)]
    expected = loss(*outputs, labels, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (outputs[0].logits @ outputs[1].logits.T).dtype == torch.bfloat16
        found = loss(*outputs, labels, temperature=1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# The registry of losses


def test_node_output_detaches_its_logits_and_features() -> None:
    attached = ktg.NodeOutput(logits(0).requires_grad_(), {"f": logits(1).requires_grad_()})
    detached = attached.detach()
    assert not detached.logits.requires_grad
    assert not detached.features["f"].requires_grad
    assert torch.equal(detached.features["f"], attached.features["f"])


def test_node_output_has_no_features_unless_given() -> None:
    assert dict(output(logits(0)).features) == {}


def test_loss_of_ones_own_is_registered_and_bound() -> None:
    @ktg.register_loss
    def squared(
        source: ktg.NodeOutput,
        destination: ktg.NodeOutput,
        labels: Tensor,
        *,
        temperature: float,
        scale: float = 1.0,
    ) -> Tensor:
        return scale * (source.logits - destination.logits).pow(2).sum(-1) / temperature

    assert "squared" in ktg.list_losses()
    loss = ktg.create_loss("squared", scale=3.0)
    # 3 ((log 3)^2 + 0) / 2
    found = loss(output(SHARP), output(FLAT), NO_LABELS, temperature=2.0)
    assert found.tolist() == pytest.approx([1.810423], abs=1e-5)


def test_temperature_of_a_loss_cannot_be_bound() -> None:
    with pytest.raises(ValueError, match="loss `kl_div` takes no argument `temperature`. It takes"):
        ktg.create_loss("kl_div", temperature=2.0)


def test_loss_without_temperature_is_refused() -> None:
    def cold(source: ktg.NodeOutput, destination: ktg.NodeOutput, labels: Tensor) -> Tensor:
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"cold\(source, destination, labels, \*, temperature, "):
        ktg.register_loss(cold)
