"""Graphs to draw, and possible results of their runs."""

import random
from itertools import permutations
from typing import Any

from timm_ktg import EdgeContext
from timm_ktg.draw.scene import Results
from timm_ktg.graph.topology import LABEL
from timm_ktg.recipe.graph_config import GraphConfig

NAMES = ("student", "helper", "peer", "wide_network", "teacher", "deep", "other")
MODELS = ("resnet8_cifar", "vit_tiny_patch16_224.augreg_in21k", "wrn28_2_cifar")
GATES: tuple[Any, ...] = (
    "through",
    {"gate": "confident", "gate_kwargs": {"threshold": 0.95}, "temperature": 4.5},
    "correct",
    {"gate": "linear", "temperature": 2},
    "negative_linear",
)


def confident(losses: Any, context: EdgeContext, *, threshold: float = 0.8) -> Any:
    return losses * (context.source.logits.softmax(-1).amax(-1) >= threshold)


def checked_graph(learns_from: dict[str, dict[str, Any]], **others: Any) -> GraphConfig:
    """Return a graph whose first node is the target."""
    nodes = {
        name: {
            "model": MODELS[index % 3],
            "learns_from": sources,
            "pretrained": not sources,
        }
        for index, (name, sources) in enumerate(learns_from.items())
    }
    return GraphConfig.model_validate({"target": next(iter(nodes)), "nodes": nodes, **others})


def complete_graph(number: int) -> GraphConfig:
    """Return a graph in which everyone learns from everyone, and from the label."""
    names = NAMES[:number]
    edges = list(permutations(names, 2))
    learns_from: dict[str, dict[str, Any]] = {name: {LABEL: "negative_linear"} for name in names}
    for index, (source, name) in enumerate(edges):
        learns_from[name][source] = GATES[index % len(GATES)]
    return checked_graph(learns_from)


def random_graph(seed: int) -> GraphConfig:
    """Return a graph of two to seven nodes, some of them frozen or left out."""
    draw = random.Random(seed)
    names = NAMES[: draw.randint(2, 7)]
    learns_from: dict[str, dict[str, Any]] = {
        name: {source: draw.choice(GATES) for source in names if draw.random() < 0.4}
        for name in names
    }
    for name, sources in learns_from.items():
        sources.pop(name, None)
        if draw.random() < 0.5:
            sources[LABEL] = "correct"
    learns_from[names[0]][LABEL] = "through"
    return checked_graph(learns_from)


def results_of_graph(graph: GraphConfig) -> Results:
    draw = random.Random(0)
    top1 = {name: draw.uniform(0, 100) for name in graph.nodes}
    names = [link.name for link in graph.edges]
    return Results(top1, {name: draw.random() for name in names}, "test")


def made_graph(
    learns_from: dict[str, dict[str, Any]], target: str = "a", **made: dict[str, Any]
) -> GraphConfig:
    """Return a graph with nodes that are made from others."""
    networks = {
        name: {"model": MODELS[0], "learns_from": sources, "pretrained": not sources}
        for name, sources in learns_from.items()
    }
    return GraphConfig.model_validate({"target": target, "nodes": {**networks, **made}})
