"""A trial: its graph is drawn, trained, reported at its rungs, and perhaps stopped there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError

from ..errors import one_line
from ..recipe.recipe import Recipe
from ..recipe.search_config import SearchRecipe
from .sampler import GRAPH, NODES, Choices, Params, seen_graphs
from .space import THROUGH, CanonicalGraph, SearchSpace, all_through, graph_section
from .study import DUPLICATE
from .team import Team, TrialTask
from .tracking import StudyTracking, TrialRun

EPOCHS = "epochs"
REDRAWN = "redrawn"
MODELS, EDGES = "models", "edges"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Builder:
    """Makes a recipe of a graph.

    Args:
        recipe: The search's.
        weights: Returns the file of weights for a model of which a frozen node needs some.
    """

    recipe: SearchRecipe
    weights: Callable[[str], Path]

    def recipe_of(self, graph: CanonicalGraph) -> Recipe:
        """Return the recipe that trains a graph on the search's own split."""
        models = {node.name: node.model for node in graph.nodes}
        weights = {
            models[name]: str(self.weights(models[name]).resolve()) for name in graph.frozen_nodes
        }
        section = graph_section(graph, self.specs, weights)
        values = {"reduction": self.recipe.search.reduction, **section}
        return Recipe.model_validate(
            {
                "graph": values,
                "data": self.recipe.data.model_dump(),
                "train": self.recipe.train.model_dump(),
            }
        )

    def label_only(self, model: str) -> Recipe:
        """Return the recipe that trains a model on the labels alone."""
        space = SearchSpace(model, (), (THROUGH,), 1, False)
        return self.recipe_of(all_through(space, ()))

    @property
    def specs(self) -> Mapping[str, Any]:
        """How a recipe writes each candidate gate."""
        return {gate.shown: gate.model_dump() for gate in self.recipe.search.gates}


@dataclass(frozen=True)
class GraphObjective:
    """Trains a trial's graph.

    Args:
        builder: Makes recipes.
        choices: What there is to draw.
        team: Trains.
        tracking: Shows the trials.
        say: Prints a line.
    """

    builder: Builder
    choices: Choices
    team: Team
    tracking: StudyTracking
    say: Say

    def __call__(self, trial: Trial) -> float:
        """Return the target's validation top-1 after the last epoch, in percent.

        Raises:
            TrialPruned: The trial is not among the best at a rung, or its graph was seen before.
            TrainingError: A loss is not finite.
        """
        graph = self._drawn(trial)
        self.say(f"trial {trial.number}: {describe(graph)}")
        self.team.epochs = 0
        try:
            with self.tracking.trial(trial.number, graph) as run:
                recipe = self.builder.recipe_of(graph)
                run.draw(recipe.graph)
                return self._trained(trial, recipe, run)
        except TrialPruned:
            raise
        except Exception as error:
            self.say(f"trial {trial.number} failed: {one_line(error)}")
            raise
        finally:
            trial.set_user_attr(EPOCHS, self.team.epochs)

    def _trained(self, trial: Trial, recipe: Recipe, run: TrialRun) -> float:
        def report(epoch: int, value: float, last: bool) -> bool:
            try:
                trial.report(value, step=epoch)
                stop = not last and trial.should_prune()
            except UpdateFinishedTrialError:  # given to another worker while a database was away
                return True
            run.reached(epoch)
            verdict = "complete" if last else "stopped" if stop else "goes on"
            self.say(f"trial {trial.number}: {value:.2f} % after epoch {epoch}, {verdict}")
            return stop

        search = self.builder.recipe.search
        task = TrialTask(recipe, (search.min_resource, search.reduction_factor))
        return self.team.trial(task, report, run.log)

    def _drawn(self, trial: Trial) -> CanonicalGraph:
        """Return the trial's graph, and note it in the trial."""
        params = suggest(trial, self.choices)
        sampler = trial.study.sampler
        trial.set_user_attr(REDRAWN, dict(getattr(sampler, "redrawn", {})))
        graph = self.choices.graph(params)
        if graph is None:  # enqueued by hand
            trial.set_user_attr(DUPLICATE, "invalid")
            raise TrialPruned("The target learns from nothing.")
        trial.set_user_attr(GRAPH, graph.key)  # before looking, that others may see it
        if self.builder.recipe.search.unique:
            if graph.key in seen_graphs(trial.study, before=trial.number):
                trial.set_user_attr(DUPLICATE, graph.key)
                raise TrialPruned("The graph was seen before.")
        trial.set_user_attr(MODELS, {node.name: node.model for node in graph.nodes})
        trial.set_user_attr(EDGES, [list(edge) for edge in graph.edges])
        return graph


def suggest(trial: Trial, choices: Choices) -> Params:
    """Return the parameters of a trial."""
    params: Params = {}
    if len(choices.spaces) > 1:
        params[NODES] = trial.suggest_categorical(NODES, list(choices.spaces))
    for name, values in choices.space(params).choices().items():
        params[name] = trial.suggest_categorical(name, values)
    return params


def describe(graph: CanonicalGraph) -> str:
    """Return a graph as a line: `target resnet8_cifar <- label, aux1 (correct); aux1 ...`."""
    learns: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for source, destination, gate in graph.edges:
        learns[destination].append(source if gate == "through" else f"{source} ({gate})")
    return "; ".join(
        f"{node.name} {node.model} "
        + (f"<- {', '.join(learns[node.name])}" if learns[node.name] else "frozen")
        for node in graph.nodes
    )
