"""How batches of timm's pipeline get from its workers to the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import ToDevice, moved_to
from ..graph.node import Channels
from .data_config import DataConfig


@dataclass(frozen=True)
class Delivery:
    """How batches get to the device.

    Args:
        as_bytes: Whether workers make uint8, to be normalized on the device.
        to_device: Moves batches to the device.
    """

    as_bytes: bool
    to_device: ToDevice


def delivery(
    data: DataConfig,
    mean: Channels,
    std: Channels,
    size: tuple[int, int],
    device: torch.device,
    train: bool,
) -> Delivery:
    """Return how batches get to a device: by timm's prefetcher.

    Workers make bytes, which are normalized on the device. On CUDA the next batch is copied while
    the device computes, and random erasing happens there, too: where an image is erased depends on
    the batch that it is in. On a CPU, workers erase, so they normalize as well.

    Args:
        data: The section of the recipe.
        mean: [C] means of the channels, in 0..1.
        std: [C] standard deviations of the channels, in 0..1.
        size: Height and width of the images.
        device: The device.
        train: Whether to augment.
    """
    erases = train and data.reprob > 0 and not data.no_aug
    if workers_normalize(erases, device):
        return Delivery(False, moved_to(device))
    prefetcher = PrefetchLoader(
        cast("DataLoader[Any]", ()),
        mean=mean,
        std=std,
        channels=len(mean),
        device=device,
        re_prob=data.reprob if erases else 0.0,
        re_mode=data.remode,
        re_count=data.recount,
        re_num_splits=data.aug_splits if data.resplit else 0,
    )

    # Batches of bytes are channels-last. With the mean of a single pixel, [1, C, 1, 1], a CPU would
    # take 1.6 times as long to normalize them as with one of their own shape and layout.
    shape = (1, len(mean), *size)
    for name in ("mean", "std"):
        pixel = getattr(prefetcher, name).expand(shape)
        setattr(prefetcher, name, pixel.contiguous(memory_format=torch.channels_last))

    def to_device(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
        prefetcher.loader = cast("DataLoader[Any]", batches)
        return prefetcher

    return Delivery(True, to_device)


def workers_normalize(erases: bool, device: torch.device) -> bool:
    """Return whether workers normalize images, because they erase parts of them."""
    return erases and device.type != "cuda"
