"""From the section `data` to timm's transform of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from PIL import Image
from timm.data import create_transform

from ..data import Transform
from ..errors import did_you_mean
from ..graph.node import Channels
from ..records.result import Preparation
from .data_config import DataConfig

_INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "random")
_BLUR = 23  # pixels of the kernel, in timm


@dataclass(frozen=True)
class Views:
    """Makes a clean view of an image and augmented ones, as `timm.data.AugMixDataset` does.

    Args:
        crop: Crops and flips; the views share what it makes.
        augment: Augments all views but the first.
        finish: Makes tensors of augmented views.
        finish_clean: Makes a tensor of the first view.
        count: The number of views.
    """

    crop: Transform
    augment: Transform
    finish: Transform
    finish_clean: Transform
    count: int

    def __call__(self, image: Image.Image) -> tuple[Any, ...]:
        """Return the views of an image."""
        cropped = self.crop(image)
        others = [self.finish(self.augment(cropped)) for _ in range(self.count - 1)]
        return self.finish_clean(cropped), *others


def build_transform(
    data: DataConfig,
    preparation: Preparation,
    mean: Channels,
    std: Channels,
    train: bool,
    as_bytes: bool = False,
) -> Transform:
    """Return timm's transform; with `data.aug_splits`, several views of an image (`Views`).

    Args:
        data: The section of the recipe.
        preparation: How evaluation prepares an image.
        mean: [C] means of the channels, in 0..1.
        std: [C] standard deviations of the channels, in 0..1.
        train: Whether to augment.
        as_bytes: Whether to return uint8, neither normalized nor erased.

    Raises:
        ValueError: timm does not know the interpolation or the augmentation policy.
    """
    if data.interpolation not in _INTERPOLATIONS:
        raise ValueError(
            f"data.interpolation: `{data.interpolation}` is not known. Should be one of: "
            f"{', '.join(_INTERPOLATIONS)}.{did_you_mean(data.interpolation, _INTERPOLATIONS)}"
        )
    if data.gaussian_blur_prob and min(preparation.input_size[1:]) <= _BLUR // 2:
        height, width = preparation.input_size[1:]
        raise ValueError(
            f"data.gaussian_blur_prob: timm's blur should have images above {_BLUR // 2} pixels. "
            f"Found {height}x{width}."
        )
    splits = data.aug_splits if train else 0

    def created(erase: float) -> Any:
        return create_transform(
            preparation.input_size,
            is_training=train,
            no_aug=data.no_aug,
            train_crop_mode=data.train_crop_mode,
            scale=data.scale,
            ratio=data.ratio,
            hflip=data.hflip,
            vflip=data.vflip,
            color_jitter=data.color_jitter,
            color_jitter_prob=data.color_jitter_prob,
            grayscale_prob=data.grayscale_prob,
            gaussian_blur_prob=data.gaussian_blur_prob,
            auto_augment=data.aa,
            interpolation=data.interpolation if train else preparation.interpolation,
            mean=mean,
            std=std,
            re_prob=erase,
            re_mode=data.remode,
            re_count=data.recount,
            crop_pct=preparation.crop_pct,
            crop_mode=preparation.crop_mode,
            use_prefetcher=as_bytes,
            separate=splits > 0,
        )

    try:
        made = created(data.reprob)
        if not splits:
            return cast("Transform", made)
        clean = created(0.0)[-1] if data.resplit else made[-1]
        crop, augment, finish = made
        return Views(crop, augment, finish, clean, splits)
    except AssertionError as error:  # timm's error for an unknown policy
        raise ValueError(f"data.aa: `{data.aa}`: {error}.") from error
