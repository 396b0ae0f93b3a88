"""From a graph of the search to the recipe that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.recipe import Recipe
from ..recipe.search_config import SearchRecipe
from .canonical import FROZEN, TARGET, THROUGH, CanonicalGraph, all_through
from .space import check_candidate, gate_param


@dataclass(frozen=True)
class RecipeBuilder:
    """Makes the recipes of a search's graphs.

    Args:
        recipe: The search's.
        weights: Returns a file of weights for the model of a frozen node.
    """

    recipe: SearchRecipe
    weights: Callable[[str], Path]

    def recipe_of(self, graph: CanonicalGraph) -> Recipe:
        """Return the recipe that trains a graph on the search's own split."""
        specs = {gate.shown: gate.model_dump() for gate in self.recipe.search.gates}
        models = graph.models
        weights = {
            models[name]: str(self.weights(models[name]).resolve()) for name in graph.frozen_nodes
        }
        section = graph_section(graph, specs, weights)
        return _recipe(self.recipe, {"reduction": self.recipe.search.reduction, **section})

    def label_only(self, model: str) -> Recipe:
        """Return the recipe that trains a model on the labels alone."""
        return self.recipe_of(all_through(model, ()))

    def final(self, graph: CanonicalGraph, reduction: str) -> Recipe:
        """Return the recipe that trains a graph on all training images."""
        recipe = on_all_images(self.recipe_of(graph))
        section = recipe.graph.model_copy(update={"reduction": reduction})
        return recipe.model_copy(update={"graph": section})


def on_all_images(recipe: Recipe) -> Recipe:
    """Return a recipe that holds none of the training images out."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"holdout": 0})})


def candidates_recipe(recipe: SearchRecipe) -> Recipe:
    """Return a recipe with every candidate model, to see before a search that all can be built."""
    search = recipe.search
    models = {"target": search.target_model}
    models |= {f"aux{number}": model for number, model in enumerate(search.models, start=1)}
    nodes = {
        name: {"model": model, "learns_from": {"label": "through"}}
        for name, model in models.items()
    }
    return _recipe(recipe, {"target": "target", "nodes": nodes, "keep": list(nodes)})


def _recipe(recipe: SearchRecipe, graph: Mapping[str, Any]) -> Recipe:
    data, train = recipe.data.model_dump(), recipe.train.model_dump()
    return Recipe.model_validate({"graph": graph, "data": data, "train": train})


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
        check_candidate(gate_param((source, destination)), gate, spec)
        # A copy, because YAML writes an object that occurs twice as an anchor.
        nodes[destination].setdefault("learns_from", {})[source] = deepcopy(spec[gate])
    for name, model, role in graph.nodes:
        if role == FROZEN:
            if model not in weights:
                raise ValueError(f"{name} is frozen; weights should hold {model}. Found none.")
            nodes[name]["checkpoint_path"] = weights[model]
    return {"target": TARGET, "nodes": nodes}
