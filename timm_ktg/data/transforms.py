"""Images read and transformed one at a time, as timm does it, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import DataError
from .images import read_image, undecoded
from .sampling import create_sampler, derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

Transform = Callable[[Image.Image], Tensor]
_Sample = tuple[Tensor, int]


class TransformLoader:
    """Batches of transformed images, in our order and our shares.

    `timm.data.create_loader` will not do: it drops the last partial training batch, and pads an
    evaluation on several processes until counts are no longer exact.

    Workers start anew for every epoch, seeded by (seed, epoch, rank), so that an epoch can be
    repeated with the same number of workers. With `workers=0` the transform draws from the global
    generators of Python, NumPy and PyTorch, which the training loop seeds at the start of an epoch.

    Args:
        dataset: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        transform: Maps an image to a normalized float32 [in_chans, H, W].
        batch_size: Images per step, over all ranks together.
        device: Where batches are moved.
        train: Shuffle.
        in_chans: Channels of the images; see `decode`.
        repeats: How often a training image comes in succession; see `EpochSampler`.
        workers: Processes that read and transform; 0: this one does.
        seed: Determines every draw, together with epoch and rank.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.

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
    ) -> None:
        self.device, self.seed, self.rank, self.epoch = torch.device(device), seed, rank, 0
        self._sampler = create_sampler(
            len(dataset),
            batch_size,
            train=train,
            seed=seed,
            rank=rank,
            world_size=world_size,
            repeats=repeats,
        )
        stored = undecoded(dataset, input_key, target_key)
        self._generator = torch.Generator()
        self._loader = DataLoader(
            cast(
                "TorchDataset[_Sample]",
                _Samples(stored, input_key, target_key, transform, in_chans),
            ),
            batch_sampler=self._sampler,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=self._generator,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""
        self.epoch = epoch
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 [B, 3, H, W] and int64 [B], this rank's share of each batch."""
        # The loader seeds its workers with what it draws from here.
        self._generator.manual_seed(derive_seed("workers", self.seed, self.epoch, self.rank))
        for images, labels in self._read():
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches as the workers make them.

        Raises:
            DataError: An image cannot be read. torch gives the error of a worker with a traceback,
                whose last line is the error.
        """
        try:
            yield from self._loader
        except ValueError as error:
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.removeprefix("ValueError: ")) from error


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

    def __getitem__(self, index: int) -> _Sample:
        row = self.dataset[index]
        image = read_image(row[self.input_key], self.input_key, index, self.in_chans)
        return self.transform(image), row[self.target_key]
