"""What a search chooses from, and how Optuna's parameters stand for a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from math import prod
from typing import Any

from ..errors import did_you_mean
from ..graph.edge import default_loss
from ..graph.topology import CUTOFF, EMA, LABEL, Pair
from ..recipe.search_config import Kind, Objective, SearchConfig
from .canonical import (
    ALONE,
    CORRECT,
    EVERY,
    FROZEN,
    LEARNS,
    TARGET,
    THROUGH,
    CanonicalGraph,
    all_through,
    distillation,
    node_names,
    possible_edges,
    taught,
    valid_form,
)
from .parameters import NODES, gate_param, loss_param, model_param, role_param

_LOSSES = ("losses", "label_losses")

Params = dict[str, Any]


@dataclass(frozen=True)
class SearchSpace:
    """What a search chooses: every auxiliary's model, every edge's gate, and who learns.

    Args:
        target_model: timm's name of the target's model, which is not free.
        models: Candidates for every auxiliary's model.
        gates: Candidates for every edge's gate, as they are shown, such as `linear` or
            `confident(threshold=0.9)`. `cutoff` means that there is no edge.
        nodes: Number N of networks, the target included, at least 1.
        losses: Candidates for the loss of every edge between networks, as they are shown; none:
            there is no choice.
        label_losses: Candidates for the loss of every edge from the label, likewise.
        kinds: Candidates for what every auxiliary is: `learns`, `frozen`, or `ema`, a slow copy of
            the target, which has no model of its own. In the paper there is no choice: an auxiliary
            is frozen only where all its N gates are drawn as `cutoff`: of the valid graphs with 2,
            3 and 4 nodes, 5.0, 2.8 and 1.2 % have a frozen node (40,000 to 59,000 draws).
        objective: What is judged.

    Raises:
        ValueError: There is nothing to draw, or something is listed twice.
    """

    target_model: str
    models: tuple[str, ...]
    gates: tuple[str, ...]
    nodes: int
    kinds: tuple[Kind, ...] = (LEARNS,)
    losses: tuple[str, ...] = ()
    label_losses: tuple[str, ...] = ()
    objective: Objective = ALONE

    def __post_init__(self) -> None:
        """Check what `SearchConfig` does not: there is a gate to draw, and each thing only once."""
        if not set(self.gates) - {CUTOFF}:
            raise ValueError(f"gates should name one besides `{CUTOFF}`. Found no other.")
        lists = {field: getattr(self, field) for field in ("models", "gates", "kinds", *_LOSSES)}
        for field, names in lists.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{field} should name each only once. Found {', '.join(names)}.")

    @property
    def size(self) -> int:
        """M^(N-1) * G^(N^2), times K^(N-1) for K kinds of auxiliaries.

        Candidate losses multiply it by L^(N(N-1)) and, from the label, by L^N.

        This counts ways to choose: invalid graphs and graphs that are the same count each.
        """
        return prod(len(categories) for categories in self.choices().values())

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the auxiliaries."""
        return node_names(self.nodes)[1:]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every possible edge: N from the label and N(N-1) between networks."""
        return possible_edges(node_names(self.nodes))

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return the categories of each of Optuna's parameters, always in the same order."""
        return {
            **{model_param(name): self.models for name in self.auxiliaries},
            **{role_param(name): self.kinds for name in self.auxiliaries if len(self.kinds) > 1},
            **{gate_param(pair): self.gates for pair in self.pairs},
            **{loss_param(pair): each for pair in self.pairs if (each := self.losses_of(pair))},
        }

    def losses_of(self, pair: Pair) -> tuple[str, ...]:
        """Return the candidate losses of an edge; none: there is no choice."""
        return self.label_losses if pair[0] == LABEL else self.losses

    def parts_of(self, pair: Pair, word: str) -> tuple[str, str] | None:
        """Return the gate and the loss that an edge's word stands for; None: no candidates do.

        Args:
            pair: The edge.
            word: What its canonical graph says of it.

        Returns:
            A candidate gate and a candidate loss, which is "" if there is no choice.
        """
        for gate, loss in product(self.gates, self.losses_of(pair) or ("",)):
            if edge_word(pair, gate, loss) == word:
                return gate, loss
        return None


@dataclass(frozen=True)
class Choices:
    """All spaces of a search, one for each number of nodes.

    Args:
        spaces: The spaces by number of nodes.
    """

    spaces: Mapping[int, SearchSpace]

    @property
    def size(self) -> int:
        """The number of ways to choose: M^(N-1) * G^(N^2), summed over the numbers of nodes."""
        return sum(space.size for space in self.spaces.values())

    @property
    def largest(self) -> SearchSpace:
        """The space with the most nodes, which contains all others."""
        return self.spaces[max(self.spaces)]

    def nodes(self) -> dict[str, tuple[int, ...]]:
        """Return the parameter that chooses the number of nodes, if there is a choice."""
        return {NODES: tuple(self.spaces)} if len(self.spaces) > 1 else {}

    def space(self, params: Params) -> SearchSpace:
        """Return the space that a trial draws from."""
        return self.spaces[params.get(NODES, next(iter(self.spaces)))]

    def graph(self, params: Params) -> CanonicalGraph | None:
        """Return the graph that the parameters draw, or None if it is invalid."""
        return canonical(self.space(params), params)

    def params(self, graph: CanonicalGraph) -> Params:
        """Return parameters that draw a graph.

        Raises:
            ValueError: No space contains it.
        """
        chosen = {name: max(numbers) for name, numbers in self.nodes().items()}
        return {**chosen, **params_of(self.largest, graph)}

    def every(self) -> Iterator[Params]:
        """Yield all ways to choose, those that draw invalid or equal graphs too."""
        for nodes, space in self.spaces.items():
            number, names = dict.fromkeys(self.nodes(), nodes), space.choices()
            for values in product(*names.values()):
                yield number | dict(zip(names, values, strict=True))


def build_choices(search: SearchConfig) -> Choices:
    """Return the spaces of a recipe.

    Raises:
        ValueError: There is nothing to draw, or something is listed twice.
    """
    gates = tuple(gate.shown for gate in search.gates)
    losses, label_losses = (tuple(each.shown for each in getattr(search, f)) for f in _LOSSES)
    spaces = {
        nodes: SearchSpace(
            search.target_model,
            tuple(search.models),
            gates,
            nodes,
            search.auxiliary_kinds,
            losses,
            label_losses,
            search.objective,
        )
        for nodes in dict.fromkeys(search.nodes)
    }
    return Choices(spaces)


def canonical(space: SearchSpace, params: Mapping[str, str]) -> CanonicalGraph | None:
    """Return the form of the graph that the parameters draw.

    Edges that are cut off are dropped, and so are those into a node that does not learn; then every
    node without a path to what is judged. A network without incoming edges is frozen, chosen so or
    not.

    Args:
        space: Where the parameters come from.
        params: A category for each of `space.choices()`. Others are ignored.

    Returns:
        The form, or None if the graph is invalid; see `valid_form`.
    """
    names = space.auxiliaries
    roles = {name: params.get(role_param(name), space.kinds[0]) for name in names}
    models = {name: EMA if roles[name] == EMA else params[model_param(name)] for name in names}
    still = [name for name in names if roles[name] != LEARNS]
    drawn = {pair: params[gate_param(pair)] for pair in space.pairs if pair[1] not in still}
    gates = {
        pair: edge_word(pair, gate, params.get(loss_param(pair), ""))
        for pair, gate in drawn.items()
        if gate != CUTOFF
    }
    return valid_form({TARGET: space.target_model, **models}, gates, space.objective)


def params_of(space: SearchSpace, graph: CanonicalGraph) -> dict[str, str]:
    """Return parameters that draw a graph: the inverse of `canonical`.

    Args:
        space: Where the parameters should come from.
        graph: A graph of any space; it may have fewer nodes than this one.

    Returns:
        A category for each of `space.choices()`, in their order.

    Raises:
        ValueError: The space does not contain the graph; the gate or model it lacks is named.
    """
    models = graph.models
    if len(models) > space.nodes:
        raise ValueError(f"the graph has {len(models)} nodes, but the space {space.nodes}.")
    if graph.objective != space.objective:
        raise ValueError(f"the graph is judged by {graph.objective}, not {space.objective}.")
    if space.objective == EVERY and len(models) < space.nodes:
        raise ValueError(f"the graph should have all {space.nodes} nodes. Found {len(models)}.")
    _check_candidate(TARGET, models.pop(TARGET), [space.target_model])
    models = {name: model for name, model in models.items() if model != EMA}
    for name, model in models.items():
        _check_candidate(model_param(name), model, space.models)
    roles = {name: _role(space, graph, name) for name in space.auxiliaries}
    learning = {TARGET, *(name for name, role in roles.items() if role == LEARNS)}
    chosen = {pair: _candidate(space, graph, pair, pair[1] in learning) for pair in space.pairs}
    return {
        **{model_param(name): models.get(name, space.models[0]) for name in roles},
        **{role_param(name): role for name, role in roles.items() if len(space.kinds) > 1},
        **{gate_param(pair): gate for pair, (gate, _) in chosen.items()},
        **{loss_param(pair): loss for pair, (_, loss) in chosen.items() if loss},
    }


def controls(space: SearchSpace) -> list[CanonicalGraph]:
    """Return what a found graph is compared with: label-only, KD from each, all-through.

    Where an ensemble is judged: all networks with the label alone, and all-through. The
    auxiliaries' models are the candidates, in their order, over and over.
    """
    target, auxiliaries = space.target_model, islice(cycle(space.models), space.nodes - 1)
    models = list(auxiliaries)
    if space.objective != ALONE:
        together = all_through(target, models, space.objective)
        return [taught(together, (LABEL,)), together]
    teachers = [distillation(target, model) for model in dict.fromkeys(models)]
    through = [all_through(target, models)] if models else []
    return [all_through(target, ()), *teachers, *through]


def edge_word(pair: Pair, gate: str, loss: str) -> str:
    """Return what a canonical graph says of an edge: its gate, and its loss unless it is usual.

    Args:
        pair: The edge.
        gate: Its gate, as it is shown. On an edge from the label `correct` is `through`.
        loss: Its loss, as it is shown; "": the usual one.
    """
    if pair[0] == LABEL and gate == CORRECT:
        gate = THROUGH
    return gate if loss in ("", default_loss(pair[0])) else f"{gate}, {loss}"


def _check_candidate(where: str, name: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name is not among the candidates."""
    if name not in names:
        near = did_you_mean(name, names)
        raise ValueError(f"{where}: should be one of {', '.join(names)}. Found `{name}`.{near}")


def _role(space: SearchSpace, graph: CanonicalGraph, name: str) -> Kind:
    """Return a candidate for what an auxiliary is, or one that makes no difference."""
    found = {node.name: node.role for node in graph.nodes}.get(name)
    # One that is not there makes no difference; one that learns is frozen if all gates are cut off.
    cut_off = found is None or (found == FROZEN not in space.kinds and LEARNS in space.kinds)
    role = (LEARNS if LEARNS in space.kinds else space.kinds[0]) if cut_off else found
    assert role is not None
    _check_candidate(role_param(name), role, space.kinds)
    return role


def _candidate(
    space: SearchSpace, graph: CanonicalGraph, pair: Pair, learns: bool
) -> tuple[str, str]:
    """Return candidates for an edge: its gate and loss, or some that make no difference.

    Args:
        space: Where the candidates come from.
        graph: The graph.
        pair: The edge.
        learns: Whether its destination is drawn as one that learns.
    """
    losses, word = space.losses_of(pair) or ("",), graph.gates.get(pair)
    if word is None:
        free = pair[1] not in graph.models or not learns
        gate = next((g for g in (CUTOFF, *space.gates * free) if g in space.gates), CUTOFF)
        _check_candidate(gate_param(pair), gate, space.gates)
        return gate, losses[0]
    parts = space.parts_of(pair, word)
    if parts is None:
        words = [edge_word(pair, *each) for each in product(space.gates, losses)]
        _check_candidate(gate_param(pair), word, list(dict.fromkeys(words)))
    assert parts is not None
    return parts
