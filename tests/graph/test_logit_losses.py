import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.task import TokenDistillationTask
from torch import Tensor

import timm_ktg as ktg
from tests.loss_cases import NO_LABELS, call, logits, published
from tests.nets import (
    Array,
    array,
    ce_reference,
    hard_labels,
    kl_reference,
    log_softmax,
    output,
    soft_labels,
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


# kl_div with standardized logits


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardized_kl_div_equals_the_reference(temperature: float) -> None:
    def z_score(z: Tensor) -> Tensor:
        x = array(z)
        return torch.tensor((x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True))

    source, destination = logits(0), logits(1)
    expected = kl_reference(z_score(source), z_score(destination), temperature)
    found = kl_div(source, destination, temperature, standardize=True)
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)


@pytest.mark.parametrize(("temperature", "figure"), [(1.0, 0.524437954), (4.0, 0.602958209)])
def test_standardized_kl_div_is_the_authors(temperature: float, figure: float) -> None:
    # github.com/sunshangquan/logit-standardization-KD, f6e5aa5, mdistiller/distillers/KD.py
    case = published()
    found = kl_div(case.source, case.destination, temperature, standardize=True)
    assert found.double().mean().item() == pytest.approx(figure, rel=1e-5)


@few
@given(st.floats(0.1, 10.0), st.floats(-50, 50))
def test_standardized_kl_div_does_not_see_scale_and_shift(scale: float, shift: float) -> None:
    expected = kl_div(logits(0), logits(1), standardize=True)
    found = kl_div(logits(0) * scale + shift, logits(1), standardize=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_standardized_kl_div_of_equal_logits_has_a_finite_gradient() -> None:
    destination = torch.zeros(2, 4, requires_grad=True)
    kl_div(torch.zeros(2, 4), destination, standardize=True).sum().backward()
    assert destination.grad is not None and destination.grad.isfinite().all()


# dkd


def dkd(
    source: Tensor, destination: Tensor, labels: Tensor, temperature: float = 1.0, **arguments: Any
) -> Tensor:
    loss = ktg.create_loss("dkd", **arguments)
    return loss(output(source), output(destination), labels, temperature=temperature)


def dkd_reference(
    source: Tensor, destination: Tensor, labels: Tensor, t: float, alpha: float, beta: float
) -> Array:
    found = []
    for p, q, y in zip(softmax(source, t), softmax(destination, t), labels.tolist(), strict=True):
        tckd = p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
        p, q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        found.append(t**2 * (alpha * tckd + beta * (p * np.log(p / q)).sum()))
    return np.array(found)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.5, 0.0), (0.0, 2.0)])
def test_dkd_equals_the_reference(temperature: float, alpha: float, beta: float) -> None:
    case = logits(0), logits(1), hard_labels()
    found = dkd(*case, temperature, alpha=alpha, beta=beta)
    assert found.shape == (8,)
    expected = dkd_reference(*case, temperature, alpha, beta)
    np.testing.assert_allclose(array(found), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "arguments", "figure"),
    [
        (1.0, {}, 14.614394573),
        (4.0, {}, 32.968899079),
        (4.0, {"beta": 2.0}, 8.800836116),
    ],
)
def test_dkd_is_the_authors(temperature: float, arguments: Any, figure: float) -> None:
    # github.com/megvii-research/mdistiller, a08d46f, mdistiller/distillers/DKD.py; beta 8 is theirs
    case = published()
    found = dkd(case.source, case.destination, case.labels, temperature, **arguments)
    assert found.double().mean().item() == pytest.approx(figure, rel=1e-5)


def test_dkd_has_the_golden_value() -> None:
    # p_s = (1/2, 1/4, 1/4), p_t = (1/4, 1/4, 1/2), y = 0. TCKD: 1/2 log 2 + 1/2 log(2/3);
    # the others (1/2, 1/2) and (1/3, 2/3): NCKD = 1/2 log(3/2) + 1/2 log(3/4).
    source, destination = torch.tensor([[[2.0, 1.0, 1.0]], [[1.0, 1.0, 2.0]]]).log()
    expected = 0.143841 + 2 * 0.058892
    found = dkd(source, destination, torch.tensor([0]), beta=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_dkd_with_the_sources_doubt_as_beta_is_plain_kl() -> None:
    # KL = TCKD + (1 - p_y) NCKD with the source's p_y, Eq. 6 of the paper.
    source, destination, y = logits(0), logits(1), hard_labels()
    tckd = dkd(source, destination, y, 2.0, alpha=1.0, beta=0.0)
    nckd = dkd(source, destination, y, 2.0, alpha=0.0, beta=1.0)
    p_y = (source / 2).softmax(-1).gather(-1, y[:, None])[:, 0]
    torch.testing.assert_close(tckd + (1 - p_y) * nckd, kl_div(source, destination, 2.0))


def test_dkd_of_extreme_logits_is_right_and_finite() -> None:
    # TCKD = 0 - log p_t(y) = 2e4; the others, -1e4 each on one side, 1e4 and 0 on the other:
    # NCKD = 1/2 log(1/2) + 1/2 (log(1/2) + 1e4).
    source = torch.tensor([[1e4, -1e4, -1e4]])
    destination = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    found = dkd(source, destination, torch.tensor([0]), beta=1.0)
    found.sum().backward()
    assert found.item() == pytest.approx(2e4 + 5e3 - math.log(2), rel=1e-6)
    assert destination.grad is not None and destination.grad.isfinite().all()


def test_dkd_refuses_mixed_labels() -> None:
    with pytest.raises(
        ValueError, match=r"^dkd should get class indices \[B\]\. Found mixed .*\[8, 4\]"
    ):
        dkd(logits(0), logits(1), soft_labels())


# dist

dist = partial(call, "dist")


def dist_reference(p: Array, q: Array) -> tuple[Array, float]:
    """One minus Pearson's correlation, for each sample, and the mean over the classes."""
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return np.array(rows), float(np.mean(columns))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_equals_the_reference(temperature: float) -> None:
    source, destination = logits(0), logits(1)
    p, q = softmax(source, temperature), softmax(destination, temperature)
    rows, columns = dist_reference(p, q)
    found = dist(source, destination, temperature, beta=1.0, gamma=0.0)
    np.testing.assert_allclose(array(found), temperature**2 * rows, rtol=1e-4)
    found = dist(source, destination, temperature, beta=0.0, gamma=1.0)
    assert found.shape == (8,)
    assert found.mean().item() == pytest.approx(temperature**2 * columns, rel=1e-4)


def test_dist_splits_the_term_of_the_batch_into_what_each_sample_adds() -> None:
    p, q = (softmax(logits(seed)) for seed in (0, 1))
    a, b = ((x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=0) for x in (p, q))
    expected = [1 - 8 * np.mean(a[n] * b[n]) for n in range(8)]
    found = dist(logits(0), logits(1), beta=0.0, gamma=1.0)
    np.testing.assert_allclose(array(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "arguments", "figure"),
    [
        (1.0, {"beta": 1.0, "gamma": 1.0}, 1.540907770),
        (1.0, {"beta": 1.0, "gamma": 3.0}, 2.940831641),
        (4.0, {"beta": 1.0, "gamma": 1.0}, 24.179721931),
        (4.0, {}, 2 * 24.179721931),
    ],
)
def test_dist_is_the_authors(temperature: float, arguments: Any, figure: float) -> None:
    # github.com/hunto/image_classification_sota, 6f7a70a, lib/models/losses/dist_kd.py; their
    # recipes for CIFAR-100 and ImageNet multiply it by 2
    case = published()
    found = dist(case.source, case.destination, temperature, **arguments)
    assert found.double().mean().item() == pytest.approx(figure, rel=1e-5)


def test_dist_has_golden_values() -> None:
    same, opposite = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(dist(same, same), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(dist(same, opposite), torch.full((2,), 2 * 2.0 + 2 * 2.0))


def test_dist_of_a_single_sample_is_finite() -> None:
    destination = logits(1, batch=1).requires_grad_()
    found = dist(logits(0, batch=1), destination)
    found.sum().backward()
    assert found.isfinite().all()
    assert destination.grad is not None and destination.grad.isfinite().all()


# hard

hard = partial(call, "hard")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_equals_the_reference(smoothing: float) -> None:
    found = hard(logits(0), logits(1), smoothing=smoothing)
    top1 = torch.tensor(array(logits(0)).argmax(-1))
    np.testing.assert_allclose(
        array(found), ce_reference(logits(1), top1, smoothing), rtol=1e-5, atol=1e-6
    )


def test_hard_has_golden_values() -> None:
    assert hard(FLAT + SHARP, SHARP).item() == pytest.approx(0.287682, abs=1e-6)  # -log(3/4)
    assert hard(-SHARP, SHARP).item() == pytest.approx(1.386294, abs=1e-6)  # -log(1/4)


class TwoHeads(torch.nn.Module):
    """Gives the same logits for whatever images, from two heads as a distilled DeiT."""

    def __init__(self, *heads: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.num_classes, self.in_chans = 4, 3
        self.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

    def set_distilled_training(self, enable: bool = True) -> None:
        pass

    def forward(self, images: Tensor) -> Any:
        return self.heads if len(self.heads) > 1 else self.heads[0]


@pytest.mark.parametrize(
    ("kind", "name", "temperature"), [("hard", "hard", 1.0), ("soft", "kl_div", 3.0)]
)
def test_hard_and_kl_div_are_timms_for_a_distilled_head(
    kind: str, name: str, temperature: float
) -> None:
    teacher = TwoHeads(logits(0))
    task = TokenDistillationTask(
        TwoHeads(logits(2), logits(1)),
        teacher,
        torch.nn.CrossEntropyLoss(),
        distill_type=kind,
        temperature=temperature,
        verbose=False,
    )
    expected = task(torch.zeros(8, 3, 2, 2), hard_labels())["distill_loss"]
    torch.testing.assert_close(call(name, logits(0), logits(1), temperature).mean(), expected)


def test_hard_refuses_a_temperature() -> None:
    with pytest.raises(ValueError, match=r"^hard should have temperature 1\. Found 4\.0\.$"):
        hard(logits(0), logits(1), 4.0)


# separate

separate = partial(call, "separate")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_separate_equals_the_reference(temperature: float) -> None:
    p, q = softmax(logits(0), temperature), softmax(logits(1), temperature)
    cosines = (p * q).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(q, axis=-1)
    found = separate(logits(0), logits(1), temperature)
    np.testing.assert_allclose(array(found), temperature**2 * cosines, rtol=1e-5)


@pytest.mark.parametrize(("temperature", "figure"), [(1.0, 0.470033188), (4.0, 13.077739925)])
def test_separate_is_the_authors(temperature: float, figure: float) -> None:
    # github.com/naok0615/ensemble_graph, 71dbe55, lib/loss_func_cifar_abn.py
    case = published()
    found = separate(case.source, case.destination, temperature)
    assert found.double().mean().item() == pytest.approx(figure, rel=1e-5)


def test_separate_has_golden_values() -> None:
    # (3/4, 1/4) and (1/2, 1/2): 1/2 / (sqrt(10)/4 sqrt(2)/2) = 2 / sqrt(5)
    assert separate(SHARP, FLAT).item() == pytest.approx(0.894427, abs=1e-6)
    assert separate(SHARP, SHARP).item() == pytest.approx(1.0, abs=1e-6)


def test_separate_minimized_drives_the_probabilities_apart() -> None:
    destination = logits(0).requires_grad_()
    before = separate(logits(1), destination)
    (gradient,) = torch.autograd.grad(before.sum(), destination)
    after = separate(logits(1), destination - 0.1 * gradient)
    assert (after < before).all()
