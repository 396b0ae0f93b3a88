"""A whole run: epochs, checkpoints, evaluation, exported nodes."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

from tqdm import tqdm

from ..errors import RecipeError, collected
from ..recipe.recipe import Recipe
from ..records.files import writing
from ..records.metrics import (
    ALL_NETWORKS,
    SECONDS,
    Metrics,
    evaluated_loss_name,
    top_name,
)
from ..records.reader import read_result
from ..records.result import Accuracy, DataFacts, RunResult
from ..records.run_directory import RunDirectory
from ..terminal import run_bar
from ..tracking.trackers import Trackers, open_trackers
from .best import note_best, write_best
from .card import write_card
from .checkpoint import load_best, load_state, newest_state, save_state
from .cuda_graph import Batch
from .exporting import export_nodes, is_exported
from .hardware import name_of
from .identity import Identity, identity_of
from .loop import evaluate, start_epoch, train_epoch
from .metrics import TrainingError
from .pictures import RunPictures
from .show import epoch_line
from .training import Training, problems_everywhere, together

PACKAGES = ("timm_ktg", "torch", "timm", "accelerate", "datasets")


def run_training(
    training: Training, directory: RunDirectory, resume: bool, start: float
) -> RunResult:
    """Train to the end, evaluate the last epoch once, and write all results.

    Args:
        training: The training from `build_training`.
        directory: The directory of the run, which already holds its recipe.
        resume: Whether to resume from the newest good state, if there is one.
        start: time.perf_counter() at the start of the run.

    Returns:
        The result.

    Raises:
        RecipeError: There are states, but none is usable, or a tracker cannot be opened.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
        StorageError: A file cannot be written.
    """
    accelerator = training.accelerator
    identity = identity_of(training.recipe, training.splits, directory)
    result: RunResult | None = None
    if resume:
        _load_newest_state(training, directory, identity)
        # A run that was killed after it wrote its result lacks only pictures and trackers, unless
        # somebody has removed its weights.
        if training.state.epochs == training.epochs and is_exported(training, directory):
            result = read_result(directory)
        accelerator.wait_for_everyone()  # all have looked before one writes it
    pictures = RunPictures(training.recipe.graph, directory, accelerator.is_main_process)
    pictures.begin()
    with _trackers(training, directory) as trackers:
        with _bar(training) as bar:
            for epoch in range(training.state.epochs, training.epochs):
                _run_epoch(training, directory, epoch + 1, trackers, bar)
                save_state(training, directory.checkpoint, identity)
                pictures.go_on()
        if result is None:
            result = _finish(training, directory, start)
        pictures.end()
        with together():
            if accelerator.is_main_process:
                _write_cards(training.recipe, directory, result)
        trackers.complete(result)
    return result


def _write_cards(recipe: Recipe, directory: RunDirectory, result: RunResult) -> None:
    write_card(recipe, directory, result)
    of_best = read_result(directory.best) if result.best else None
    if of_best is not None:
        write_card(recipe, directory.best, of_best)


def _trackers(training: Training, directory: RunDirectory) -> Trackers:
    """Open the trackers; if one cannot be opened, all processes raise."""
    problems: list[str] = []
    trackers = Trackers()
    with collected(problems):
        is_main = training.accelerator.is_main_process
        trackers = open_trackers(training.recipe, directory, is_main)
    problems = problems_everywhere(problems)
    if problems:
        raise RecipeError(problems)
    return trackers


def _bar(training: Training) -> tqdm:
    updates, is_main = len(training.images.train), training.accelerator.is_main_process
    return run_bar(training.state.epochs * updates, training.epochs * updates, is_main)


def _under_bar(training: Training, bar: tqdm) -> Iterator[Batch]:
    """Yield the batches of the next epoch, and show on the bar what became of each."""
    interval = training.recipe.train.log_interval
    bar.set_description(f"epoch {training.state.epochs + 1}/{training.epochs}", refresh=False)
    for number, batch in enumerate(start_epoch(training), start=1):
        yield batch
        if not bar.disable and number % interval == 0:
            loss = training.meter.running_loss()
            bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        bar.update()


def _run_epoch(
    training: Training, directory: RunDirectory, epoch: int, trackers: Trackers, bar: tqdm
) -> None:
    """Train for an epoch, counted from 1, and show its metrics."""
    accelerator = training.accelerator
    metrics = train_epoch(training, _under_bar(training, bar))
    interval, last = training.recipe.train.eval_interval, epoch == training.epochs
    is_due = last or epoch % interval == 0
    if training.images.val is not None and is_due:
        metrics |= evaluate(training, training.images.val, "val")
        note_best(training, metrics)
        training.scheduler.step(epoch, metrics[top_name(1, "val", training.graph.target)])
    with together():
        if accelerator.is_main_process:
            directory.log(metrics)
    if accelerator.is_main_process:
        if is_due or metrics[SECONDS] >= 1:  # the bar is enough for the others
            tqdm.write(epoch_line(metrics, training.epochs, training.graph))
        trackers.log(metrics)


def _load_newest_state(training: Training, directory: RunDirectory, identity: Identity) -> None:
    """Load the newest good state of a run, and drop the metrics of later epochs."""
    accelerator = training.accelerator
    state, refused = newest_state(directory.checkpoint, identity)
    for line in refused:
        accelerator.print(f"Refused {line}")
    if state is not None:
        load_state(training, state)
    with together():
        if accelerator.is_main_process:
            _forget_later_epochs(training, directory)
    accelerator.print(
        f"Resuming from {state or 'the start'}, epochs done: {training.state.epochs}."
    )


def _forget_later_epochs(training: Training, directory: RunDirectory) -> None:
    """Drop the metrics of epochs that are trained again, and say which of the others are lost."""
    lost = directory.forget_after(training.state.epochs)
    if lost:
        epochs = f"epoch{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
        training.accelerator.print(f"{directory.metrics}: the lines of {epochs} are lost.")


def _finish(training: Training, directory: RunDirectory, start: float) -> RunResult:
    """Export the nodes, evaluate the last epoch once on the test images, write the result.

    The same for the best epoch, if there is one.
    """
    images, accelerator = training.images, training.accelerator
    split, loader = "test", images.test() if images.test else None
    if loader is None:
        split, loader = ("val", images.val) if images.val else ("train", images.train_again())

    def exported(place: RunDirectory) -> RunResult:
        with together(), writing(place.nodes):
            if accelerator.is_main_process:
                export_nodes(training, place)
        metrics = evaluate(training, loader, split)
        _check_finite(training, metrics, split)
        return _result(training, metrics, split, time.perf_counter() - start)

    result, best = exported(directory), training.state.best
    problem = load_best(training, directory.checkpoint) if best else None
    problems = problems_everywhere([problem] if problem else [])
    if problems:
        accelerator.print(f"Refused {problems[0]} There is no {directory.best.path}.")
    elif best:
        result = replace(result, best=best)
        of_best = replace(exported(directory.best), best=best, epochs=best.epoch)
        with together():
            if accelerator.is_main_process:
                write_best(directory, of_best)
    with together():
        if accelerator.is_main_process:
            directory.write_result(result)
    return result


def _check_finite(training: Training, metrics: Metrics, split: str) -> None:
    """Raise TrainingError if the last update has spoiled the target; its epoch's loss is of before.

    Args:
        training: The run.
        metrics: What `evaluate` returned.
        split: The split that it was given.
    """
    target = training.graph.target
    loss = metrics[evaluated_loss_name(split, target)]
    if not math.isfinite(loss):
        raise TrainingError(
            f"The last update of epoch {training.state.epochs} has spoiled {target}: its loss on "
            f"the {split} images is {loss}. A smaller train.lr, or train.clip_grad, may help."
        )


def _result(training: Training, metrics: Metrics, split: str, seconds: float) -> RunResult:
    images, splits = training.images, training.splits
    scored = {"test": splits.test, "val": splits.val, "train": splits.train}[split]
    assert scored is not None
    data = training.recipe.data
    return RunResult(
        target=training.graph.target,
        split=split,
        nodes={
            name: Accuracy(metrics[top_name(1, split, name)], metrics[top_name(5, split, name)])
            for name in (*training.graph.members, ALL_NETWORKS)
            if top_name(1, split, name) in metrics
        },
        seed=training.recipe.train.seed,
        epochs=training.epochs,
        data=DataFacts(
            splits.fingerprint,
            tuple(images.mean),
            tuple(images.std),
            splits.class_names,
            images.preparation,
            data.split_seed if split == "val" and data.holdout else None,
        ),
        processes=training.accelerator.num_processes,
        device=str(training.accelerator.device),
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        training_seconds=training.state.seconds,
        wall_seconds=seconds,
        images=len(scored),
        cost=training.cost,
        device_name=name_of(training.accelerator.device),
    )
