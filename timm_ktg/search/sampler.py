"""Which graph a trial tries: Optuna's samplers, drawn again until the graph is worth a training."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ..data import derive_seed
from ..recipe.search_config import SearchConfig
from .space import CanonicalGraph, SearchSpace, canonical, params_of

NODES = "nodes"
REASON = "reason"  # the user attribute that says why a trial failed by itself
GRAPH = "graph"  # the user attribute that holds a trial's graph, as its key
MOST_DRAWS = 1000
MOST_DRAWS_BY_TPE = 50  # which may insist on what it likes best, seen or not
MOST_GRAPHS = 200_000  # to write down one by one

Params = dict[str, Any]


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
        """The space of the most nodes, which holds all others."""
        return self.spaces[max(self.spaces)]

    def nodes(self) -> dict[str, BaseDistribution]:
        """Return the parameter that chooses the number of nodes, if there is a choice."""
        return {NODES: CategoricalDistribution(list(self.spaces))} if len(self.spaces) > 1 else {}

    def space(self, params: Params) -> SearchSpace:
        """Return the space that a trial draws from."""
        return self.spaces[params.get(NODES, next(iter(self.spaces)))]

    def graph(self, params: Params) -> CanonicalGraph | None:
        """Return the graph that the parameters draw, or None if it is invalid."""
        return canonical(self.space(params), params)

    def params(self, graph: CanonicalGraph) -> Params:
        """Return parameters that draw a graph.

        Raises:
            ValueError: No space holds it.
        """
        chosen = {NODES: max(self.spaces)} if len(self.spaces) > 1 else {}
        return {**chosen, **params_of(self.largest, graph)}


def build_choices(search: SearchConfig) -> Choices:
    """Return the spaces of a recipe.

    Raises:
        ValueError: There is nothing to draw, or something is there twice.
    """
    return Choices(
        {
            nodes: SearchSpace(
                search.target_model,
                tuple(search.models),
                tuple(gate.shown for gate in search.gates),
                nodes,
                search.frozen,
            )
            for nodes in dict.fromkeys(search.nodes)
        }
    )


class GraphSampler(BaseSampler):
    """Draws whole graphs, so that one that is invalid or was seen before costs no trial.

    Everything random comes from the seed and the trial's number, which no two workers share and no
    new start repeats. What was drawn again, and why, is counted in `redrawn`.

    Args:
        choices: What there is to draw.
        kind: `random`, `tpe` or `brute_force`.
        seed: The seed.
        unique: Whether a graph that was seen before is drawn again.

    Raises:
        ValueError: The space is too large for brute force.
    """

    def __init__(self, choices: Choices, kind: str, seed: int, unique: bool) -> None:
        if kind == "brute_force" and choices.size > MOST_GRAPHS:
            raise ValueError(
                f"brute_force is for spaces of up to {MOST_GRAPHS:,} choices. Found "
                f"{choices.size:,}."
            )
        self.choices, self.kind, self.seed, self.unique = choices, kind, seed, unique
        self.redrawn: dict[str, int] = {}
        self._all: dict[str, Params] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters: they are drawn together."""
        return {**self.choices.nodes(), **_distributions(self.choices.largest)}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin to count anew; Optuna draws nothing for a trial whose parameters are given."""
        self.redrawn = {"invalid": 0, "seen": 0}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return the parameters of a graph that is worth a training.

        Where there is none left the study is stopped, and the graph returned was seen before.
        """
        if {"fixed_params", "failed_trial"} & trial.system_attrs.keys():
            return {}  # enqueued, or to be done again
        seen = seen_graphs(study)
        if self.kind == "brute_force":
            return self._unseen(study, trial, seen)
        sampler = self._sampler(trial, self.kind)
        for draw in range(MOST_DRAWS):
            if self.kind == "tpe" and draw == MOST_DRAWS_BY_TPE:
                sampler = self._sampler(trial, "random")
            params = self._draw(sampler, study, trial)
            graph = self.choices.graph(params)
            if graph is None:
                self.redrawn["invalid"] += 1
            elif self.unique and graph.key in seen:
                self.redrawn["seen"] += 1
            else:
                return params
        study.stop()
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one parameter by itself, for trials of which a part was chosen by hand."""
        # Of the name too, for every parameter comes with a sampler that has drawn nothing yet.
        sampler = self._sampler(trial, self.kind, f"search {param_name}")
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _sampler(self, trial: FrozenTrial, kind: str, purpose: str = "search") -> BaseSampler:
        seed = derive_seed(purpose, self.seed, trial.number) % 2**32
        if kind != "tpe":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _draw(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> Params:
        def together(distributions: dict[str, BaseDistribution]) -> Params:
            drawn = sampler.sample_relative(study, trial, distributions)
            return {
                name: drawn[name]
                if name in drawn
                else sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in distributions.items()
            }

        nodes = together(self.choices.nodes())
        return {**nodes, **together(_distributions(self.choices.space(nodes)))}

    def _unseen(self, study: Study, trial: FrozenTrial, seen: set[str]) -> Params:
        self._all = self._all or all_graphs(self.choices)
        left = [params for key, params in self._all.items() if key not in seen]
        if len(left) <= 1:
            study.stop()
        drawn = random.Random(derive_seed("search", self.seed, trial.number))
        return drawn.choice(left or list(self._all.values()))


def seen_graphs(study: Study, before: int | None = None) -> set[str]:
    """Return the graphs of all trials, but of those whose worker died.

    Args:
        study: The study.
        before: Count trials below this number only.
    """
    return {
        trial.user_attrs[GRAPH]
        for trial in study.get_trials(deepcopy=False)
        if GRAPH in trial.user_attrs
        and (trial.state != TrialState.FAIL or REASON in trial.user_attrs)
        and (before is None or trial.number < before)
    }


def all_graphs(choices: Choices) -> dict[str, Params]:
    """Return every valid graph once, by its key, as the parameters that draw it."""
    found: dict[str, Params] = {}
    for nodes, space in choices.spaces.items():
        chosen = {NODES: nodes} if len(choices.spaces) > 1 else {}
        names = list(space.choices())
        for values in product(*space.choices().values()):
            params = dict(zip(names, values, strict=True))
            graph = canonical(space, params)
            if graph is not None:
                found.setdefault(graph.key, {**chosen, **params})
    return found


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {name: CategoricalDistribution(values) for name, values in space.choices().items()}
