"""Run directories side by side: n, mean, standard deviation, and the difference to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ..errors import RecipeError
from ..records.reader import read_results
from ..records.result import RunResult
from ..records.sample import Sample, difference
from ..terminal import console


@dataclass(frozen=True)
class Runs:
    """The complete runs in a directory: one, or one for each of several seeds.

    Args:
        path: The directory.
        results: The results, at least one, all on the same split.
    """

    path: Path
    results: tuple[RunResult, ...]

    @property
    def split(self) -> str:
        """Which images the results are on."""
        return self.results[0].split

    def top1(self, node: str | None = None) -> Sample:
        """Return the top-1 in percent of a node, or of each run's target.

        Raises:
            RecipeError: A run has no such node.
        """
        values = []
        for result in self.results:
            name = node or result.target
            if name not in result.nodes:
                known = ", ".join(result.nodes)
                raise RecipeError([f"{self.path}: `{name}` is no node. Nodes: {known}."])
            values.append(result.nodes[name].top1)
        return Sample(tuple(values))


def read_runs(path: Path) -> Runs:
    """Return the runs in a directory.

    Raises:
        RecipeError: None is complete, one cannot be read, or they are on different splits.
    """
    results = read_results(path)
    splits = sorted({result.split for result in results})
    if len(splits) > 1:
        found = ", ".join(splits)
        raise RecipeError([f"{path}: all seeds should be evaluated on one split. Found {found}."])
    return Runs(path, results)


def compare(paths: Sequence[Path], node: str | None = None) -> Table:
    """Return a table of run directories, each compared with the first.

    Args:
        paths: The directories.
        node: The node to compare; None: each run's target.

    Raises:
        RecipeError: A directory holds nothing that can be compared.
    """
    found = [read_runs(path) for path in paths]
    splits = {str(runs.path): runs.split for runs in found}
    if len(set(splits.values())) > 1:
        listed = ", ".join(f"{path}: {split}" for path, split in splits.items())
        raise RecipeError([f"compare: all runs should be evaluated on one split. Found {listed}."])
    table = Table(title=f"Top-1 in % on {found[0].split} images")
    for column in ("run", "node", "epochs", "n", "mean", "std", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("run", "node") else "right")
    base = found[0].top1(node)
    for index, runs in enumerate(found):
        sample = runs.top1(node)
        gap, low, high = difference(base.values, sample.values)
        interval = "n too small" if math.isnan(low) else f"{low:+.2f} .. {high:+.2f}"
        table.add_row(
            str(runs.path),
            node or runs.results[0].target,
            ", ".join(sorted({str(result.epochs) for result in runs.results})),
            str(sample.n),
            f"{sample.mean:.2f}",
            "-" if sample.std is None else f"{sample.std:.2f}",
            f"{gap:+.2f}" if index else "-",
            interval if index else "-",
        )
    return table


def show_compare(paths: Sequence[Path], node: str | None = None) -> None:
    """Print the table of `compare`.

    Raises:
        RecipeError: A directory holds nothing that can be compared.
    """
    console().print(compare(paths, node))
    print("Intervals: Welch's, of the difference of means to the first run.")
