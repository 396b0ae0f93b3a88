"""Who reads which rows of a stream, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from ..errors import one_line
from .sampling import derive_seed
from .streams import Stream

S = TypeVar("S", list[int], range, NDArray[np.int64])

_LANES = 4  # shards that are read side by side, so that a batch has images of several


@dataclass(frozen=True)
class Place:
    """Where a reader is in its endless stream.

    Args:
        turn: The pass over all shards, from 0.
        opened: How many shards of the pass have been opened.
        lanes: Each open shard, and how many of its rows have been read.
        block: The number of the block within the pass.
        given: How many rows of the block have been given out.
    """

    turn: NonNegativeInt = 0
    opened: NonNegativeInt = 0
    lanes: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    block: NonNegativeInt = 0
    given: NonNegativeInt = 0


@dataclass
class _Lane:
    shard: int
    taken: int
    rows: Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Reader:
    """One of all the readers of a stream, those of other processes included.

    With as many shards as readers, each reads its own, which change from pass to pass. With fewer,
    every reader reads all shards and keeps every `readers`-th row; decoding takes longer than that.

    Args:
        stream: The split, its images undecoded.
        keys: The columns of images and of class indices.
        number: This reader, 0 .. readers - 1.
        readers: The number of readers.
        seed: Determines the order.
        buffer: Rows of a block, which are mixed with each other.
    """

    stream: Stream
    keys: tuple[str, str]
    number: int
    readers: int
    seed: int
    buffer: int

    def in_order(self) -> Iterator[dict[str, Any]]:
        """Return this reader's rows of one pass, unmixed."""
        every = range(self._shards)
        shards = self._part(every) if self._owns else every
        rows = (row for shard in shards for row in self._rows(shard, 0))
        return rows if self._owns else islice(rows, self.number, None, self.readers)

    def mixed(self, place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
        """Yield rows without end, and the place behind each.

        A block is read again from its start to go on within it, so a place is a few numbers.
        """
        while True:
            empty = not place.opened
            for rows, at in self._blocks(place):
                empty = empty and not rows
                for given in range(place.given, len(rows)):
                    yield rows[given], replace(at, given=given + 1)
                place = replace(place, given=0)
            if empty:
                raise ValueError("data.train_split: a reader found no image. Use fewer workers.")
            place = Place(turn=place.turn + 1)

    def _blocks(self, place: Place) -> Iterator[tuple[list[dict[str, Any]], Place]]:
        """Yield the mixed blocks of a pass, each with the place of its start."""
        shards = self._order(place.turn)
        opened = place.opened
        lanes = [_Lane(shard, taken, self._rows(shard, taken)) for shard, taken in place.lanes]
        for block in count(place.block):
            at = Place(place.turn, opened, tuple((e.shard, e.taken) for e in lanes), block)
            rows: list[dict[str, Any]] = []
            while len(rows) < self.buffer:
                for shard in shards[opened : opened + _LANES - len(lanes)]:
                    lanes.append(_Lane(shard, 0, self._rows(shard, 0)))
                    opened += 1
                if not lanes:
                    break
                lanes = [lane for lane in lanes if self._take(lane, rows)]
            if not rows:
                return
            # Readers of the same rows mix them in the same way, and keep different ones.
            who = self.number if self._owns else 0
            mix = np.random.default_rng(derive_seed("block", self.seed, place.turn, block, who))
            order = mix.permutation(len(rows))
            yield [rows[each] for each in (order if self._owns else self._part(order))], at

    def _take(self, lane: _Lane, rows: list[dict[str, Any]]) -> bool:
        """Move a lane's share of a block to its rows; return whether the lane may have more."""
        share = min(-(-self.buffer // _LANES), self.buffer - len(rows))
        before = len(rows)
        rows += islice(lane.rows, share)
        lane.taken += len(rows) - before
        return len(rows) - before == share

    def _order(self, turn: int) -> list[int]:
        """Return the shards that this reader opens in a pass, in their order."""
        mix = np.random.default_rng(derive_seed("shards", self.seed, turn))
        order: list[int] = mix.permutation(self._shards).tolist()
        return self._part(order) if self._owns else order

    def _part(self, every: S) -> S:
        """Return this reader's part of what all readers have."""
        return every[self.number :: self.readers]

    @property
    def _shards(self) -> int:
        return int(self.stream.dataset.num_shards)

    @property
    def _owns(self) -> bool:
        """Whether each reader has shards of its own."""
        return self._shards >= self.readers

    def _rows(self, shard: int, start: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a shard, from one on.

        Raises:
            ValueError: The shard cannot be read.
        """
        dataset = self.stream.dataset.shard(self._shards, shard)
        image, label = self.keys
        number = count(start)
        try:
            # Not by `iter(dataset)`, which would deal the rows out to torch's workers again.
            for batch in dataset.skip(start).iter(32):
                for each in zip(batch[image], batch[label], strict=True):
                    where = f"{next(number)} of shard {shard}"
                    yield {"image": each[0], "label": each[1], "where": where}
        except Exception as error:  # all kinds: a damaged file, or a network that is away
            raise ValueError(f"data.dataset: shard {shard}: {one_line(error)}") from error
