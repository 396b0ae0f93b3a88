"""Which process sees which image, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Loader(Protocol):
    """A source of batches, as a training loop needs it."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, 3, H, W] and labels, [B] or soft [B, C], on the device."""


def derive_seed(purpose: str, *numbers: int) -> int:
    """Mix a purpose and numbers such as (seed, epoch, rank) into one seed.

    Similar inputs give unrelated seeds, and the same ones on every machine. The purpose separates
    draws of different kinds that have the same numbers.

    Args:
        purpose: What is drawn.
        numbers: Integers, 0 or more.

    Returns:
        A seed of 64 bits.
    """
    # The length is part of it because a SeedSequence treats (1, 2) and (1, 2, 0) alike.
    sequence = np.random.SeedSequence(numbers, spawn_key=(len(numbers), *purpose.encode()))
    return int(sequence.generate_state(1, np.uint64)[0])


class EpochSampler:
    """Batches of a shuffled epoch, cut so that processes together do what one would do alone.

    All ranks draw the same permutation. Each global batch is cut into equal contiguous shares, one
    per rank. The last, partial batch is kept, except for at most `world_size - 1` images, so that
    its shares are equal too and the mean of the ranks' means is the mean of the batch.

    With `repeats`, every image comes that often in succession, on one rank after another, as in
    timm's RepeatAugSampler. An epoch stays as long, so it has fewer images.

    Args:
        size: N, the number of images.
        batch_size: Images per step, over all ranks together; a multiple of `world_size`.
        seed: Determines the permutation, together with the epoch.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.
        shuffle: False: keep the order of the data.
        repeats: How often an image comes in succession, 1 or more.

    Raises:
        ValueError: `batch_size` cannot be shared, or there is not an image for every rank.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        repeats: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"train.batch_size: should be a multiple of the {world_size} processes that share "
                f"it, found {batch_size}."
            )
        if size < world_size:
            raise ValueError(
                f"data.train_split: should hold an image for each of {world_size} processes, "
                f"found {size}."
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    def shares(self, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Return this rank's indices of every batch, all moved to the device at once."""
        full = self.size - self.size % self.batch_size
        share = self.batch_size // self.world_size
        tail = (self.size - full) // self.world_size
        order = self._order()
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)
            own = order[: full + tail * self.world_size][self.rank :: self.world_size]
            return torch.split(own.to(device), share)
        own_tail = order[full + self.rank * tail :][:tail]
        own = order[:full].view(-1, self.world_size, share)[:, self.rank].flatten()
        return torch.split(torch.cat([own, own_tail]).to(device), share)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's indices of one batch after another."""
        return (share.tolist() for share in self.shares())

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator)


class EvalSampler:
    """Batches for evaluation: every image once, in order, on exactly one rank.

    Rank r takes r, r + world_size, ...; nothing is padded, so sums over the ranks are exact. Ranks
    may differ by one batch or have none, so the model must not be wrapped in DDP.

    Args:
        size: N, the number of images.
        batch_size: Images per step, over all ranks together.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.own = range(rank, size, world_size)
        self.rank, self.world_size = rank, world_size
        self.share = max(1, batch_size // world_size)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing, because evaluation is the same in every epoch."""

    def shares(self, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Return this rank's indices of every batch, all moved to the device at once."""
        # An empty tensor splits into one empty batch, not into none.
        return torch.split(torch.tensor(self.own).to(device), self.share) if self.own else ()

    def __len__(self) -> int:
        """Return how many batches this rank has."""
        return -(-len(self.own) // self.share)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's indices of one batch after another."""
        return (share.tolist() for share in self.shares())


def create_sampler(
    size: int,
    batch_size: int,
    *,
    train: bool,
    seed: int,
    rank: int,
    world_size: int,
    repeats: int = 1,
) -> EpochSampler | EvalSampler:
    """Return an `EpochSampler` to train, an `EvalSampler` to evaluate."""
    if train:
        return EpochSampler(
            size, batch_size, seed=seed, rank=rank, world_size=world_size, repeats=repeats
        )
    return EvalSampler(size, batch_size, rank=rank, world_size=world_size)
