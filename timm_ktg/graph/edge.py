"""An edge of the graph: the destination learns from the source, through a loss and a gate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import ContractError
from .gates import EdgeContext, Gate, create_gate, cutoff
from .losses import EdgeLoss, NodeOutput, create_loss, problem_of
from .registry import Bound, shown
from .topology import CUTOFF, LABEL, Link, Pair, tags_of


@dataclass(frozen=True)
class Edge:
    """The destination learns from the source.

    The loss and the gate are functions, or modules if they have parameters of their own: an
    `nn.Module`, or what `create_loss` returns for a registered module class.

    Args:
        source: Name of a node, or `label`.
        destination: Name of a node.
        gate: Decides which samples' losses pass.
        loss: The loss; None: `cross_entropy` from the label, `kl_div` from a network.
        temperature: T > 0 between networks; 1 on an edge from the label.
        tag: Distinguishes edges between the same two nodes; if it is empty and there are several
            edges, the graph uses the name of the loss.

    Raises:
        ValueError: The temperature is out of its range.
    """

    source: str
    destination: str
    gate: Gate = field(default_factory=lambda: create_gate("through"))
    loss: EdgeLoss | None = None
    temperature: float = 1.0
    tag: str = ""

    def __post_init__(self) -> None:
        """Check the temperature and settle the loss."""
        if self.source == LABEL and self.temperature != 1:
            raise ValueError(
                f"{self}: temperature should be 1 on an edge from the label. "
                f"Found {self.temperature}."
            )
        if not self.temperature > 0:  # also catches NaN
            raise ValueError(f"{self}: temperature should be above 0. Found {self.temperature}.")
        if self.loss is None:
            object.__setattr__(self, "loss", create_loss(default_loss(self.source)))

    def __str__(self) -> str:
        """Return the edge's name."""
        return self.name

    @property
    def name(self) -> str:
        """`source->destination`, or `source->destination/tag`; the edge's name everywhere."""
        return self.link.name

    @property
    def pair(self) -> Pair:
        """Both ends."""
        return (self.source, self.destination)

    @property
    def link(self) -> Link:
        """The edge as names: its ends, tag and gate."""
        function = self.gate.function if isinstance(self.gate, Bound) else self.gate
        gate = CUTOFF if function is cutoff else shown(self.gate)
        return Link(self.source, self.destination, self.tag, gate)


class EdgeModule(nn.Module):
    """An edge in a graph; it owns the parameters of its loss and its gate, if they have any.

    `build` creates the loss or gate of a registered module class once the shapes at both ends are
    known. The constructor takes example outputs of source and destination, and the bound arguments.

    Args:
        edge: The edge.
    """

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        assert edge.loss is not None
        self.edge = edge
        self.loss: EdgeLoss = edge.loss
        self.gate: Gate = edge.gate

    @property
    def is_built(self) -> bool:
        """Whether the loss and the gate can be called."""
        return not any(isinstance(p, Bound) and p.is_class for p in (self.loss, self.gate))

    def build(self, source: NodeOutput, destination: NodeOutput, seed: int | None = None) -> None:
        """Build the loss and the gate if they are registered module classes.

        Args:
            source: An example output of the source.
            destination: An example output of the destination; its device is used.
            seed: Seed of the initial weights; None: use the global generator.
        """
        device = destination.logits.device
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for name in ("loss", "gate"):
                part = getattr(self, name)
                if isinstance(part, Bound) and part.is_class:
                    module = part.built(source.detach(), destination.detach())
                    assert isinstance(module, nn.Module)
                    setattr(self, name, module.to(device))

    def forward(self, context: EdgeContext) -> tuple[Tensor, Tensor]:
        """Return the losses l_st [B] and the gated losses G(l_st) [B].

        Args:
            context: The outputs of both ends, the labels, and the progress of the run.

        Raises:
            ContractError: The loss or the gate returned a wrong shape or a detached tensor.
        """
        losses = self.loss(
            context.source, context.destination, context.labels, temperature=self.edge.temperature
        )
        self._check("loss", losses, context, attached=context.destination.logits.requires_grad)
        gated = self.gate(losses, context)
        self._check("gate", gated, context, attached=losses.requires_grad)
        return losses, gated

    def _check(self, part: str, values: Tensor, context: EdgeContext, attached: bool) -> None:
        problem = problem_of(values, len(context.destination.logits), attached)
        if problem:
            name = shown(getattr(self.edge, part))
            raise ContractError(f"{self.edge}: {part} `{name}` should return {problem}.")


def default_loss(source: str) -> str:
    """Return the name of an edge's default loss."""
    return "cross_entropy" if source == LABEL else "kl_div"


def tagged(edges: list[Edge]) -> list[Edge]:
    """Return the edges, with a tag added where several untagged ones join the same two nodes."""
    bare = [edge for edge in edges if not edge.tag]
    names = [loss_name(edge) for edge in bare]
    tags = dict(zip(map(id, bare), tags_of([edge.pair for edge in bare], names), strict=True))
    return [replace(edge, tag=tags[id(edge)]) if tags.get(id(edge)) else edge for edge in edges]


def loss_name(edge: Edge) -> str:
    """Return the name of an edge's loss, without its arguments."""
    loss = edge.loss
    if isinstance(loss, Bound):
        return loss.name
    return getattr(loss, "__name__", type(loss).__name__)
