"""Who teaches whom, by name. Everything that follows from a graph's shape is derived here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from ..errors import did_you_mean

LABEL = "label"
CUTOFF = "cutoff"  # the gate of an edge that does not exist

NETWORK, ENSEMBLE, EMA = "network", "ensemble", "ema"  # the kinds of nodes

Pair = tuple[str, str]
Location = tuple[str, ...]

_TAG = re.compile(r"[A-Za-z0-9_]+")


class Link(NamedTuple):
    """An edge as names: its ends, tag and gate.

    Args:
        source: Name of a node, or `label`.
        destination: Name of a node.
        tag: Distinguishes edges between the same two nodes; empty if there is only one.
        gate: Name of the gate.
    """

    source: str
    destination: str
    tag: str = ""
    gate: str = "through"

    @property
    def name(self) -> str:
        """`source->destination`, or `source->destination/tag`."""
        return f"{self.source}->{self.destination}" + (f"/{self.tag}" if self.tag else "")

    @property
    def key(self) -> str:
        """`source`, or `source/tag`: the edge's key in the destination's recipe entry."""
        return f"{self.source}/{self.tag}" if self.tag else self.source

    @property
    def pair(self) -> Pair:
        """Both ends."""
        return (self.source, self.destination)

    @property
    def is_cut_off(self) -> bool:
        """Whether the gate is `cutoff`, so that the edge does not exist."""
        return self.gate == CUTOFF


class Traits(NamedTuple):
    """The facts about a node that a topology needs.

    Args:
        name: Name of the node.
        has_weights: Whether it starts from trained weights; a frozen network must.
        needs: Names of the nodes that it is made from; a network needs none. A node that needs
            others does not learn, and is not frozen either.
        kind: `network`, `ensemble` or `ema`.
    """

    name: str
    has_weights: bool = False
    needs: tuple[str, ...] = ()
    kind: str = NETWORK


class Problem(NamedTuple):
    """A problem with a topology.

    Args:
        where: `("nodes", name)`, `("edges", name of the edge)`, `("target",)` or `("keep",)`.
        what: A sentence.
        edge: The edge, if the problem is an edge.
    """

    where: Location
    what: str
    edge: Link | None = None


@dataclass(frozen=True)
class Topology:
    """Nodes and edges by name, before any model is built.

    It says which nodes matter, learn, are frozen or are left out, and what is wrong. The names may
    be wrong, so ask for `problems` first.

    Args:
        nodes: The nodes.
        edges: Who learns from whom, including edges that are cut off.
        target: Name of the node to make accurate.
        keep: Names of nodes to train even if they cannot influence the target.
    """

    nodes: tuple[Traits, ...]
    edges: tuple[Link, ...]
    target: str
    keep: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all nodes."""
        return tuple(node.name for node in self.nodes)

    @cached_property
    def live(self) -> tuple[Link, ...]:
        """The edges that are not cut off."""
        return tuple(edge for edge in self.edges if not edge.is_cut_off)

    @cached_property
    def matter(self) -> frozenset[str]:
        """Names of the target, the kept nodes, and all nodes with a path to one of them.

        A node that is made only from nodes that matter matters, too, because it costs no training.
        """
        inputs: dict[str, set[str]] = {node.name: set(node.needs) for node in self.nodes}
        for source, destination, *_ in self.live:
            if source != LABEL:
                inputs.setdefault(destination, set()).add(source)
        found: set[str] = set()
        ahead = [self.target, *self.keep]
        while ahead:
            name = ahead.pop()
            if name not in found:
                found.add(name)
                ahead += inputs.get(name, ())
        made = [node for node in self.nodes if node.needs]
        for _ in made:  # as often as they can depend on each other
            found |= {node.name for node in made if found.issuperset(node.needs)}
        return frozenset(found)

    @cached_property
    def active(self) -> tuple[Link, ...]:
        """The edges that train something: not cut off, and into a node that matters."""
        return tuple(edge for edge in self.live if edge.destination in self.matter)

    @cached_property
    def learning(self) -> tuple[str, ...]:
        """Names of the nodes that learn."""
        destinations = {edge.destination for edge in self.active}
        return tuple(name for name in self.names if name in destinations)

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """Names of the networks that matter and do not learn."""
        still = self.matter - set(self.learning)
        return tuple(node.name for node in self.nodes if node.name in still and not node.needs)

    @cached_property
    def informed(self) -> frozenset[str]:
        """The label, nodes with weights, and all that learn from these or are made of them."""
        found = {LABEL, *(node.name for node in self.nodes if node.has_weights)}
        for _ in self.nodes:  # as often as knowledge can be passed on
            found |= {edge.destination for edge in self.active if edge.source in found}
            found |= {node.name for node in self.nodes if found.intersection(node.needs)}
        return frozenset(found)

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Names of the nodes that cannot influence the target."""
        return tuple(name for name in self.names if name not in self.matter)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names of the nodes that matter, each after the nodes that it needs."""
        needs = {node.name: node.needs for node in self.nodes if node.name in self.matter}
        return tuple(TopologicalSorter(needs).static_order())

    @cached_property
    def in_training(self) -> tuple[str, ...]:
        """Names of the nodes that run in a training step, in order.

        Averages that teach nobody, and nodes made from them, run only in evaluation, because each
        average costs a forward pass.
        """
        taught = {name for edge in self.active for name in self._with_needs(edge.source)}
        kinds = {node.name: node for node in self.nodes}
        running: list[str] = []
        for name in self.order:
            idle = kinds[name].kind == EMA or not {*kinds[name].needs} <= {*running}
            if name in taught or not idle:
                running.append(name)
        return tuple(running)

    def made_from(self, name: str) -> tuple[str, ...]:
        """Return the names of all nodes that a node is made from, in order; its own comes last."""
        found = self._with_needs(name)
        return tuple(each for each in self.order if each in found)

    def _with_needs(self, name: str) -> set[str]:
        """Return the names of a node and of all nodes that it is made from."""
        needs = {node.name: node.needs for node in self.nodes}
        found = {name}
        for _ in needs:
            found |= {need for each in found for need in needs.get(each, ())}
        return found

    def problems(self) -> Iterator[Problem]:
        """Yield all problems."""
        yield from self._node_problems()
        yield from self._edge_problems()
        for name in self.keep:
            if name not in self.names:
                near = did_you_mean(name, self.names)
                yield Problem(("keep",), f"`{name}` is not a node.{near}")
        target = self._target_problem()
        if target:
            yield Problem(("target",), target)
        else:
            yield from self._frozen_problems()

    def _node_problems(self) -> Iterator[Problem]:
        for name in self.names:
            said = name_problem(name)
            if said is None and self.names.count(name) > 1:
                said = "two nodes should not have the same name."
            if said:
                yield Problem(("nodes", name), said)
        for node in self.nodes:
            for need in node.needs:
                if need not in self.names:
                    yield Problem(("nodes", node.name), self._unknown(need, self.names))
            if node.kind == ENSEMBLE and len({*node.needs}) < max(2, len(node.needs)):
                members = ", ".join(node.needs) or "none"
                said = f"an ensemble should have at least two different members. Found {members}."
                yield Problem(("nodes", node.name), said)
            kind = next((n.kind for n in self.nodes if n.name in node.needs), NETWORK)
            if node.kind == EMA and kind != NETWORK and node.name not in node.needs:
                said = f"should follow a network. `{node.needs[0]}` is an {kind}."
                yield Problem(("nodes", node.name), said)
        try:
            TopologicalSorter({node.name: node.needs for node in self.nodes}).prepare()
        except CycleError as error:
            circle = " of ".join(error.args[1])
            yield Problem(("nodes", error.args[1][0]), f"should not be made of itself: {circle}.")

    def _edge_problems(self) -> Iterator[Problem]:
        names = [edge.name for edge in self.edges]
        made = {node.name for node in self.nodes if node.needs}
        for index, edge in enumerate(self.edges):
            for said in self._problems_of(edge, made, edge.name in names[:index]):
                yield Problem(("edges", edge.name), said, edge)

    def _problems_of(self, edge: Link, made: set[str], again: bool) -> Iterator[str]:
        """Yield the problems of an edge; `made` holds the nodes that are made from others."""
        if edge.tag and not _TAG.fullmatch(edge.tag):
            yield f"`{edge.tag}`, after the /, should be letters, digits and `_`."
        if again:
            yield "two edges should not have the same name."
        elif edge.source == edge.destination:
            yield f"`{edge.source}` cannot learn from itself."
        elif edge.destination == LABEL:
            yield f"`{LABEL}` cannot learn."
        elif edge.destination in made:
            yield f"`{edge.destination}` is made from other nodes and cannot learn."
        else:
            for end in edge.pair:
                if end not in (*self.names, LABEL):
                    yield self._unknown(end, [*self.names, LABEL])

    def _unknown(self, name: str, choices: Iterable[str]) -> str:
        nodes = ", ".join(sorted(self.names))
        return f"`{name}` is not a node. Nodes: {nodes}.{did_you_mean(name, choices)}"

    def _target_problem(self) -> str | None:
        target = next((node for node in self.nodes if node.name == self.target), None)
        if target is None:
            nodes = ", ".join(self.names)
            near = did_you_mean(self.target, self.names)
            return f"`{self.target}` is not a node. Nodes: {nodes}.{near}"
        if any(edge.destination == self.target for edge in self.live):
            return None
        if target.needs:
            learns = {*self.learning} & self._with_needs(self.target)
            return None if learns else f"nothing that `{self.target}` is made from learns."
        return f"the target `{self.target}` should learn from something. It has no incoming edge."

    def _frozen_problems(self) -> Iterator[Problem]:
        for node in self.nodes:
            if node.kind == EMA and node.needs[0] in self.frozen:
                said = f"should follow a network that learns. `{node.needs[0]}` is frozen."
                yield Problem(("nodes", node.name), said)
            if node.name in self.frozen and not node.has_weights:
                said = (
                    "learns from nothing, so it is frozen and should have weights: pretrained, or "
                    "(in a recipe) checkpoint_path or train_first. Found none of them."
                )
                yield Problem(("nodes", node.name), said)


def name_problem(name: str) -> str | None:
    """Return why `name` cannot be the name of a node; None if it can."""
    if name == LABEL:
        return f"`{LABEL}` is the name of the label; a node should be called something else."
    if not (name.isidentifier() and name[0].isalpha()):
        return f"a node's name should be a letter, then letters, digits and `_`. Found `{name}`."
    return None


def tags_of(pairs: Sequence[Pair], losses: Sequence[str]) -> list[str]:
    """Return tags for edges that have none: the name of the loss where a pair has several edges.

    Args:
        pairs: The ends of every edge.
        losses: The name of every edge's loss.
    """
    several = {pair for pair in pairs if pairs.count(pair) > 1}
    return [loss if pair in several else "" for pair, loss in zip(pairs, losses, strict=True)]
