from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import timm_ktg as ktg
from tests.nets import CLASSES, Array, array, hard_labels, output, soft_labels
from timm_ktg.graph.gates import stops_samples

few = settings(deadline=None, max_examples=15, database=None)
OWN = ["correct", "cutoff", "linear", "negative_linear", "through"]

REFERENCES: dict[str, Callable[[Array, Array, Array, float], Array]] = {
    "through": lambda losses, source, y, progress: losses,
    "cutoff": lambda losses, source, y, progress: np.zeros_like(losses),
    "linear": lambda losses, source, y, progress: losses * progress,
    "negative_linear": lambda losses, source, y, progress: losses - losses * progress,
    "correct": lambda losses, source, y, progress: np.array(
        [x if z.argmax() == c else 0.0 for x, z, c in zip(losses, source, y, strict=True)]
    ),
}


def make(
    batch: int = 8, progress: float | Tensor = 0.3, labels: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, ktg.EdgeContext]:
    generator = torch.Generator().manual_seed(seed)
    source, destination = torch.randn(2, batch, CLASSES, generator=generator)
    labels = hard_labels(batch) if labels is None else labels
    losses = 3 * torch.rand(batch, generator=generator)
    return losses, ktg.EdgeContext(output(source), output(destination), labels, progress)


def test_every_own_gate_has_a_reference_here() -> None:
    assert sorted(REFERENCES) == OWN
    assert set(OWN) <= set(ktg.list_gates())


@pytest.mark.parametrize("progress", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("name", OWN)
def test_gate_equals_the_reference(name: str, progress: float) -> None:
    for seed in range(5):
        losses, context = make(16, progress, hard_labels(16, seed), seed)
        y = context.labels.numpy()
        expected = REFERENCES[name](array(losses), array(context.source.logits), y, progress)
        found = ktg.create_gate(name)(losses, context)
        np.testing.assert_allclose(array(found), expected, rtol=1e-6, atol=1e-7)


# Golden values: the source says 0, 1, 2, 0; the labels are 0, 2, 2, 1; k = 3 of k_end = 4 updates.
GOLDEN = {
    "through": [1.0, 2.0, 4.0, 8.0],
    "cutoff": [0.0, 0.0, 0.0, 0.0],
    "linear": [0.75, 1.5, 3.0, 6.0],
    "negative_linear": [0.25, 0.5, 1.0, 2.0],
    "correct": [1.0, 0.0, 4.0, 0.0],
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_gate_has_golden_values(name: str, as_tensor: bool) -> None:
    source = output([[5.0, 1, 0], [0, 3, 2], [-1, -2, 0], [1, 0, 0]])
    progress = torch.tensor(0.75, dtype=torch.float64) if as_tensor else 0.75
    context = ktg.EdgeContext(source, source, torch.tensor([0, 2, 2, 1]), progress)
    found = ktg.create_gate(name)(torch.tensor([1.0, 2.0, 4.0, 8.0]), context)
    assert found.dtype == torch.float32
    assert found.tolist() == GOLDEN[name]


@pytest.mark.parametrize("progress", [1.0, 1, torch.tensor(1.0), 1000 / 1000])
def test_linear_at_the_last_update_is_exactly_the_loss(progress: float | Tensor) -> None:
    losses, context = make(64, progress)
    assert torch.equal(ktg.create_gate("linear")(losses, context), losses)


@pytest.mark.parametrize("progress", [1.0, 1, torch.tensor(1.0), 1000 / 1000])
def test_negative_linear_at_the_last_update_is_exactly_zero(progress: float | Tensor) -> None:
    losses, context = make(64, progress)
    assert torch.equal(ktg.create_gate("negative_linear")(losses, context), torch.zeros(64))


def test_linear_and_negative_linear_add_up_to_through() -> None:
    losses, context = make()
    both = [ktg.create_gate(name)(losses, context) for name in ("linear", "negative_linear")]
    torch.testing.assert_close(both[0] + both[1], losses)


def test_correct_takes_the_dominant_class_of_soft_labels() -> None:
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.3, 0.4], [0.1, 0.9, 0.0]])
    source = output([[1.0, 0, 0], [1, 0, 0], [0, 2, 0]])  # says 0, 0, 1; dominant are 0, 2, 1
    context = ktg.EdgeContext(source, source, mixed, 0.5)
    found = ktg.create_gate("correct")(torch.tensor([1.0, 2.0, 3.0]), context)
    assert found.tolist() == [1.0, 0.0, 3.0]


@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_correct_is_through_on_an_edge_from_the_label(labels: Tensor) -> None:
    losses, context = make(labels=labels)
    label = output(torch.eye(CLASSES)[labels] if labels.ndim == 1 else labels)
    found = ktg.create_gate("correct")(losses, context._replace(source=label))
    assert torch.equal(found, losses)


@pytest.mark.parametrize("stopped", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "expected"), [("correct", [1.0, 0.0]), ("cutoff", [0.0, 0.0])])
def test_loss_of_a_stopped_sample_does_not_come_through(
    name: str, expected: list[float], stopped: float
) -> None:
    source = output([[1.0, 0], [1, 0]])
    losses = torch.tensor([1.0, stopped], requires_grad=True)
    context = ktg.EdgeContext(source, source, torch.tensor([0, 1]), 0.5)
    found = ktg.create_gate(name)(losses, context)
    found.sum().backward()
    assert losses.grad is not None
    assert found.tolist() == expected
    assert losses.grad.tolist() == expected


@pytest.mark.parametrize("name", OWN)
@few
@given(st.permutations(range(6)), st.integers(0, 99))
def test_gate_is_permutation_equivariant(name: str, order: list[int], seed: int) -> None:
    losses, context = make(6, 0.3, hard_labels(6, seed), seed)
    gate, index = ktg.create_gate(name), torch.tensor(order)
    shuffled = ktg.EdgeContext(
        output(context.source.logits[index]),
        output(context.destination.logits[index]),
        context.labels[index],
        context.progress,
    )
    assert torch.equal(gate(losses[index], shuffled), gate(losses, context)[index])


@pytest.mark.parametrize("name", OWN)
def test_gate_of_a_sample_does_not_depend_on_the_batch(name: str) -> None:
    losses, context = make()
    gate = ktg.create_gate(name)
    alone = [
        gate(
            losses[n : n + 1],
            ktg.EdgeContext(
                output(context.source.logits[n : n + 1]),
                output(context.destination.logits[n : n + 1]),
                context.labels[n : n + 1],
                context.progress,
            ),
        )
        for n in range(8)
    ]
    assert torch.equal(torch.cat(alone), gate(losses, context))


# The contract


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("name", ktg.list_gates())
def test_registered_gate_keeps_the_contract(name: str, num_classes: int) -> None:
    ktg.check_gate(ktg.create_gate(name), num_classes)


def test_gate_of_ones_own_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:

    @ktg.register_gate
    def confident(losses: Tensor, context: ktg.EdgeContext, *, threshold: float = 0.8) -> Tensor:
        """Pass the samples the source is sure of."""
        return losses * (context.source.logits.softmax(-1).amax(-1) >= threshold)

    assert "confident" in ktg.list_gates()
    gate = ktg.create_gate("confident", threshold=0.9)
    ktg.check_gate(gate)
    # softmax([log 3, 0]) = (3/4, 1/4); softmax([log 19, 0]) = (0.95, 0.05)
    source = output(torch.tensor([[3.0, 1.0], [19.0, 1.0]]).log())
    context = ktg.EdgeContext(source, source, torch.tensor([0, 0]), 1.0)
    assert gate(torch.tensor([1.0, 2.0]), context).tolist() == [0.0, 2.0]


class Counting:
    calls = 0

    def __call__(self, losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        self.calls += 1
        return losses / self.calls


BROKEN: dict[str, tuple[Callable[[Tensor, ktg.EdgeContext], Any], str]] = {
    "mean": (lambda x, c: x.mean(), r"one loss per sample \[1\]\. Found \[\]"),
    "column": (lambda x, c: x[:, None], r"one loss per sample \[1\]\. Found \[1, 1\]"),
    "first": (lambda x, c: x[:1], r"one loss per sample \[7\]\. Found \[1\]"),
    "integer": (lambda x, c: x.round().long(), r"floating-point .*\. Found torch\.int64"),
    "mask": (lambda x, c: x > 1, r"floating-point numbers\. Found torch\.bool"),
    "detached": (
        lambda x, c: x.detach(),
        r"losses that gradients flow through\. Found .* detached",
    ),
    "fresh": (
        lambda x, c: torch.ones_like(x),
        r"losses that gradients flow through\. Found .* detached",
    ),
    "nan": (lambda x, c: x / (c.progress - 1), r"finite numbers\. Found \[-?inf"),
    "not_a_number": (lambda x, c: (x - 9).sqrt(), r"finite numbers\. Found \[nan"),
    "float": (lambda x, c: 1.0, r"a tensor\. Found float"),
    "nothing": (lambda x, c: None, r"a tensor\. Found NoneType"),
    "array": (lambda x, c: x.detach().numpy(), r"a tensor\. Found ndarray"),
    "counting": (Counting(), r"the same .*\. Found two different answers"),
    "random": (lambda x, c: x * torch.rand(()), r"the same .*\. Found two different answers"),
    "hard_only": (
        lambda x, c: x * 1.0 if c.labels.ndim == 1 else x.sum(),
        r"one loss per sample \[1\]\. Found \[\]",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_check_gate_says_what_is_wrong(broken: str) -> None:
    gate, sentence = BROKEN[broken]
    with pytest.raises(ValueError, match=f"^gate `.*` should return {sentence}.*\\.$"):
        ktg.check_gate(gate)


def test_check_gate_names_the_gate_and_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:

    @ktg.register_gate
    def averaged(losses: Tensor, context: ktg.EdgeContext, *, share: float = 1.0) -> Tensor:
        return share * losses.mean()

    with pytest.raises(ValueError, match=r"^gate `averaged\(share=0.5\)` should return one loss"):
        ktg.check_gate(ktg.create_gate("averaged", share=0.5))


def in_place(change: Callable[[Tensor, ktg.EdgeContext], Any]) -> ktg.Gate:
    def gate(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        passed = losses * 1.0
        change(losses, context)
        return passed

    return gate


CHANGES: dict[str, Callable[[Tensor, ktg.EdgeContext], Any]] = {
    "source": lambda x, c: c.source.logits.add_(1),
    "destination": lambda x, c: c.destination.logits.add_(1),
    "labels": lambda x, c: c.labels.zero_(),
    "losses": lambda x, c: x.mul_(0.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_gate_refuses_a_change_in_place(what: str) -> None:
    with pytest.raises(ValueError, match=r"a new tensor\. Found its arguments changed in place"):
        ktg.check_gate(in_place(CHANGES[what]))


def test_check_gate_refuses_losses_stopped_in_place() -> None:
    # The graph compares what came in with what came out: `passed` would be 1 everywhere.
    def gate(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        losses[context.source.logits.argmax(-1) != 0] = 0
        return losses

    with pytest.raises(ValueError, match="changed in place"):
        ktg.check_gate(gate)


# Gates that stop samples.


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        *(("through", False), ("linear", False), ("negative_linear", False)),
        *(("correct", True), ("cutoff", False)),  # which stops all of them
    ],
)
def test_gate_that_stops_some_samples_is_told_from_one_that_weighs_all(
    name: str, stops: bool
) -> None:
    assert stops_samples(ktg.create_gate(name)) is stops


def test_gate_that_cannot_be_tried_is_taken_for_one_that_stops() -> None:
    assert stops_samples(lambda losses, context: losses * context.source.features["layer3"])
