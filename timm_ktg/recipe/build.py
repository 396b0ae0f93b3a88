"""From a recipe to objects: the models, the graph, the optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ..data import derive_seed
from ..edge import Edge
from ..errors import RecipeError
from ..gates import create_gate
from ..graph import KnowledgeTransferGraph
from ..losses import create_loss
from ..node import Channels, Node
from ..topology import LABEL
from ..weights import load_weights
from .graph_config import EdgeConfig, NodeConfig
from .recipe import Recipe
from .train_config import TrainConfig

T = TypeVar("T")


def build_nodes(
    recipe: Recipe, num_classes: int, given: Mapping[str, nn.Module] | None = None
) -> list[Node]:
    """Return the nodes of a recipe, every model with initial weights from its own seed.

    Args:
        recipe: The recipe.
        num_classes: Classes of the data.
        given: Models by node name that exist already and are taken as they are.

    Raises:
        RecipeError: All nodes that cannot be built, with the reasons.
    """
    nodes, problems = [], []
    for name, node in recipe.graph.nodes.items():
        try:
            if given and name in given:
                nodes.append(Node(name, given[name], tuple(node.taps)))
            else:
                nodes.append(_build_node(name, node, num_classes, recipe.train.seed))
        except Exception as error:  # a model's constructor may raise anything
            problems.append(f"graph.nodes.{name}{_said(error)}")
    if problems:
        raise RecipeError(problems)
    return nodes


def build_graph(
    recipe: Recipe, nodes: list[Node], mean: Channels | None, std: Channels | None
) -> KnowledgeTransferGraph:
    """Return the graph of a recipe over its nodes.

    Args:
        recipe: The recipe.
        nodes: What `build_nodes` returned.
        mean: Per-channel mean that the images come normalised with.
        std: Per-channel standard deviation, likewise.

    Raises:
        RecipeError: What is wrong with the graph.
    """
    edges = [
        _build_edge(source, name, edge, recipe)
        for name, node in recipe.graph.nodes.items()
        for source, edge in node.learns_from.items()
    ]
    return _or_recipe_error(
        "graph.",
        lambda: KnowledgeTransferGraph(
            nodes,
            edges,
            recipe.graph.target,
            reduction=recipe.graph.reduction,
            keep=recipe.graph.keep,
            mean=mean,
            std=std,
        ),
    )


def build_optimizer(train: TrainConfig, graph: KnowledgeTransferGraph) -> torch.optim.Optimizer:
    """Return one optimizer over all nodes that learn, its parameter groups node by node.

    Raises:
        RecipeError: The optimizer does not take these arguments.
    """
    return _or_recipe_error(
        "train.opt_kwargs: ",
        lambda: create_optimizer_v2(
            _parameter_groups(train, graph),
            opt=train.opt,
            lr=train.lr,
            weight_decay=train.weight_decay,
            momentum=train.momentum,
            **train.opt_kwargs,
        ),
    )


def build_scheduler(
    train: TrainConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler, int]:
    """Return timm's scheduler and the number of epochs, warm-up and cool-down included.

    Raises:
        RecipeError: The schedule's lengths do not fit together.
    """
    built: tuple[Scheduler, int] = _or_recipe_error(
        "train.sched: ",
        lambda: create_scheduler_v2(
            optimizer,
            sched=train.sched,
            num_epochs=train.epochs,
            decay_epochs=train.decay_epochs,
            decay_milestones=train.decay_milestones,
            cooldown_epochs=train.cooldown_epochs,
            decay_rate=train.decay_rate,
            min_lr=train.min_lr,
            warmup_lr=train.warmup_lr,
            warmup_epochs=train.warmup_epochs,
            warmup_prefix=train.warmup_prefix,
            step_on_epochs=not train.sched_on_updates,
            updates_per_epoch=updates_per_epoch,
        ),
    )
    return built


def _build_node(name: str, node: NodeConfig, num_classes: int, seed: int) -> Node:
    arguments = {"num_classes": num_classes, **node.model_kwargs}
    # Nodes of one architecture must not start alike, and one more node must not change the others.
    own_seed = derive_seed(f"init {name}", seed) if node.seed is None else node.seed
    with torch.random.fork_rng():
        torch.manual_seed(own_seed)
        model = timm.create_model(node.model, pretrained=node.pretrained, **arguments)
    classes = getattr(model, "num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(f".model_kwargs: the data have {num_classes} classes. Found {classes}.")
    learns = any(edge.gate != "cutoff" for edge in node.learns_from.values())
    config = getattr(model, "pretrained_cfg", {})
    if node.pretrained and not learns and config.get("num_classes") != num_classes:
        raise ValueError(
            f".pretrained: a frozen node needs weights for the data's {num_classes} classes. "
            f"Found {config.get('num_classes')}; its classifier would be random."
        )
    if not node.has_weights:
        return Node(name, model, tuple(node.taps))
    own: dict[str, Any] = {"mean": config.get("mean"), "std": config.get("std")}
    if node.checkpoint_path is not None:
        own |= load_weights(model, node.checkpoint_path)
    return Node(name, model, tuple(node.taps), pretrained=True, **own)


def _build_edge(source: str, destination: str, edge: EdgeConfig, recipe: Recipe) -> Edge:
    loss = None if edge.loss is None else create_loss(edge.loss, **edge.loss_kwargs)
    # Where labels are mixed, the smoothing is part of the mixed labels.
    smoothing = 0.0 if recipe.data.mixes else recipe.train.smoothing
    if loss is None and source == LABEL and smoothing:
        loss = create_loss("cross_entropy", smoothing=smoothing)
    gate = create_gate(edge.gate, **edge.gate_kwargs)
    return Edge(source, destination, gate, loss, edge.temperature)


def _parameter_groups(train: TrainConfig, graph: KnowledgeTransferGraph) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for name in graph.learning:
        model = graph.model(name)
        if train.filter_bias_and_bn:
            without: Any = getattr(model, "no_weight_decay", tuple)()
            own = param_groups_weight_decay(model, train.weight_decay, without)
        else:
            own = [{"params": list(model.parameters()), "weight_decay": train.weight_decay}]
        groups += [{**group, "node": name} for group in own]
    return groups


def _said(error: Exception) -> str:
    """Return an error as the end of a line that begins with a location."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text.startswith("."):
        return text
    return f": {text}" if isinstance(error, ValueError) else f": {type(error).__name__}: {text}"


def _or_recipe_error(where: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise RecipeError([where + line for line in lines]) from error
