"""`train.model_ema`: the short form of a node that is an exponential moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..graph.topology import NETWORK
from .graph_config import GraphConfig
from .node_config import EmaConfig, kind_of
from .train_config import TrainConfig


def with_model_ema(values: Any) -> Any:
    """Return a recipe's values with the node `<target>_ema` that `train.model_ema` stands for.

    Args:
        values: The recipe, unchecked; one that already has the node stays as it is.
    """
    graph, train = _sections(values)
    nodes, target = graph.get("nodes"), str(graph.get("target"))
    name = f"{target}_ema"
    if not train or not isinstance(nodes, Mapping) or name in nodes or model_ema_problem(values):
        return values
    node = {"ema": target, "decay": train["decay"], "warmup": train["warmup"]}
    return {**values, "graph": {**graph, "nodes": {**nodes, name: node}}}


def model_ema_problem(values: Any) -> str | None:
    """Return why a recipe's target cannot have the average that `train.model_ema` asks for.

    Args:
        values: The recipe, unchecked.
    """
    graph, train = _sections(values)
    nodes = graph.get("nodes")
    if not train or not isinstance(nodes, Mapping):
        return None
    target = str(graph.get("target"))
    node, average = nodes.get(target), nodes.get(f"{target}_ema")
    if node is not None and kind_of(node) != f"[{NETWORK}]":
        return "should be off, because the target is not a network. Add a node {ema: ...} instead."
    if average is not None and not _same_average(average, target, train):
        return (
            f"stands for a node `{target}_ema` of decay {train['decay']} and warmup "
            f"{train['warmup']}. Found another node of that name; change or drop it."
        )
    return None


def _same_average(node: Any, target: str, train: Mapping[str, Any]) -> bool:
    """Return whether an unchecked node is the average of the target that `train` describes."""
    try:
        found = EmaConfig.model_validate(node)
        expected = EmaConfig.model_validate({"ema": target, **train})
    except ValidationError:  # the node's own check reports it, or it is no average
        return False
    return found == expected


def _sections(values: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the section `graph`, and decay and warm-up, which are empty if none is asked for."""
    found = values if isinstance(values, Mapping) else {}
    graph, train = found.get("graph"), found.get("train")
    if isinstance(graph, GraphConfig):
        graph = {"target": graph.target, "nodes": graph.nodes}
    if isinstance(train, TrainConfig):
        train = train.model_dump()
    graph = graph if isinstance(graph, Mapping) else {}
    train = train if isinstance(train, Mapping) else {}
    try:
        if not TypeAdapter(bool).validate_python(train.get("model_ema", False)):
            return graph, {}
    except ValidationError:  # the field's own check reports it
        return graph, {}
    fields = TrainConfig.model_fields
    return graph, {
        key: train.get(f"model_ema_{key}", fields[f"model_ema_{key}"].default)
        for key in ("decay", "warmup")
    }
