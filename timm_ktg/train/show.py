"""What the terminal shows of a training: the graph, a line an epoch, the result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from ..graph.edge import Edge
from ..graph.graph import KnowledgeTransferGraph
from ..graph.registry import shown
from ..records.metrics import Metrics
from ..terminal import console


def show_graph(graph: KnowledgeTransferGraph, models: dict[str, str]) -> None:
    """Print who learns from whom, and through which gate.

    Args:
        graph: The graph.
        models: Name of every node's model.
    """
    table = Table(title="Knowledge transfer graph")
    for column in ("node", "model", "parameters", "role", "learns from, through which gate"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for name in graph.members:
        parameters = sum(parameter.numel() for parameter in graph.model(name).parameters())
        sources = [_describe(edge) for edge in graph.edges if edge.destination == name]
        role = "target" if name == graph.target else "frozen" if name in graph.frozen else ""
        style = "bold" if name == graph.target else None
        table.add_row(
            name, models[name], f"{parameters:,}", role, "\n".join(sources) or "-", style=style
        )
    console().print(table)


def _describe(edge: Edge) -> str:
    temperature = f", T={edge.temperature:g}" if edge.temperature != 1 else ""
    return f"{edge.source}: {shown(edge.gate)}{temperature}"


def epoch_line(metrics: Metrics, epochs: int, graph: KnowledgeTransferGraph) -> str:
    """Return an epoch as a line: every node's top-1, the target marked by a star."""
    split = "val" if f"val/top1/{graph.target}" in metrics else "train"
    shares = (
        f"{name}{'*' if name == graph.target else ''} {metrics[f'{split}/top1/{name}']:.2f}"
        for name in graph.members
    )
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}.0f}/{epochs}  {split} top-1 %  "
        f"{'  '.join(shares)}  lr {metrics['lr']:.3g}  "
        f"{metrics['images_per_second']:.0f} images/s  {metrics['seconds']:.1f} s"
    )


def show_result(summary: dict[str, Any], files: Iterable[tuple[str, str]]) -> None:
    """Print every node's accuracy, and where everything lies."""
    epochs = f"{summary['epochs']} epoch" + "s" * (summary["epochs"] != 1)
    table = Table(title=f"Result on {summary['split']} images, after {epochs}")
    for column in ("node", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, node in summary["nodes"].items():
        is_target = name == summary["target"]
        table.add_row(
            f"{name} (target)" if is_target else name,
            f"{node['top1']:.2f}",
            f"{node['top5']:.2f}",
            style="bold" if is_target else None,
        )
    console().print(table)
    for what, where in files:
        print(f"{what:<10} {where}")
