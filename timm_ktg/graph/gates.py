"""Gates: functions that map per-sample losses [B] to the losses [B] that pass.

A gate has the form `gate(losses, context, *, ...) -> [B]` and is pure: it keeps no state, draws no
random numbers, and works on each sample before any reduction. A gate with parameters of its own is
a module class; see `Registry`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .losses import NodeOutput, problem_of
from .registry import Bound, Registry, shown


class EdgeContext(NamedTuple):
    """The information that a gate can use.

    Args:
        source: The node that teaches, detached. For the label: the one-hot [B, C] as logits.
        destination: The node that learns.
        labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
        progress: k / k_end, the share of the run's optimizer updates done, including this one; in
            (0, 1], and exactly 1 at the last update. A number or a 0-dimensional tensor.
    """

    source: NodeOutput
    destination: NodeOutput
    labels: Tensor
    progress: float | Tensor


class Gate(Protocol):
    """Decides how much of each sample's loss passes."""

    def __call__(self, losses: Tensor, context: EdgeContext, /) -> Tensor:
        """Return the gated losses [B]."""


def dominant(labels: Tensor) -> Tensor:
    """Return class indices [B]: the labels [B] themselves, or the likeliest class of [B, C]."""
    return labels if labels.ndim == 1 else labels.argmax(-1)


def through(losses: Tensor, context: EdgeContext) -> Tensor:
    """Pass every loss unchanged.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """
    return losses


def cutoff(losses: Tensor, context: EdgeContext) -> Tensor:
    """Pass nothing.

    A graph drops edges with this gate when it is built, so they cost no compute, and a non-finite
    loss cannot leak through as 0 * NaN.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """
    return losses.where(losses.new_zeros(losses.shape, dtype=torch.bool), 0.0)


def linear(losses: Tensor, context: EdgeContext) -> Tensor:
    """Weigh the losses by k / k_end, from almost 0 to exactly 1 at the last update.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """
    return losses * context.progress


def negative_linear(losses: Tensor, context: EdgeContext) -> Tensor:
    """Weigh the losses by 1 - k / k_end, down to exactly 0 at the last update.

    Not in the paper. The student listens to the teacher first and outgrows it later.
    """
    return losses * (1 - context.progress)


def correct(losses: Tensor, context: EdgeContext) -> Tensor:
    """Pass the samples that the source classifies correctly.

    Correct means that the source's top-1 is the true label or, with mixed labels (mixup, cutmix),
    the dominant one. On an edge from the label this gate equals `through`.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """
    right = context.source.logits.argmax(-1) == dominant(context.labels)
    return losses.where(right, 0.0)


registry = Registry("gate", "timm_ktg.gates", data=("losses", "context"))
register_gate, list_gates, create_gate = registry.register, registry.names, registry.create


def check_gate(gate: Gate, num_classes: int = 10) -> None:
    """Check a gate against its contract on random outputs. Recipes check all their gates this way.

    The contract: the gate maps [B] to finite numbers [B], attached to the losses, and is pure (same
    result twice, arguments unchanged), for hard and for mixed labels, at any progress.

    Args:
        gate: The gate, with its arguments bound.
        num_classes: C of the random logits, at least 2.

    Raises:
        ValueError: The gate breaks the contract.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 7):
        hard = torch.randint(num_classes, (batch,), generator=generator)
        soft = torch.rand(batch, num_classes, generator=generator).softmax(-1)
        logits = 3 * torch.randn(2, batch, num_classes, generator=generator)
        if isinstance(gate, Bound):
            gate = gate.built(NodeOutput(logits[0]), NodeOutput(logits[1]))
        for labels in (hard, soft):
            for progress in (1e-3, 0.5, 1.0):
                context = EdgeContext(
                    NodeOutput(logits[0]), NodeOutput(logits[1]), labels, progress
                )
                _check_gate_once(gate, 4 * torch.rand(batch, generator=generator), context)


def stops_samples(gate: Gate, num_classes: int = 10) -> bool:
    """Say whether a gate stops some samples and lets others through, as `correct` does.

    Found out on made-up outputs, in the middle of a run. A gate that cannot be called on them, such
    as one that reads features, is taken for one that does.

    Args:
        gate: The gate, with its arguments bound, or a module.
        num_classes: C of the made-up logits, at least 2.
    """
    losses, context = _made_up(num_classes)
    try:
        with torch.no_grad():
            stopped = gate(losses, context) == 0
            return bool(stopped.any()) and not bool(stopped.all())
    except Exception:  # somebody else's gate may raise anything
        return True


def follows_progress(gate: Gate, num_classes: int = 10) -> bool:
    """Say whether a gate does something else early in a run than late, as `linear` does.

    It is tried on made-up outputs. A gate that cannot be called on them is taken for one that does.

    Args:
        gate: The gate, with its arguments bound, or a module.
        num_classes: C of the made-up logits, at least 2.
    """
    losses, context = _made_up(num_classes)
    try:
        if isinstance(gate, Bound):
            gate = gate.built(context.source, context.destination)
        with torch.no_grad():
            first, *others = (
                gate(losses, context._replace(progress=step / 100)) for step in range(1, 101)
            )
        return not all(torch.equal(first, other) for other in others)
    except Exception:  # somebody else's gate may raise anything
        return True


def _made_up(num_classes: int) -> tuple[Tensor, EdgeContext]:
    """Return losses of 64 samples and what a gate sees of them, in the middle of a run."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 64, num_classes, generator=generator)
    labels = torch.randint(num_classes, (64,), generator=generator)
    context = EdgeContext(NodeOutput(logits[0]), NodeOutput(logits[1]), labels, 0.5)
    return 1 + torch.rand(64, generator=generator), context


def _check_gate_once(gate: Gate, values: Tensor, context: EdgeContext) -> None:
    leaf = values.clone().requires_grad_()
    arguments = (leaf * 1, context.source.logits, context.destination.logits, context.labels)
    before = [argument.clone() for argument in arguments]
    passed = gate(arguments[0], context)
    problem = problem_of(passed, (len(values),), attached=True)
    if problem is None and not passed.isfinite().all():
        problem = f"finite numbers. Found {passed.tolist()}"
    if problem is None and not all(map(torch.equal, before, arguments)):
        problem = "a new tensor. Found its arguments changed in place"
    if problem is None and not torch.equal(passed, gate(leaf * 1, context)):
        problem = "the same for the same arguments. Found two different answers"
    if problem:
        raise ValueError(f"gate `{shown(gate)}` should return {problem}.")
