"""Run directories side by side: n, mean, standard deviation, and the difference to the first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import RecipeError
from ..records.run_directory import RunDirectory
from ..records.sample import Sample, difference
from ..terminal import console


@dataclass(frozen=True)
class Runs:
    """The complete runs in a directory: one, or one for each of several seeds.

    Args:
        path: The directory.
        summaries: What their summary.json hold.
    """

    path: Path
    summaries: tuple[dict[str, Any], ...]

    @property
    def split(self) -> str:
        """Which images the result is on."""
        return str(self.summaries[0]["split"])

    def top1(self, node: str | None = None) -> Sample:
        """Return the top-1 in percent of a node, or of each run's target.

        Raises:
            RecipeError: A run has no such node.
        """
        values = []
        for summary in self.summaries:
            name = node or summary["target"]
            if name not in summary["nodes"]:
                known = ", ".join(summary["nodes"])
                raise RecipeError([f"{self.path}: `{name}` is no node. Nodes: {known}."])
            values.append(summary["nodes"][name]["top1"])
        return Sample(tuple(values))


def read_runs(path: Path) -> Runs:
    """Return the runs in a directory.

    Raises:
        RecipeError: It holds none that is complete, or what it holds cannot be read.
    """
    own = RunDirectory(path).summary
    files = [own] if own.is_file() else sorted(path.glob("seed-*/summary.json"))
    if not files:
        raise RecipeError([f"{path}: should hold a complete run (summary.json). Found none."])
    try:
        summaries = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        runs = Runs(path, tuple(summaries))
        runs.top1()
        if len({summary["split"] for summary in summaries}) > 1:
            raise ValueError("the seeds were evaluated on different splits")
        return runs
    except RecipeError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"{path}: summary.json cannot be read: {error!r}."]) from error


def compare(paths: Sequence[Path], node: str | None = None) -> Table:
    """Return a table of run directories, each compared with the first.

    Args:
        paths: The directories.
        node: Node to compare; None: each run's target.

    Raises:
        RecipeError: All that is wrong with the directories.
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
            node or str(runs.summaries[0]["target"]),
            ", ".join(sorted({str(summary["epochs"]) for summary in runs.summaries})),
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
        RecipeError: All that is wrong with the directories.
    """
    console().print(compare(paths, node))
    print("Intervals: Welch's, of the difference of means to the first run.")
