"""Trackers of a training: Weights & Biases and those that accelerate supports."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    get_available_trackers,
)
from PIL import Image

from ..draw.curves import draw_curves
from ..draw.picture import draw_graph
from ..draw.reading import load_graph, results_of
from ..draw.scene import Results
from ..errors import RecipeError, located, one_line
from ..recipe.recipe import Recipe
from ..recipe.tracking_config import TrackingConfig
from ..records.files import write_whole
from ..records.metrics import EPOCH, Metrics, top_name
from ..records.result import RunResult
from ..records.run_directory import RunDirectory
from .wandb_run import RunInfo, WandbRun, flat, wandb_problems

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Shows a run in an external service or file."""

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""

    def finish(self, result: RunResult | None, exit_code: int) -> None:
        """Show the result, if there is one, and end."""


class Trackers:
    """The trackers of a run; a context manager that always ends them.

    Args:
        trackers: The trackers to call.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._result: RunResult | None = None

    def add(self, tracker: Tracker) -> None:
        """Add a tracker, which ends with the others."""
        self._trackers.append(tracker)

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._each(lambda tracker: tracker.log(metrics))

    def complete(self, result: RunResult) -> None:
        """Keep the result, to show it at the end."""
        self._result = result

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all trackers."""
        self._each(lambda tracker: tracker.finish(self._result, 0 if error is None else 1))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Call each tracker; if one fails, warn and do not call it again."""
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # a tracker's service can fail in any way
                self._trackers.remove(tracker)
                _logger.warning("%s failed and is no longer used: %s", tracker, one_line(error))


def check_tracking(tracking: TrackingConfig, seeds: Sequence[int] = ()) -> None:
    """Check that the trackers of a recipe are ready.

    Args:
        tracking: The section of the recipe.
        seeds: The seeds to train with, if any were given.

    Raises:
        RecipeError: A tracker is not ready; lists all problems.
    """
    problems = wandb_problems(tracking)
    if seeds and tracking.wandb and "WANDB_SWEEP_ID" in os.environ:
        problems.append("seeds: a Weights & Biases agent has a single run; give no seeds.")
    there = [str(name) for name in get_available_trackers()]
    for name in tracking.with_:
        if name not in there:
            problems.append(f"tracking.with: {name} should be installed. It is not.")
    if problems:
        raise RecipeError(problems)


def open_trackers(recipe: Recipe, directory: RunDirectory, is_main: bool) -> Trackers:
    """Return the trackers of a recipe; only the main process has any.

    Args:
        recipe: The resolved recipe.
        directory: The directory of the run, where trackers can write.
        is_main: Whether this is the main process.

    Raises:
        RecipeError: A tracker cannot be opened.
    """
    trackers = Trackers()
    if not is_main:
        return trackers
    config = flat(recipe.model_dump(mode="json"))
    try:
        for name in recipe.tracking.with_:
            with located(f"tracking.with: {name}"):
                trackers.add(AccelerateTracker(name, recipe.tracking.project, config, directory))
    except RecipeError as error:
        trackers.__exit__(RecipeError, error, None)
        raise
    if recipe.tracking.wandb:
        trackers.add(WandbTracker(recipe, directory))
    return trackers


class AccelerateTracker:
    """One of accelerate's trackers.

    It does not use `Accelerator.init_trackers`, which would restart the trackers of an earlier run
    in the same process.

    Args:
        name: Name of the tracker, such as `tensorboard`.
        project: Name of the project, for trackers that have projects.
        config: The settings, with flat keys.
        directory: The directory of the run; trackers write their files to `trackers` in it.
    """

    def __init__(
        self, name: str, project: str, config: Mapping[str, Any], directory: RunDirectory
    ) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        self._tracker: GeneralTracker
        if kind.requires_logging_directory:
            self._tracker = kind(run_name(directory), str(directory.trackers / name))
        else:
            self._tracker = kind(project)
        self._directory = directory
        self._tracker.start()
        self._tracker.store_init_configuration({key: _plain(config[key]) for key in config})

    def __str__(self) -> str:
        """Return the tracker's name."""
        return str(self._tracker.name)

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics, under names that all trackers accept; mlflow refuses `>`."""
        named = {name.replace("->", "-to-"): value for name, value in metrics.items()}
        self._tracker.log(named, step=int(metrics[EPOCH]))

    def finish(self, result: RunResult | None, exit_code: int) -> None:
        """Show the target's accuracy, and end."""
        if result is not None:
            accuracy = result.target_accuracy
            figures = {
                top_name(1, result.split, "target"): accuracy.top1,
                top_name(5, result.split, "target"): accuracy.top5,
            }
            self._tracker.log(figures, step=result.epochs)
            self._show_pictures(result.epochs)
        self._tracker.finish()

    def _show_pictures(self, step: int) -> None:
        """Show the graph with its results, and the curves.

        Only in TensorBoard, because each tracker of accelerate takes images in a form of its own.
        """
        if not isinstance(self._tracker, TensorBoardTracker):
            return
        path, show = self._directory.path, cast(Any, self._tracker).log_images
        graph = load_graph(self._directory.recipe)
        with TemporaryDirectory() as folder:
            files = {name: Path(folder, f"{name}.png") for name in ("graph", "curves")}
            draw_graph(graph, files["graph"], results_of(path))
            draw_curves(path, files["curves"])
            for name, file in files.items():
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))[None]
                show({name: pixels}, step=step, dataformats="NHWC")


class WandbTracker:
    """A training in Weights & Biases.

    Args:
        recipe: The resolved recipe.
        directory: The directory of the run; it holds the id, so that a resumed run continues.
    """

    def __init__(self, recipe: Recipe, directory: RunDirectory) -> None:
        self._recipe, self._directory = recipe, directory
        name = run_name(directory)
        info = RunInfo(
            id=_wandb_id(directory),
            name=name,
            job_type="train",
            group=name.rpartition("/")[0] or None,
            config=flat(recipe.model_dump(mode="json", exclude={"tracking"})),
        )
        self._run = WandbRun(recipe.tracking, info, directory.path)
        self._draw(None)

    def __str__(self) -> str:
        """Return the tracker's name."""
        return "Weights & Biases"

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._run.log(metrics)

    def finish(self, result: RunResult | None, exit_code: int) -> None:
        """Show the result, the picture of the graph with it, and the target's weights."""
        summary: dict[str, Any] = {}
        if result is not None:
            values = result.as_json()
            del values["data"]["class_names"]  # they can be thousands
            summary = flat(values, "/")
            self._draw(results_of(self._directory.path))
            networks = self._recipe.graph.topology.made_from(result.target)
            files = [self._directory.nodes / f"{name}.safetensors" for name in networks]
            weights = [file for file in files if file.exists()]  # an ensemble has none of its own
            name = run_name(self._directory).replace("/", "-")
            self._run.artifact(f"{name}-{result.target}", "model", weights)
        self._run.finish(summary, exit_code)

    def _draw(self, results: Results | None) -> None:
        graph = self._recipe.graph
        self._run.picture("graph", lambda path: draw_graph(graph, path, results))


def run_name(directory: RunDirectory) -> str:
    """Return the name of a run: its directory, with the parent in front if it has several seeds."""
    path = directory.path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("seed-") else path.name


def _wandb_id(directory: RunDirectory) -> str:
    """Return the id of a run: its existing id, or the id from its agent, or a new one."""
    if directory.wandb_id.is_file():
        return str(json.loads(directory.wandb_id.read_text(encoding="utf-8"))["id"])
    made = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    write_whole(directory.wandb_id, json.dumps({"id": made}) + "\n")
    return made


def _plain(value: Any) -> Any:
    """Return a value in a form that all trackers accept."""
    return value if isinstance(value, int | float | str) else json.dumps(value)
