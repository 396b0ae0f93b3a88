"""Terminal output of a training: the graph, a line per epoch, the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from ..draw.config import edge_config
from ..draw.scene import role_of, word_of
from ..graph.graph import KnowledgeTransferGraph
from ..records.metrics import (
    EPOCH,
    IMAGES_PER_SECOND,
    LR,
    SECONDS,
    Metrics,
    top1_name,
    val_losses,
    watched_split,
)
from ..records.result import RunResult, SeedsResult
from ..records.run_directory import RunDirectory
from ..terminal import console


def show_graph(graph: KnowledgeTransferGraph, models: Mapping[str, str]) -> None:
    """Print who learns from whom, and through which gate.

    Args:
        graph: The graph.
        models: Model names by node.
    """
    table = Table(title="Knowledge transfer graph")
    for column in ("node", "model", "parameters", "role", "learns from, through which gate"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for node in graph.topology.nodes:
        name = node.name
        if name not in graph.members:
            continue  # it is left out
        parameters = sum(parameter.numel() for parameter in graph.members[name].parameters())
        sources = [
            f"{edge.link.key}: {word_of(edge_config(edge, edge.link.gate), edge.source)}"
            for edge in graph.edges
            if edge.destination == name
        ]
        role = role_of(node, graph.topology)
        style = "bold" if name == graph.target else None
        table.add_row(
            name, models[name], f"{parameters:,}", role, "\n".join(sources) or "-", style=style
        )
    console().print(table)


def epoch_line(metrics: Metrics, epochs: int, graph: KnowledgeTransferGraph) -> str:
    """Return an epoch as a line: each node's top-1, maybe its validation loss; the target starred.

    Args:
        metrics: The metrics of the epoch.
        epochs: The number of epochs of the run.
        graph: The graph.
    """
    split, losses = watched_split(metrics), val_losses(metrics)
    shares = (
        f"{name}{'*' if name == graph.target else ''} {metrics[top1_name(split, name)]:.2f}"
        + (f" ({losses[name]:.4f})" if name in losses else "")
        for name in graph.members
        if top1_name(split, name) in metrics  # an average may run in evaluations only
    )
    return (
        f"epoch {metrics[EPOCH]:>{len(str(epochs))}.0f}/{epochs}  {split} top-1 %"
        f"{' (loss)' if losses else ''}  "
        f"{'  '.join(shares)}  lr {metrics[LR]:.3g}  "
        f"{metrics[IMAGES_PER_SECOND]:.0f} images/s  {metrics[SECONDS]:.1f} s"
    )


def show_result(result: RunResult, files: Iterable[tuple[str, str]]) -> None:
    """Print the accuracy of each node and the paths of the files.

    Args:
        result: The result.
        files: Pairs of description and path.
    """
    epochs = f"{result.epochs} epoch" + "s" * (result.epochs != 1)
    rows = {name: (f"{node.top1:.2f}", f"{node.top5:.2f}") for name, node in result.nodes.items()}
    _show_accuracies(f"Result on {result.split} images, after {epochs}", result.target, rows, files)


def show_seeds(result: SeedsResult, directory: RunDirectory) -> None:
    """Print the mean accuracy of each node over the seeds, and the paths of the files."""
    seeds = ", ".join(map(str, result.seeds))
    title = f"Result on {result.split} images, mean ± std, seeds {seeds}"
    rows = {name: (str(node.top1), str(node.top5)) for name, node in result.nodes.items()}
    files = [("runs", str(directory.path / "seed-<n>")), ("summary", str(directory.seeds))]
    _show_accuracies(title, result.target, rows, files)


def _show_accuracies(
    title: str,
    target: str,
    rows: Mapping[str, tuple[str, str]],
    files: Iterable[tuple[str, str]],
) -> None:
    table = Table(title=title)
    for column in ("node", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, figures in rows.items():
        marked = f"{name} (target)" if name == target else name
        table.add_row(marked, *figures, style="bold" if name == target else None)
    console().print(table)
    for what, where in files:
        print(f"{what:<10} {where}")
