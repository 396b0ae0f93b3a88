import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import timm_ktg as ktg
from tests.loss_cases import NO_LABELS, call, logits
from tests.nets import (
    Array,
    array,
    kl_reference,
    log_softmax,
)

few = settings(deadline=None, max_examples=25, database=None)

kl_div = partial(call, "kl_div")


def softmax(z: Tensor, temperature: float = 1.0) -> Array:
    return np.asarray(np.exp(log_softmax(array(z) / temperature)))


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
