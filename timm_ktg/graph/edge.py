"""An edge of the graph: the destination learns from the source, through a loss and a gate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ContractError, did_you_mean, one_line
from .gates import EdgeContext, Gate, create_gate, cutoff, through
from .losses import EdgeLoss, NodeOutput, create_loss, ignores_taps, problem_of
from .registry import Bound, shown
from .topology import CUTOFF, LABEL, Link, Pair, tags_of

Names = str | Sequence[str]


class EdgeTaps(NamedTuple):
    """The modules inside both ends whose outputs an edge's loss gets, in this order.

    Args:
        source: Names of the source's modules.
        destination: Names of the destination's modules.
    """

    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()

    @classmethod
    def of(cls, taps: Names | Mapping[str, Names] | EdgeTaps) -> EdgeTaps:
        """Return the taps of a name or names for both ends, or of a mapping with names for each.

        Raises:
            ValueError: The mapping has other keys than `source` and `destination`.
        """
        if isinstance(taps, EdgeTaps):
            return taps
        if not isinstance(taps, Mapping):
            return cls(_listed(taps), _listed(taps))
        for key in taps:
            if key not in cls._fields:
                ends = " and ".join(cls._fields)
                near = did_you_mean(key, cls._fields)
                raise ValueError(f"taps should be given for {ends}. Found {key}.{near}")
        return cls(**{end: _listed(names) for end, names in taps.items()})


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
        weight: Factor of the edge's loss, finite and at least 0.
        taps: Names of the modules whose outputs the loss compares, such as `layer3`, the same at
            both ends or `{"source": "layer3", "destination": "blocks.5"}`. The loss then gets
            these features, and no others.
        head: Name of the head of the destination that learns, if it has several; empty: the first.

    Raises:
        ValueError: A value is out of its range.
    """

    source: str
    destination: str
    gate: Gate = field(default_factory=lambda: create_gate("through"))
    loss: EdgeLoss | None = None
    temperature: float = 1.0
    tag: str = ""
    weight: float = 1.0
    taps: Names | Mapping[str, Names] | EdgeTaps = EdgeTaps()
    head: str = ""

    def __post_init__(self) -> None:
        """Check the numbers, and settle the loss and the taps."""
        if self.source == LABEL and self.temperature != 1:
            raise ValueError(
                f"{self}: temperature should be 1 on an edge from the label. "
                f"Found {self.temperature}."
            )
        if not self.temperature > 0:  # also catches NaN
            raise ValueError(f"{self}: temperature should be above 0. Found {self.temperature}.")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(
                f"{self}: weight should be finite and at least 0. Found {self.weight}."
            )
        if self.loss is None:
            object.__setattr__(self, "loss", create_loss(default_loss(self.source)))
        function = self.loss.function if isinstance(self.loss, Bound) else self.loss
        if self.source == LABEL and getattr(function, "between_networks", False):
            raise ValueError(
                f"{self}: loss should know the label, such as cross_entropy. Found "
                f"{shown(self.loss)}, which compares two networks."
            )
        try:
            taps = EdgeTaps.of(self.taps)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None
        if self.source == LABEL and taps.source:
            raise ValueError(f"{self}: the label has no modules to tap. Found {taps.source[0]}.")
        if taps != EdgeTaps() and ignores_taps(self.loss):
            said = f"because {shown(self.loss)} reads logits alone."
            raise ValueError(f"{self}: taps should be left out, {said}")
        object.__setattr__(self, "taps", taps)

    def __str__(self) -> str:
        """Return the edge's name."""
        return self.name

    @cached_property
    def name(self) -> str:
        """`source->destination`, or `source->destination/tag`; the edge's name everywhere."""
        return self.link.name

    @property
    def pair(self) -> Pair:
        """Both ends."""
        return (self.source, self.destination)

    @cached_property
    def link(self) -> Link:
        """The edge as names: its ends, tag and gate."""
        function = self.gate.function if isinstance(self.gate, Bound) else self.gate
        gate = CUTOFF if function is cutoff else shown(self.gate)
        return Link(self.source, self.destination, self.tag, gate)

    @property
    def tapped(self) -> EdgeTaps:
        """The taps, for each end."""
        return EdgeTaps.of(self.taps)

    @property
    def kin(self) -> Hashable:
        """The same for all edges whose losses can be computed at once; see `stackable`."""
        loss = self.loss
        if not isinstance(loss, Bound) or not getattr(loss.function, "stackable", False):
            return self.name
        if self.tapped != EdgeTaps():
            return self.name
        arguments = tuple(sorted(loss.arguments.items()))
        if not all(isinstance(value, int | float | str | None) for _, value in arguments):
            return self.name  # equal texts need not mean equal values
        return (loss.function, repr(arguments), self.temperature)


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
        self._sees_all = edge.tapped == EdgeTaps() and not edge.head

    @property
    def is_built(self) -> bool:
        """Whether the loss and the gate can be called."""
        return not any(isinstance(p, Bound) and p.is_class for p in (self.loss, self.gate))

    @property
    def is_open(self) -> bool:
        """Whether the gate is `through`."""
        return isinstance(self.gate, Bound) and self.gate.function is through

    def build(self, source: NodeOutput, destination: NodeOutput, seed: int | None = None) -> None:
        """Build the loss and the gate if they are registered module classes.

        Args:
            source: An example output of the source.
            destination: An example output of the destination; its device is used.
            seed: Seed of the initial weights; None: use the global generator.

        Raises:
            ContractError: A constructor raised an error.
        """
        if self.is_built:
            return
        device = destination.logits.device
        ends = {"loss": self.ends(source, destination), "gate": (source, destination)}
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for name, (source, destination) in ends.items():
                part = getattr(self, name)
                if isinstance(part, Bound) and part.is_class:
                    try:
                        module = part.built(source.detach(), destination.detach())
                    except Exception as error:  # somebody else's constructor may raise anything
                        said = f"{name} `{shown(part)}` cannot be built: {one_line(error)}"
                        raise ContractError(f"{self.edge}: {said}") from error
                    assert isinstance(module, nn.Module)
                    setattr(self, name, module.to(device))

    def ends(self, source: NodeOutput, destination: NodeOutput) -> tuple[NodeOutput, NodeOutput]:
        """Return what the loss gets of both ends: the features of the edge's taps, and its head.

        Args:
            source: The source's output.
            destination: The destination's output.
        """
        if self._sees_all:
            return source, destination
        taps, head = self.edge.tapped, self.edge.head
        logits = destination.heads[head] if head else destination.logits
        return (
            NodeOutput(source.logits, _picked(source, taps.source)),
            NodeOutput(logits, _picked(destination, taps.destination)),
        )

    def forward(self, context: EdgeContext) -> Tensor:
        """Return the losses l_st [B].

        Args:
            context: The outputs of both ends, the labels, and the progress of the run.

        Raises:
            ContractError: The loss returned a wrong shape or a detached tensor.
            ValueError: The edge is not built yet.
        """
        self._check_built()
        source, destination = self.ends(context.source, context.destination)
        losses = self.loss(source, destination, context.labels, temperature=self.edge.temperature)
        self._check("loss", losses, context, attached=destination.logits.requires_grad)
        return losses

    def gated(self, losses: Tensor, context: EdgeContext) -> Tensor:
        """Return the gated losses G(l_st) [B].

        Args:
            losses: The losses [B].
            context: As for `forward`.

        Raises:
            ContractError: The gate returned a wrong shape or a detached tensor.
            ValueError: The edge is not built yet.
        """
        if self.is_open:
            return losses
        self._check_built()
        gated = self.gate(losses, context)
        self._check("gate", gated, context, attached=losses.requires_grad)
        return gated

    def _check_built(self) -> None:
        if not self.is_built:
            raise ValueError(unbuilt_said(self.edge.name))

    def _check(self, part: str, values: Tensor, context: EdgeContext, attached: bool) -> None:
        problem = problem_of(values, (len(context.destination.logits),), attached)
        if problem:
            name = shown(getattr(self.edge, part))
            raise ContractError(f"{self.edge}: {part} `{name}` should return {problem}.")


def unbuilt_said(edges: str) -> str:
    """Return what to say of edges that are not built yet."""
    return (
        f"{edges}: a loss or a gate has parameters and is not built yet; call "
        "graph.build_edges(graph(images)) before you make the optimizer."
    )


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


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _picked(output: NodeOutput, taps: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the features of these taps, or all features if there are none."""
    return {tap: output.features[tap] for tap in taps} if taps else output.features
