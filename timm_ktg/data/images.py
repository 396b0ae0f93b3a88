"""From stored images to one tensor in memory."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import PIL
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from ..errors import first_line, one_line
from .cache import allowed_bytes, cache_folder, kept_bytes

T = TypeVar("T")

# Pillow's mode of an image by its number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_MANY = 4096  # images; fewer are decoded before workers have started
_CHUNK = 2**22  # bytes

_logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

D = TypeVar("D", "Dataset", "IterableDataset")


def decode(
    dataset: Dataset,
    input_key: str,
    target_key: str,
    img_size: int | None = None,
    in_chans: int = 3,
    cache: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decode a whole split into memory, many images by all cores.

    Args:
        dataset: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        img_size: Resize every image to this height and width (bicubic, antialiased; the aspect
            ratio is not kept); None: images keep the one size that they share.
        in_chans: Channels of the images, which become gray (1), RGB (3) or RGBA (4).
        cache: Keep many images in `timm_ktg/images` of the user's cache folder (XDG_CACHE_HOME).
            The next run, and other processes of this host, map that file into their memory.

    Returns:
        Images, uint8 [N, in_chans, H, W], and labels, int64 [N].

    Raises:
        ValueError: An image cannot be read, sizes differ and `img_size` is None, or the images do
            not fit into memory.
    """
    stored = undecoded(dataset, input_key)
    first = read_image(stored[0][input_key], input_key, 0, in_chans)
    width, height = first.size if img_size is None else (img_size, img_size)
    chunks = Chunks(stored, input_key, img_size, in_chans, height, width)
    shape = (len(dataset), in_chans, height, width)
    pixels = _kept(chunks, shape) if cache and len(dataset) >= _MANY else None
    if pixels is None:
        pixels = _room_for(len(dataset), in_chans, height, width)
        chunks.fill(pixels)
    labels = dataset.with_format("numpy", columns=[target_key])[:][target_key]
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class Chunks:
    """The images of a split, decoded some at a time.

    Args:
        stored: The split, its images undecoded.
        input_key: The column of images.
        img_size: Resize images to this height and width; None: they are of one size.
        in_chans: Channels of the images, C.
        height: Height of the images.
        width: Width of the images.
    """

    stored: Dataset
    input_key: str
    img_size: int | None
    in_chans: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """The number of images in a chunk, which travels through shared memory."""
        return max(1, _CHUNK // (self.in_chans * self.height * self.width))

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-len(self.stored) // self.rows)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """Return a chunk, uint8 [n, C, H, W].

        Raises:
            ValueError: An image cannot be read, or is of another size.
        """
        start = number * self.rows
        values = self.stored[start : start + self.rows][self.input_key]
        pixels = np.empty((len(values), self.in_chans, self.height, self.width), np.uint8)
        for row, value in enumerate(values):
            image = read_image(value, self.input_key, start + row, self.in_chans)
            if self.img_size is not None and image.size != (self.img_size, self.img_size):
                image = image.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC)
            if image.size != (self.width, self.height):
                raise ValueError(
                    f"data.img_size: images should be of one size, found {self.width}x"
                    f"{self.height} and, at row {start + row}, {image.width}x{image.height}. "
                    "Set data.img_size, or data.pipeline timm."
                )
            pixels[row] = np.asarray(image).reshape(self.height, self.width, -1).transpose(2, 0, 1)
        return pixels

    def fill(self, pixels: NDArray[np.uint8]) -> None:
        """Decode all images into an array [N, C, H, W], many of them by all cores.

        Raises:
            ValueError: As `__getitem__`.
        """
        start, total = 0, len(self.stored)
        loader = DataLoader(
            cast("TorchDataset[NDArray[np.uint8]]", self),
            batch_size=None,
            num_workers=_cores() if total >= _MANY else 0,
            generator=torch.Generator(),  # the global one is left alone
        )
        with tqdm(total=total, desc="Decoding", unit="image", leave=False, disable=None) as bar:
            for chunk in without_tracebacks(loader):
                pixels[start : start + len(chunk)] = chunk
                start += len(chunk)
                bar.update(len(chunk))


def without_tracebacks(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of a loader.

    Raises:
        ValueError: A worker raised it. torch gives the error with a traceback, whose last line is
            the error.
    """
    try:
        yield from batches
    except ValueError as error:
        line = str(error).strip().splitlines()[-1]
        raise ValueError(line.removeprefix("ValueError: ")) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kept(chunks: Chunks, shape: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
    """Return decoded images in a file of the cache; None if they cannot be kept there.

    The file's name is a hash of what was decoded, and how.
    """
    stored = chunks.stored
    facts = (stored._fingerprint, chunks.input_key, chunks.img_size, shape, PIL.__version__)
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    size, allowed = math.prod(shape), allowed_bytes()
    if size > allowed:
        sizes = " of ".join(f"{each / 2**30:.1f} GiB" for each in (size, allowed))
        _logger.warning("Decoded images are not kept: they take %s for the cache.", sizes)
        return None
    try:
        return kept_bytes(cache_folder("images") / f"{name}.npy", shape, chunks.fill)
    except OSError as error:
        _logger.warning("Decoded images are not kept (data.cache): %s", one_line(error))
        return None


def _room_for(count: int, in_chans: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return an array for images, if there is memory for it.

    Systems promise more memory than they have, and kill who uses it, so the size is compared first.
    """
    size = count * in_chans * height * width
    try:
        if size > psutil.virtual_memory().total:
            raise MemoryError
        return np.empty((count, in_chans, height, width), dtype=np.uint8)
    except MemoryError:
        raise ValueError(
            f"data.pipeline: {count:,} images of {width}x{height} take {size / 2**30:,.1f} GiB "
            "of memory, more than there is. Say `pipeline: timm`, which reads them batch by batch, "
            "or a smaller `img_size`."
        ) from None


def channel_stats(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel, with pixels in 0..1.

    They are exact, because the 256 levels of a pixel are counted, not summed.

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        Means and (population) standard deviations, [C] each, in 0..1.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    # Counting a channel copies it, so it is not counted all at once.
    for chunk in torch.split(images, 4096):
        for channel, count in enumerate(counts):
            count += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    weights = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]).square()).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def check_some(dataset: Dataset, input_key: str, count: int = 64) -> None:
    """Check that some images of a split can be read: the first, the last, and others between them.

    Args:
        dataset: The split.
        input_key: The column of images.
        count: The number of images to read.

    Raises:
        ValueError: An image cannot be read.
    """
    stored = undecoded(dataset, input_key)
    for row in np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist():
        read_image(stored[row][input_key], input_key, row)


def undecoded(dataset: D, input_key: str, *others: str) -> D:
    """Return some columns of a split, with images as they are stored, for `read_image`."""
    from datasets import Image as ImageFeature

    columns = dataset.select_columns([input_key, *others])
    stored: D = columns.cast_column(input_key, ImageFeature(decode=False))
    return stored


def read_image(stored: Any, input_key: str, row: int | str, in_chans: int = 3) -> Image.Image:
    """Decode one image of an `undecoded` column.

    Args:
        stored: The image's bytes or path, as Datasets keeps them.
        input_key: The column, for the error message.
        row: The row, for the error message.
        in_chans: Channels of the image; see `decode`.

    Returns:
        The image.

    Raises:
        ValueError: There is no image, or it cannot be read or converted.
    """
    try:
        if stored is None:
            raise ValueError("should hold an image, found none")
        return decode_image(stored, in_chans)
    except Exception as error:  # Pillow's plugins raise all kinds of errors
        path = stored.get("path") if isinstance(stored, dict) else None
        where = f"row {row} of `{input_key}`" + (f" ({path})" if path else "")
        raise ValueError(f"data.input_key: {where}: {first_line(error)}") from error


def decode_image(stored: Mapping[str, Any], in_chans: int = 3) -> Image.Image:
    """Decode an image, turned upright, as every image of a data set is decoded.

    Args:
        stored: `bytes` of the file, or None, and its `path`.
        in_chans: Channels of the image; see `decode`.

    Returns:
        The image.

    Raises:
        Exception: It cannot be read; Pillow's plugins raise all kinds of errors.
    """
    from datasets import Image as ImageFeature

    return _with_channels(ImageFeature().decode_example(stored), in_chans)


def _with_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """Convert to channels of 8 bits; transparency is dropped unless there are four."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip these silently
        raise ValueError(f"should have 8 bits a channel, found mode {image.mode}")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about converting directly
    mode = MODES[in_chans]
    return image if image.mode == mode else image.convert(mode)
