"""What the terminal shows: the graph, the progress, a line an epoch, the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, TypeVar

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from .edge import Edge
from .graph import KnowledgeTransferGraph
from .metrics import Metrics
from .registry import shown

T = TypeVar("T")

# Piped into a file there is no width to ask for, and a table folded to 80 columns is hard to read.
_FILE_WIDTH = 120


def console() -> Console:
    """Return the console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


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


def progress(items: Iterable[T], total: int, epoch: int, epochs: int, show: bool) -> Iterable[T]:
    """Iterate under a progress bar; in a file the bar is a line now and then.

    Args:
        items: What to iterate over.
        total: How many there are.
        epoch: The epoch, from 1.
        epochs: All epochs.
        show: Whether this process shows anything.
    """
    in_file = not sys.stderr.isatty()
    bar: Iterable[T] = tqdm(
        items,
        desc=f"epoch {epoch}/{epochs}",
        total=total,
        unit="update",
        leave=False,
        disable=not show,
        mininterval=30 if in_file else 0.2,
        maxinterval=60,  # else tqdm draws an unchanged bar again after 10 s
        file=_Lines(sys.stderr) if in_file else sys.stderr,
    )
    return bar


def fail(lines: Sequence[str], code: int) -> int:
    """Say what is wrong, a line each, and return the exit code."""
    # Every process comes here; one speaks. Without accelerate's state there is only one.
    if PartialState().is_main_process:
        for line in lines:
            print(line, file=sys.stderr)
    return code


class _Lines:
    """A stream that makes lines of what a progress bar would draw over itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the bar's text as a line, and nothing where the bar only clears itself."""
        text = text.replace("\r", "").strip()
        if text and " 0/" not in text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
