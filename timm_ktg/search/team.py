"""The processes of one worker: the first decides what is trained, the others train along."""

from __future__ import annotations

from collections.abc import Callable
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
from ..train.training import Data, build_training
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
        halving: Epoch of the first rung, and how many times the epochs the next one has; None:
            there are no rungs.
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
        directory: Where the run goes; one that lies there is gone on with.
    """

    recipe: Recipe
    seed: int
    directory: Path


@dataclass(frozen=True)
class CheckTask:
    """Something to build and not to train.

    Args:
        recipe: What to build.
    """

    recipe: Recipe


class Team:
    """The processes of one worker.

    Under several processes the first has the study: it calls `trial` and `final`, and at last
    `dismiss`; the others `follow`. A loss that is not finite is seen by all at once, and fails the
    trial alone. What fails on one ends that process, and with it, by the launcher, the others.
    """

    def __init__(self) -> None:
        self._data: tuple[str, Data] | None = None
        self.epochs = 0  # of the last trial, those that were trained

    def trial(self, task: TrialTask, report: Report | None = None, log: Log | None = None) -> float:
        """Train on the training images; return the target's validation top-1, last epoch, in %.

        Args:
            task: What to train.
            report: Asked at each rung whether to stop; None: nobody is.
            log: Given every epoch's metrics; None: nobody is.

        Raises:
            TrialPruned: `report` said so.
            TrainingError: A loss is not finite.
        """
        self._tell(task)
        return self._trial(task, report, log)

    def final(self, task: FinalTask) -> RunResult:
        """Train to the end; return the result.

        Raises:
            TrainingError: A loss is not finite.
        """
        self._tell(task)
        return run_seed(task.recipe, task.seed, RunDirectory(task.directory))

    def check(self, task: CheckTask) -> None:
        """Build what trials are made of, and read the images.

        Raises:
            RecipeError: All that is wrong.
        """
        self._tell(task)
        self._check(task)

    def dismiss(self) -> None:
        """Let the others go."""
        self._tell(None)

    def follow(self) -> None:
        """Train along until dismissed."""
        while True:
            told: list[Any] = [None]
            broadcast_object_list(told)
            task = told[0]
            if task is None:
                return
            try:
                if isinstance(task, CheckTask):
                    self._check(task)
                elif isinstance(task, FinalTask):
                    run_seed(task.recipe, task.seed, RunDirectory(task.directory))
                else:
                    self._trial(task, None, None)
            except (TrialPruned, TrainingError, RecipeError):
                pass  # as on all processes

    def _tell(self, task: TrialTask | FinalTask | CheckTask | None) -> None:
        broadcast_object_list([task])

    def _check(self, task: CheckTask) -> None:
        accelerator = create_accelerator(task.recipe)
        training = build_training(task.recipe, accelerator, self._known(task.recipe))
        self._data = (_images_of(task.recipe), training.data)
        accelerator.free_memory()

    def _trial(self, task: TrialTask, report: Report | None, log: Log | None) -> float:
        accelerator = create_accelerator(task.recipe)
        try:
            return self._trained(task, report, log, accelerator)
        finally:
            accelerator.free_memory()  # which collects garbage and empties the device's cache

    def _trained(
        self, task: TrialTask, report: Report | None, log: Log | None, accelerator: Accelerator
    ) -> float:
        self.epochs = 0
        training = build_training(task.recipe, accelerator, self._known(task.recipe))
        self._data = (_images_of(task.recipe), training.data)
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
            if epoch in at and self._stops(report, epoch, value, last):
                raise TrialPruned(f"after {epoch} epochs")
        if task.export is not None and accelerator.is_main_process:
            network = graph.network(graph.target)
            export_node(network.model, task.export, network.mean, network.std)
        return value

    def _stops(self, report: Report | None, epoch: int, value: float, last: bool) -> bool:
        """Return what the first process decides, on all of them."""
        told: list[Any] = [False]
        error: Exception | None = None
        if report is not None:
            try:
                told = [report(epoch, value, last)]
            except Exception as raised:  # of whatever holds the study
                error, told = raised, [None]
        broadcast_object_list(told)
        if error is not None:
            raise error
        if told[0] is None:
            raise RuntimeError("The process that holds the study failed.")
        return bool(told[0])

    def _known(self, recipe: Recipe) -> Data | None:
        """Return the images if they have been read."""
        if self._data is not None and self._data[0] == _images_of(recipe):
            return self._data[1]
        return None


def _images_of(recipe: Recipe) -> str:
    """Return all that decides which images a training sees, and in which order."""
    train, target = recipe.train, ""
    if recipe.data.pipeline == "timm":  # which asks the target how large its images are
        target = recipe.graph.nodes[recipe.graph.target].model
    numbers = (train.batch_size, train.grad_accum_steps, train.seed, train.smoothing)
    return f"{recipe.data.model_dump_json()} {numbers} {target}"
