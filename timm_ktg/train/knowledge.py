"""Checks that the teachers in a graph know the classes of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..data.class_map import other_class
from ..errors import RecipeError
from ..graph.graph import KnowledgeTransferGraph
from ..graph.weights import class_names_in
from ..recipe.node_config import NodeConfig
from ..recipe.recipe import Recipe

_logger = logging.getLogger(__name__)


def check_teacher_classes(
    recipe: Recipe, graph: KnowledgeTransferGraph, class_names: Sequence[str]
) -> None:
    """Check that frozen nodes have the same classes at the same labels as the data.

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
        other = other_class(known, class_names)
        if other is None:
            continue
        where, (here, there, is_moved) = f"graph.nodes.{name}.{field}", other
        if is_moved:
            said = "should have the classes in the order of the data"
            problems.append(f"{where}: {said}. Found `{here}` for `{there}`.")
        else:
            _logger.warning("%s: its class `%s` is taken for the data's `%s`.", where, here, there)
    if problems:
        raise RecipeError(problems)


def warn_of_no_labels(graph: KnowledgeTransferGraph) -> None:
    """Warn if the target learns from neither the label nor weights, not even through others."""
    if graph.target not in graph.topology.informed:
        _logger.warning(
            "graph.target: `%s` can learn nothing, because no edge leads to it from the label or "
            "from a node with weights, not even through others.",
            graph.target,
        )
