"""What every loss keeps to, ours and those of other packages, and the registry of losses."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import timm_ktg as ktg
from tests.loss_cases import (
    ARGUMENTS,
    NO_LABELS,
    OF_FEATURES,
    OF_LABELS,
    UNMIXED,
    ends,
    logits,
    made,
)
from tests.nets import edge, graph_of, hard_labels, images, output, soft_labels
from timm_ktg.graph.contract import contract_problems

LOSSES = ktg.list_losses()
OWN = {"cross_entropy", "bce", "jsd", "kl_div", "dkd", "dist", "hard", "separate"} | OF_FEATURES

STACKABLE = sorted(
    name for name in LOSSES if getattr(ktg.create_loss(name).function, "stackable", False)
)

every_loss = pytest.mark.parametrize("name", LOSSES)
every_loss_and_labels = pytest.mark.parametrize(
    ("name", "labels"),
    [pytest.param(name, hard_labels(), id=f"{name}-hard") for name in LOSSES]
    + [pytest.param(n, soft_labels(), id=f"{n}-mixed") for n in LOSSES if n not in UNMIXED],
)


def test_every_own_loss_is_listed() -> None:
    assert OWN <= set(LOSSES)
    assert OWN >= OF_LABELS | OF_FEATURES | UNMIXED


@every_loss_and_labels
def test_loss_is_a_finite_number_of_float32_a_sample(name: str, labels: Tensor) -> None:
    source, destination = ends()
    loss = made(name, source, destination)
    found = loss(source, destination, labels, temperature=1.0)
    assert (found.shape, found.dtype) == ((8,), torch.float32)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", sorted(UNMIXED))
def test_loss_that_needs_the_class_refuses_mixed_labels(name: str) -> None:
    source, destination = ends()
    with pytest.raises(ValueError, match=f"^{name} should get class indices "):
        made(name, source, destination)(source, destination, soft_labels(), temperature=1.0)


@every_loss
def test_loss_has_a_gradient_in_the_destination_alone(name: str) -> None:
    source, destination = (
        ktg.NodeOutput(
            each.logits.requires_grad_(),
            {tap: value.requires_grad_() for tap, value in each.features.items()},
        )
        for each in ends()
    )
    loss = made(name, source, destination)
    loss(source.detach(), destination, hard_labels(), temperature=1.0).mean().backward()
    assert not any(each.grad is not None for each in (source.logits, *source.features.values()))
    found = [each.grad for each in (destination.logits, *destination.features.values())]
    gradients = [each for each in found if each is not None]
    assert gradients and all(each.isfinite().all() and each.any() for each in gradients)


@every_loss
def test_loss_leaves_its_arguments_as_they_are(name: str) -> None:
    (source, destination), labels = ends(), hard_labels()
    made(name, source, destination)(source, destination, labels, temperature=1.0)
    for before, after in zip(ends(), (source, destination), strict=True):
        assert torch.equal(before.logits, after.logits)
        assert all(map(torch.equal, before.features.values(), after.features.values()))
    assert torch.equal(labels, hard_labels())


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_outputs_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    half = ends(dtype)
    full = [
        ktg.NodeOutput(each.logits.float(), {t: f.float() for t, f in each.features.items()})
        for each in half
    ]
    found = made(name, *half)(*half, hard_labels(), temperature=1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, made(name, *full)(*full, hard_labels(), temperature=1.0))


@every_loss_and_labels
def test_loss_under_autocast_is_that_of_float32(name: str, labels: Tensor) -> None:
    outputs = ends()
    expected = made(name, *outputs)(*outputs, labels, temperature=1.0)
    loss = made(name, *outputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (outputs[0].logits @ outputs[1].logits.T).dtype == torch.bfloat16
        found = loss(*outputs, labels, temperature=1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", STACKABLE)
def test_stackable_loss_of_several_edges_is_that_of_each(name: str) -> None:
    temperature = 1.0 if name in ("hard", "cross_entropy") else 2.0  # others are refused there
    pairs = [(logits(0), logits(1)), (logits(2), logits(3))]
    loss = partial(ktg.create_loss(name), temperature=temperature)
    each = [loss(output(s), output(t), hard_labels()) for s, t in pairs]
    sources, destinations = (output(torch.stack(each)) for each in zip(*pairs, strict=True))
    found = loss(sources, destinations, hard_labels())
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("name", STACKABLE)
def test_stackable_loss_gives_a_graph_what_each_edge_alone_would(name: str) -> None:
    loss = ktg.create_loss(name)
    ends = [(s, t) for s in "abc" for t in "abc" if s != t]
    graph = graph_of(*(edge(s, t, loss=loss) for s, t in ends))
    outputs = graph(images())
    found = graph.losses(outputs, hard_labels())
    for s, t in ends:
        expected = loss(outputs[s], outputs[t], hard_labels(), temperature=1.0).mean()
        torch.testing.assert_close(found.edges[f"{s}->{t}"], expected.detach())


@pytest.mark.parametrize("name", sorted(OF_FEATURES))
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_of_features_keeps_the_contract_in_a_graph(name: str, temperature: float) -> None:
    loss = ktg.create_loss(name)
    ends = edge("b", "a", loss=loss, taps={"source": "stem", "destination": "act"})
    graph = graph_of(replace(ends, temperature=temperature), edge("label", "b"))
    graph.build_edges(graph(images()))
    problems = [said for *_, said in contract_problems(graph, graph(images()), mixed=True)]
    refused = f"loss `{name}` says: {name} should have temperature 1. Found 4.0."
    assert problems == ([refused] if temperature != 1 else [])


@pytest.mark.parametrize("name", sorted(OWN - OF_FEATURES))
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_keeps_the_contract_between_the_nodes_of_a_graph(name: str, mixed: bool) -> None:
    ends = ("label", "a") if name in OF_LABELS else ("b", "a")
    loss = ktg.create_loss(name, **ARGUMENTS.get(name, {}))
    graph = graph_of(edge(*ends, loss=loss), edge("label", "b"), keep=("b",))
    problems = [said for *_, said in contract_problems(graph, graph(images()), mixed)]
    refused = f"loss `{name}` says: {name} should get class indices "
    assert len(problems) == (mixed and name in UNMIXED)
    assert all(said.startswith(refused) and said.endswith("mixup or cutmix.") for said in problems)


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
    found = loss(output([[math.log(3), 0.0]]), output([[0.0, 0.0]]), NO_LABELS, temperature=2.0)
    assert found.tolist() == pytest.approx([1.810423], abs=1e-5)


def test_temperature_of_a_loss_cannot_be_bound() -> None:
    with pytest.raises(ValueError, match="loss `kl_div` takes no argument `temperature`. It takes"):
        ktg.create_loss("kl_div", temperature=2.0)


def test_loss_without_temperature_is_refused() -> None:
    def cold(source: ktg.NodeOutput, destination: ktg.NodeOutput, labels: Tensor) -> Tensor:
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"cold\(source, destination, labels, \*, temperature, "):
        ktg.register_loss(cold)
