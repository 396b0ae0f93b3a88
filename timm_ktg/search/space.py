"""The space a search draws graphs from, and the one form of all graphs that are the same.

Two draws are the same graph if they differ only in the names of their auxiliaries, in `correct`
for `through` on a label edge (the label is always right), or in what cannot reach the target.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain, cycle, islice, permutations, product
from typing import Any, Literal, NamedTuple

from ..errors import did_you_mean
from ..topology import LABEL, Pair, nodes_that_matter

TARGET = "target"
CUTOFF, THROUGH, CORRECT = "cutoff", "through", "correct"

Role = Literal["learns", "frozen"]
LEARNS: Role = "learns"
FROZEN: Role = "frozen"


@dataclass(frozen=True)
class SearchSpace:
    """What is free: every auxiliary's model, the gate of every edge, and who is frozen.

    Args:
        target_model: timm's name of the target's model, which is not free.
        models: Candidates for every auxiliary's model.
        gates: Candidates for every edge's gate, as they are shown, such as `linear` or
            `confident(threshold=0.9)`. `cutoff` is no edge.
        nodes: Number N of networks, the target included, at least 1.
        frozen: Whether `frozen` is a choice of its own for every auxiliary. It is not in the
            paper, whose gates freeze an auxiliary only where they cut off all its N edges.

    Raises:
        ValueError: There is nothing to draw, or something is there twice.
    """

    target_model: str
    models: tuple[str, ...]
    gates: tuple[str, ...]
    nodes: int
    frozen: bool

    def __post_init__(self) -> None:  # noqa: D105
        if self.nodes < 1:
            raise ValueError(f"nodes should be 1 or more, the target included. Found {self.nodes}.")
        if self.nodes > 1 and not self.models:
            raise ValueError("models should name a candidate for the auxiliaries. Found none.")
        if not set(self.gates) - {CUTOFF}:
            raise ValueError(f"gates should name one besides `{CUTOFF}`. Found no other.")
        for field, names in (("models", self.models), ("gates", self.gates)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{field} should name each once. Found `{twice[0]}` twice.")

    @property
    def size(self) -> int:
        """M^(N-1) * G^(N^2), times 2^(N-1) if `frozen` is a choice.

        The number of ways to choose, so invalid graphs and graphs that are the same count each.
        """
        roles = 2 if self.frozen else 1
        return (len(self.models) * roles) ** (self.nodes - 1) * len(self.gates) ** self.nodes**2

    @cached_property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the auxiliaries."""
        return tuple(_auxiliary(index) for index in range(1, self.nodes))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every edge that can be: N from the label and N(N-1) between networks."""
        names = (TARGET, *self.auxiliaries)
        return tuple(
            (source, destination)
            for destination in names
            for source in (LABEL, *names)
            if source != destination
        )

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return the categories of each of Optuna's parameters, always in the same order."""
        roles = {_role_of(name): (LEARNS, FROZEN) for name in self.auxiliaries}
        return {
            **{_model_of(name): self.models for name in self.auxiliaries},
            **(roles if self.frozen else {}),
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
        nodes: The networks that matter, the target first, the auxiliaries in order of model.
        edges: The edges that exist, by destination, then source, the label first.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    @property
    def key(self) -> str:
        """64 bits of a hash of the form, 16 hexadecimal digits, the same in every process.

        That two of a million graphs share a key by chance has a probability of 3e-8.
        """
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
    a path to the target; an auxiliary without incoming edges is frozen, chosen so or not.

    Args:
        space: Where the parameters come from.
        params: A category for each of `space.choices()`. Others are ignored.

    Returns:
        The form, or None if the graph is invalid: its target has no incoming edge.

    Raises:
        ValueError: A parameter is missing or not of the space.
    """
    for name, categories in space.choices().items():
        if params.get(name) not in categories:
            found = f"`{params[name]}`" if name in params else "nothing"
            raise ValueError(f"{name} should be one of {', '.join(categories)}. Found {found}.")
    frozen = [
        name for name in space.auxiliaries if space.frozen and params[_role_of(name)] == FROZEN
    ]
    models = {name: params[_model_of(name)] for name in space.auxiliaries}
    gates = {pair: params[_gate_of(pair)] for pair in space.pairs if pair[1] not in frozen}
    return _canonical({TARGET: space.target_model, **models}, gates)


def params_of(space: SearchSpace, graph: CanonicalGraph) -> dict[str, str]:
    """Return parameters that draw a graph: the inverse of `canonical`.

    Args:
        space: Where the parameters should come from.
        graph: A graph of any space; it may have fewer nodes than this one.

    Returns:
        A category for each of `space.choices()`, in their order.

    Raises:
        ValueError: The space does not hold the graph; says which gate, model or number is missing.
    """
    models = {node.name: node.model for node in graph.nodes}
    if len(models) > space.nodes:
        raise ValueError(f"the graph has {len(models)} nodes; the space has {space.nodes}.")
    if models.pop(TARGET) != space.target_model:
        raise ValueError(
            f"the target should be {space.target_model}. Found {graph.nodes[0].model}."
        )
    for name, model in models.items():
        _check_candidate("model", model, space.models, name)
    gates = {(edge.source, edge.destination): edge.gate for edge in graph.edges}
    roles = {name: FROZEN if name in graph.frozen_nodes else LEARNS for name in space.auxiliaries}
    return {
        **{_model_of(name): models.get(name, space.models[0]) for name in space.auxiliaries},
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
            `through`, to which canonical graphs turn `correct`, may be left out.
        weights: The checkpoint_path for frozen nodes, by the name of their model.

    Raises:
        ValueError: A gate has no way to be written, or a frozen node no weights.
    """
    spec = {THROUGH: THROUGH, **gate_spec}
    nodes: dict[str, dict[str, Any]] = {node.name: {"model": node.model} for node in graph.nodes}
    for source, destination, gate in graph.edges:
        _check_candidate("gate", gate, spec, _gate_of((source, destination)))
        # A copy, because YAML writes one object that is there twice as an anchor.
        nodes[destination].setdefault("learns_from", {})[source] = deepcopy(spec[gate])
    for node in graph.nodes:
        if node.role == FROZEN:
            if node.model not in weights:
                raise ValueError(f"{node.name} is frozen and needs weights of {node.model}.")
            nodes[node.name]["checkpoint_path"] = weights[node.model]
    return {"target": TARGET, "nodes": nodes}


def label_only(space: SearchSpace) -> CanonicalGraph:
    """Return the target alone with the label."""
    return all_through(space, ())


def all_through(space: SearchSpace, auxiliaries: Sequence[str]) -> CanonicalGraph:
    """Return the graph in which all learn from all and from the label (deep mutual learning).

    Args:
        space: Names the target's model.
        auxiliaries: Models of the auxiliaries, candidates of the space or not.
    """
    models = _models(space, auxiliaries)
    pairs = [pair for pair in product((LABEL, *models), models) if pair[0] != pair[1]]
    return _sound(models, dict.fromkeys(pairs, THROUGH))


def distillation(space: SearchSpace, teacher: str) -> CanonicalGraph:
    """Return the target with the label and a frozen teacher (KD, here at T = 1; the paper's T is 2).

    Args:
        space: Names the target's model.
        teacher: Model of the teacher.
    """
    models = _models(space, [teacher])
    return _sound(models, {(LABEL, TARGET): THROUGH, (_auxiliary(1), TARGET): THROUGH})


def controls(
    space: SearchSpace, auxiliaries: Sequence[str] | None = None
) -> dict[str, CanonicalGraph]:
    """Return what a found graph is compared with, by the name to show.

    Args:
        space: Names the target's model.
        auxiliaries: Models of the auxiliaries, such as those of the best graph; None: N - 1, the
            candidates in their order, over and over.
    """
    if auxiliaries is None:
        auxiliaries = list(islice(cycle(space.models), space.nodes - 1))
    found = {"label-only": label_only(space)}
    found |= {f"KD from {model}": distillation(space, model) for model in auxiliaries}
    return found | ({"all-through": all_through(space, auxiliaries)} if auxiliaries else {})


Models = Mapping[str, str]
Gates = Mapping[Pair, str]


def _auxiliary(index: int) -> str:
    return f"aux{index}"


def _model_of(name: str) -> str:
    return f"model/{name}"


def _role_of(name: str) -> str:
    return f"role/{name}"


def _gate_of(pair: Pair) -> str:
    return f"gate/{pair[0]}->{pair[1]}"


def _models(space: SearchSpace, auxiliaries: Sequence[str]) -> dict[str, str]:
    named = {_auxiliary(index): model for index, model in enumerate(auxiliaries, start=1)}
    return {TARGET: space.target_model, **named}


def _sound(models: Models, gates: Gates) -> CanonicalGraph:
    graph = _canonical(models, gates)
    assert graph is not None
    return graph


def _check_candidate(
    kind: str, name: str, names: Sequence[str] | Mapping[str, Any], at: str
) -> None:
    if name not in names:
        listed = f"`{name}` is no candidate. Candidates: {', '.join(names)}."
        raise ValueError(f"{at}: the {kind} {listed}{did_you_mean(name, names)}")


def _candidate(space: SearchSpace, graph: CanonicalGraph, gates: Gates, pair: Pair) -> str:
    """Return the candidate for an edge: the graph's gate, one that is the same, or any if dead."""
    gate = gates.get(pair, CUTOFF)
    if gate in space.gates:
        return gate
    if gate == THROUGH and pair[0] == LABEL and CORRECT in space.gates:
        return CORRECT
    # A node that learns nothing because it is told so, or that the graph has not.
    told = space.frozen or pair[1] not in graph.frozen_nodes
    if pair[1] not in graph.learners and told:
        return space.gates[0]
    _check_candidate("gate", gate, space.gates, _gate_of(pair))
    raise AssertionError


def _canonical(models: Models, gates: Gates) -> CanonicalGraph | None:
    """Return the least form of a graph, given as models by node and gates by edge."""
    gates = {
        pair: THROUGH if pair[0] == LABEL and gate == CORRECT else gate
        for pair, gate in gates.items()
        if gate != CUTOFF
    }
    if all(destination != TARGET for _, destination in gates):
        return None
    matter = nodes_that_matter(list(gates), TARGET)
    models = {name: model for name, model in models.items() if name in matter}
    gates = {pair: gate for pair, gate in gates.items() if pair[1] in matter}
    return _renamed(
        min(_orders(models, gates), key=lambda order: _form(order, gates)), models, gates
    )


def _form(order: Sequence[str], gates: Gates) -> list[str]:
    """Write the gates as a table, row by row: destinations down, sources across."""
    return [gates.get((source, node), "") for node in order for source in (LABEL, *order)]


def _renamed(order: Sequence[str], models: Models, gates: Gates) -> CanonicalGraph:
    names = [TARGET, *(_auxiliary(index) for index in range(1, len(order)))]
    new = dict(zip(order, names, strict=True)) | {LABEL: LABEL}
    learners = {destination for _, destination in gates}
    return CanonicalGraph(
        nodes=tuple(
            GraphNode(new[name], models[name], LEARNS if name in learners else FROZEN)
            for name in order
        ),
        edges=tuple(
            GraphEdge(new[source], new[node], gates[source, node])
            for node in order
            for source in (LABEL, *order)
            if (source, node) in gates
        ),
    )


def _orders(models: Models, gates: Gates) -> Iterator[tuple[str, ...]]:
    """Yield the orders of nodes that may give the least form: the target first, then by colour."""
    groups: dict[int, list[str]] = {}
    for name, colour in _colours(models, gates).items():
        groups.setdefault(colour, []).append(name)
    within = (permutations(groups[colour]) for colour in sorted(groups))
    return (tuple(chain(*order)) for order in product(*within))


def _colours(models: Models, gates: Gates) -> dict[str, int]:
    """Number the nodes so that those of unlike models or edges differ, whatever their names.

    Colours are refined by the colours of neighbours until none splits (Weisfeiler and Leman).
    Nodes of one colour may yet be unlike, so what is left is a matter for permutations.
    """
    signs: dict[str, tuple[Any, ...]]
    signs = {name: (name != TARGET, model) for name, model in models.items()}
    count = 0
    while True:
        ranks = {sign: rank for rank, sign in enumerate(sorted(set(signs.values())))}
        colours = {name: ranks[sign] for name, sign in signs.items()}
        if len(ranks) == count:
            return colours
        count = len(ranks)
        learns: dict[str, list[tuple[int, str]]] = {name: [] for name in models}
        teaches: dict[str, list[tuple[int, str]]] = {name: [] for name in models}
        for (source, destination), gate in gates.items():
            learns[destination].append((colours.get(source, -1), gate))
            teaches.get(source, []).append((colours[destination], gate))
        signs = {
            name: (colours[name], tuple(sorted(learns[name])), tuple(sorted(teaches[name])))
            for name in models
        }
