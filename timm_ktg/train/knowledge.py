"""Checks that what a graph passes on is knowledge of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import RecipeError
from ..graph.graph import KnowledgeTransferGraph
from ..graph.weights import class_names_in
from ..recipe.node_config import NodeConfig
from ..recipe.recipe import Recipe

_logger = logging.getLogger(__name__)


def check_teacher_classes(
    recipe: Recipe, graph: KnowledgeTransferGraph, class_names: Sequence[str]
) -> None:
    """Check that frozen nodes know the classes by the labels that the data have.

    Args:
        recipe: The recipe.
        graph: Its graph.
        class_names: [C] names of the data's classes.

    Raises:
        RecipeError: Weights have the classes in another order; lists all.
    """
    problems = []
    for name in graph.frozen:
        node = recipe.graph.nodes[name]
        assert isinstance(node, NodeConfig)  # only networks can be frozen
        if node.checkpoint_path is not None:
            field, known = "checkpoint_path", class_names_in(node.checkpoint_path)
        else:  # timm's folders say it here
            config = getattr(graph.model(name), "pretrained_cfg", {})
            field, known = "model", config.get("label_names") or ()
        where, pairs = f"graph.nodes.{name}.{field}", zip(known, class_names, strict=False)
        others = [(found, label) for found, label in pairs if found != label]
        moved = [f"`{found}` for `{label}`" for found, label in others if found in class_names]
        if moved:
            problems.append(
                f"{where}: should have the classes in the order of the data. Found {moved[0]}."
            )
        elif others:
            _logger.warning("%s: its class `%s` is taken for the data's `%s`.", where, *others[0])
    if problems:
        raise RecipeError(problems)


def warn_of_no_labels(graph: KnowledgeTransferGraph) -> None:
    """Warn if neither the label nor a node with weights can teach the target, at any distance."""
    if graph.target not in graph.topology.informed:
        _logger.warning(
            "graph.target: `%s` can learn nothing, because no edge leads to it from the label or "
            "from a node with weights, not even through others.",
            graph.target,
        )
