"""The section `graph`: the nodes, and who learns from whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import timm
from pydantic import BeforeValidator, PositiveFloat, model_serializer
from pydantic_core import InitErrorDetails

from ..errors import did_you_mean, one_line
from ..graph.gates import create_gate
from ..graph.graph import Reduction
from ..graph.losses import create_loss
from ..graph.topology import (
    LABEL,
    Pair,
    edge_problems,
    name_problem,
    nodes_that_matter,
    target_problem,
)
from .section import Section, checked, problem


def _model_problem(name: str) -> str | None:
    if name.startswith(("hf-hub:", "local-dir:")) or timm.is_model(name):
        return None
    near = did_you_mean(name, timm.list_models())
    return f"timm knows no model `{name}`.{near} timm.list_models() lists them all."


def _file_problem(path: str) -> str | None:
    if Path(path).is_file():
        return None
    return f"should be a file of weights. Found nothing at `{path}`."


def from_word(value: Any) -> Any:
    """Return a gate that is written as a bare word as the section that it stands for."""
    return {"gate": value} if isinstance(value, str) else value


def gate_problems(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Yield what is wrong with the gate of a section that is not checked yet, and its arguments."""
    try:
        create_gate(data.get("gate", "through"), **data.get("gate_kwargs", {}))
    except Exception as error:  # somebody else's module may raise anything
        yield problem(("gate",), one_line(error))


ModelName = Annotated[str, checked(_model_problem)]
WeightsFile = Annotated[str, checked(_file_problem)]


class EdgeConfig(Section):
    """How a node learns from one source; a bare word is the gate."""

    gate: str = "through"
    """Gate that decides which samples' loss passes."""
    gate_kwargs: dict[str, Any] = {}
    """Arguments of the gate."""
    loss: str | None = None
    """Loss of the edge; null: cross_entropy from the label, kl_div from a network."""
    loss_kwargs: dict[str, Any] = {}
    """Arguments of the loss, which must then be named."""
    temperature: PositiveFloat = 1.0
    """Temperature T of both softmaxes; 1 on an edge from the label."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield what is wrong with the gate and the loss."""
        yield from gate_problems(data)
        loss = data.get("loss")
        try:
            if loss is not None:
                create_loss(loss, **data.get("loss_kwargs", {}))
            elif data.get("loss_kwargs"):
                yield problem(("loss_kwargs",), "belong to a loss; name it as `loss`.")
        except Exception as error:  # as of a gate
            yield problem(("loss",), one_line(error))

    @model_serializer(mode="wrap")
    def _to_word(self, handler: Any) -> Any:
        """Write an edge that is nothing but a gate as a bare word."""
        fields = type(self).model_fields.items()
        others = [name for name, field in fields if getattr(self, name) != field.default]
        return self.gate if set(others) <= {"gate"} else handler(self)


class NodeConfig(Section):
    """A node: a timm model, and what it learns from. One that learns from nothing is frozen."""

    model: ModelName
    """timm's name of the model, or `hf-hub:...`, `local-dir:...`."""
    model_kwargs: dict[str, Any] = {}
    """Arguments for timm.create_model."""
    pretrained: bool = False
    """Start from timm's pretrained weights."""
    checkpoint_path: WeightsFile | None = None
    """Start from the weights in this file, such as a run's nodes/<name>.safetensors."""
    seed: int | None = None
    """Seed of the initial weights; null: from train.seed and the node's name."""
    taps: list[str] = []
    """Names of submodules whose outputs the node's features hold."""
    learns_from: dict[str, Annotated[EdgeConfig, BeforeValidator(from_word)]] = {}
    """Sources by name (`label`, or a node), each with its gate. What is not listed is cut off."""

    @property
    def has_weights(self) -> bool:
        """Whether the node starts from trained weights."""
        return self.pretrained or self.checkpoint_path is not None


class GraphConfig(Section):
    """Who teaches whom."""

    target: str
    """Name of the node that should become accurate."""
    nodes: dict[str, NodeConfig]
    """The networks by name."""
    reduction: Reduction = "sum"
    """How a node's losses from networks add up: sum (Eq. 3), or mean (Zhang et al., DML)."""
    keep: list[str] = []
    """Nodes to train even if they cannot influence the target."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield what is wrong with the structure."""
        gates = _gates(data)
        if data.get("nodes") == {}:
            yield problem(("nodes",), "should name at least one node. Found none.")
        yield from _edge_problems(data, gates)
        yield from _role_problems(data, gates)


Gates = Mapping[str, Mapping[str, Any]]


def _gates(data: Mapping[str, Any]) -> Gates:
    """Return the gate of every source of every node, as far as unchecked data shows them."""
    nodes = data.get("nodes")
    result: dict[str, dict[str, Any]] = {}
    for name, node in nodes.items() if isinstance(nodes, Mapping) else ():
        if not isinstance(name, str):
            continue  # pydantic's to report
        sources = node.get("learns_from") if isinstance(node, Mapping) else None
        result[name] = {
            source: edge.get("gate") if isinstance(edge, Mapping) else edge
            for source, edge in (sources.items() if isinstance(sources, Mapping) else ())
            if isinstance(source, str)
        }
    return result


def _edge_problems(data: Mapping[str, Any], gates: Gates) -> Iterator[InitErrorDetails]:
    for name in gates:
        said = name_problem(name)
        if said:
            yield problem(("nodes", name), said)
    for (_, name), said in edge_problems(gates, _pairs(gates)):
        yield problem(("nodes", name, "learns_from"), said)
    for name, sources in gates.items():
        edge = data["nodes"][name]["learns_from"][LABEL] if LABEL in sources else None
        temperature = edge.get("temperature", 1) if isinstance(edge, Mapping) else 1
        if str(temperature) not in ("1", "1.0"):
            yield problem(
                ("nodes", name, "learns_from", LABEL, "temperature"),
                f"should be 1 on an edge from the label. Found {temperature}.",
            )


def _role_problems(data: Mapping[str, Any], gates: Gates) -> Iterator[InitErrorDetails]:
    keep = data["keep"] if isinstance(data.get("keep"), list) else []
    for name in keep:
        if name not in gates:
            yield problem(("keep",), f"`{name}` is no node.{did_you_mean(str(name), gates)}")
    target = data.get("target")
    if not isinstance(target, str) or not gates:
        return
    live = [(source, name) for source, name in _pairs(gates) if gates[name][source] != "cutoff"]
    said = target_problem(gates, live, target)
    if said:
        yield problem(("target",), said)
        return
    frozen = nodes_that_matter(live, target, keep) - {name for _, name in live}
    for name in sorted(frozen & gates.keys()):
        node = data["nodes"][name]
        if isinstance(node, Mapping) and not (
            node.get("pretrained") or node.get("checkpoint_path")
        ):
            yield problem(
                ("nodes", name),
                "learns from nothing, so it is frozen and should have weights: checkpoint_path, "
                "or pretrained: true. Found neither.",
            )


def _pairs(gates: Gates) -> list[Pair]:
    return [(source, name) for name, sources in gates.items() for source in sources]
