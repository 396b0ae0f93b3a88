"""The section `data`: which images, how they are split, and how they are augmented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_core import InitErrorDetails

from ..data.images import MODES
from .section import Section, Share, changed, checked, problem, without_effect

_ONLY_IN: dict[str, tuple[str, ...]] = {
    "memory": ("pad", "cache"),
    "timm": (
        "streaming",
        *("train_crop_mode", "scale", "ratio", "vflip", "color_jitter", "color_jitter_prob"),
        *("grayscale_prob", "gaussian_blur_prob", "aa", "reprob", "remode", "recount"),
        *("interpolation", "crop_pct", "no_aug", "workers", "aug_splits", "resplit"),
    ),
}
_ONLY_STREAMED = ("train_num_samples", "num_classes", "shuffle_buffer")
_ONLY_MIXED = ("mixup_prob", "mixup_mode", "mixup_off_epoch")
_NOT_STREAMED = ("holdout", "images_per_class", "split_seed", "class_map", "aug_repeats")


def _range_problem(ends: tuple[float, float] | None) -> str | None:
    if ends is None or ends[0] <= ends[1]:
        return None
    return f"should be the lower end, then the upper. Found {list(ends)}."


def _in_chans_problem(channels: int) -> str | None:
    if channels in MODES:
        return None
    return f"should be 1 (gray), 3 (RGB) or 4 (RGBA). Found {channels}."


def _splits_problem(splits: int) -> str | None:
    if splits == 0 or 2 <= splits <= 100:
        return None
    return f"should be 0, or 2 to 100. Found {splits}."


_InOrder = checked(_range_problem)
_Positive = Annotated[float, Field(gt=0, le=1)]


def _splits_problems(
    section: type[DataConfig], data: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """Yield what does not go with several views of an image."""
    if changed(section, data, ("aug_splits",)):
        for name in changed(section, data, ("mixup", "cutmix", "cutmix_minmax", "no_aug")):
            yield problem((name,), "should be left out beside data.aug_splits.")
    elif changed(section, data, ("resplit",)):
        yield problem(("resplit",), "has no effect without data.aug_splits.")


def _mix_problems(section: type[DataConfig], data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Yield what has no effect on images that are not mixed, or are mixed in one way only."""
    cutmix = bool(changed(section, data, ("cutmix", "cutmix_minmax")))
    mixup = bool(changed(section, data, ("mixup",)))
    if not (mixup or cutmix):
        yield from without_effect(
            section, data, _ONLY_MIXED, "data.mixup or data.cutmix is above 0"
        )
    if not (mixup and cutmix):
        both = "data.mixup and data.cutmix are above 0"
        yield from without_effect(section, data, ("mixup_switch_prob",), both)


def _channel_problems(
    section: type[DataConfig], data: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """Yield what does not go with the number of channels."""
    channels = str(data.get("in_chans", 3))
    for name in ("mean", "std"):
        given = data.get(name)
        if isinstance(given, list | tuple) and str(len(given)) != channels:
            yield problem((name,), f"should have {channels} numbers, as many as in_chans.")
    if channels == "4":
        for name in changed(section, data, ("aa", "grayscale_prob")):
            yield problem((name,), "should be left out, because timm cannot do it to 4 channels.")


class DataConfig(Section):
    """Images, splits, augmentation; names shared with timm's training script mean the same."""

    dataset: str = "digits"
    """`digits` (bundled), a folder (parquet, arrow or images), or a Hugging Face hub id."""
    dataset_config: str | None = None
    """Configuration, for a hub data set that has several."""
    input_key: str = "image"
    """Column that holds the images."""
    target_key: str = "label"
    """Column that holds the labels."""
    class_map: str | None = None
    """File that lists the classes, one a line, in the order of their labels; images of others are
    left out. null: all classes of the data set."""
    in_chans: Annotated[int, checked(_in_chans_problem)] = 3
    """Channels of the images: gray (1), RGB (3), or RGBA (4)."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str | None = None
    """Split for validation, if the data set has one; null: none."""
    test_split: str | None = "test"
    """Split for the single evaluation at the end; null: none."""
    holdout: NonNegativeInt = 0
    """Number of training images to hold out for validation."""
    split_seed: NonNegativeInt = 0
    """Seed that selects the held-out images."""
    images_per_class: PositiveInt | None = None
    """Training images to keep per class, for small experiments; null: all."""
    pipeline: Literal["memory", "timm"] = "memory"
    """`memory`: small images, decoded once, augmented on the device. `timm`: timm's transforms."""
    streaming: bool = False
    """Read images in order, shard by shard, for data too large to prepare (timm)."""
    train_num_samples: PositiveInt | None = None
    """Images of an epoch; null: as many as there are, counted if not stated (streaming)."""
    num_classes: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """Number of classes; null: stated by the data, or counted (streaming)."""
    shuffle_buffer: Annotated[int, Field(ge=1, le=10**6)] = 1000
    """Images that each worker holds, undecoded, to mix them (streaming)."""
    cache: bool = True
    """Keep decoded images in timm_ktg/images of the user's cache folder (memory)."""
    img_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Height and width of the images; null: unchanged (memory), or the target's (timm)."""
    mean: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """Mean to normalize with, in 0..1; null: measured (memory), or the target's (timm)."""
    std: Annotated[tuple[_Positive, ...], Field(min_length=1)] | None = None
    """Standard deviation to normalize with, above 0, at most 1; null: as for `mean`."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    pad: NonNegativeInt = 4
    """Pixels to pad by reflection before the random crop (memory)."""
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] | None = None
    """Random crop: resized (rrc), or resized with its ratio kept and cropped, at the center (rkrc)
    or at random (rkrr); null: rrc (timm)."""
    scale: Annotated[tuple[Share, Share], _InOrder] = (0.08, 1.0)
    """Range of the random crop's share of the image (timm)."""
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], _InOrder] = (0.75, 1.3333333333333333)
    """Range of the random crop's aspect ratio (timm)."""
    vflip: Share = 0.0
    """Probability of a vertical flip (timm)."""
    color_jitter: NonNegativeFloat = 0.4
    """Strength of the color jitter (timm)."""
    color_jitter_prob: Share | None = None
    """Probability of the color jitter, which is then as in SimCLR; null: always (timm)."""
    grayscale_prob: Share = 0.0
    """Probability that an image turns gray (timm)."""
    gaussian_blur_prob: Share = 0.0
    """Probability of a Gaussian blur (timm)."""
    aa: str | None = None
    """AutoAugment policy, such as rand-m9-mstd0.5-inc1 (timm)."""
    reprob: Share = 0.0
    """Probability of random erasing (timm)."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill of the erased regions (timm)."""
    recount: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of erased regions (timm)."""
    interpolation: str = "random"
    """Interpolation in training (timm)."""
    crop_pct: _Positive | None = None
    """Share of the image that evaluation crops; null: the target's (timm)."""
    no_aug: bool = False
    """Switch off all augmentation (timm)."""
    aug_repeats: Annotated[int, Field(ge=0, le=1000)] = 0
    """How often an image comes in succession, augmented anew each time; an epoch stays as long, so
    it has fewer images. 0 or 1: once."""
    aug_splits: Annotated[int, checked(_splits_problem)] = 0
    """Views of each image in a batch: a clean one, only cropped and flipped, and augmented ones,
    which the loss `jsd` compares; 0: a single augmented one (timm)."""
    resplit: bool = False
    """Erase nothing in clean views; needs `aug_splits` (timm)."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 4
    """Number of processes that decode and augment (timm)."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup; 0: off. The gate `correct` then looks at the dominant label."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of cutmix; 0: off."""
    cutmix_minmax: Annotated[tuple[Share, Share] | None, _InOrder] = None
    """Range of cutmix's share of the image; overrides `cutmix`."""
    mixup_prob: Share = 1.0
    """Probability that mixup or cutmix is applied."""
    mixup_switch_prob: Share = 0.5
    """Probability of cutmix when both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Draw the mix per batch, per pair, or per element."""
    mixup_off_epoch: NonNegativeInt = 0
    """Epoch from which mixing is off; 0: never."""

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    def shortened(self, share: float) -> DataConfig:
        """Return the images of a shorter training, which mixes for as large a part of it.

        Args:
            share: The part of the epochs that is left; see `TrainConfig.shortened`.
        """
        off = self.mixup_off_epoch
        return self.model_copy(
            update={"mixup_off_epoch": max(1, int(off * share + 0.5)) if off else 0}
        )

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the fields that have no effect or exclude each other."""
        for pipeline, fields in _ONLY_IN.items():
            if pipeline != data.get("pipeline", cls.model_fields["pipeline"].default):
                yield from without_effect(cls, data, fields, f"data.pipeline is {pipeline}")
        streamed = bool(changed(cls, data, ("streaming",)))
        if not streamed:
            yield from without_effect(cls, data, _ONLY_STREAMED, "data.streaming is true")
        for name in changed(cls, data, _NOT_STREAMED if streamed else ()):
            yield problem((name,), "has no effect on images that are streamed. Leave it out.")
        if (data.get("mean") is None) != (data.get("std") is None):
            yield problem(("mean",), "mean and std should be given together.")
        yield from _channel_problems(cls, data)
        yield from _splits_problems(cls, data)
        yield from _mix_problems(cls, data)
        if changed(cls, data, ["holdout"]) and data.get("val_split"):
            yield problem(("holdout",), "should be 0 when val_split names a split.")
