"""An ensemble of other nodes: the mean of their predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .losses import NodeOutput
from .node import Place
from .topology import ENSEMBLE, Traits

Combine = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Ensemble:
    """An ensemble of other nodes; it can teach, and it can be the target.

    It has no parameters and no incoming edges. Nothing flows back through it to its members, which
    learn through edges of their own.

    Args:
        name: A letter, then letters, digits and `_`.
        members: Names of at least two other nodes.
        combine: Whether to average the logits, or the probabilities, which are given back as
            logarithms.
        weights: A positive weight for each member; they are divided by their sum. None: all equal.

    Raises:
        ValueError: The weights are not positive numbers, one for each member, or `combine` is
            unknown.
    """

    name: str
    members: tuple[str, ...]
    combine: Combine = "logits"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the weights and the way to combine."""
        problem = weights_problem(self.members, self.weights)
        if problem:
            raise ValueError(f"nodes.{self.name}.weights: {problem}")
        if self.combine not in get_args(Combine):
            choices = " or ".join(get_args(Combine))
            raise ValueError(
                f"nodes.{self.name}.combine: should be {choices}. Found {self.combine}."
            )

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""
        return Traits(self.name, needs=tuple(self.members), kind=ENSEMBLE)

    def at_work(self, place: Place, others: Mapping[str, nn.Module]) -> EnsembleModule:
        """Return the node's module."""
        shares = self.weights or [1.0] * len(self.members)
        total = math.fsum(shares)
        return EnsembleModule(self.members, self.combine, [share / total for share in shares])


class EnsembleModule(nn.Module):
    """Averages the outputs of other nodes.

    Args:
        members: Names of the nodes.
        combine: Whether to average logits or probabilities.
        shares: The share of each member; their sum is 1.
    """

    def __init__(self, members: Sequence[str], combine: Combine, shares: Sequence[float]) -> None:
        super().__init__()
        self.members, self.combine, self.shares = tuple(members), combine, tuple(shares)

    @torch.no_grad()
    def forward(self, images: Tensor, outputs: Mapping[str, NodeOutput]) -> NodeOutput:
        """Return the mean of the members' outputs; see `Ensemble`."""
        pairs = [
            (outputs[name], share) for name, share in zip(self.members, self.shares, strict=True)
        ]
        if self.combine == "logits":
            logits = [output.logits.float() * share for output, share in pairs]
            return NodeOutput(torch.stack(logits).sum(0))
        logs = [output.log_probabilities() + math.log(share) for output, share in pairs]
        return NodeOutput(torch.stack(logs).logsumexp(0))


def weights_problem(members: Sequence[str], weights: Sequence[float] | None) -> str | None:
    """Return what is wrong with the weights of an ensemble; None if nothing is."""
    if weights is None:
        return None
    found = ", ".join(map(str, weights))
    if len(weights) != len(members):
        return f"should be one for each of the {len(members)} members. Found {found}."
    if not all(0 < weight < math.inf for weight in weights):
        return f"should be positive and finite. Found {found}."
    return None
