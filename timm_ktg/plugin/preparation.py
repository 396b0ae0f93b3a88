"""What `attach` does before the first step: the graph around a model, on its device, and tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..graph.contract import contract_problems
from ..graph.graph import KnowledgeTransferGraph

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


def move_all_but_target(graph: KnowledgeTransferGraph, device: torch.device) -> None:
    """Move all but the target to its device."""
    for name in set(graph.members) - {graph.target}:
        graph.members[name].to(device)
    graph.edge_modules.to(device)


def prepare(graph: KnowledgeTransferGraph, device: torch.device, images: Tensor | None) -> None:
    """Move all but the target to its device, build what has to know shapes, and try it.

    Args:
        graph: The graph.
        device: The target's device.
        images: A few images [B, 3, H, W], to try losses and gates on; None: they are not tried.

    Raises:
        ValueError: A loss or a gate has parameters and there are no images, or breaks its contract.
    """
    move_all_but_target(graph, device)
    if images is None and not graph.unbuilt:
        return
    if images is None:
        raise ValueError(
            f"{', '.join(graph.unbuilt)}: a loss or a gate has parameters. Give attach a few "
            "images: attach(..., images=images)."
        )
    with _evaluating(graph):
        with torch.no_grad():
            outputs = graph(images.to(device))
        graph.build_edges(outputs)
        problems = [
            f"{edge.name}: {why}" for edge, _, why in contract_problems(graph, outputs, False)
        ]
    if problems:
        raise ValueError("\n".join(problems))


@contextmanager
def _evaluating(graph: KnowledgeTransferGraph) -> Iterator[None]:
    """Set evaluation mode for a while, so that BatchNorm's statistics stay as they are."""
    modes = {module: module.training for module in graph.modules()}
    graph.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def graph_around(
    model: nn.Module,
    named: Recipe | str | Path,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> KnowledgeTransferGraph:
    """Return the graph of a recipe around a model, which replaces its target.

    Args:
        model: The target.
        named: The recipe, its path or its bundled name.
        mean: Per-channel mean that the images are normalized with; None: the recipe's.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: The recipe cannot be built around this model.
    """
    # Imported here, because most users of the package need no recipes.
    from ..recipe.build import build_graph
    from ..recipe.recipe import load_recipe

    recipe = load_recipe(named)
    num_classes = getattr(model, "num_classes", None)
    if not isinstance(num_classes, int):
        raise ValueError(
            "A recipe needs the number of classes. The model should have `num_classes`; "
            "or build the graph by hand."
        )
    if num_classes < 1:
        raise ValueError(
            "num_classes of the model should be at least 1. "
            f"Found {num_classes}; such a model has no classifier and returns features."
        )
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std should be given together. Found {mean} and {std}.")
    normalized = None if mean is None or std is None else (tuple(mean), tuple(std))
    return build_graph(recipe, num_classes, {recipe.graph.target: model}, normalized)
