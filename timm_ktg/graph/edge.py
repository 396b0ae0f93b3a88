"""An edge of the graph: the destination learns from the source, through a loss and a gate."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..errors import ContractError
from .gates import EdgeContext, Gate, create_gate, cutoff
from .losses import EdgeLoss, create_loss, problem_of
from .registry import Bound, shown
from .topology import LABEL, Pair


@dataclass(frozen=True)
class Edge:
    """The destination learns from the source.

    Args:
        source: Name of a node, or `label`.
        destination: Name of a node.
        gate: Decides which samples' loss passes.
        loss: What is measured; None: `cross_entropy` from the label, `kl_div` from a network.
        temperature: T > 0 of an edge between networks; 1 on an edge from the label.

    Raises:
        ValueError: The temperature is out of its range.
    """

    source: str
    destination: str
    gate: Gate = field(default_factory=lambda: create_gate("through"))
    loss: EdgeLoss | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the temperature and settle the loss."""
        if self.source == LABEL and self.temperature != 1:
            raise ValueError(
                f"{self}: temperature should be 1 on an edge from the label. "
                f"Found {self.temperature}."
            )
        if not self.temperature > 0:  # not a number is not above 0 either
            raise ValueError(f"{self}: temperature should be above 0. Found {self.temperature}.")
        if self.loss is None:
            loss = create_loss("cross_entropy" if self.source == LABEL else "kl_div")
            object.__setattr__(self, "loss", loss)

    def __str__(self) -> str:
        """Return `source->destination`, the edge's name in messages and metrics."""
        return f"{self.source}->{self.destination}"

    @property
    def pair(self) -> Pair:
        """Both ends."""
        return (self.source, self.destination)

    @property
    def is_cut_off(self) -> bool:
        """Whether the gate is `cutoff`: the edge then does not exist."""
        function = self.gate.function if isinstance(self.gate, Bound) else self.gate
        return function is cutoff

    def measure(self, context: EdgeContext) -> Tensor:
        """Return the losses l_st [B], before the gate.

        Raises:
            ContractError: The loss returned another shape, or something detached.
        """
        assert self.loss is not None
        losses = self.loss(
            context.source, context.destination, context.labels, temperature=self.temperature
        )
        logits = context.destination.logits
        problem = problem_of(losses, len(logits), attached=logits.requires_grad)
        if problem:
            raise ContractError(f"{self}: loss `{shown(self.loss)}` should return {problem}.")
        return losses

    def gated(self, losses: Tensor, context: EdgeContext) -> Tensor:
        """Return what the gate lets through of the losses, G(l_st) [B].

        Raises:
            ContractError: The gate returned another shape, or something detached from the losses.
        """
        gated = self.gate(losses, context)
        problem = problem_of(gated, len(losses), attached=losses.requires_grad)
        if problem:
            raise ContractError(f"{self}: gate `{shown(self.gate)}` should return {problem}.")
        return gated
