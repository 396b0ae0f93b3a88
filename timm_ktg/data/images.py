"""From stored images to one tensor in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import first_line

if TYPE_CHECKING:
    from datasets import Dataset


# Pillow's mode of an image by its number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(
    dataset: Dataset,
    input_key: str,
    target_key: str,
    img_size: int | None = None,
    in_chans: int = 3,
) -> tuple[Tensor, Tensor]:
    """Decode a whole split into memory.

    Args:
        dataset: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        img_size: Resize every image to this height and width (bicubic, antialiased; the aspect
            ratio is not kept); None: images keep the one size that they share.
        in_chans: Channels of the images, which become gray (1), RGB (3) or RGBA (4).

    Returns:
        Images, uint8 [N, in_chans, H, W], and labels, int64 [N].

    Raises:
        ValueError: An image cannot be read, sizes differ and `img_size` is None, or the images do
            not fit into memory.
    """
    pixels = np.empty((0, in_chans, 0, 0), dtype=np.uint8)
    for row, image in enumerate(_read(dataset, input_key, in_chans)):
        if row == 0:
            width, height = image.size if img_size is None else (img_size, img_size)
            pixels = _room_for(len(dataset), in_chans, height, width)
        if img_size is not None and image.size != (img_size, img_size):
            image = image.resize((img_size, img_size), Image.Resampling.BICUBIC)
        if (image.height, image.width) != pixels.shape[2:]:
            raise ValueError(
                f"data.img_size: images should be of one size, found {pixels.shape[3]}x"
                f"{pixels.shape[2]} and, at row {row}, {image.width}x{image.height}. "
                "Set data.img_size, or data.pipeline timm."
            )
        pixels[row] = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    labels = dataset.with_format("numpy", columns=[target_key])[:][target_key]
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


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


def undecoded(dataset: Dataset, input_key: str, *others: str) -> Dataset:
    """Return some columns of a split, with images as they are stored, for `read_image`."""
    from datasets import Image as ImageFeature

    columns = dataset.select_columns([input_key, *others])
    return columns.cast_column(input_key, ImageFeature(decode=False))


def read_image(stored: Any, input_key: str, row: int, in_chans: int = 3) -> Image.Image:
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
    return image.convert(MODES[in_chans])


def _read(dataset: Dataset, input_key: str, in_chans: int) -> Iterator[Image.Image]:
    """Yield every image, with only a few encoded ones in memory at a time."""
    batches = undecoded(dataset, input_key).iter(256)
    values = (value for batch in batches for value in batch[input_key])
    return (read_image(value, input_key, row, in_chans) for row, value in enumerate(values))
