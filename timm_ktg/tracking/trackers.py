"""Trackers of a training: Weights & Biases, and those that accelerate knows."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ..draw.picture import Results, draw_graph, results_of
from ..errors import RecipeError, located, one_line
from ..recipe.recipe import Recipe
from ..recipe.tracking_config import TrackingConfig
from ..records.files import write_whole
from ..records.metrics import Metrics
from ..records.run_directory import RunDirectory
from .wandb_run import Card, WandbRun, flat, wandb_problems

Summary = Mapping[str, Any]

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Shows a run somewhere."""

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""

    def finish(self, summary: Summary | None, exit_code: int) -> None:
        """Show the result, None where there is none, and end."""


class Trackers:
    """The trackers of a run, ended with it whatever happens to it; a context manager.

    Args:
        trackers: They.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._summary: Summary | None = None

    def add(self, tracker: Tracker) -> None:
        """Add one, which is ended with the others."""
        self._trackers.append(tracker)

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._each(lambda tracker: tracker.log(metrics))

    def complete(self, summary: Summary) -> None:
        """Take note of the result."""
        self._summary = summary

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
        self._each(lambda tracker: tracker.finish(self._summary, 0 if error is None else 1))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Call each tracker; one that fails is said and left out from then on, the run goes on."""
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # of whatever it speaks to
                self._trackers.remove(tracker)
                _logger.warning("%s failed, and shows nothing more: %s", tracker, one_line(error))


def check_tracking(tracking: TrackingConfig, seeds: Sequence[int] = ()) -> None:
    """Raise RecipeError if a tracker is asked for and is not ready.

    Args:
        tracking: What is asked for.
        seeds: With which the recipe is trained, if there are several.
    """
    problems = wandb_problems(tracking)
    if seeds and tracking.wandb and "WANDB_SWEEP_ID" in os.environ:
        problems.append("seeds: an agent of Weights & Biases has one run for them all; name none.")
    there = [str(name) for name in get_available_trackers()]
    for name in tracking.with_:
        if name not in there:
            problems.append(f"tracking.with: {name} should be installed. It is not.")
    if problems:
        raise RecipeError(problems)


def open_trackers(recipe: Recipe, directory: RunDirectory, is_main: bool) -> Trackers:
    """Return the trackers that a recipe asks for; the main process alone has any.

    Args:
        recipe: The resolved recipe.
        directory: The run's, where they may write.
        is_main: Whether this is the main process.

    Raises:
        RecipeError: One cannot be opened.
    """
    trackers = Trackers()
    if not is_main:
        return trackers
    try:
        for name in recipe.tracking.with_:
            with located(f"tracking.with: {name}"):
                trackers.add(AccelerateTracker(name, recipe, directory))
    except RecipeError as error:
        trackers.__exit__(RecipeError, error, None)
        raise
    if recipe.tracking.wandb:
        trackers.add(WandbTracker(recipe, directory))
    return trackers


class AccelerateTracker:
    """One of accelerate's trackers.

    Made without `Accelerator.init_trackers`, which would start those of an earlier run in the same
    process again.

    Args:
        name: Its name, such as `tensorboard`.
        recipe: The resolved recipe.
        directory: The run's; a tracker that writes files does so below `trackers`.
    """

    def __init__(self, name: str, recipe: Recipe, directory: RunDirectory) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        self._tracker: GeneralTracker
        if kind.requires_logging_directory:
            self._tracker = kind(run_name(directory), str(directory.trackers / name))
        else:
            self._tracker = kind(recipe.tracking.project)
        self._tracker.start()
        config = flat(recipe.model_dump(mode="json"))
        self._tracker.store_init_configuration({key: _plain(config[key]) for key in config})

    def __str__(self) -> str:
        """Return its name."""
        return str(self._tracker.name)

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics, in names that all trackers take: mlflow has no `>`."""
        named = {name.replace("->", "-to-"): value for name, value in metrics.items()}
        self._tracker.log(named, step=int(metrics["epoch"]))

    def finish(self, summary: Summary | None, exit_code: int) -> None:
        """Show the target's accuracy, and end."""
        if summary is not None:
            result = summary["nodes"][summary["target"]]
            figures = {f"{summary['split']}/{top}/target": result[top] for top in result}
            self._tracker.log(figures, step=int(summary["epochs"]))
        self._tracker.finish()


class WandbTracker:
    """A training in Weights & Biases.

    Args:
        recipe: The resolved recipe.
        directory: The run's; it holds the id, with which a resumed run goes on.
    """

    def __init__(self, recipe: Recipe, directory: RunDirectory) -> None:
        self._recipe, self._directory = recipe, directory
        name = run_name(directory)
        card = Card(
            id=_wandb_id(directory),
            name=name,
            job_type="train",
            group=name.rpartition("/")[0] or None,
            config=flat(recipe.model_dump(mode="json", exclude={"tracking"})),
        )
        self._run = WandbRun(recipe.tracking, card, directory.path)
        self._draw(None)

    def __str__(self) -> str:
        """Return its name."""
        return "Weights & Biases"

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._run.log(metrics)

    def finish(self, summary: Summary | None, exit_code: int) -> None:
        """Show the result, the graph with it, and the target's weights."""
        result: dict[str, Any] = {}
        if summary is not None:
            result = flat(summary, "/")
            self._draw(results_of(self._directory.path))
            target = self._directory.nodes / f"{summary['target']}.safetensors"
            name = run_name(self._directory).replace("/", "-")
            self._run.artifact(f"{name}-{summary['target']}", "model", [target])
        self._run.finish(result, exit_code)

    def _draw(self, results: Results | None) -> None:
        graph = self._recipe.graph
        self._run.picture("graph", lambda path: draw_graph(graph, path, results))


def run_name(directory: RunDirectory) -> str:
    """Return what a run is called: its directory, behind that of all seeds if it is one of them."""
    path = directory.path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("seed-") else path.name


def _wandb_id(directory: RunDirectory) -> str:
    """Return the id of a run: the one it has, or its agent's, or a new one."""
    if directory.wandb_id.is_file():
        return str(json.loads(directory.wandb_id.read_text(encoding="utf-8"))["id"])
    made = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    write_whole(directory.wandb_id, json.dumps({"id": made}) + "\n")
    return made


def _plain(value: Any) -> Any:
    """Return a value as trackers take it."""
    return value if isinstance(value, int | float | str) else json.dumps(value)
