"""One update of a training, as Algorithm 1 has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from ..graph.graph import KnowledgeTransferGraph
from .metrics import EpochMeter

# A batch as a loader draws it, and what makes images and labels of it.
Batch = tuple[Tensor, ...]
Make = Callable[..., tuple[Tensor, Tensor]]


class Update(Protocol):
    """Does the updates of a training, one after another."""

    @property
    def meter(self) -> EpochMeter:
        """What takes note of them."""

    def __call__(self, batch: Batch, number: int, progress: float) -> None:
        """Do one.

        Args:
            batch: Images [B, 3, H, W] and labels, [B] or [B, C], or what they are made of.
            number: Of the update, from 1.
            progress: k / k_end in (0, 1].
        """


@dataclass(frozen=True)
class EagerUpdate:
    """An update with every node's one forward and one backward, operator by operator.

    Args:
        graph: The graph.
        model: The graph as accelerate prepared it.
        optimizer: One for all nodes, prepared too.
        accelerator: Device, processes and precision.
        meter: Takes note of what comes out.
        layout: Of the images.
        grad_accum_steps: Parts that a batch is computed in.
        clip_grad: Clip gradients to this, node by node; None: no clipping.
        clip_mode: How, as timm names it.
        make: Makes images and labels of a batch; None: it is them.
    """

    graph: KnowledgeTransferGraph
    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    meter: EpochMeter
    layout: torch.memory_format = torch.contiguous_format
    grad_accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    make: Make | None = None

    def __call__(self, batch: Batch, number: float | Tensor, progress: float | Tensor) -> None:
        """Do one; number and progress may be scalars on the device."""
        images, labels = self.make(*batch) if self.make else batch
        parts = list(zip(*_chunks(self.grad_accum_steps, images, labels), strict=True))
        self.optimizer.zero_grad()
        for index, (some, their) in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                outputs = self.model(some.contiguous(memory_format=self.layout))
                losses = self.graph.losses(outputs, their, progress)
                self.accelerator.backward(losses.total * (len(their) / len(labels)))
            self.meter.update(losses, outputs, their, number)
        self._clip()
        self.optimizer.step()

    def _clip(self) -> None:
        if self.clip_grad is None:
            return
        self.accelerator.unscale_gradients(self.optimizer)
        for name in self.graph.learning:
            parameters = self.graph.model(name).parameters()
            dispatch_clip_grad(parameters, self.clip_grad, mode=self.clip_mode)


def _chunks(parts: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return (tensor.chunk(parts) for tensor in tensors)
