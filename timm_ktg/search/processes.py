"""The processes of one worker: the first decides what is trained, the others train along."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from optuna import TrialPruned

from ..errors import RecipeError
from ..graph.weights import export_node
from ..recipe.recipe import Recipe
from ..records.files import writing
from ..records.metrics import Metrics, top1_name
from ..records.run_directory import RunDirectory
from ..train.loop import evaluate, start_epoch, train_epoch
from ..train.metrics import TrainingError
from ..train.program import create_accelerator
from ..train.seeds import run_seed
from ..train.training import Data, Training, build_training
from .trials import INFERENCE, PARAMETERS, TRAINING, Attributes

# Takes an epoch, from 1, the validation top-1 of the graph's target, and whether it is the last
# epoch; says whether to stop.
Report = Callable[[int, float, bool], bool]
# Takes an epoch's metrics.
Log = Callable[[Metrics], None]


class WorkerProcesses:
    """The processes of one worker.

    Under several processes the first holds the study: it calls `trial`, `final` and `check`, and
    `dismiss` at the end, while the others `follow`. A loss that is not finite is seen by all at
    once and fails only the trial. Any other failure ends its process, and the launcher then ends
    the others.
    """

    def __init__(self) -> None:
        self._data: dict[str, Data] = {}  # the last trial's, by what decides its images
        self.spent: Attributes = {"epochs": 0}  # what the last trial cost

    def trial(
        self,
        recipe: Recipe,
        rungs: Collection[int] = (),
        export: Path | None = None,
        report: Report | None = None,
        log: Log | None = None,
    ) -> float:
        """Train on the training images; return the target's validation top-1, last epoch, in %.

        Args:
            recipe: What to train.
            rungs: Epochs, from 1, after which to report.
            export: File for the target's weights; None: they are not kept.
            report: Asked at each rung whether to stop.
            log: Given every epoch's metrics; None: nobody is.

        Raises:
            TrialPruned: `report` said so.
            TrainingError: A loss is not finite.
        """
        _lead(WorkerProcesses.trial, recipe, rungs, export)
        accelerator, value = create_accelerator(recipe), 0.0
        try:
            training = self._build(recipe, accelerator)
            graph, epochs = training.graph, training.epochs
            assert training.images.val is not None  # a search's recipe has validation images
            for epoch in range(1, epochs + 1):
                metrics = train_epoch(training, start_epoch(training))
                self.spent = _spent(training)
                last = epoch == epochs
                if epoch in rungs or last:
                    metrics |= evaluate(training, training.images.val, "val")
                    value = metrics[top1_name("val", graph.target)]
                if log is not None:
                    log(metrics)
                if epoch in rungs and _stops(report, epoch, value, last):
                    raise TrialPruned(f"after {epoch} epochs")
            if export is not None and accelerator.is_main_process:
                network = graph.network(graph.target)
                classes = training.splits.class_names
                with writing(export):
                    export_node(network.model, export, network.mean, network.std, classes)
            return value
        finally:
            accelerator.free_memory()  # this collects garbage and empties the device's cache

    def final(self, recipe: Recipe, seed: int, path: Path) -> float:
        """Train to the end and test; return the target's top-1 in percent.

        Args:
            recipe: What to train.
            seed: Its seed.
            path: Directory of the run; a run that was begun there goes on.

        Raises:
            TrainingError: A loss is not finite.
        """
        _lead(WorkerProcesses.final, recipe, seed, path)
        return run_seed(recipe, seed, RunDirectory(path)).target_accuracy.top1

    def check(self, recipe: Recipe) -> None:
        """Build the models of a recipe, and read its images.

        Raises:
            RecipeError: All that is wrong.
        """
        _lead(WorkerProcesses.check, recipe)
        accelerator = create_accelerator(recipe)
        self._build(recipe, accelerator)
        accelerator.free_memory()
        # What the first build imported and cached need not be looked at after every trial.
        gc.freeze()

    def dismiss(self) -> None:
        """Let the other processes go."""
        _broadcast(None)

    def follow(self) -> None:
        """Train along until dismissed."""
        while (call := _broadcast(None)) is not None:
            method, *arguments = call
            with suppress(TrialPruned, TrainingError, RecipeError):  # as on all processes
                method(self, *arguments)

    def _build(self, recipe: Recipe, accelerator: Accelerator) -> Training:
        """Build a training; the images are read once for all trials that see the same ones."""
        read = _images_of(recipe)
        known = self._data.get(read)
        if known is not None:
            known = replace(known, images=known.images.with_seed(recipe.train.seed))
        training = build_training(recipe, accelerator, known)
        self._data = {read: training.data}
        return training


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that fail a training but not its worker.

    With several processes, running out of memory is not one of them, because it may happen to one
    process alone.
    """
    alone = PartialState().num_processes == 1
    return (TrainingError, *((torch.OutOfMemoryError, MemoryError) if alone else ()))


def _spent(training: Training) -> Attributes:
    """Return what a training has cost so far, as attributes of its trial."""
    cost, epochs = training.cost, training.state.epochs
    flops = cost.training_flops * len(training.splits.train) * epochs
    found = {INFERENCE: cost.inference_flops, PARAMETERS: cost.parameters, TRAINING: flops}
    return {"epochs": epochs, "cost": found}


def _stops(report: Report | None, epoch: int, value: float, last: bool) -> bool:
    """Return what the first process decides, which alone has a `report`, on all of them."""
    decided: bool | None = None
    try:
        if report is not None:
            decided = report(epoch, value, last)
    except Exception:  # anything that the study's storage may raise
        _broadcast(None)
        raise
    decided = _broadcast(decided)
    if decided is None:
        raise RuntimeError("The process that holds the study failed.")
    return decided


def _lead(method: Callable[..., Any], *arguments: Any) -> None:
    """Let the processes that follow call a method too, if this is the first process."""
    if PartialState().is_main_process:
        _broadcast((method, *arguments))


def _broadcast(value: Any) -> Any:
    """Return the first process's value on all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def _images_of(recipe: Recipe) -> str:
    """Return all that decides which images a training sees, but for the seed of their order."""
    train, target = recipe.train, ""
    if recipe.data.pipeline == "timm":  # it asks the target how large its images are
        target = recipe.graph.nodes[recipe.graph.target].title
    sizes = (train.batch_size, train.evaluation_batch_size)
    numbers = (*sizes, train.grad_accum_steps, train.smoothing)
    return f"{recipe.data.model_dump_json()} {numbers} {target}"
