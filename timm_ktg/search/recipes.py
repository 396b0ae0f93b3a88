"""From a graph of the search to the recipe that trains it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..graph.topology import EMA, ENSEMBLE, LABEL
from ..recipe.images import with_images_of
from ..recipe.node_config import from_word, loss_from_word
from ..recipe.recipe import Recipe, check_section
from ..recipe.search_config import GateConfig, LossConfig, SearchConfig, SearchRecipe
from ..recipe.search_problems import PRETRAINED
from .canonical import (
    ALONE,
    CORRECT,
    TARGET,
    THROUGH,
    CanonicalGraph,
    GraphEdge,
    all_through,
    judged_node,
    members_of,
)
from .result import Row
from .space import edge_word
from .teachers import Teacher, teachers_of


@dataclass(frozen=True)
class RecipeBuilder:
    """Makes the recipes of a search's graphs.

    Args:
        recipe: The search's.
        weights: Returns a file of a teacher's weights; None: they are timm's.
        seed: Seed of the trainings that the teachers belong to.
    """

    recipe: SearchRecipe
    weights: Callable[[Teacher], Path | None]
    seed: int

    def recipe_of(
        self,
        graph: CanonicalGraph,
        reduction: str | None = None,
        temperature: float = 1.0,
        first: int = 1,
    ) -> Recipe:
        """Return the recipe that trains a graph on the search's own split.

        Args:
            graph: The graph.
            reduction: How a node's losses from networks add up; None: as in the search.
            temperature: Of the edges between networks.
            first: Number of the first teacher of each model.
        """
        search = self.recipe.search.model_dump() | {"objective": graph.objective}
        reduction = reduction or self.recipe.search.reduction
        section = graph_section(graph.models, graph.edges, reduction, search, temperature)
        for name, teacher in teachers_of(graph, self.seed, first).items():
            path = self.weights(teacher)
            given = {"checkpoint_path": str(path.resolve())} if path else {"pretrained": True}
            section["nodes"][name] |= given
        return _recipe(self.recipe, section)

    def final(self, row: Row) -> Recipe:
        """Return the recipe that trains a graph, or a control, on all training images."""
        if row.smoothing is None:
            how = row.reduction, row.temperature, row.teacher
            return on_all_images(self.recipe_of(row.graph, *how))
        train = self.recipe.train.model_copy(update={"smoothing": row.smoothing})
        changed = self.recipe.model_copy(update={"train": train})
        return replace(self, recipe=changed).final(replace(row, smoothing=None))


def label_only(recipe: SearchRecipe, model: str) -> Recipe:
    """Return the recipe that trains a model on the labels alone, on the search's own split.

    It sees images of the size and crop that the target has, which it may teach.
    """
    graph, target = all_through(model, ()), recipe.search.target_model
    alone = _recipe(recipe, graph_section(graph.models, graph.edges, recipe.search.reduction, {}))
    if model == target:
        return alone
    return alone.model_copy(update={"data": with_images_of(alone.data, target, {})})


def on_all_images(recipe: Recipe) -> Recipe:
    """Return a recipe that holds none of the training images out, and so knows no best epoch."""
    data = recipe.data.model_copy(update={"holdout": 0})
    train = recipe.train.model_copy(update={"eval_metric": None})
    return recipe.model_copy(update={"data": data, "train": train})


def candidates_recipe(recipe: SearchRecipe) -> Recipe:
    """Return a recipe with every candidate, to see before a search that all can be built.

    The target learns through every gate, and every node from every other through every loss, by
    edges that `candidate_named` knows. All of them are judged if an ensemble is. Models that
    search.weights wants pretrained are there again, frozen.
    """
    search = recipe.search
    models = {"target": search.target_model}
    models |= {f"aux{number}": model for number, model in enumerate(search.models, start=1)}
    members = members_of(models, models, search.objective)
    nodes: dict[str, Any] = {}
    slow = [EMA] if EMA in search.auxiliary_kinds else []
    for name, model in models.items():
        others = [each for each in (*models, *slow) if each != name]
        edges = {f"{LABEL}/label_losses{i}": loss for i, loss in enumerate(search.label_losses)}
        edges |= {
            f"{each}/losses{i}": loss for each in others for i, loss in enumerate(search.losses)
        }
        learns_from = {key: loss_from_word(each.model_dump()) for key, each in edges.items()}
        nodes[name] = {"model": model, "learns_from": {LABEL: THROUGH, **learns_from}}
    for source in (LABEL, *list(models)[1:2]):
        nodes[TARGET]["learns_from"] |= {
            f"{source}/gates{i}": gate.model_dump() for i, gate in enumerate(search.gates)
        }
    nodes |= {
        f"{PRETRAINED}{number}": {"model": model, "pretrained": True}
        for number, model in enumerate(search.models)
        if PRETRAINED in search.weights.get(model, ())
    }
    keep, target = list(nodes), judged_node(search.objective if members else ALONE)
    nodes |= {name: _slow_copy(search.model_dump()) for name in slow}
    if members:
        nodes[ENSEMBLE] = {"ensemble": list(members)}
    return _recipe(recipe, {"target": target, "nodes": nodes, "keep": keep})


def candidate_named(problem: str, models: Sequence[str]) -> str:
    """Return a problem of `candidates_recipe`, with the candidate instead of the edge or node.

    Args:
        problem: The problem.
        models: The candidate models.
    """
    frozen = re.match(rf"graph\.nodes\.{PRETRAINED}(\d+)\.\w+: ", problem)
    if frozen:
        return f"search.weights.{models[int(frozen[1])]}: {problem[frozen.end() :]}"
    edge = r"graph\.nodes\.\w+\.learns_from\.\w+/([a-z_]+)(\d+)(?:\.\w+)*: "
    return re.sub(edge, r"search.\1.\2: ", problem)


def _recipe(recipe: SearchRecipe, graph: Mapping[str, Any]) -> Recipe:
    return check_section(Recipe, {"graph": graph, "data": recipe.data, "train": recipe.train})


def words_of(search: Mapping[str, Any]) -> dict[tuple[bool, str], Any]:
    """Return how a recipe writes each edge that a search can draw.

    The keys are whether the edge is from the label, and its word, because the usual loss, which no
    word names, is another there.

    Args:
        search: The section `search`, maybe unchecked.
    """
    # Controls have open gates, whatever gates are candidates.
    gates = [from_word(each) for each in (*search.get("gates", ()), THROUGH)]
    words: dict[tuple[bool, str], Any] = {}
    for source, field in ((LABEL, "label_losses"), (TARGET, "losses")):
        losses = [loss_from_word(each) for each in search.get(field, ())] or [{}]
        for gate, loss in product(gates, losses):
            shown = GateConfig.model_construct(**gate).shown
            said = LossConfig.model_construct(**loss).shown if loss else ""
            given = {key: value for key, value in loss.items() if value is not None}
            word = edge_word((source, TARGET), shown, said)
            if source == LABEL and word == edge_word((LABEL, TARGET), shown, ""):
                given = {}  # the usual loss, which `train.smoothing` smooths only if it has no name
            written = from_word(THROUGH) if (source, shown) == (LABEL, CORRECT) else gate
            words[source == LABEL, word] = {**written, **given}
    return words


def graph_section(
    models: Mapping[str, str],
    edges: Iterable[GraphEdge],
    reduction: str,
    search: Mapping[str, Any],
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Return the section `graph` of a recipe, as far as the search decides it.

    Args:
        models: The nodes' models by name.
        edges: The edges that exist.
        reduction: How a node's losses from networks add up.
        search: The section `search`, maybe unchecked. An edge that it cannot draw is written as it
            is.
        temperature: Of the edges between networks.
    """
    edges, gates, objective = tuple(edges), words_of(search), search.get("objective", ALONE)
    slow = _slow_copy(search)
    nodes: dict[str, dict[str, Any]] = {
        name: dict(slow) if model == EMA else {"model": model} for name, model in models.items()
    }
    for source, destination, gate in edges:
        edge = gates.get((source == LABEL, gate), gate)
        if source != LABEL and temperature != 1:
            edge = {**from_word(edge), "temperature": temperature}
        nodes[destination].setdefault("learns_from", {})[source] = edge
    members = members_of(models, {edge[1] for edge in edges}, objective)
    if members:
        nodes[ENSEMBLE] = {"ensemble": list(members)}
    target = judged_node(objective if members else ALONE)
    return {"target": target, "reduction": reduction, "nodes": nodes}


def _slow_copy(search: Mapping[str, Any]) -> dict[str, Any]:
    decay, warmup = (
        search.get(name, SearchConfig.model_fields[name].default)
        for name in ("ema_decay", "ema_warmup")
    )
    return {"ema": TARGET, "decay": decay, "warmup": warmup}
