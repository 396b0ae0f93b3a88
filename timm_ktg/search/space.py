"""The space a search draws graphs from, and the one form of all graphs that are the same.

Two draws are the same graph if they differ only in the names of their auxiliaries, in `correct`
for `through` on a label edge (the label is always right), or in what cannot reach the target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, cycle, groupby, islice, permutations, product
from math import prod
from typing import Any, Literal, NamedTuple

from ..errors import did_you_mean
from ..graph.topology import LABEL, Link, Pair, Topology, Traits

TARGET = "target"
CUTOFF, THROUGH, CORRECT = "cutoff", "through", "correct"

Role = Literal["learns", "frozen"]
LEARNS: Role = "learns"
FROZEN: Role = "frozen"


@dataclass(frozen=True)
class SearchSpace:
    """What a search chooses: every auxiliary's model, every edge's gate, and who is frozen.

    Args:
        target_model: timm's name of the target's model, which is not free.
        models: Candidates for every auxiliary's model.
        gates: Candidates for every edge's gate, as they are shown, such as `linear` or
            `confident(threshold=0.9)`. `cutoff` is no edge.
        nodes: Number N of networks, the target included, at least 1.
        frozen: Whether `frozen` is a choice of its own for every auxiliary. The paper has none:
            an auxiliary is frozen only where all its N gates are drawn as `cutoff`.

    Raises:
        ValueError: There is nothing to draw, or something is there twice.
    """

    target_model: str
    models: tuple[str, ...]
    gates: tuple[str, ...]
    nodes: int
    frozen: bool

    def __post_init__(self) -> None:
        """Check that there is something to draw, and each only once."""
        if self.nodes < 1:
            raise ValueError(f"nodes should be 1 or more, the target included. Found {self.nodes}.")
        if self.nodes > 1 and not self.models:
            raise ValueError("models should name a candidate for the auxiliaries. Found none.")
        if not set(self.gates) - {CUTOFF}:
            raise ValueError(f"gates should name one besides `{CUTOFF}`. Found no other.")
        for field, names in (("models", self.models), ("gates", self.gates)):
            if len(set(names)) < len(names):
                raise ValueError(f"{field} should name each only once. Found {', '.join(names)}.")

    @property
    def size(self) -> int:
        """M^(N-1) * G^(N^2), times 2^(N-1) where `frozen` is a choice.

        The number of ways to choose: invalid graphs and graphs that are the same count each.
        """
        return prod(len(categories) for categories in self.choices().values())

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the auxiliaries."""
        return _names(self.nodes)[1:]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every edge that can be: N from the label and N(N-1) between networks."""
        return _pairs(_names(self.nodes))

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return the categories of each of Optuna's parameters, always in the same order."""
        return {
            **{_model_of(name): self.models for name in self.auxiliaries},
            **{_role_of(name): (LEARNS, FROZEN) for name in self.auxiliaries if self.frozen},
            **{_gate_of(pair): self.gates for pair in self.pairs},
        }


class GraphNode(NamedTuple):
    """A network: its name, timm's name of its model, and whether it learns."""

    name: str
    model: str
    role: Role


class GraphEdge(NamedTuple):
    """An edge: `destination` learns from `source` what the gate lets through."""

    source: str
    destination: str
    gate: str


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph in the one form of all that are the same; made by `canonical`.

    Args:
        nodes: The networks that matter, the target first, then the auxiliaries by model.
        edges: The edges that exist, by destination, then source, the label first.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    @property
    def key(self) -> str:
        """16 digits of a hash: equal for equal graphs; for two others, with a chance of 5e-20."""
        form = json.dumps([[node.model for node in self.nodes], self.edges])
        return sha256(form.encode()).hexdigest()[:16]

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the nodes that are trained."""
        return tuple(node.name for node in self.nodes if node.role == LEARNS)

    @property
    def frozen_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that learn from nothing, and so need weights of their own."""
        return tuple(node.name for node in self.nodes if node.role == FROZEN)


def canonical(space: SearchSpace, params: Mapping[str, str]) -> CanonicalGraph | None:
    """Return the form of the graph that the parameters draw.

    What is cut off is dropped, and so is what a frozen node would learn; then every node without
    a path to the target. An auxiliary without incoming edges is frozen, chosen so or not.

    Args:
        space: Where the parameters come from.
        params: A category for each of `space.choices()`. Others are ignored.

    Returns:
        The form, or None if the graph is invalid: its target has no incoming edge.

    Raises:
        ValueError: A parameter is missing or not of the space.
    """
    for name, categories in space.choices().items():
        _check_candidate(name, params.get(name, ""), categories)
    models = {name: params[_model_of(name)] for name in space.auxiliaries}
    frozen = [name for name in models if space.frozen and params[_role_of(name)] == FROZEN]
    drawn = {pair: params[_gate_of(pair)] for pair in space.pairs if pair[1] not in frozen}
    gates = {pair: gate for pair, gate in drawn.items() if gate != CUTOFF}
    if all(destination != TARGET for _, destination in gates):
        return None
    return _least({TARGET: space.target_model, **models}, gates)


def params_of(space: SearchSpace, graph: CanonicalGraph) -> dict[str, str]:
    """Return parameters that draw a graph: the inverse of `canonical`.

    Args:
        space: Where the parameters should come from.
        graph: A graph of any space; it may have fewer nodes than this one.

    Returns:
        A category for each of `space.choices()`, in their order.

    Raises:
        ValueError: The space does not hold the graph; it names the gate or model that is missing.
    """
    models = {node.name: node.model for node in graph.nodes}
    if len(models) > space.nodes:
        raise ValueError(f"the graph has {len(models)} nodes, but the space {space.nodes}.")
    _check_candidate(TARGET, models.pop(TARGET), [space.target_model])
    for name, model in models.items():
        _check_candidate(_model_of(name), model, space.models)
    gates = {(edge.source, edge.destination): edge.gate for edge in graph.edges}
    roles = {name: FROZEN if name in graph.frozen_nodes else LEARNS for name in space.auxiliaries}
    return {
        **{_model_of(name): models.get(name, space.models[0]) for name in roles},
        **{_role_of(name): role for name, role in roles.items() if space.frozen},
        **{_gate_of(pair): _candidate(space, graph, gates, pair) for pair in space.pairs},
    }


def graph_section(
    graph: CanonicalGraph, gate_spec: Mapping[str, Any], weights: Mapping[str, str]
) -> dict[str, Any]:
    """Return the section `graph` of a recipe, as `GraphConfig` reads it.

    Args:
        graph: The graph.
        gate_spec: How a recipe writes each gate: a word, or `{gate: ..., gate_kwargs: ...}`.
            `through`, which `correct` becomes on a label edge, may be left out.
        weights: The checkpoint_path for frozen nodes, by the name of their model.

    Raises:
        ValueError: There is no spec for a gate, or no weights for a frozen node.
    """
    spec = {THROUGH: THROUGH, **gate_spec}
    nodes: dict[str, dict[str, Any]] = {node.name: {"model": node.model} for node in graph.nodes}
    for source, destination, gate in graph.edges:
        _check_candidate(_gate_of((source, destination)), gate, spec)
        # A copy, because YAML writes one object that is there twice as an anchor.
        nodes[destination].setdefault("learns_from", {})[source] = deepcopy(spec[gate])
    for name, model, role in graph.nodes:
        if role == FROZEN:
            if model not in weights:
                raise ValueError(f"{name} is frozen; weights should hold {model}. Found none.")
            nodes[name]["checkpoint_path"] = weights[model]
    return {"target": TARGET, "nodes": nodes}


def all_through(space: SearchSpace, auxiliaries: Sequence[str]) -> CanonicalGraph:
    """Return the graph in which all learn from all and from the label (deep mutual learning).

    Args:
        space: Names the target's model.
        auxiliaries: Models of the auxiliaries, candidates of the space or not; none: label-only.
    """
    models = [space.target_model, *auxiliaries]
    names = _names(len(models))
    return _least(dict(zip(names, models, strict=True)), dict.fromkeys(_pairs(names), THROUGH))


def distillation(space: SearchSpace, teacher: str) -> CanonicalGraph:
    """Return the target with the label and a frozen teacher: KD, but at T = 1 (the paper's: 2).

    Args:
        space: Names the target's model.
        teacher: Model of the teacher, a candidate of the space or not.
    """
    gates = {(LABEL, TARGET): THROUGH, ("teacher", TARGET): THROUGH}
    return _least({TARGET: space.target_model, "teacher": teacher}, gates)


def controls(
    space: SearchSpace, auxiliaries: Sequence[str] | None = None
) -> dict[str, CanonicalGraph]:
    """Return what a found graph is compared with, by the name to show.

    Args:
        space: Names the target's model.
        auxiliaries: Models of the auxiliaries, such as the best graph's; None: N - 1 of them, the
            candidates in their order, over and over.
    """
    if auxiliaries is None:
        auxiliaries = list(islice(cycle(space.models), space.nodes - 1))
    found = {"label-only": all_through(space, ())}
    found |= {f"KD from {model}": distillation(space, model) for model in auxiliaries}
    return found | ({"all-through": all_through(space, auxiliaries)} if auxiliaries else {})


Models = Mapping[str, str]
Gates = Mapping[Pair, str]


def _names(count: int) -> tuple[str, ...]:
    return TARGET, *(f"aux{index}" for index in range(1, count))


def _pairs(names: Sequence[str]) -> tuple[Pair, ...]:
    return tuple((source, node) for node in names for source in (LABEL, *names) if source != node)


def _model_of(name: str) -> str:
    return f"model/{name}"


def _role_of(name: str) -> str:
    return f"role/{name}"


def _gate_of(pair: Pair) -> str:
    return f"gate/{pair[0]}->{pair[1]}"


def _check_candidate(where: str, name: str, names: Sequence[str] | Mapping[str, Any]) -> None:
    if name not in names:
        near = did_you_mean(name, names)
        raise ValueError(f"{where}: should be one of {', '.join(names)}. Found `{name}`.{near}")


def _candidate(space: SearchSpace, graph: CanonicalGraph, gates: Gates, pair: Pair) -> str:
    """Return the candidate for an edge: its gate in the graph, or one that makes no difference."""
    gate = gates.get(pair, CUTOFF)
    alike = [gate, CORRECT] if (pair[0], gate) == (LABEL, THROUGH) else [gate]
    if pair[1] not in (graph.learners if space.frozen else [node.name for node in graph.nodes]):
        alike += space.gates
    found = next((name for name in alike if name in space.gates), gate)
    _check_candidate(_gate_of(pair), found, space.gates)
    return found


def _least(models: Models, gates: Gates) -> CanonicalGraph:
    """Return the form of a valid graph, given as models by node and gates by edge."""
    traits = tuple(Traits(name, has_weights=True) for name in models)
    topology = Topology(traits, tuple(Link(*pair) for pair in gates), TARGET)
    matter = topology.matter
    models = {name: model for name, model in models.items() if name in matter}
    gates = {
        pair: THROUGH if (pair[0], gate) == (LABEL, CORRECT) else gate
        for pair, gate in gates.items()
        if pair[1] in matter
    }
    order = min(_orders(models, gates), key=lambda order: _table(order, gates))
    new = {LABEL: LABEL, **dict(zip(order, _names(len(order)), strict=True))}
    pairs = [pair for pair in _pairs(order) if pair in gates]
    roles = {name: LEARNS if name in topology.learning else FROZEN for name in order}
    return CanonicalGraph(
        tuple(GraphNode(new[name], models[name], roles[name]) for name in order),
        tuple(GraphEdge(new[pair[0]], new[pair[1]], gates[pair]) for pair in pairs),
    )


def _table(order: Sequence[str], gates: Gates) -> list[str]:
    """Write the gates row by row: destinations down, sources across, nothing where no edge is."""
    return [gates.get((source, node), "") for node in order for source in (LABEL, *order)]


def _orders(models: Models, gates: Gates) -> Iterator[tuple[str, ...]]:
    """Yield the orders that may give the least form: by colour, and every one within a colour."""
    colour = _colours(models, gates).__getitem__
    groups = groupby(sorted(models, key=colour), key=colour)
    within = [permutations(group) for _, group in groups]
    return (tuple(chain(*parts)) for parts in product(*within))


def _colours(models: Models, gates: Gates) -> dict[str, int]:
    """Number the nodes by model and edges, whatever their names; the target comes first.

    Colours are refined by those of the neighbours (Weisfeiler and Leman, 1968), which cannot split
    them more often than there are nodes. Unlike colours mean unlike nodes, but not conversely.
    """
    signs: dict[str, tuple[Any, ...]] = {name: (name != TARGET, models[name]) for name in models}
    for _ in models:
        ranks = {sign: rank for rank, sign in enumerate(sorted(set(signs.values())))}
        colours = {LABEL: -1, **{name: ranks[sign] for name, sign in signs.items()}}
        around: dict[str, list[tuple[bool, int, str]]] = {name: [] for name in colours}
        for (source, node), gate in gates.items():
            around[source].append((False, colours[node], gate))
            around[node].append((True, colours[source], gate))
        signs = {name: (colours[name], *sorted(around[name])) for name in models}
    return colours
