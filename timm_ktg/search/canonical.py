"""Graphs of a search, in the one form that all equal graphs share.

Two draws are the same graph if they differ only in the names of their auxiliaries, in `correct`
instead of `through` on a label edge (the label is always right), or in what cannot reach the
target. Where an ensemble is judged, the first network is no different from an auxiliary of the same
model, and what matters is what can reach a member.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, groupby, product
from typing import Any, NamedTuple

from ..graph.topology import EMA, ENSEMBLE, LABEL, Link, Pair, Topology, Traits
from ..recipe.search_config import Kind, Objective

TARGET = "target"  # the first network
THROUGH, CORRECT = "through", "correct"

LEARNS: Kind = "learns"
FROZEN: Kind = "frozen"
ALONE: Objective = "target"  # the first network itself is judged, and no ensemble
EVERY: Objective = "ensemble-all"

Models = Mapping[str, str]  # by node
Gates = Mapping[Pair, str]  # by edge


class GraphNode(NamedTuple):
    """A network: its name, timm's name of its model, and what it is.

    The model of a slow copy of the target is written as `ema`.
    """

    name: str
    model: str
    role: Kind


class GraphEdge(NamedTuple):
    """An edge: `destination` learns from `source` what the gate lets through."""

    source: str
    destination: str
    gate: str


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph in canonical form; made by `canonical_form`.

    Args:
        nodes: The networks that matter: the target first, then the auxiliaries by model.
        edges: The edges that exist, by destination, then by source, the label first.
        objective: What is judged. It is left out of the repr, which names final trainings.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    objective: Objective = field(default=ALONE, repr=False)

    @property
    def key(self) -> str:
        """16 digits of a hash: equal for equal graphs; two others collide with chance 5e-20."""
        judged = [] if self.objective == ALONE else [self.objective]
        form = json.dumps([[node.model for node in self.nodes], self.edges, *judged])
        return sha256(form.encode()).hexdigest()[:16]

    @property
    def models(self) -> dict[str, str]:
        """The nodes' models by name."""
        return {node.name: node.model for node in self.nodes}

    @property
    def gates(self) -> dict[Pair, str]:
        """The edges' gates by source and destination."""
        return {(edge.source, edge.destination): edge.gate for edge in self.edges}

    @property
    def frozen_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that learn from nothing and so need weights of their own."""
        return tuple(node.name for node in self.nodes if node.role == FROZEN)

    @property
    def learning_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that learn."""
        return tuple(node.name for node in self.nodes if node.role == LEARNS)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the nodes whose ensemble is judged; none: the target itself is."""
        return members_of(self.models, self.learning_nodes, self.objective)

    @property
    def judged(self) -> str:
        """Name of the node that is judged."""
        return judged_node(self.objective if self.members else ALONE)

    def __str__(self) -> str:
        """Return the graph as a line: `target resnet8_cifar <- label, aux1 (correct); ...`."""
        line = describe(self.edges, self.models)
        return f"{line}; {ENSEMBLE} of {', '.join(self.members)}" if self.members else line


def role_of(model: str, learns: bool) -> Kind:
    """Return what a node is, given its model and whether it learns."""
    return LEARNS if learns else "ema" if model == EMA else FROZEN


def members_of(models: Models, learning: Collection[str], objective: Objective) -> tuple[str, ...]:
    """Return the names of the nodes whose ensemble is judged; none: the target itself is.

    Args:
        models: The nodes' models by name.
        learning: Names of the nodes that learn.
        objective: What is judged; of a single node there is no ensemble.
    """
    if objective == ALONE:
        return ()
    members = tuple(name for name in models if objective == EVERY or name in learning)
    return members if len(members) > 1 else ()


def judged_node(objective: Objective) -> str:
    """Return the name of the node that is judged."""
    return TARGET if objective == ALONE else ENSEMBLE


def describe(edges: Iterable[GraphEdge], models: Models | None = None, arrow: str = "<-") -> str:
    """Return who learns from whom, as a line: `target <- label, aux1 (correct); aux1 <- label`.

    Args:
        edges: The edges that exist.
        models: The nodes' models by name, to be shown, the frozen nodes' too; None: the line says
            only what those that learn are called.
        arrow: What stands between a node and its sources.
    """
    sources: dict[str, list[str]] = {name: [] for name in models or ()}
    for source, destination, gate in edges:
        shown = source if gate == THROUGH else f"{source} ({gate})"
        sources.setdefault(destination, []).append(shown)
    parts = []
    for name, learns_from in sources.items():
        model = models[name] if models else ""
        still = f" of {TARGET}" if model == EMA else " frozen"
        how = f" {arrow} {', '.join(learns_from)}" if learns_from else still
        parts.append(f"{name} {model}".rstrip() + how)
    return "; ".join(parts)


def all_through(
    target_model: str, auxiliaries: Sequence[str], objective: Objective = ALONE
) -> CanonicalGraph:
    """Return the graph in which all learn from all and from the label (deep mutual learning).

    Args:
        target_model: Model of the target.
        auxiliaries: Models of the auxiliaries; none: the target learns from the label alone. Slow
            copies do not learn.
        objective: What is judged.
    """
    models = [target_model, *auxiliaries]
    by_name = dict(zip(node_names(len(models)), models, strict=True))
    gates = {pair: THROUGH for pair in possible_edges(tuple(by_name)) if by_name[pair[1]] != EMA}
    return canonical_form(by_name, gates, objective)


def taught(graph: CanonicalGraph, sources: Collection[str]) -> CanonicalGraph:
    """Return a graph with the same networks, each that learns taught by these through open gates.

    Args:
        graph: The graph.
        sources: Names of nodes, or `label`; nobody learns from itself.
    """
    pairs = [pair for pair in possible_edges(tuple(graph.models)) if pair[0] in sources]
    gates = {pair: THROUGH for pair in pairs if pair[1] in graph.learning_nodes}
    return canonical_form(graph.models, gates, graph.objective)


def distillation(target_model: str, *teachers: str) -> CanonicalGraph:
    """Return the target with the label and frozen teachers: KD, but at T = 1 (the paper's: 2).

    Args:
        target_model: Model of the target.
        teachers: Model of each teacher.
    """
    models = {f"teacher{number}": model for number, model in enumerate(teachers, start=1)}
    gates = {(source, TARGET): THROUGH for source in (LABEL, *models)}
    return canonical_form({TARGET: target_model, **models}, gates)


def worded(graph: CanonicalGraph, label: str, others: str = THROUGH) -> CanonicalGraph:
    """Return a graph with other words on its open edges, to give them other losses.

    Args:
        graph: The graph.
        label: The word on edges from the label; see `edge_word`.
        others: The word on edges between nodes.
    """
    gates = {
        pair: (label if pair[0] == LABEL else others) if gate == THROUGH else gate
        for pair, gate in graph.gates.items()
    }
    return canonical_form(graph.models, gates, graph.objective)


def node_names(count: int) -> tuple[str, ...]:
    """Return the names of so many nodes: the target and its auxiliaries."""
    return TARGET, *(f"aux{index}" for index in range(1, count))


def possible_edges(names: Sequence[str]) -> tuple[Pair, ...]:
    """Return every edge between such nodes, by destination, then by source, the label first."""
    return tuple((source, node) for node in names for source in (LABEL, *names) if source != node)


def canonical_form(models: Models, gates: Gates, objective: Objective = ALONE) -> CanonicalGraph:
    """Return the canonical form of a graph that is valid; see `valid_form`."""
    graph = valid_form(models, gates, objective)
    assert graph is not None
    return graph


def valid_form(models: Models, gates: Gates, objective: Objective = ALONE) -> CanonicalGraph | None:
    """Return the canonical form of a graph.

    Nodes without a path to what is judged are dropped; a network without an incoming edge is
    frozen. A slow copy has none either.

    Args:
        models: The model of each node.
        gates: The gate of each edge that exists.
        objective: What is judged.

    Returns:
        The form, or None if the graph is invalid: its target learns from nothing; or there are
        fewer than two networks to judge together, or none of the target's model that learns.
    """
    topology = _topology(models, gates, objective)
    matter, learning = topology.matter, topology.learning
    first = _first(models, matter, objective).intersection(learning)
    if not first or (objective != ALONE and len(topology.nodes) == len(models)):
        return None
    models = {name: model for name, model in models.items() if name in matter}
    gates = {
        pair: THROUGH if (pair[0], gate) == (LABEL, CORRECT) else gate
        for pair, gate in gates.items()
        if pair[1] in matter
    }
    order = min(_orders(models, gates, first), key=lambda order: _table(order, gates))
    new = {LABEL: LABEL, **dict(zip(order, node_names(len(order)), strict=True))}
    pairs = [pair for pair in possible_edges(order) if pair in gates]
    roles = {name: role_of(models[name], name in learning) for name in order}
    return CanonicalGraph(
        tuple(GraphNode(new[name], models[name], roles[name]) for name in order),
        tuple(GraphEdge(new[pair[0]], new[pair[1]], gates[pair]) for pair in pairs),
        objective,
    )


def _topology(models: Models, gates: Gates, objective: Objective) -> Topology:
    """Return who teaches whom, with the ensemble that is judged, if there is one."""
    traits = [Traits(name, has_weights=True) for name in models]
    links = tuple(Link(*pair) for pair in gates)
    members = members_of(models, {link.destination for link in links}, objective)
    if not members:
        return Topology(tuple(traits), links, TARGET)
    together = Traits(ENSEMBLE, needs=members, kind=ENSEMBLE)
    return Topology((*traits, together), links, ENSEMBLE)


def _first(models: Models, matter: Collection[str], objective: Objective) -> set[str]:
    """Return the names of the nodes that may be called the target.

    Where an ensemble is judged, the target is no different from others of its model, unless it is
    the one that a slow copy follows.
    """
    if objective == ALONE or any(models.get(name) == EMA for name in matter):
        return {TARGET}
    return {name for name, model in models.items() if model == models[TARGET]}


def _table(order: Sequence[str], gates: Gates) -> list[str]:
    """Write the gates row by row: destinations down, sources across, "" where there is no edge."""
    return [gates.get((source, node), "") for node in order for source in (LABEL, *order)]


def _orders(models: Models, gates: Gates, first: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield orders that include one of the least form: by color, and every one within a color.

    Twins stand in one order only, because their others give the same form.
    """
    color = _colors(models, gates, first).__getitem__
    groups = groupby(sorted(models, key=color), key=color)
    within = [_merges(_twins(group, gates)) for _, group in groups]
    return (tuple(chain(*parts)) for parts in product(*within))


def _twins(nodes: Iterable[str], gates: Gates) -> list[tuple[str, ...]]:
    """Group nodes of one color: exchanging two of a group leaves the graph as it is."""
    groups: list[tuple[str, ...]] = []
    for node in nodes:
        place = next((i for i, group in enumerate(groups) if _alike(group[0], node, gates)), None)
        if place is None:
            groups.append((node,))
        else:
            groups[place] += (node,)
    return groups


def _alike(one: str, other: str, gates: Gates) -> bool:
    """Return whether exchanging two nodes of one color leaves the graph as it is."""
    new = {one: other, other: one}
    return all(
        gates.get((new.get(source, source), new.get(node, node))) == gate
        for (source, node), gate in gates.items()
    )


def _merges(groups: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield every order of the nodes of some groups in which each group keeps its own order."""
    if not groups:
        yield ()
    for place, (node, *rest) in enumerate(groups):
        left = (tuple(rest),) if rest else ()
        for after in _merges((*groups[:place], *left, *groups[place + 1 :])):
            yield (node, *after)


def _colors(models: Models, gates: Gates, first: Collection[str]) -> dict[str, int]:
    """Number the nodes by model and edges, independent of their names; `first` come first.

    Colors are refined by those of the neighbors (Weisfeiler and Leman, 1968), which cannot split
    them more often than there are nodes. Unlike colors mean unlike nodes, but not conversely.
    """
    signs: dict[str, tuple[Any, ...]] = {n: (n not in first, model) for n, model in models.items()}
    for _ in models:
        ranks = {sign: rank for rank, sign in enumerate(sorted(set(signs.values())))}
        colors = {LABEL: -1, **{name: ranks[sign] for name, sign in signs.items()}}
        around: dict[str, list[tuple[bool, int, str]]] = {name: [] for name in colors}
        for (source, node), gate in gates.items():
            around[source].append((False, colors[node], gate))
            around[node].append((True, colors[source], gate))
        signs = {name: (colors[name], *sorted(around[name])) for name in models}
    return colors
