"""The training loop: one epoch, and one evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from timm.utils import dispatch_clip_grad, distribute_bn
from torch import Tensor, nn

from ..data import Loader, MemoryLoader, derive_seed
from ..records.metrics import (
    ALL_NETWORKS,
    EPOCH,
    IMAGES_PER_SECOND,
    LR,
    SECONDS,
    Metrics,
    evaluated_loss_name,
)
from .cuda_graph import Batch
from .metrics import accuracies, correct_counts
from .training import Training


def train_epoch(training: Training, batches: Iterable[Batch]) -> Metrics:
    """Train for the next epoch, as in Algorithm 1, and step the schedule.

    Args:
        training: The run.
        batches: The training batches, possibly under a progress bar.

    Returns:
        The metrics of the epoch on the training images, the learning rate and the speed.

    Raises:
        TrainingError: A loss was not finite, or an update cannot be recorded as asked.
    """
    graph, model, optimizer = training.graph, training.model, training.optimizer
    accelerator, meter, options = training.accelerator, training.meter, training.recipe.train
    owners = graph.parameter_owners()

    def update(batch: Batch, number: float | Tensor, progress: float | Tensor) -> None:
        images, labels, *views = training.make(*batch)
        chunks = (each.chunk(options.grad_accum_steps) for each in (images, labels, *views))
        parts = list(zip(*chunks, strict=True))
        optimizer.zero_grad()
        for index, (some, their, *of_them) in enumerate(parts, start=1):
            with nullcontext() if index == len(parts) else accelerator.no_sync(model):
                outputs = model(some.contiguous(memory_format=training.layout), *of_them)
                losses = graph.losses(outputs, their, progress)
                accelerator.backward(losses.total * (len(their) / len(labels)))
            meter.update(losses, outputs, their, number)
        if options.clip_grad is not None:
            accelerator.unscale_gradients(optimizer)
            for parameters in owners.values():
                dispatch_clip_grad(parameters, options.clip_grad, mode=options.clip_mode)
        optimizer.step()
        graph.update_emas(number)

    epoch, updates, start = training.state.epochs, len(training.images.train), time.perf_counter()
    first = optimizer.param_groups[0]
    rate = first["lr"] / first.get("lr_scale", 1.0)  # of the last layer, if layers differ
    meter.reset()
    model.train()
    for number, batch in enumerate(batches, start=epoch * updates + 1):
        training.do(update, batch, number, number / (training.epochs * updates))
        training.scheduler.step_update(number)
    metrics = meter.read()
    seconds = time.perf_counter() - start
    _average_batch_norm(training)
    training.scheduler.step(epoch + 1)
    training.state.epochs += 1
    training.state.seconds += seconds
    speed = meter.images * accelerator.num_processes / seconds
    return {EPOCH: epoch + 1, LR: rate, **metrics, IMAGES_PER_SECOND: speed, SECONDS: seconds}


def start_epoch(training: Training) -> Iterable[Batch]:
    """Return the batches of the next epoch, with every generator seeded for it.

    Random draws depend only on (seed, epoch, rank), so a run resumed at the start of an epoch draws
    the same as an uninterrupted one. Dropout and timm's transforms use the global generators; the
    order and the augmentation in memory have their own.
    """
    epoch, rank = training.state.epochs, training.accelerator.process_index
    set_seed(derive_seed("epoch", training.recipe.train.seed, epoch, rank) % 2**32)
    loader = training.images.train
    loader.set_epoch(epoch)
    if training.makes_batches and isinstance(loader, MemoryLoader):
        return loader.draws()  # the rest happens in the update
    return loader


@torch.no_grad()
def evaluate(training: Training, loader: Loader, split: str) -> Metrics:
    """Return every node's exact top-1 and top-5 in percent and its cross-entropy.

    They are those of all processes together. The cross-entropy is that of the labels as they are,
    at temperature 1, whatever the node learned from.

    With two or more networks, those of the mean of their logits follow: all networks together. The
    logits of nodes with a table are kept, because they are the same for the validation images of
    every epoch.

    Args:
        training: The run.
        loader: The batches; each process has its own images.
        split: `val` or `test`, for the names of the metrics.
    """
    accelerator, graph = training.accelerator, training.graph
    networks = (*graph.learning, *graph.frozen)
    names = [*graph.members, *[ALL_NETWORKS] * (len(networks) > 1)]
    correct = torch.zeros(len(names), 2, dtype=torch.int64, device=accelerator.device)
    loss = torch.zeros(len(names), device=accelerator.device)
    count = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    kept = training.kept.setdefault(split, [])
    graph.eval()
    for number, (images, labels) in enumerate(loader):
        known = kept[number] if number < len(kept) else {}
        # Not through DDP, because processes can have different numbers of batches here.
        with accelerator.autocast():
            outputs = graph(images.contiguous(memory_format=training.layout), known=known)
        if number == len(kept):
            kept.append({name: outputs[name] for name in graph.tables})
        logits = [outputs[name].logits for name in graph.members]
        if len(names) > len(logits):
            logits.append(torch.stack([outputs[name].logits.float() for name in networks]).mean(0))
        loss += torch.stack([_total_loss(each, labels) for each in logits])
        correct += torch.stack([correct_counts(each, labels) for each in logits])
        count += len(labels)
    correct, loss, count = accelerator.reduce((correct, loss, count), reduction="sum")
    losses = dict(zip(names, (loss / count).tolist(), strict=True))
    return {
        **{evaluated_loss_name(split, name): value for name, value in losses.items()},
        **accuracies(split, names, correct, count),
    }


def _total_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def _average_batch_norm(training: Training) -> None:
    """Average BatchNorm's running statistics over the processes."""
    processes = training.accelerator.num_processes
    if processes > 1:
        graph = training.graph
        for modules in graph.owned_modules().values():
            distribute_bn(nn.ModuleList(modules), processes, reduce=True)
        for ema in graph.emas:
            distribute_bn(graph.model(ema.name), processes, reduce=True)
