from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests.loss_cases import NO_LABELS, ends, logits, made, maps, published
from tests.nets import Array, array
from timm_ktg.graph.feature_losses import Srd


def output(*features: Tensor) -> ktg.NodeOutput:
    taps = {f"blocks.{index}": each for index, each in enumerate(features)}
    return ktg.NodeOutput(logits(0), taps)


# attention


def attention(source: ktg.NodeOutput, destination: ktg.NodeOutput, **arguments: Any) -> Tensor:
    loss = ktg.create_loss("attention", **arguments)
    return loss(source, destination, NO_LABELS, temperature=1.0)


def attention_map(features: Tensor, p: float, pool: int = 1) -> Array:
    """sum_c |F_c|^p, averaged over squares of `pool` positions, flattened, of length 1."""
    sums = (np.abs(array(features)) ** p).sum(1)
    batch, height, width = sums.shape
    sums = sums.reshape(batch, height // pool, pool, width // pool, pool).mean((2, 4))
    flat = sums.reshape(batch, -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_attention_equals_the_reference(p: float) -> None:
    source, destination = maps(0, 6), maps(1, 3)
    expected = ((attention_map(source, p) - attention_map(destination, p)) ** 2).mean(-1)
    found = attention(output(source), output(destination), p=p)
    assert found.shape == (8,)
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)


@pytest.mark.parametrize(("p", "figure"), [(2, 0.033201738), (4, 0.076234962)])
def test_attention_is_the_authors(p: int, figure: float) -> None:
    # p = 2: github.com/szagoruyko/attention-transfer, 893df54, utils.py;
    # both: github.com/megvii-research/mdistiller, a08d46f, mdistiller/distillers/AT.py
    case = published()
    found = attention(output(case.source_map), output(case.destination_map), p=p)
    assert found.double().mean().item() == pytest.approx(figure, rel=1e-5)


def test_attention_has_a_golden_value() -> None:
    # Maps (1, 0) and (3/5, 4/5): ((2/5)^2 + (4/5)^2) / 2.
    source = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    destination = torch.tensor([-3.0, 4.0]).sign() * torch.tensor([3.0, 4.0]).sqrt()
    found = attention(output(source), output(destination.view(1, 1, 1, 2)))
    assert found.tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("swapped", [False, True])
def test_attention_resizes_to_the_smaller_map(swapped: bool) -> None:
    small, large = maps(0, 6), maps(1, 3, 8, 8)
    expected = ((attention_map(small, 2) - attention_map(large, 2, pool=2)) ** 2).mean(-1)
    pair = (output(large), output(small)) if swapped else (output(small), output(large))
    np.testing.assert_allclose(array(attention(*pair)), expected, rtol=1e-4)


def test_attention_resizes_height_and_width_each_to_the_smaller() -> None:
    tall, wide = maps(0, 6, 8, 4), maps(1, 3, 4, 8)
    pooled = tall.square().unflatten(2, (4, 2)).mean(3), wide.square().unflatten(3, (4, 2)).mean(4)
    expected = attention(*(output(each.sqrt()) for each in pooled))
    torch.testing.assert_close(attention(output(tall), output(wide)), expected)


def test_attention_averages_several_pairs() -> None:
    source, destination = (maps(0, 6), maps(1, 3, 8, 8)), (maps(2, 4), maps(3, 5, 2, 2))
    pairs = zip(source, destination, strict=True)
    one_by_one = torch.stack([attention(output(s), output(t)) for s, t in pairs])
    found = attention(output(*source), output(*destination))
    torch.testing.assert_close(found, one_by_one.mean(0))


@pytest.mark.parametrize("p", [1, 2, 4])
def test_attention_of_features_of_zeros_has_a_finite_gradient(p: int) -> None:
    destination = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention(output(maps(0, 6, batch=2)), output(destination), p=p).sum().backward()
    assert destination.grad is not None and destination.grad.isfinite().all()


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        ((), (), r"attention should get taps at both ends, equally many. Found features \[\] and"),
        ((maps(0, 6),), (), r"equally many. Found features \[\[8, 6, 4, 4\]\] and \[\]\.$"),
        (
            (maps(0, 6)[..., 0],),
            (maps(1, 3),),
            r"attention should get features \[B, C, H, W\]. "
            r"Found features \[\[8, 6, 4\]\] and \[\[8, 3, 4, 4\]\]\.$",
        ),
    ],
    ids=["none", "one", "tokens"],
)
def test_attention_refuses_what_is_no_pair_of_maps(
    source: Any, destination: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        attention(output(*source), output(*destination))


@pytest.mark.parametrize("p", [0.5, float("nan"), float("inf")])
def test_attention_refuses_a_power_whose_gradient_is_infinite(p: float) -> None:
    with pytest.raises(ValueError, match=r"^attention: p should be a number from 1\. Found "):
        attention(*ends(), p=p)


@pytest.mark.parametrize("name", ["attention", "srd"])
def test_loss_of_features_refuses_a_temperature(name: str) -> None:
    loss = made(name, *ends())
    with pytest.raises(ValueError, match=rf"^{name} should have temperature 1\. Found 4\.0\.$"):
        loss(*ends(), NO_LABELS, temperature=4.0)


# attention_windows


def windows(source: ktg.NodeOutput, destination: ktg.NodeOutput, **arguments: Any) -> Tensor:
    loss = ktg.create_loss("attention_windows", **arguments)
    return loss(source, destination, NO_LABELS, temperature=1.0)


def window_losses(source: Tensor, destination: Tensor, apart: bool) -> Array:
    """The loss, sample by sample and window by window."""
    found = []
    for pair in zip(array(source), array(destination), strict=True):
        s, t = ((each**2).sum(0) for each in pair)
        row, column = np.unravel_index(s.argmax(), s.shape)
        parts = []
        for side in (max(s.shape), 5, 3):
            h, w = min(side, s.shape[0]), min(side, s.shape[1])
            top = min(max(row - h // 2, 0), s.shape[0] - h)
            left = min(max(column - w // 2, 0), s.shape[1] - w)
            a, b = (each[top : top + h, left : left + w].ravel() for each in (s, t))
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
            parts.append(a @ b if apart else ((a - b) ** 2).mean())
        found.append(np.mean(parts))
    return np.array(found)


@pytest.mark.parametrize("size", [(7, 7), (4, 9), (2, 2), (1, 6)])
@pytest.mark.parametrize("attention", ["close", "apart"])
def test_attention_windows_equals_the_reference(attention: str, size: tuple[int, int]) -> None:
    source, destination = maps(0, 6, *size, batch=64), maps(1, 3, *size, batch=64)
    found = windows(output(source), output(destination), attention=attention)
    expected = window_losses(source, destination, attention == "apart")
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        ({}, 0.032324892144),
        ({"attention": "apart"}, 0.702170866880),
        ({"logits": "close"}, 1.918888281326),
        ({"attention": "apart", "logits": "apart"}, 1.172204055164),
    ],
)
def test_attention_windows_is_the_authors(arguments: dict[str, str], figure: float) -> None:
    # github.com/naok0615/ensemble_graph, 71dbe55: AttLoss and KL_AttLoss of
    # lib/loss_func_resnet.py, with the maps of ResNet_vanilla and the windows of trainer_resnet.py.
    random = np.random.RandomState(0)
    logits = [3 * random.standard_normal((8, 5)) for _ in range(2)]
    features = [random.standard_normal((8, channels, 7, 7)) for channels in (6, 3)]
    ends = (
        ktg.NodeOutput(torch.tensor(z, dtype=torch.float32), {"layer4": torch.tensor(f)})
        for z, f in zip(logits, features, strict=True)
    )
    assert float(windows(*ends, **arguments).mean()) == pytest.approx(figure, rel=1e-5)


def test_attention_windows_resizes_to_the_smaller_map() -> None:
    small, large = maps(0, 6), maps(1, 3, 8, 8)
    pooled = (large**2).sum(1, keepdim=True).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    found = windows(output(small), output(large))
    torch.testing.assert_close(found, windows(output(small), output(pooled.sqrt())))


@pytest.mark.parametrize(
    ("arguments", "taps", "said"),
    [
        ({"attention": "near"}, 1, "attention should be close or apart. Found near."),
        ({"logits": "far"}, 1, "logits should be close or apart. Found far."),
        ({}, 2, "should get one tap at each end. Found 2."),
        ({}, 0, r"should get taps at both ends, equally many. Found features \[\] and \[\]."),
    ],
)
def test_attention_windows_refuses_what_it_cannot_compare(
    arguments: dict[str, str], taps: int, said: str
) -> None:
    source, destination = (output(*[maps(seed, 3)] * taps) for seed in (0, 1))
    with pytest.raises(ValueError, match=f"^attention_windows:? {said}"):
        windows(source, destination, **arguments)


def test_attention_windows_without_a_loss_of_logits_refuses_a_temperature() -> None:
    ends = output(maps(0, 6)), output(maps(1, 6))
    loss = ktg.create_loss("attention_windows")
    with pytest.raises(ValueError, match="^attention_windows"):
        loss(*ends, NO_LABELS, temperature=2.0)


# srd


def srd(source: ktg.NodeOutput, destination: ktg.NodeOutput, **arguments: Any) -> Srd:
    loss = made("srd", source, destination, **arguments)
    assert isinstance(loss, Srd)
    return loss


def srd_reference(loss: Srd, source: Tensor, destination: Tensor) -> tuple[Array, float]:
    """S_n of every sample, and log sum_n S_n, with the statistics of the batch."""

    def normalized(z: Array) -> Array:
        return np.asarray((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-4))

    weight, bias = array(loss.projector.weight), array(loss.projector.bias)
    projected = array(destination).mean((2, 3)) @ weight.T + bias
    difference = normalized(projected) - normalized(array(source).mean((2, 3)))
    sums = (np.abs(difference) ** loss.alpha).sum(1)
    return sums, float(np.log(sums.sum()))


@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_srd_equals_the_reference(alpha: float) -> None:
    source, destination = maps(0, 6), maps(1, 3, 8, 8)
    loss = srd(output(source), output(destination), alpha=alpha)
    found = loss(output(source), output(destination), NO_LABELS, temperature=1.0)
    sums, value = srd_reference(loss, source, destination)
    np.testing.assert_allclose(array(found), value + 8 * sums / sums.sum() - 1, rtol=1e-4)
    assert found.mean().item() == pytest.approx(value, rel=1e-5)


def test_srd_is_the_authors() -> None:
    # github.com/roymiles/Simple-Recipe-Distillation, 31e8477, OurDistillationLoss.forward_loss of
    # imagenet/torchdistill/losses/single.py, with these weights of the projector
    case = published()
    pooled = case.destination_map.mean((2, 3)).requires_grad_()
    loss = srd(output(case.source_map), output(case.destination_map))
    loss.projector.weight.data, loss.projector.bias.data = case.weight, case.bias
    found = loss(output(case.source_map), output(pooled), NO_LABELS, temperature=1.0).mean()
    found.backward()
    assert found.item() == pytest.approx(5.515629235, rel=1e-5)
    assert pooled.grad is not None and loss.projector.weight.grad is not None
    assert pooled.grad[0].tolist() == pytest.approx(
        [-0.069892724, 0.441850674, 0.006458704], abs=1e-5
    )
    assert pooled.grad.abs().sum().item() == pytest.approx(5.589189123, rel=1e-4)
    assert loss.projector.weight.grad.abs().sum().item() == pytest.approx(1.387639749, rel=1e-4)


def test_srd_of_a_stopped_sample_leaves_the_other_samples_gradients_alone() -> None:
    # In evaluation mode BatchNorm does not couple the samples either.
    source, destination = maps(0, 6), maps(1, 3).requires_grad_()
    loss = srd(output(source), output(destination)).eval()
    losses = loss(output(source), output(destination), NO_LABELS, temperature=1.0)
    (whole,) = torch.autograd.grad(losses.mean(), destination, retain_graph=True)
    passes = (torch.arange(8) % 2).float()
    (gated,) = torch.autograd.grad((losses * passes).mean(), destination)
    torch.testing.assert_close(gated, whole * passes[:, None, None, None])


def test_srd_projects_to_the_sources_width_and_normalizes_both() -> None:
    loss = srd(output(maps(0, 6)), output(maps(1, 3)))
    assert loss.projector.weight.shape == (6, 3)
    norms = [each for each in loss.modules() if isinstance(each, nn.BatchNorm1d)]
    assert [each.num_features for each in norms] == [6, 6]
    assert len(list(loss.parameters())) == 2  # the projector's alone


def test_srd_takes_features_that_are_pooled_already() -> None:
    source, destination = maps(0, 6), maps(1, 3)
    found = [
        srd(*pair)(*pair, NO_LABELS, temperature=1.0)
        for pair in (
            (output(source), output(destination)),
            (output(source.mean((2, 3))), output(destination.mean((2, 3)))),
        )
    ]
    torch.testing.assert_close(*found)


def test_srd_of_equal_features_is_finite() -> None:
    features = maps(0, 3).requires_grad_()
    loss = srd(output(features), output(features))
    nn.init.eye_(loss.projector.weight)
    nn.init.zeros_(loss.projector.bias)
    found = loss(output(features.detach()), output(features), NO_LABELS, temperature=1.0)
    found.sum().backward()
    assert found.isfinite().all()
    assert features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        ((), (), r"^srd should get taps at both ends, equally many. Found features \[\] and \[\]"),
        ((maps(0, 6),) * 2, (maps(1, 3),) * 2, r"^srd should get one tap at each end. Found 2\.$"),
        (
            (maps(0, 6),),
            (maps(1, 3)[..., 0],),
            r"^srd should get features \[B, C\] or \[B, C, H, W\]. "
            r"Found features \[\[8, 6, 4, 4\]\] and \[\[8, 3, 4\]\]\.$",
        ),
    ],
    ids=["none", "two", "tokens"],
)
def test_srd_refuses_what_is_no_pair_of_features(source: Any, destination: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        srd(output(*source), output(*destination))


def test_srd_refuses_a_power_whose_gradient_is_infinite() -> None:
    with pytest.raises(ValueError, match=r"^srd: alpha should be a number from 1\. Found 0\.5\.$"):
        srd(*ends(), alpha=0.5)
