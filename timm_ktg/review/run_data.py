"""Runs as the report shows them: the lines of their epochs, and their results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, one_line
from ..recipe.build import epochs_of
from ..recipe.recipe import read_recipe
from ..recipe.train_config import TrainConfig
from ..records.run_directory import RunDirectory
from ..records.sample import Sample

# By name of a measure and then by epoch: a figure of every seed that has come so far.
Curve = Mapping[int, Sample]


@dataclass(frozen=True)
class RunData:
    """A run, or the runs of several seeds.

    Args:
        path: The directory.
        graph: The section `graph` of the recipe.
        epochs: Epochs of a whole run.
        metrics: A line an epoch, of each seed.
        summaries: The results of the seeds that are complete.
    """

    path: Path
    graph: Mapping[str, Any]
    epochs: int
    metrics: tuple[tuple[Mapping[str, float], ...], ...]
    summaries: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """What the run is called on the page."""
        return str(self.path)

    @property
    def target(self) -> str:
        """Name of the target."""
        return str(self.graph["target"])

    @property
    def state(self) -> str:
        """How far it came."""
        seeds = len(self.metrics)
        if len(self.summaries) == seeds:
            return "complete"
        done = min(len(lines) for lines in self.metrics)
        return f"{len(self.summaries)} of {seeds} complete, epoch {done} of {self.epochs}"

    def curves(self, prefix: str) -> dict[str, Curve]:
        """Return the measures whose name begins with `prefix`, by the rest of the name."""
        names = dict.fromkeys(name for lines in self.metrics for line in lines for name in line)
        found: dict[str, Curve] = {}
        for name in names:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = _curve(self.metrics, name)
        return found

    def result(self, node: str, top: str) -> Sample | None:
        """Return a node's result in percent over the seeds that are complete."""
        values = [summary["nodes"].get(node, {}).get(top) for summary in self.summaries]
        known = tuple(float(value) for value in values if value is not None)
        return Sample(known) if known else None

    @property
    def splits(self) -> str:
        """Which images the result is on."""
        return ", ".join(sorted({str(summary["split"]) for summary in self.summaries})) or "-"

    @property
    def seconds(self) -> float | None:
        """Seconds of training, the mean over the seeds that are complete."""
        times = [float(summary["training_seconds"]) for summary in self.summaries]
        return statistics.fmean(times) if times else None


def read_run(path: Path) -> RunData:
    """Return the run, or the seeds' runs, in a directory.

    Raises:
        RecipeError: It holds none, or what it holds cannot be read.
    """
    own = RunDirectory(path)
    seeds = [RunDirectory(each) for each in sorted(path.glob("seed-*"))]
    runs = [run for run in (seeds or [own]) if run.metrics.is_file()]
    if not runs:
        raise RecipeError([f"{path}: should hold a run's {own.metrics.name}. Found none."])
    try:
        metrics = tuple(tuple(run.read_metrics()) for run in runs)
        if not all(metrics):
            raise RecipeError([f"{path}: {own.metrics.name} has no epoch yet."])
        recipe = read_recipe(runs[0].recipe)
        summaries = [
            json.loads(run.summary.read_text(encoding="utf-8"))
            for run in runs
            if run.summary.is_file()
        ]
        data = RunData(
            path,
            recipe["graph"],
            epochs_of(TrainConfig.model_validate(recipe["train"])),
            metrics,
            tuple(summaries),
        )
        data.curves("train/top1/")[data.target], data.splits, data.seconds  # as the page will
    except RecipeError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"{path}: the run cannot be read. {one_line(error)}"]) from error
    return data


def _curve(metrics: tuple[tuple[Mapping[str, float], ...], ...], name: str) -> Curve:
    values: dict[int, list[float]] = {}
    for lines in metrics:
        for line in lines:
            if name in line:
                values.setdefault(int(line["epoch"]), []).append(line[name])
    return {epoch: Sample(tuple(each)) for epoch, each in sorted(values.items())}
