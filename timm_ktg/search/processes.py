"""The processes of one worker: the first decides what is trained, the others train along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from optuna import TrialPruned

from ..errors import RecipeError
from ..graph.weights import export_node
from ..recipe.recipe import Recipe
from ..records.metrics import Metrics, top1_name
from ..records.result import RunResult
from ..records.run_directory import RunDirectory
from ..train.loop import evaluate, start_epoch, train_epoch
from ..train.metrics import TrainingError
from ..train.program import create_accelerator
from ..train.seeds import run_seed
from ..train.training import Data, Training, build_training
from .pruning import rungs

# Takes an epoch, from 1, the target's validation top-1, and whether it is the last epoch; says
# whether to stop.
Report = Callable[[int, float, bool], bool]
# Takes an epoch's metrics.
Log = Callable[[Metrics], None]


@dataclass(frozen=True)
class TrialTask:
    """A training that reports at its rungs and may be stopped there.

    Args:
        recipe: What to train.
        halving: Epoch of the first rung, and the factor from each rung to the next; None: there
            are no rungs.
        export: File for the target's weights; None: they are not kept.
    """

    recipe: Recipe
    halving: tuple[int, int] | None = None
    export: Path | None = None


@dataclass(frozen=True)
class FinalTask:
    """A training from the first image to the test, in a run directory.

    Args:
        recipe: What to train.
        seed: Its seed.
        directory: The run's; a run that was begun there goes on.
    """

    recipe: Recipe
    seed: int
    directory: Path


class WorkerProcesses:
    """The processes of one worker.

    Under several processes the first holds the study: it calls `trial`, `final` and `check`, and
    `dismiss` at the end, while the others `follow`. A loss that is not finite is seen by all at
    once and fails only the trial. Any other failure ends its process, and the launcher then ends
    the others.
    """

    def __init__(self) -> None:
        self._data: tuple[str, Data] | None = None
        self.epochs = 0  # how many of the last trial were trained

    def trial(self, task: TrialTask, report: Report | None = None, log: Log | None = None) -> float:
        """Train on the training images; return the target's validation top-1, last epoch, in %.

        Args:
            task: What to train.
            report: Asked at each rung whether to stop; None: nobody is asked.
            log: Given every epoch's metrics; None: nobody is.

        Raises:
            TrialPruned: `report` said so.
            TrainingError: A loss is not finite.
        """
        _broadcast(task)
        return self._trial(task, report, log)

    def final(self, task: FinalTask) -> RunResult:
        """Train to the end; return the result.

        Raises:
            TrainingError: A loss is not finite.
        """
        _broadcast(task)
        return run_seed(task.recipe, task.seed, RunDirectory(task.directory))

    def check(self, recipe: Recipe) -> None:
        """Build the models of a recipe, and read its images.

        Raises:
            RecipeError: All that is wrong.
        """
        _broadcast(recipe)
        self._check(recipe)

    def dismiss(self) -> None:
        """Let the other processes go."""
        _broadcast(None)

    def follow(self) -> None:
        """Train along until dismissed."""
        while (task := _broadcast(None)) is not None:
            with suppress(TrialPruned, TrainingError, RecipeError):  # as on all processes
                if isinstance(task, FinalTask):
                    run_seed(task.recipe, task.seed, RunDirectory(task.directory))
                elif isinstance(task, TrialTask):
                    self._trial(task, None, None)
                else:
                    self._check(task)

    def _check(self, recipe: Recipe) -> None:
        accelerator = create_accelerator(recipe)
        self._build(recipe, accelerator)
        accelerator.free_memory()

    def _trial(self, task: TrialTask, report: Report | None, log: Log | None) -> float:
        accelerator = create_accelerator(task.recipe)
        try:
            self.epochs = 0
            return self._train(task, self._build(task.recipe, accelerator), report, log)
        finally:
            accelerator.free_memory()  # this collects garbage and empties the device's cache

    def _train(
        self, task: TrialTask, training: Training, report: Report | None, log: Log | None
    ) -> float:
        graph, value = training.graph, 0.0
        assert training.images.val is not None  # a search's recipe has validation images
        at = rungs(training.epochs, *task.halving) if task.halving else ()
        for epoch in range(1, training.epochs + 1):
            metrics = train_epoch(training, start_epoch(training))
            self.epochs = epoch
            last = epoch == training.epochs
            if epoch in at or last:
                metrics |= evaluate(training, training.images.val, "val")
                value = metrics[top1_name("val", graph.target)]
            if log is not None:
                log(metrics)
            if epoch in at and _stops(report, epoch, value, last):
                raise TrialPruned(f"after {epoch} epochs")
        if task.export is not None and training.accelerator.is_main_process:
            network = graph.network(graph.target)
            export_node(network.model, task.export, network.mean, network.std)
        return value

    def _build(self, recipe: Recipe, accelerator: Accelerator) -> Training:
        """Build a training; the images are read once for all trials that see the same ones."""
        images, known = _images_of(recipe), None
        if self._data is not None and self._data[0] == images:
            known = self._data[1]
        training = build_training(recipe, accelerator, known)
        self._data = (images, training.data)
        return training


def _stops(report: Report | None, epoch: int, value: float, last: bool) -> bool:
    """Return what the first process decides, on all of them."""
    decided: bool | None = False
    error: Exception | None = None
    if report is not None:
        try:
            decided = report(epoch, value, last)
        except Exception as raised:  # anything that the study's storage may raise
            error, decided = raised, None
    decided = _broadcast(decided)
    if error is not None:
        raise error
    if decided is None:
        raise RuntimeError("The process that holds the study failed.")
    return bool(decided)


def _broadcast(value: Any) -> Any:
    """Return the first process's value on all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def _images_of(recipe: Recipe) -> str:
    """Return all that decides which images a training sees, and in which order."""
    train, target = recipe.train, ""
    if recipe.data.pipeline == "timm":  # it asks the target how large its images are
        target = recipe.graph.nodes[recipe.graph.target].model
    numbers = (train.batch_size, train.grad_accum_steps, train.seed, train.smoothing)
    return f"{recipe.data.model_dump_json()} {numbers} {target}"
