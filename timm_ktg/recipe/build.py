"""From a recipe to objects: the models, the graph, the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from ..data import derive_seed
from ..errors import RecipeError, collected, located
from ..graph.edge import Edge
from ..graph.ema import Ema
from ..graph.ensemble import Ensemble
from ..graph.gates import create_gate
from ..graph.graph import KnowledgeTransferGraph
from ..graph.losses import create_loss
from ..graph.node import Channels, GraphNode, Node
from ..graph.taps import Taps
from ..graph.topology import LABEL, Link
from ..graph.weights import load_weights
from .learner import prepare_to_learn
from .node_config import EdgeConfig, EmaConfig, EnsembleConfig, NodeConfig
from .recipe import Recipe, load_recipe
from .train_config import LOOKAHEAD, TrainConfig

# What timm's factory is given for the whole optimizer, and for its parameter groups.
_FALLBACK = ("fallback_list", "fallback_no_weight_decay")  # for muon and the like
_NOT_KWARGS = {*signature(create_optimizer_v2).parameters} - {*_FALLBACK, "foreach", "kwargs"}
KERNELS = ("foreach", "fused", "capturable")  # how torch computes a step, not what


def build_nodes(
    recipe: Recipe, num_classes: int, given: Mapping[str, nn.Module] | None = None
) -> list[GraphNode]:
    """Return the nodes of a recipe; each model is initialized with its own seed.

    Args:
        recipe: The recipe.
        num_classes: Classes of the data.
        given: Existing models by node name, used as they are.

    Raises:
        RecipeError: Nodes cannot be built; lists all, with the reasons.
    """
    nodes: list[GraphNode] = []
    problems: list[str] = []
    for name, node in recipe.graph.nodes.items():
        with collected(problems):
            if isinstance(node, EnsembleConfig):
                nodes.append(build_ensemble(name, node))
            elif isinstance(node, EmaConfig):
                nodes.append(Ema(name, node.ema, node.decay, node.warmup))
            elif given and name in given:
                nodes.append(Node(name, given[name], tuple(node.taps)))
            else:
                learns = any(link.destination == name for link in recipe.graph.topology.live)
                built = build_network(
                    name, node, learns, num_classes, recipe.train.seed, recipe.data.in_chans
                )
                if learns:
                    prepare_to_learn(built, recipe.train)
                nodes.append(built)
    if problems:
        raise RecipeError(problems)
    return nodes


def build_edges(recipe: Recipe) -> list[Edge]:
    """Return the edges of a recipe.

    Args:
        recipe: The recipe.

    Raises:
        RecipeError: Edges cannot be built; lists all.
    """
    edges: list[Edge] = []
    problems: list[str] = []
    for link, config in recipe.graph.edges.items():
        where = f"graph.nodes.{link.destination}.learns_from.{link.key}"
        with collected(problems), located(where):
            edges.append(_build_edge(link, config, recipe))
    if problems:
        raise RecipeError(problems)
    return edges


def build_graph(
    recipe: Recipe | str | Path,
    num_classes: int,
    given: Mapping[str, nn.Module] | None = None,
    normalized: tuple[Channels, Channels] | None = None,
) -> KnowledgeTransferGraph:
    """Return the graph of a recipe; each model is initialized with its own seed.

    Args:
        recipe: The recipe, its path, or its bundled name.
        num_classes: Classes of the data.
        given: Existing models by node name, used as they are.
        normalized: Per-channel mean and standard deviation that the images are normalized with;
            None: the recipe's.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; lists all problems.
    """
    recipe = load_recipe(recipe)
    problems = [
        f"graph.nodes.{name}.train_first: only timm_ktg.train trains a node first. Give its "
        "weights here (checkpoint_path)."
        for name in recipe.graph.trained_first
        if name not in (given or {})
    ]
    if problems:
        raise RecipeError(problems)
    nodes = build_nodes(recipe, num_classes, given)
    edges = build_edges(recipe)
    mean, std = normalized or (recipe.data.mean, recipe.data.std)
    return connect(recipe, nodes, edges, mean, std)


def connect(
    recipe: Recipe,
    nodes: Sequence[GraphNode],
    edges: list[Edge],
    mean: Channels | None,
    std: Channels | None,
) -> KnowledgeTransferGraph:
    """Return the graph that connects these nodes and edges.

    Args:
        recipe: The recipe.
        nodes: The nodes that `build_nodes` returned.
        edges: The edges that `build_edges` returned.
        mean: Per-channel mean that the images are normalized with.
        std: Per-channel standard deviation, likewise.

    Raises:
        RecipeError: The graph is wrong; lists all problems.
    """
    try:
        return KnowledgeTransferGraph(
            nodes,
            edges,
            recipe.graph.target,
            reduction=recipe.graph.reduction,
            keep=recipe.graph.keep,
            mean=mean,
            std=std,
        )
    except ValueError as error:
        raise RecipeError([f"graph.{line}" for line in str(error).splitlines()]) from error


def build_optimizer(
    train: TrainConfig, graph: KnowledgeTransferGraph, more: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Return one optimizer for all nodes that learn, with parameter groups for each node.

    Args:
        train: The section of the recipe.
        graph: The graph.
        more: Further arguments of the optimizer, which override those of the recipe.

    Raises:
        RecipeError: The optimizer does not take these arguments, or cannot be made here.
    """
    with located("train.opt_kwargs" if train.opt_kwargs else "train.opt"):
        _check_kwargs(train.opt_kwargs)
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            _parameter_groups(train, graph),
            opt=train.opt.removeprefix(LOOKAHEAD),
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            momentum=train.momentum,
            **{**train.opt_kwargs, **(more or {})},
        )
    # Before it is wrapped, because timm's Lookahead takes no hooks.
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    return timm.optim.Lookahead(optimizer) if train.opt.startswith(LOOKAHEAD) else optimizer


def _check_kwargs(given: Mapping[str, Any]) -> None:
    """Raise ValueError if arguments would be fields of the recipe, or have no effect."""
    for name in given:
        if name in _NOT_KWARGS:
            field = f" Say train.{name}." if name in TrainConfig.model_fields else ""
            raise ValueError(f"should leave out `{name}`, which has no effect here.{field}")
    if isinstance(given.get("fallback_list"), str):  # whose letters would be patterns
        raise ValueError("fallback_list should be a list of names or patterns of parameters.")


def _with_own_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state to load that keeps the optimizer's own choice of kernels.

    The machine that saved the state may have used other kernels.
    """
    own = {name: optimizer.defaults[name] for name in KERNELS if name in optimizer.defaults}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}


def build_ensemble(name: str, node: EnsembleConfig) -> Ensemble:
    """Return the ensemble that a recipe describes."""
    weights = None if node.weights is None else tuple(node.weights)
    return Ensemble(name, tuple(node.ensemble), node.combine, weights)


def build_network(
    name: str, node: NodeConfig, learns: bool, num_classes: int, seed: int, in_chans: int = 3
) -> Node:
    """Return the network that a recipe describes.

    Args:
        name: Name of the node.
        node: Its section.
        learns: Whether it learns; otherwise it needs a trained classifier.
        num_classes: C.
        seed: Seed of the run, which its own seed derives from.
        in_chans: Channels of the images.

    Raises:
        RecipeError: The network cannot be built.
    """
    where = f"graph.nodes.{name}"
    images = {} if in_chans == 3 else {"in_chans": in_chans}  # not all models know it
    arguments = {"num_classes": num_classes, **images, **node.model_kwargs}
    # Equal architectures must start from different weights, and a new node must not change others.
    own_seed = derive_seed(f"init {name}", seed) if node.seed is None else node.seed
    # If there is a download, it is what can go wrong.
    field = "pretrained" if node.pretrained else "model_kwargs"
    with located(f"{where}.{field}"), torch.random.fork_rng():
        torch.manual_seed(own_seed)
        model = timm.create_model(node.model, pretrained=node.pretrained, **arguments)
    with located(f"{where}.model_kwargs"):
        classes = getattr(model, "num_classes", num_classes)
        if classes != num_classes:
            raise ValueError(f"should give the data's {num_classes} classes. Found {classes}.")
    own: dict[str, Any] = {}
    channels = arguments.get("in_chans", 3)
    if node.pretrained:
        own = _expected(model, channels)
        with located(f"{where}.pretrained"):
            _check_teacher(node, learns, model, num_classes)
    if node.checkpoint_path is not None:
        with located(f"{where}.checkpoint_path"):
            own = _expected(model, channels) | load_weights(model, node.checkpoint_path)
    with located(f"{where}.taps"):
        Taps(model, node.taps).remove()
    return Node(
        name,
        model,
        tuple(node.taps),
        pretrained=node.has_weights,
        img_size=node.img_size,
        **own,
    )


def fitted(values: Sequence[float], channels: int) -> Channels:
    """Return the values, or their mean for each channel if there are not as many.

    timm adds up the weights of RGB for other channels, which then expect what RGB does on average.
    """
    if len(values) == channels:
        return tuple(values)
    return (math.fsum(values) / len(values),) * channels


def _expected(model: nn.Module, in_chans: int) -> dict[str, Any]:
    """Return the normalization that timm's weights for a model expect."""
    config = getattr(model, "pretrained_cfg", {})
    found = {name: config.get(name) for name in ("mean", "std")}
    return {name: values and fitted(values, in_chans) for name, values in found.items()}


def _check_teacher(node: NodeConfig, learns: bool, model: nn.Module, num_classes: int) -> None:
    """Raise ValueError if a frozen node's pretrained weights lack the classifier."""
    classes = getattr(model, "pretrained_cfg", {}).get("num_classes")
    if not learns and node.checkpoint_path is None and classes != num_classes:
        raise ValueError(
            f"a frozen node should have weights for the {num_classes} classes of the data. Found "
            f"{classes}; its classifier would be random."
        )


def _build_edge(link: Link, edge: EdgeConfig, recipe: Recipe) -> Edge:
    loss = None if edge.loss is None else create_loss(edge.loss, **edge.loss_kwargs)
    # Mixed labels are smoothed when they are mixed.
    smoothing = 0.0 if recipe.data.mixes else recipe.train.smoothing
    if loss is None and link.source == LABEL and smoothing:
        loss = create_loss("cross_entropy", smoothing=smoothing)
    gate = create_gate(edge.gate, **edge.gate_kwargs)
    return Edge(
        link.source,
        link.destination,
        gate,
        loss,
        edge.temperature,
        link.tag,
        edge.weight,
        edge.taps or (),
        edge.head or "",
    )


def _parameter_groups(train: TrainConfig, graph: KnowledgeTransferGraph) -> list[dict[str, Any]]:
    by_name = train.filter_bias_and_bn or train.opt_kwargs.keys() & {*_FALLBACK}
    if not by_name and train.layer_decay is None:
        return [
            {"params": parameters, "weight_decay": train.weight_decay, "node": name}
            for name, parameters in graph.parameter_owners().items()
        ]
    return [
        {**group, "node": name}
        for name, modules in graph.owned_modules().items()
        for module in modules
        for group in _groups_of(train, module)
        if group["params"]
    ]


def _groups_of(train: TrainConfig, module: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups of a model, or of an edge, as timm makes them."""
    named: Any = getattr(module, "no_weight_decay", tuple)()
    fallback = {*train.opt_kwargs.get("fallback_list", ())}
    if train.opt_kwargs.get("fallback_no_weight_decay"):
        fallback |= {*named}
    arguments: dict[str, Any] = {
        "no_weight_decay_list": named if train.filter_bias_and_bn else (),
        "weight_decay_exclude_1d": train.filter_bias_and_bn,
        "fallback_list": fallback,
    }
    if train.layer_decay is None or not hasattr(module, "pretrained_cfg"):  # an edge has no layers
        return list(param_groups_weight_decay(module, train.weight_decay, **arguments))
    return list(
        param_groups_layer_decay(
            module,
            train.weight_decay,
            **arguments,
            layer_decay=train.layer_decay,
            min_scale=train.layer_decay_min_scale,
        )
    )
