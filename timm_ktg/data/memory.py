"""Small images that stay on the device, augmented there a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor

from .sampling import create_sampler, derive_seed


class MemoryLoader:
    """Batches from a decoded split, with the paper's augmentation.

    In training, each image is padded by reflection, cropped back at random, flipped at random and
    normalized. In evaluation (`train=False`), images come in order and are only normalized. Nothing
    in the iteration waits for the device.

    All draws come from the loader's own generator, seeded by (seed, epoch, rank), so an epoch can
    be repeated and the global generators are left alone. CPU and GPU draw different numbers.

    Args:
        images: uint8 [N, 3, H, W], moved to the device.
        labels: int64 [N], moved to the device.
        batch_size: Images per step, over all ranks together.
        mean: [3] means of the channels, in 0..1.
        std: [3] standard deviations of the channels, in 0..1, above 0.
        device: Where batches are made.
        train: Shuffle and augment.
        pad: Pixels added on each side before cropping, below H and W.
        hflip: Probability of a horizontal flip.
        repeats: How often a training image comes in succession; see `EpochSampler`.
        seed: Determines every draw, together with epoch and rank.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.

    Raises:
        ValueError: `std`, `pad` or `batch_size` is out of range.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        train: bool,
        pad: int = 4,
        hflip: float = 0.5,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        size, channels, height, width = images.shape
        if min(std) <= 0:
            raise ValueError(f"data.std: should be above 0, found {tuple(std)}.")
        if not 0 <= pad < min(height, width):
            raise ValueError(
                f"data.pad: should be 0 or more and below the image's size, {height}x{width}, "
                f"for reflection. Found {pad}."
            )
        self.images, self.labels = images.to(device), labels.to(device)
        self.train, self.pad, self.hflip = train, pad, hflip
        self.seed, self.rank, self.epoch = seed, rank, 0
        self._mean = torch.tensor(mean, device=device).view(channels, 1, 1) * 255
        self._scale = 1 / (torch.tensor(std, device=device).view(channels, 1, 1) * 255)
        self._sampler = create_sampler(
            size,
            batch_size,
            train=train,
            seed=seed,
            rank=rank,
            world_size=world_size,
            repeats=repeats,
        )

    @property
    def views(self) -> int:
        """The number of ways to augment an image."""
        return 2 * (2 * self.pad + 1) ** 2

    @cached_property
    def content(self) -> str:
        """A hash of all pixels."""
        return sha256(self.images.cpu().flatten().numpy().data).hexdigest()

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in 0..255."""
        return tuple(self._mean.flatten().tolist()), tuple((1 / self._scale).flatten().tolist())

    def view_of(self, indices: Tensor, offsets: Tensor, flip: Tensor) -> Tensor:
        """Return which view of which image each item of `draws` is.

        Args:
            indices: int64 [B].
            offsets: int64 [2, B].
            flip: bool [B].

        Returns:
            int64 [B], in 0 .. N * views - 1.
        """
        spots = 2 * self.pad + 1
        return ((indices * spots + offsets[0]) * spots + offsets[1]) * 2 + flip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""
        self.epoch = epoch
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized float32 [B, 3, H, W] and int64 [B], this rank's share of each batch."""
        return (self.make(*drawn) for drawn in self.draws())

    def draws(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arguments of `make` for this rank's share of each batch.

        They are the images' indices, int64 [B], and in training the offsets of their crops, int64
        [2, B], and whether they are flipped, bool [B].
        """
        device = self.images.device
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed("augment", self.seed, self.epoch, self.rank))
        for indices in self._sampler.shares(device):
            if not self.train:
                yield (indices,)
                continue
            size, spots = len(indices), 2 * self.pad + 1
            offsets = torch.randint(spots, (2, size), generator=generator, device=device)
            flip = torch.rand(size, generator=generator, device=device) < self.hflip
            yield indices, offsets, flip

    def make(
        self, indices: Tensor, offsets: Tensor | None = None, flip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return normalized float32 [B, 3, H, W] and int64 [B] for one item of `draws`."""
        images = self.images[indices]
        if offsets is not None and flip is not None:
            images = crop_and_flip(images, offsets[0], offsets[1], flip, self.pad)
        return images.float().sub_(self._mean).mul_(self._scale), self.labels[indices]


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Pad by reflection, crop to the old size and flip, each image by its own offsets.

    One gather does all three, so the padded images never exist.

    Args:
        images: [B, C, H, W] of any type.
        top: int64 [B], first row of the crop in the padded image, 0 .. 2 pad.
        left: int64 [B], first column of the crop in the padded image, 0 .. 2 pad.
        flip: bool [B], whether the crop is mirrored left to right.
        pad: Pixels added on each side, below H and W.

    Returns:
        Images [B, C, H, W] of the same type.
    """
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    across = torch.where(flip[:, None], across.flip(0), across)  # [B, W]
    rows = _reflect(down + top[:, None] - pad, height)  # [B, H]
    columns = _reflect(across + left[:, None] - pad, width)  # [B, W]
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # [B, H * W]
    flat = images.flatten(2)
    return flat.gather(2, pixels[:, None].expand_as(flat)).view_as(images)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions beyond an edge back inside, without repeating the edge itself."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
