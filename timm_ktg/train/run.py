"""A run from its recipe to its result: epochs, checkpoints, evaluation, exported nodes."""

from __future__ import annotations

import hashlib
import platform
import time
from importlib.metadata import version
from typing import Any, TypeVar

from accelerate import Accelerator
from tqdm import tqdm

from ..errors import RecipeError, collected, located
from ..graph.weights import export_node
from ..recipe.recipe import Recipe
from ..recipe.search_config import SearchRecipe
from ..records.metrics import Metrics
from ..records.run_directory import RunDirectory
from ..terminal import progress
from ..tracking.trackers import Trackers, open_trackers
from .checkpoint import newest_state, save_state
from .loop import evaluate, start_epoch, train_epoch
from .pictures import RunPictures
from .show import epoch_line
from .training import Training, problems_everywhere

PACKAGES = ("timm_ktg", "torch", "timm", "accelerate", "datasets")

Summary = dict[str, Any]
R = TypeVar("R", Recipe, SearchRecipe)


def create_accelerator(recipe: Recipe) -> Accelerator:
    """Return the accelerator for a recipe.

    Raises:
        RecipeError: This machine lacks the precision.
    """
    with located("train.mixed_precision"):
        accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("fp16 needs an accelerator. Found a CPU, where bf16 works.")
    return accelerator


def settled(recipe: R, accelerator: Accelerator) -> R:
    """Return the recipe with what was left open, precision and layout, decided and written down.

    On a CPU, a step in channels-last took 0.78 of the time of one in the other layout (quartiles
    0.75 to 0.80, n=12; resnet20_cifar, batch 64, 2 cores of an AMD EPYC, torch 2.15.0, commit
    7291ff6). On accelerators it has not been measured.
    """
    channels_last = recipe.train.channels_last
    if channels_last is None:
        channels_last = accelerator.device.type == "cpu"
    decided = {"mixed_precision": accelerator.mixed_precision, "channels_last": channels_last}
    train = recipe.train.model_copy(update=decided)
    return recipe.model_copy(update={"train": train})


def run_training(
    training: Training, directory: RunDirectory, resume: bool, start: float
) -> Summary:
    """Train to the end, evaluate the last epoch once, and write all that a run leaves.

    Args:
        training: What `build_training` returned.
        directory: The run's, which holds its recipe already.
        resume: Go on from the newest good state, if there is one.
        start: time.perf_counter() when the run began.

    Returns:
        What summary.json holds.

    Raises:
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    accelerator = training.accelerator
    identity = hashlib.sha256(
        (directory.recipe.read_text() + training.splits.fingerprint).encode()
    ).hexdigest()
    summary: Summary | None = None
    if resume:
        _go_on(training, directory, identity)
        # One that was killed after its result was written lacks only what shows it.
        if training.state.epochs == training.epochs:
            summary = directory.read_summary()
        accelerator.wait_for_everyone()  # before one of them writes it
    is_main = accelerator.is_main_process
    pictures = RunPictures(training.recipe.graph, directory, is_main)
    pictures.begin()
    with _trackers(training, directory) as trackers:
        for epoch in range(training.state.epochs, training.epochs):
            _run_epoch(training, directory, epoch + 1, trackers)
            save_state(accelerator, directory.checkpoint, epoch + 1, identity)
            pictures.go_on()
        if summary is None:
            summary = _finish(training, directory, start)
        pictures.end()
        trackers.complete(summary)
    return summary


def _trackers(training: Training, directory: RunDirectory) -> Trackers:
    """Open the trackers; if one cannot be opened, say so on all processes."""
    problems: list[str] = []
    trackers = Trackers()
    with collected(problems):
        is_main = training.accelerator.is_main_process
        trackers = open_trackers(training.recipe, directory, is_main)
    problems = problems_everywhere(problems)
    if problems:
        raise RecipeError(problems)
    return trackers


def _run_epoch(training: Training, directory: RunDirectory, epoch: int, trackers: Trackers) -> None:
    """Train for an epoch, from 1, and show what it came to."""
    accelerator = training.accelerator
    bar = progress(
        start_epoch(training),
        len(training.images.train),
        epoch,
        training.epochs,
        accelerator.is_main_process,
    )
    metrics = train_epoch(training, bar)
    if training.images.val is not None:
        metrics |= evaluate(training, training.images.val, "val")
    if accelerator.is_main_process:
        directory.log(metrics)
        tqdm.write(epoch_line(metrics, training.epochs, training.graph))
        trackers.log(metrics)


def _go_on(training: Training, directory: RunDirectory, identity: str) -> None:
    """Load the newest good state of a run."""
    accelerator = training.accelerator
    state, refused = newest_state(directory.checkpoint, identity)
    for line in refused:
        accelerator.print(f"Refused {line}")
    if state is not None:
        accelerator.load_state(str(state))
    if accelerator.is_main_process:
        directory.forget_after(training.state.epochs)
    accelerator.print(
        f"Going on from {state or 'the start'}, epochs done: {training.state.epochs}."
    )


def _finish(training: Training, directory: RunDirectory, start: float) -> Summary:
    """Evaluate the last epoch once on the test images, export the nodes, write the summary."""
    graph, images = training.graph, training.images
    split, loader = "test", images.test() if images.test else None
    if loader is None:
        split, loader = ("val", images.val) if images.val else ("train", images.train)
    result = evaluate(training, loader, split)
    summary = _summary(training, result, split, time.perf_counter() - start)
    if training.accelerator.is_main_process:
        for name in graph.members:
            path = directory.nodes / f"{name}.safetensors"
            network = graph.network(name)
            export_node(network.model, path, network.mean, network.std)
        directory.write_summary(summary)
    return summary


def _summary(training: Training, result: Metrics, split: str, seconds: float) -> Summary:
    images, recipe = training.images, training.recipe
    return {
        "target": training.graph.target,
        "split": split,
        "nodes": {
            name: {top: result[f"{split}/{top}/{name}"] for top in ("top1", "top5")}
            for name in training.graph.members
        },
        "seed": recipe.train.seed,
        "epochs": training.epochs,
        "data": {
            "fingerprint": training.splits.fingerprint,
            "mean": images.mean,
            "std": images.std,
        },
        "processes": training.accelerator.num_processes,
        "device": str(training.accelerator.device),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "training_seconds": training.state.seconds,
        "wall_seconds": seconds,
    }
