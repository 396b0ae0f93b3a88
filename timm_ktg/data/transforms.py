"""Images read and transformed one at a time, as timm does it, in worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ..errors import DataError
from .images import read_image, undecoded, without_tracebacks
from .sampling import EpochSampler, EvalSampler, create_sampler, derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

Transform = Callable[[Image.Image], Any]
_Sample = tuple[Any, int]  # an image or a tuple of its views, and its label
ToDevice = Callable[[Iterable[tuple[Tensor, Tensor]]], Iterable[tuple[Tensor, Tensor]]]


class TransformLoader:
    """Batches of transformed images, in our order and our shares.

    `timm.data.create_loader` will not do: it drops the last partial training batch, and pads an
    evaluation on several processes until counts are no longer exact.

    The transform draws from the global generators of Python, NumPy and PyTorch, which are seeded
    for each image by (seed, epoch, its row, how often it came before). So an image is augmented in
    the same way with any number of workers and processes. Outside workers, the generators are put
    back afterwards.

    Args:
        dataset: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        transform: Maps an image to a float32 [in_chans, H, W], or to what `to_device` takes, or to
            a tuple of such views.
        batch_size: Images per step, over all ranks together.
        device: Where batches are moved.
        train: Shuffle.
        in_chans: Channels of the images; see `decode`.
        repeats: How often a training image comes in succession; see `EpochSampler`.
        workers: Processes that read and transform, and stay for all epochs; 0: this one does.
        seed: Determines every draw, together with the epoch.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.
        to_device: Moves batches to the device in a way of its own; None: plainly.

    Raises:
        ValueError: In training, `batch_size` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        dataset: Dataset,
        input_key: str,
        target_key: str,
        transform: Transform,
        *,
        batch_size: int,
        device: torch.device | str,
        train: bool,
        in_chans: int = 3,
        repeats: int = 1,
        workers: int = 4,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        to_device: ToDevice | None = None,
    ) -> None:
        device = torch.device(device)
        self._to_device = to_device or moved_to(device)
        self._sampler = create_sampler(
            len(dataset),
            batch_size,
            train=train,
            seed=seed,
            rank=rank,
            world_size=world_size,
            repeats=repeats,
        )
        self._batches = _Batches(self._sampler, seed, repeats if train else 1)
        stored = undecoded(dataset, input_key, target_key)
        samples = _Samples(stored, input_key, target_key, transform, in_chans)
        self._loader = DataLoader(
            cast("TorchDataset[_Sample]", samples),
            batch_sampler=cast("BatchSampler", self._batches),
            num_workers=workers,
            collate_fn=collated,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            # The workers' seeds are of no account, and the global generator is left alone.
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""
        self._batches.epoch = epoch
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 [B, 3, H, W] and int64 [B], this rank's share of each batch.

        With V views of an image, they are [V B, 3, H, W] and [V B]; see `collated`.
        """
        return iter(self._to_device(read_batches(self._loader)))


def collated(samples: list[_Sample]) -> tuple[Tensor, Tensor]:
    """Return a batch of samples: images [B, ...] and labels [B].

    Samples of V views each make images [V B, ...] and labels [V B]: the first view of every image,
    then the second of every image, and so on, as timm orders them.
    """
    images, labels = zip(*samples, strict=True)
    views = list(zip(*images, strict=True)) if isinstance(images[0], tuple) else [images]
    stacked = [_stacked(each) for each in views]
    repeated = torch.tensor(labels).repeat(len(views))
    return torch.cat(stacked) if len(views) > 1 else stacked[0], repeated


def _stacked(images: Sequence[Any]) -> Tensor:
    """Return images [C, H, W] as a batch [B, C, H, W] with their memory layout.

    Pillow's images are channels-last. To keep that takes less than half as long as to convert it
    (31 against 72 us for an image of 224x224, medians of 25 batches, on 1 core of an Intel Xeon).
    """
    turns = isinstance(images[0], Tensor) and images[0].ndim == 3
    last = [each.permute(1, 2, 0) for each in images] if turns else []
    if last and all(each.is_contiguous() for each in last):
        return cast("Tensor", default_collate(last)).permute(0, 3, 1, 2)
    return cast("Tensor", default_collate(list(images)))


def moved_to(device: torch.device) -> ToDevice:
    """Return a function that moves batches to a device as they are."""

    def moved(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return moved


def read_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches as the workers make them.

    Raises:
        DataError: An image cannot be read.
    """
    try:
        yield from without_tracebacks(loader)
    except ValueError as error:
        raise DataError(str(error)) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch, and put them back outside workers.

    Args:
        seed: 64 bits.
    """
    if get_worker_info() is not None:  # nothing else draws there
        _seed(seed)
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes longer, for GPUs too


@dataclass
class _Batches:
    """The rows of each batch, each beside its seed, because workers that stay know no epoch."""

    sampler: EpochSampler | EvalSampler
    seed: int
    repeats: int
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # An image that is repeated lies at successive places, which the ranks take in turn.
        sampler, repeats = self.sampler, self.repeats
        turns = [derive_seed("augment", self.seed, self.epoch, turn) for turn in range(repeats)]
        places = count(sampler.rank, sampler.world_size)
        for rows in sampler:
            first = [turns[next(places) % repeats] for _ in rows]
            yield [((each + row) % 2**64, row) for each, row in zip(first, rows, strict=True)]


@dataclass(frozen=True)
class _Samples:
    """Transformed images by index; at module level, because spawned workers unpickle it."""

    dataset: Dataset
    input_key: str
    target_key: str
    transform: Transform
    in_chans: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: Sequence[tuple[int, int]]) -> list[_Sample]:
        """Return the samples of a batch, whose rows are looked up together."""
        rows = self.dataset[[index for _, index in batch]]
        stored = zip(batch, rows[self.input_key], rows[self.target_key], strict=True)
        return [self._made(*at, value, label) for at, value, label in stored]

    def _made(self, seed: int, index: int, value: Any, label: int) -> _Sample:
        image = read_image(value, self.input_key, index, self.in_chans)
        with seeded(seed):
            return self.transform(image), label
