"""Batches from streams: shards are dealt out, mixed and read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .images import read_image, undecoded
from .mixup import MixupLoader
from .sampling import EpochSampler, Loader, derive_seed
from .stream_reader import Place, Reader
from .streams import Stream
from .transforms import ToDevice, Transform, collated, moved_to, read_batches, seeded


@dataclass
class _Batches(IterableDataset[tuple[Tensor, Tensor, Place | None]]):
    """The batches of a process; each worker makes every n-th, and goes on where it was.

    Args:
        reader: The first reader of this process, before its worker is known.
        transform: Maps an RGB image to a tensor or an array.
        num_classes: C.
        in_chans: Channels of the images.
        sizes: The size of each batch of an epoch; None: one pass, in order.
        share: Images per batch.
        seeds: Seed and rank.
        epoch: The next epoch.
        places: Where each worker starts.
    """

    reader: Reader
    transform: Transform
    num_classes: int
    in_chans: int
    sizes: Sequence[int] | None
    share: int
    seeds: tuple[int, int]
    epoch: int
    places: Sequence[Place]
    _rows: Iterator[tuple[dict[str, Any], Place]] | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Place | None]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader = replace(self.reader, number=self.reader.number + worker)
        if self.sizes is None:
            rows = reader.in_order()
            while batch := list(islice(rows, self.share)):
                yield *self._made(batch), None
            return
        self._rows = self._rows or reader.mixed(self.places[worker])
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number in range(worker, len(self.sizes), workers):
            batch, places = zip(*islice(self._rows, self.sizes[number]), strict=True)
            with seeded(derive_seed("augment", self.seeds[0], epoch, self.seeds[1], number)):
                made = self._made(batch)
            yield *made, places[-1]

    def _made(self, batch: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        samples = []
        for row in batch:
            image = read_image(row["image"], self.reader.keys[0], row["where"], self.in_chans)
            label = row["label"]
            if label is None or not 0 <= label < self.num_classes:
                raise ValueError(
                    f"data.target_key: row {row['where']} of `{self.reader.keys[1]}` should be one "
                    f"of the classes, 0 .. {self.num_classes - 1}. Found {label}."
                )
            samples.append((self.transform(image), label))
        return collated(samples)


class StreamLoader:
    """Batches of transformed images from a stream.

    In training, every process has the same number of batches in every epoch. Readers (the workers
    of all processes) go on in the next epoch where they were, and begin another pass, in another
    order, where they come to an end. So no image is left out, but some may come again before others
    do. Blocks of `buffer` images are read from a few shards at a time and mixed.

    The order depends on the numbers of processes and of workers. An epoch can be repeated, and
    after `load_state_dict` the next is the one that an uninterrupted run would have had.

    In evaluation, every image comes once, on one process.

    Args:
        stream: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        transform: Maps an image to a float32 [in_chans, H, W], or to what `to_device` takes.
        num_classes: Classes C.
        batch_size: Images per step, over all ranks together.
        device: Where batches are moved.
        train: Mix, without end.
        in_chans: Channels of the images; see `decode`.
        workers: Processes that read and transform; 0: this one does.
        buffer: Images of a block.
        seed: Determines every draw.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.
        to_device: Moves batches to the device in a way of its own; None: plainly.

    Raises:
        ValueError: In training, `batch_size` is not a multiple of `world_size`, or an epoch has not
            an image for every process.
    """

    def __init__(
        self,
        stream: Stream,
        input_key: str,
        target_key: str,
        transform: Transform,
        *,
        num_classes: int,
        batch_size: int,
        device: torch.device | str,
        train: bool,
        in_chans: int = 3,
        workers: int = 4,
        buffer: int = 1000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        to_device: ToDevice | None = None,
    ) -> None:
        device, keys = torch.device(device), (input_key, target_key)
        self.epoch, self._workers, self._readers = 0, workers, max(workers, 1)
        self._train, self._pin = train, device.type == "cuda"
        self._to_device = to_device or moved_to(device)
        share = max(1, batch_size // world_size)
        readers = self._readers * world_size
        dataset = undecoded(stream.dataset, *keys)
        if train and dataset.num_shards < readers:
            dataset = dataset.reshard()
        reader = Reader(
            Stream(dataset, stream.size), keys, rank * self._readers, readers, seed, buffer
        )
        sampler = EpochSampler(stream.size, batch_size, seed=0, world_size=world_size)
        sizes = [len(each) for each in sampler.shares()] if train else None
        self._length = -(-stream.size // (share * world_size)) if sizes is None else len(sizes)
        self._batches = _Batches(
            *(reader, transform, num_classes, in_chans, sizes, share, (seed, rank), 0, ())
        )
        self._places: dict[int, tuple[Place, ...]] = {}  # at the start of an epoch
        self._loader: DataLoader[Any] | None = None
        self._goes_on_at: int | None = None  # the epoch that the loader's workers are ready for

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank; in evaluation, about how many."""
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `to_device` makes of images and int64 [B], this rank's share of each batch."""
        return iter(self._to_device(self._read()))

    def state_dict(self) -> dict[str, Any]:
        """Return where this process's readers are after the epoch that was iterated last."""
        epoch = max(self._places)
        return {"epoch": epoch, "places": [asdict(place) for place in self._places[epoch]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was, in the epoch that follows.

        Raises:
            ValueError: It is no such state, or it was with another number of workers.
        """
        places = TypeAdapter(tuple[Place, ...]).validate_python(state["places"])
        if len(places) != self._readers:
            raise ValueError(
                f"data.workers should be {len(places)}, as when the run stopped. "
                f"Found {self._workers}"
            )
        self._places = {int(state["epoch"]): places}
        self._loader = None

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch if self._train else 0
        begun = self._places.get(epoch) or (Place(turn=epoch),) * self._readers
        if self._loader is None or epoch != self._goes_on_at:
            self._loader = self._new_loader(epoch, begun)
        self._goes_on_at = None  # unless the iteration comes to its end
        places = list(begun)
        for number, (images, labels, place) in enumerate(read_batches(self._loader)):
            places[number % self._readers] = place
            yield images, labels
        self._goes_on_at = epoch + self._train
        if self._train:
            self._places = {epoch: begun, epoch + 1: tuple(places)}

    def _new_loader(self, epoch: int, places: Sequence[Place]) -> DataLoader[Any]:
        return DataLoader(
            replace(self._batches, epoch=epoch, places=places),
            batch_size=None,
            num_workers=self._workers,
            pin_memory=self._pin,
            persistent_workers=self._workers > 0,
            generator=torch.Generator(),  # the global one is left alone
        )


def stream_of(loader: Loader) -> StreamLoader | None:
    """Return the loader that streams the images of another, if one does."""
    inner = loader.loader if isinstance(loader, MixupLoader) else loader
    return inner if isinstance(inner, StreamLoader) else None
