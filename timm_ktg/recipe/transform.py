"""From the section `data` to timm's transform of an image."""

from __future__ import annotations

from timm.data import create_transform

from ..data import Transform
from ..errors import did_you_mean
from ..graph.node import Channels
from ..records.result import Preparation
from .data_config import DataConfig

_INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "random")
_BLUR = 23  # pixels of the kernel, in timm


def build_transform(
    data: DataConfig,
    preparation: Preparation,
    mean: Channels,
    std: Channels,
    train: bool,
    as_bytes: bool = False,
) -> Transform:
    """Return timm's transform.

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
    try:
        transform: Transform = create_transform(
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
            re_prob=data.reprob,
            re_mode=data.remode,
            re_count=data.recount,
            crop_pct=preparation.crop_pct,
            crop_mode=preparation.crop_mode,
            use_prefetcher=as_bytes,
        )
    except AssertionError as error:  # timm's error for an unknown policy
        raise ValueError(f"data.aa: `{data.aa}`: {error}.") from error
    return transform
