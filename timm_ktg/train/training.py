"""Training a graph: what a run is made of, one epoch, one evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from timm.scheduler.scheduler import Scheduler
from timm.utils import distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Loader, MemoryLoader, Splits, derive_seed
from ..errors import RecipeError, collected, located
from ..graph.edge import Edge
from ..graph.graph import KnowledgeTransferGraph
from ..graph.node import Node
from ..graph.node_threads import NodeThreads, build_threads
from ..recipe.build import (
    build_edges,
    build_graph,
    build_nodes,
    build_optimizer,
    build_scheduler,
)
from ..recipe.images import Images, Place, build_images, build_splits
from ..recipe.recipe import Recipe
from ..recipe.train_config import TrainConfig
from ..records.metrics import Metrics
from .checks import check_batch_size, check_outputs, check_processes_agree
from .cuda_graph import CapturedUpdate, capture_arguments, capture_problem
from .metrics import EpochMeter, accuracies, correct_counts
from .update import Batch, EagerUpdate, Update

Batches = Iterable[Batch]

_logger = logging.getLogger(__name__)


@dataclass
class Done:
    """How far a run is; saved with its state.

    Args:
        epochs: Epochs done.
        seconds: Time they took.
    """

    epochs: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"epochs": self.epochs, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.epochs, self.seconds = state["epochs"], state["seconds"]


@dataclass(frozen=True)
class Data:
    """What is read once and serves many trainings of the same data, batches and seed.

    Args:
        splits: The data set's splits.
        images: The loaders.
    """

    splits: Splits
    images: Images


@dataclass(frozen=True)
class Training:
    """What a run is made of.

    Args:
        recipe: The recipe.
        data: The images.
        graph: The graph.
        model: The graph as accelerate prepared it, under DDP with several processes.
        optimizer: One for all nodes.
        scheduler: Of the learning rate.
        epochs: All epochs of the run.
        accelerator: Device, processes and precision.
        done: How far the run is.
        update: Does the updates.
    """

    recipe: Recipe
    data: Data
    graph: KnowledgeTransferGraph
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    epochs: int
    accelerator: Accelerator
    done: Done
    update: Update

    @property
    def splits(self) -> Splits:
        """The data set's splits."""
        return self.data.splits

    @property
    def images(self) -> Images:
        """The loaders."""
        return self.data.images


def build_training(recipe: Recipe, accelerator: Accelerator, data: Data | None = None) -> Training:
    """Build everything that a recipe asks for, and check that it works together.

    Args:
        recipe: The recipe.
        accelerator: Device, processes and precision.
        data: That of a training with the same data, batches and seed; None: read it.

    Raises:
        RecipeError: All that is wrong.
    """
    place = Place(accelerator.device, accelerator.process_index, accelerator.num_processes)
    problems: list[str] = []
    with collected(problems):
        check_batch_size(recipe, place.world_size)
    with collected(problems), accelerator.main_process_first():  # one process downloads for all
        splits = data.splits if data else build_splits(recipe.data)
        with collected(problems):
            nodes = build_nodes(recipe, splits.num_classes)
        with collected(problems):
            edges = build_edges(recipe, splits.num_classes)
    problems = problems_everywhere(problems)
    if problems:
        raise RecipeError(problems)
    target = next(node.model for node in nodes if node.name == recipe.graph.target)
    images = data.images if data else build_images(recipe, splits, target, place)
    data = Data(splits, images)
    graph = _build_graph(recipe, nodes, edges, data, accelerator)
    capture = _captures(recipe, accelerator)
    arguments = capture_arguments(recipe.train.opt) if capture else None
    optimizer = build_optimizer(recipe.train, graph, arguments)
    scheduler, epochs = build_scheduler(recipe.train, optimizer, len(images.train))
    model, prepared = accelerator.prepare(graph, optimizer)
    if isinstance(model, DistributedDataParallel):
        # BatchNorm's statistics are averaged after an epoch, not sent around at every step.
        model.broadcast_buffers = False
    done = Done()
    # The scheduler is not prepared, for accelerate would step it once for every process.
    accelerator.register_for_checkpointing(scheduler, done)
    eager = _build_update(recipe.train, graph, model, prepared, accelerator)
    update = _captured(eager, images.train, recipe.train.capture) if capture else eager
    return Training(
        recipe, data, graph, model, prepared, scheduler, epochs, accelerator, done, update
    )


def problems_everywhere(problems: Sequence[str], **group: Any) -> list[str]:
    """Return the problems of all processes, each once, so that none waits for one that gave up.

    Args:
        problems: Those of this process.
        group: Arguments of the group of processes, which the first call makes.
    """
    # The first to ask settles what kind of processes there are, and forgets this flag by itself.
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **group)
    return list(dict.fromkeys(gather_object(list(problems))))


def train_epoch(training: Training, batches: Batches) -> Metrics:
    """Train for the next epoch, and step the schedule.

    Args:
        training: The run.
        batches: Its training batches, as they are or under a progress bar.

    Returns:
        What the epoch measured on the training images, learning rate and speed.

    Raises:
        TrainingError: A loss was not finite, or an update cannot be recorded as asked.
    """
    epoch, start = training.done.epochs, time.perf_counter()
    updates = len(training.images.train)
    meter = training.update.meter
    meter.reset()
    rate = training.optimizer.param_groups[0]["lr"]
    training.model.train()
    for number, batch in enumerate(batches, start=epoch * updates + 1):
        training.update(batch, number, number / (training.epochs * updates))
        training.scheduler.step_update(number)
    metrics = meter.read()
    seconds = time.perf_counter() - start
    _average_batch_norm(training)
    training.scheduler.step(epoch + 1)
    training.done.epochs += 1
    training.done.seconds += seconds
    images_per_second = meter.images * training.accelerator.num_processes / seconds
    speed = {"images_per_second": images_per_second, "seconds": seconds}
    return {"epoch": epoch + 1, "lr": rate, **metrics, **speed}


def start_epoch(training: Training) -> Batches:
    """Return the batches of the next epoch, with every generator seeded for it.

    What an epoch draws depends on (seed, epoch, rank) alone, so that a run that goes on at an
    epoch's start draws what an undisturbed one does. Dropout and timm's transforms draw from the
    global generators; the order and the augmentation in memory have their own.
    """
    epoch, rank = training.done.epochs, training.accelerator.process_index
    set_seed(derive_seed("epoch", training.recipe.train.seed, epoch, rank) % 2**32)
    loader = training.images.train
    loader.set_epoch(epoch)
    if isinstance(training.update, CapturedUpdate) and isinstance(loader, MemoryLoader):
        return loader.draws()  # the rest is part of the update
    return loader


@torch.no_grad()
def evaluate(training: Training, loader: Loader, split: str) -> Metrics:
    """Return every node's top-1 and top-5 in percent, exactly, over all processes.

    Args:
        training: The run.
        loader: Batches, each process its own images.
        split: `val` or `test`, for the names of the measures.
    """
    accelerator, graph = training.accelerator, training.graph
    correct = torch.zeros(len(graph.members), 2, dtype=torch.int64, device=accelerator.device)
    count = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    graph.eval()
    for images, labels in loader:
        # Not through DDP: processes may have different numbers of batches here.
        with accelerator.autocast():
            outputs = graph(images.contiguous(memory_format=_layout(training.recipe.train)))
        correct += torch.stack([correct_counts(each.logits, labels) for each in outputs.values()])
        count += len(labels)
    correct, count = accelerator.reduce((correct, count), reduction="sum")
    return accuracies(split, list(graph.members), correct, count)


def _build_graph(
    recipe: Recipe,
    nodes: list[Node],
    edges: list[Edge],
    data: Data,
    accelerator: Accelerator,
) -> KnowledgeTransferGraph:
    """Return the graph on its device, checked and as fast as the recipe says."""
    device, images, train = accelerator.device, data.images, recipe.train
    graph = build_graph(recipe, nodes, edges, images.mean, images.std).to(device)
    check_outputs(graph, images.size, data.splits.num_classes, device)
    check_processes_agree(graph)
    graph.threads = _node_threads(recipe, graph, images.size, accelerator)
    graph = graph.to(memory_format=_layout(train))
    some = torch.randn(2, 3, *images.size, generator=torch.Generator().manual_seed(0))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    graph.speed_up_frozen(some, dtype, train.torchcompile)
    if train.torchcompile:
        for name in set(graph.untapped) & set(graph.learning):
            graph.model(name).compile()
    return graph


def _build_update(
    train: TrainConfig,
    graph: KnowledgeTransferGraph,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> EagerUpdate:
    return EagerUpdate(
        graph,
        model,
        optimizer,
        accelerator,
        EpochMeter(graph, accelerator),
        _layout(train),
        train.grad_accum_steps,
        train.clip_grad,
        train.clip_mode,
    )


def _captured(eager: EagerUpdate, loader: Loader, wanted: str) -> CapturedUpdate:
    """Return updates that are recorded, augmentation included where it is done on the device."""
    make = loader.make if isinstance(loader, MemoryLoader) else None
    device = eager.accelerator.device
    return CapturedUpdate(replace(eager, make=make), device, required=wanted == "always")


def _layout(train: TrainConfig) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if train.channels_last else torch.contiguous_format


def _captures(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Say whether updates are recorded."""
    wanted = recipe.train.capture
    problem = None if wanted == "never" else capture_problem(recipe.train, accelerator)
    if problem and wanted == "always":
        raise RecipeError([f"train.capture: {problem}"])
    if problem:
        _logger.warning("Updates are not recorded: train.capture %s", problem)
    return wanted != "never" and problem is None


def _average_batch_norm(training: Training) -> None:
    """Make BatchNorm's running statistics their mean over the processes."""
    if training.accelerator.num_processes > 1:
        for name in training.graph.learning:
            distribute_bn(training.graph.model(name), training.accelerator.num_processes, True)


def _node_threads(
    recipe: Recipe,
    graph: KnowledgeTransferGraph,
    size: tuple[int, int],
    accelerator: Accelerator,
) -> NodeThreads | None:
    """Return how to run the nodes side by side, None for one after another."""
    wanted = recipe.train.node_threads
    if wanted == 1:
        return None
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    with located("train.node_threads"):
        if not alone or recipe.train.torchcompile:
            raise ValueError(
                "should be 1 unless one process trains on a CPU without torchcompile. "
                f"Found {wanted}."
            )
        members = {name: graph.member(name) for name in graph.members}
        return build_threads(members, torch.zeros(2, 3, *size), wanted)
