"""Builds and checks the parts of a training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import MemoryLoader, Splits
from ..errors import RecipeError, StorageError, collected, one_line, said
from ..graph.edge import Edge
from ..graph.graph import KnowledgeTransferGraph
from ..graph.losses import NodeOutput
from ..graph.node import GraphNode, Node
from ..recipe.build import build_edges, build_nodes, build_optimizer, connect
from ..recipe.images import Images, ProcessInfo, build_images
from ..recipe.recipe import Recipe
from ..recipe.schedule import Schedule, build_scheduler
from ..recipe.splits import build_splits
from ..recipe.train_config import TrainConfig
from ..records.result import Best, Cost
from .checks import (
    build_edge_modules,
    check_batch_size,
    check_contracts,
    check_grad_checkpointing,
    check_gradients,
    check_lone_image,
    check_outputs,
    check_processes_agree,
    check_sync_bn,
    check_views,
)
from .cost import cost_of
from .cuda_graph import (
    Do,
    Make,
    RecordedUpdates,
    cuda_graph_arguments,
    is_recorded,
    plain_updates,
)
from .knowledge import check_teacher_classes, warn_of_no_labels
from .metrics import EpochMeter
from .tables import tables_of

_logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """The progress of a run; saved with its checkpoints.

    Args:
        epochs: The number of epochs done.
        seconds: The time they took.
        best: The best of them, if the recipe asks for it.
    """

    epochs: int = 0
    seconds: float = 0.0
    best: Best | None = None


@dataclass(frozen=True)
class Data:
    """Data that trainings with the same data, batches and seed can share.

    Args:
        splits: The data set's splits.
        images: The loaders.
        flops: Operations of the networks that were counted for such images; see `cost_of`.
        checked: The losses and gates that were checked; see `check_contracts`.
    """

    splits: Splits
    images: Images
    flops: dict[Any, int] = field(default_factory=dict)
    checked: set[Any] = field(default_factory=set)


@dataclass(frozen=True)
class Training:
    """The parts of a run.

    Args:
        recipe: The recipe.
        data: The images.
        graph: The graph.
        cost: What the graph costs.
        model: The graph as accelerate prepared it, under DDP with several processes.
        optimizer: The optimizer of all nodes.
        scheduler: The schedule of the learning rate.
        epochs: The number of epochs of the run.
        accelerator: Device, processes and precision.
        state: The progress of the run.
        meter: Sums up the metrics of an epoch.
        make: Turns a loader's batch into images and labels.
        do: Does an update, directly or as a recording.
        kept: Outputs of nodes with a table for each batch of a split's images; see `evaluate`.
    """

    recipe: Recipe
    data: Data
    graph: KnowledgeTransferGraph
    cost: Cost
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Schedule
    epochs: int
    accelerator: Accelerator
    state: RunState
    meter: EpochMeter
    make: Make
    do: Do
    kept: dict[str, list[dict[str, NodeOutput]]] = field(default_factory=dict)

    @property
    def splits(self) -> Splits:
        """The data set's splits."""
        return self.data.splits

    @property
    def images(self) -> Images:
        """The loaders."""
        return self.data.images

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of images and weights."""
        return _layout(self.recipe.train)

    @property
    def makes_batches(self) -> bool:
        """Whether an update makes its batch itself, from what the loader draws."""
        return self.make is not _as_they_are

    @property
    def is_recorded(self) -> bool:
        """Whether updates are recorded and replayed."""
        return isinstance(self.do, RecordedUpdates)


def build_training(recipe: Recipe, accelerator: Accelerator, data: Data | None = None) -> Training:
    """Build all parts of a training, and check that they work together.

    Args:
        recipe: The recipe.
        accelerator: Device, processes and precision.
        data: Data from a training with the same data, batches and seed; None: read it.

    Raises:
        RecipeError: The recipe does not work; lists all problems.
    """
    nodes, edges, data = _build_parts(recipe, accelerator, data)
    recorded = is_recorded(recipe, accelerator, nodes, edges)
    graph, cost = _build_graph(recipe, nodes, edges, data, accelerator, recorded)
    arguments = cuda_graph_arguments(recipe.train.opt) if recorded else None
    optimizer = build_optimizer(recipe.train, graph, arguments)
    loader = data.images.train
    scheduler, epochs = build_scheduler(recipe.train, optimizer, len(loader))
    model, prepared = accelerator.prepare(graph, optimizer)
    if isinstance(model, DistributedDataParallel):
        # BatchNorm's statistics are averaged after an epoch instead of broadcast at every step.
        model.broadcast_buffers = False
    # The scheduler is not prepared, because accelerate would step it once for every process.
    make: Make = _as_they_are
    do: Do = plain_updates
    if graph.tables and isinstance(loader, MemoryLoader):
        make = _with_views(loader)
    if recorded:
        required = recipe.train.cuda_graph == "always"
        do = RecordedUpdates(prepared, accelerator.device, required)
        if isinstance(loader, MemoryLoader):  # its augmentation is recorded, too
            make = loader.make
    return Training(
        recipe=recipe,
        data=data,
        graph=graph,
        cost=cost,
        model=model,
        optimizer=prepared,
        scheduler=scheduler,
        epochs=epochs,
        accelerator=accelerator,
        state=RunState(),
        meter=EpochMeter(graph, accelerator),
        make=make,
        do=do,
    )


def problems_everywhere(problems: Sequence[str], **group: Any) -> list[str]:
    """Return the problems of all processes, each once, so that all processes stop together.

    Args:
        problems: The problems of this process.
        group: Arguments of the process group, which the first call creates.
    """
    # The first PartialState fixes the kind of processes, and it does not read this flag itself.
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **group)
    return list(dict.fromkeys(gather_object(list(problems))))


@contextmanager
def together() -> Iterator[None]:
    """Raise on all processes the OSError that one of them raises; they wait for each other."""
    problems: list[str] = []
    try:
        yield
    except OSError as error:
        problems = [str(error) if isinstance(error, StorageError) else one_line(error)]
    problems = problems_everywhere(problems)
    if problems:
        raise StorageError(problems[0])


def synchronized(nodes: Sequence[GraphNode], edges: Sequence[Edge]) -> list[GraphNode]:
    """Return the nodes, with BatchNorm of learning ones synchronized; not tried on a GPU.

    All processes together then normalize a batch as a single one would. BatchNorm of frozen nodes
    has fixed statistics, so it stays as it is.

    Args:
        nodes: The nodes.
        edges: The edges.
    """
    learning = {edge.destination for edge in edges}
    return [
        replace(node, model=convert_sync_batchnorm(node.model))
        if isinstance(node, Node) and node.name in learning
        else node
        for node in nodes
    ]


def _build_parts(
    recipe: Recipe, accelerator: Accelerator, data: Data | None
) -> tuple[list[GraphNode], list[Edge], Data]:
    """Build nodes and edges, and read the images; raises with all problems of all processes."""
    process = ProcessInfo(accelerator.device, accelerator.process_index, accelerator.num_processes)
    problems: list[str] = []
    with collected(problems):
        check_batch_size(recipe, process.world_size)
    with collected(problems):
        check_gradients(recipe, process.world_size)
    with collected(problems):
        check_views(recipe)
    with collected(problems):
        check_sync_bn(recipe.train, process.device)
    # One process downloads for all. What it collects must not leave the block as an error, because
    # accelerate would then skip the barrier that the others wait at.
    with accelerator.main_process_first(), collected(problems), said("recipe"):
        splits = data.splits if data else build_splits(recipe.data)
        with collected(problems):
            nodes = build_nodes(recipe, splits.num_classes)
        with collected(problems):
            edges = build_edges(recipe)
    problems = problems_everywhere(problems)
    if problems:
        raise RecipeError(problems)
    if recipe.train.sync_bn and process.world_size > 1:
        nodes = synchronized(nodes, edges)
    name = recipe.graph.sets_images
    target = next(n.model for n in nodes if isinstance(n, Node) and n.name == name)
    images = data.images if data else build_images(recipe, splits, target, process)
    return nodes, edges, data or Data(splits, images)


def _build_graph(
    recipe: Recipe,
    nodes: list[GraphNode],
    edges: list[Edge],
    data: Data,
    accelerator: Accelerator,
    recorded: bool,
) -> tuple[KnowledgeTransferGraph, Cost]:
    """Return the graph on its device, checked and optimized as the recipe says, and its cost."""
    device, images, train = accelerator.device, data.images, recipe.train
    graph = connect(recipe, nodes, edges, images.mean, images.std).to(device)
    check_grad_checkpointing(train, graph)
    check_teacher_classes(recipe, graph, data.splits.class_names)
    warn_of_no_labels(graph)
    views = max(1, recipe.data.aug_splits)  # of an image, for losses that compare them
    outputs = check_outputs(
        graph, images.preparation.input_size, data.splits.num_classes, device, max(2, views)
    )
    build_edge_modules(graph, outputs, train.seed)
    check_contracts(graph, outputs, recipe.data.mixes, data.checked)
    check_processes_agree(graph)
    graph = graph.to(memory_format=_layout(train))
    loader = images.train
    # On an accelerator every look-up waits for the device. Where updates are recorded, they take a
    # third of the time of those with full tables (see `tests.benchmarks.accelerator`).
    on_cpu = accelerator.device.type == "cpu" and not recorded
    if train.teacher_table == "auto" and isinstance(loader, MemoryLoader) and on_cpu:
        precision = f"{accelerator.mixed_precision} {train.channels_last} {train.torchcompile}"
        graph.tables = tables_of(graph, loader, data.splits.num_classes, precision)
    some = torch.randn(
        2, *images.preparation.input_size, generator=torch.Generator().manual_seed(0)
    ).to(device)
    count, alone = len(data.splits.train), some[:1].expand(views, -1, -1, -1)
    check_lone_image(graph, recipe, count, accelerator.num_processes, alone)
    cost = cost_of(graph, some, outputs, data.flops)
    cost = replace(cost, training_flops=cost.training_flops * views)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    graph.speed_up_frozen(some, dtype, train.torchcompile)
    if recorded and accelerator.device.type == "cuda":
        graph.fork(accelerator.device)
    if train.torchcompile:
        for name in set(graph.untapped) - set(graph.frozen):
            graph.model(name).compile()
    return graph, cost


def _as_they_are(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, labels


def _with_views(loader: MemoryLoader) -> Make:
    """Return a function from what the loader draws to images, labels and their views."""

    def make(indices: Tensor, offsets: Tensor, flip: Tensor) -> tuple[Tensor, ...]:
        return *loader.make(indices, offsets, flip), loader.view_of(indices, offsets, flip)

    return make


def _layout(train: TrainConfig) -> torch.memory_format:
    return torch.channels_last if train.channels_last else torch.contiguous_format
