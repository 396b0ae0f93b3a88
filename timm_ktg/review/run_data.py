"""Runs as the report shows them: what each epoch measured, and the results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, located, one_line
from ..recipe.recipe import read_recipe
from ..recipe.schedule import epochs_of
from ..recipe.train_config import TrainConfig
from ..records.metrics import EPOCH, Metrics, top1_by_node
from ..records.reader import read_epochs, read_result, runs_in
from ..records.result import RunResult
from ..records.run_directory import RunDirectory
from ..records.sample import Sample

# By epoch, a figure of every seed that has come so far.
Curve = Mapping[int, Sample]


@dataclass(frozen=True)
class Validated:
    """What `timm_ktg.validate -o RUN/validation` found.

    Args:
        run: Name of the run's directory.
        images: What the images are: data set, split, number.
        agreement: The share of the images in percent on which two nodes predict the same class, by
            node, and by the node that it is compared with.
    """

    run: str
    images: tuple[Any, ...]
    agreement: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RunData:
    """A run, or the runs of several seeds.

    Args:
        path: The directory.
        graph: The section `graph` of the recipe.
        epochs: Epochs of a whole run.
        metrics: For each seed, what each epoch measured.
        results: The results of the seeds that are complete.
        validated: What `timm_ktg.validate` found, of each seed that it has measured.
    """

    path: Path
    graph: Mapping[str, Any]
    epochs: int
    metrics: tuple[tuple[Metrics, ...], ...]
    results: tuple[RunResult, ...]
    validated: tuple[Validated, ...] = ()

    @property
    def target(self) -> str:
        """Name of the target."""
        return str(self.graph["target"])

    @property
    def state(self) -> str:
        """How far the run is."""
        seeds = len(self.metrics)
        if len(self.results) == seeds:
            return "complete"
        done = min(len(epochs) for epochs in self.metrics)
        return f"{len(self.results)} of {seeds} complete, epoch {done} of {self.epochs}"

    def curves(self, measured: Callable[[Metrics], Metrics]) -> dict[str, Curve]:
        """Return one kind of measure as curves, by node or edge.

        Args:
            measured: Picks the measure out of an epoch's metrics, by node or edge.
        """
        found: dict[str, dict[int, list[float]]] = {}
        for epochs in self.metrics:
            for epoch in epochs:
                for name, value in measured(epoch).items():
                    values = found.setdefault(name, {})
                    values.setdefault(int(epoch[EPOCH]), []).append(value)
        return {
            name: {epoch: Sample(tuple(each)) for epoch, each in sorted(values.items())}
            for name, values in found.items()
        }

    def top1_curves(self, split: str) -> dict[str, Curve]:
        """Return the top-1 of the nodes on the images of a split."""
        return self.curves(lambda epoch: top1_by_node(epoch, split))

    def accuracy(self, node: str, top: str = "top1") -> Sample | None:
        """Return a node's top-1 or top-5 in percent over the seeds that are complete, if any is."""
        found = [getattr(run.nodes[node], top) for run in self.results if node in run.nodes]
        return Sample(tuple(found)) if found else None

    @property
    def agreement(self) -> dict[str, dict[str, Sample]]:
        """Which share of the images two nodes agree on, over the seeds measured on the same images.

        The images are those of the first seed that is measured, the nodes those of all such seeds.
        """
        found = [each.agreement for each in self._alike]
        first = found[0] if found else {}
        names = [name for name in first if all(name in each for each in found)]
        return {
            one: {two: Sample(tuple(each[one][two] for each in found)) for two in names}
            for one in names
        }

    @property
    def left_out(self) -> str:
        """What was measured and is no part of the agreement, as a sentence; "": nothing."""
        alike, agreement = self._alike, self.agreement
        nodes = dict.fromkeys(name for each in alike for name in each.agreement)
        lacking = [name for name in nodes if name not in agreement]
        others = [each.run for each in self.validated if each not in alike]
        said = [f"{', '.join(lacking)} (not measured for every seed)"] if lacking else []
        said += [f"{', '.join(others)} (measured on other images)"] if others else []
        return f"Left out: {'; '.join(said)}." if said else ""

    @property
    def _alike(self) -> list[Validated]:
        """What was found on the images of the first seed that is measured."""
        return [each for each in self.validated if each.images == self.validated[0].images]

    @property
    def splits(self) -> str:
        """Which images the result is on."""
        return ", ".join(sorted({result.split for result in self.results})) or "-"

    @property
    def seconds(self) -> float | None:
        """Seconds of training, the mean over the seeds that are complete."""
        times = [result.training_seconds for result in self.results]
        return statistics.fmean(times) if times else None


def read_run(path: Path) -> RunData:
    """Return the run, or the runs of several seeds, in a directory.

    Raises:
        RecipeError: There is none, or its files cannot be read.
    """
    runs = [run for run in runs_in(path) if run.metrics.is_file()]
    name = RunDirectory(path).metrics.name
    if not runs:
        raise RecipeError([f"{path}: should hold a run's {name}. Found none."])
    metrics = tuple(tuple(read_epochs(run)) for run in runs)
    if not all(metrics):
        raise RecipeError([f"{path}: {name} has no epoch yet."])
    results = [read_result(run) for run in runs]
    complete = tuple(result for result in results if result is not None)
    validated = tuple(found for run in runs for found in _validated(run))
    recipe = read_recipe(runs[0].recipe)
    try:
        epochs = epochs_of(TrainConfig.model_validate(recipe["train"]))
        data = RunData(path, recipe["graph"], epochs, metrics, complete, validated)
        data.graph["nodes"][data.target]  # the page will need it, and some accuracy
        if not data.top1_curves("train"):
            raise KeyError(data.target)
    except RecipeError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"{path}: the run cannot be read. {one_line(error)}"]) from error
    return data


def _validated(run: RunDirectory) -> list[Validated]:
    """Return what `timm_ktg.validate -o RUN/validation` found, if it was asked."""
    file = run.validation / "validation.json"
    if not file.is_file():
        return []
    with located(f"{file} cannot be read"):
        found = json.loads(file.read_text(encoding="utf-8"))
        images = tuple(found.get(each) for each in ("dataset", "split", "images"))
        return [Validated(run.path.name, images, found["agreement"])]
