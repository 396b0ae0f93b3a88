"""Which graph a trial tries: Optuna's samplers, drawn again until the graph is worth a training."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from ..data import derive_seed
from ..graph.topology import LABEL
from .canonical import CanonicalGraph
from .space import Choices, Params
from .trials import TrialRecord, seen_graphs

MOST_DRAWS = 1000
MOST_GRAPHS = 200_000  # to list one by one


class GraphSampler(BaseSampler):
    """Draws whole graphs, so that one that is invalid or was seen before costs no trial.

    A graph that no label reaches counts as invalid, too: its networks would only imitate each
    other. The paper does not exclude such graphs: of the valid ones with 2, 3 and 4 nodes they are
    3.5, 1.7 and 0.4 % (18,728 to 19,941 draws).

    Everything random comes from the seed and the trial's number, which no two workers share and no
    restart repeats. What was drawn in vain, and why, is counted in `redrawn`.

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
        return _distributions({**self.choices.nodes(), **self.choices.largest.choices()})

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reset the counts here: Optuna draws nothing for a trial whose parameters are given."""
        self.redrawn = {"invalid": 0, "seen": 0}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """Return the parameters of a graph that is worth a training.

        When none is left, the study is stopped, and the graph returned was seen before.
        """
        if TrialRecord(trial).is_enqueued:
            return {}
        seen = seen_graphs(study)
        if self.kind == "brute_force":
            return self._unseen(study, trial, seen)

        def fault(params: Params) -> str:
            graph = self.choices.graph(params)
            if graph is None or not knows_labels(graph):
                return "invalid"
            return "seen" if self.unique and graph.key in seen else ""

        if self.kind == "tpe":
            tpe = self._sampler(trial, "tpe")
            params = self._draw(tpe, study, trial, is_worth=lambda params: not fault(params))
            if not (found := fault(params)):
                return params
            self.redrawn[found] += 1  # all that it likes was seen
        sampler, known = self._sampler(trial, "random"), Params()
        for _ in range(MOST_DRAWS):
            params = self._draw(sampler, study, trial)
            if not (found := fault(params)):
                return params
            self.redrawn[found] += 1
            if found == "seen":
                known = params
        study.stop()
        return known or params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one parameter by itself, for a trial some of whose choices were made by hand."""
        # The seed depends on the name too, because each parameter gets a sampler of its own.
        sampler = self._sampler(trial, self.kind, f"search {param_name}")
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _sampler(self, trial: FrozenTrial, kind: str, purpose: str = "search") -> BaseSampler:
        seed = derive_seed(purpose, self.seed, trial.number) % 2**32
        return _Tpe(seed) if kind == "tpe" else RandomSampler(seed=seed)

    def _draw(
        self,
        sampler: BaseSampler,
        study: Study,
        trial: FrozenTrial,
        is_worth: Callable[[Params], bool] = lambda params: True,
    ) -> Params:
        def together(choices: Mapping[str, tuple[Any, ...]]) -> Params:
            distributions = _distributions(choices)
            drawn = sampler.sample_relative(study, trial, distributions)
            return {
                name: drawn[name]
                if name in drawn
                else sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in distributions.items()
            }

        nodes = together(self.choices.nodes())
        if isinstance(sampler, _Tpe):
            sampler.is_worth = lambda drawn: is_worth({**nodes, **drawn})
        return {**nodes, **together(self.choices.space(nodes).choices())}

    def _unseen(self, study: Study, trial: FrozenTrial, seen: set[str]) -> Params:
        self._all = self._all or all_graphs(self.choices)
        left = [params for key, params in self._all.items() if key not in seen]
        if len(left) <= 1:
            study.stop()
        drawn = random.Random(derive_seed("search", self.seed, trial.number))
        return drawn.choice(left or list(self._all.values()))


class _Tpe(TPESampler):
    """TPE that chooses the most promising of its candidates that are worth a training.

    Optuna's own would propose again and again what was seen, and look at all trials every time.

    Args:
        seed: The seed.
    """

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            super().__init__(seed=seed, multivariate=True, constant_liar=True)
        self.is_worth: Callable[[Params], bool] = lambda params: True

    def _compute_acquisition_func(
        self, samples: dict[str, np.ndarray], below: Any, above: Any
    ) -> np.ndarray:
        values = super()._compute_acquisition_func(samples, below, above)
        spaces = below._search_space
        for at in np.argsort(-values):
            drawn = {name: spaces[name].to_external_repr(x[at]) for name, x in samples.items()}
            if self.is_worth(drawn):
                break
            values[at] = -np.inf
        return values


def suggest(trial: Trial, choices: Choices) -> Params:
    """Return the parameters of a trial."""
    # Optuna does not ask the sampler for a parameter that has only one choice. If all are so, the
    # sampler would never be asked, and could not stop the search when no graph is left.
    _ = trial.relative_params
    params: Params = {}
    for name, numbers in choices.nodes().items():
        params[name] = trial.suggest_categorical(name, numbers)
    for name, values in choices.space(params).choices().items():
        params[name] = trial.suggest_categorical(name, values)
    return params


def knows_labels(graph: CanonicalGraph) -> bool:
    """Return whether labels reach a graph: by an edge, or by a frozen node that learned them."""
    return bool(graph.frozen_nodes) or any(edge.source == LABEL for edge in graph.edges)


def all_graphs(choices: Choices) -> dict[str, Params]:
    """Return each graph that is worth a training once: its key, and parameters that draw it."""
    found: dict[str, Params] = {}
    for params in choices.every():
        graph = choices.graph(params)
        if graph is not None and knows_labels(graph):
            found.setdefault(graph.key, params)
    return found


def _distributions(choices: Mapping[str, tuple[Any, ...]]) -> dict[str, BaseDistribution]:
    return {name: CategoricalDistribution(values) for name, values in choices.items()}
