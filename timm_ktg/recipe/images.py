"""From the section `data` to loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ..data import (
    Loader,
    MemoryLoader,
    MixupLoader,
    Splits,
    Stream,
    StreamLoader,
    TransformLoader,
    channel_stats,
    check_first,
    check_labels,
    check_some,
    decode,
)
from ..errors import RecipeError
from ..graph.node import Channels
from ..records.result import Preparation
from .build import fitted
from .data_config import DataConfig
from .delivery import delivery
from .recipe import Recipe
from .transform import build_transform

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessInfo:
    """A process that trains.

    Args:
        device: The device for its batches.
        rank: The rank of the process, 0 .. world_size - 1.
        world_size: The number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Images:
    """The loaders of a run.

    Args:
        train: Augmented training batches.
        train_from: Makes the training batches of another seed, from the same images.
        train_again: Makes batches of the training images as evaluation prepares them.
        val: Validation batches; None: there are no validation images.
        test: Makes the test batches, which are read only at the end; None: no test split.
        size: Height and width of the images.
        mean: Per-channel mean that all batches are normalized with.
        std: Per-channel standard deviation, likewise.
        preparation: How evaluation prepares an image.
    """

    train: Loader
    train_from: Callable[[int], Loader]
    train_again: Callable[[], Loader]
    val: Loader | None
    test: Callable[[], Loader] | None
    size: tuple[int, int]
    mean: Channels
    std: Channels
    preparation: Preparation

    def with_seed(self, seed: int) -> Images:
        """Return the same images in the order and with the augmentation of another seed."""
        return replace(self, train=self.train_from(seed))


def with_images_of(data: DataConfig, model: str, arguments: Mapping[str, Any]) -> DataConfig:
    """Return the section with the image size and the crop of a model, where timm's pipeline asks.

    So a teacher that is trained alone, as the target of its own run, sees the images that it
    will teach with. Mean and standard deviation stay its own: a node normalizes anew.

    Args:
        data: The section of the run in which the model is the target.
        model: timm's name of the model.
        arguments: For `timm.create_model`.
    """
    if data.pipeline != "timm" or (data.img_size is not None and data.crop_pct is not None):
        return data
    with torch.random.fork_rng():
        config = model_data_config(timm.create_model(model, **arguments))
    seen = {"img_size": int(config["input_size"][-1]), "crop_pct": config["crop_pct"]}
    given = data.model_dump(include=set(seen), exclude_none=True)
    return data.model_copy(update={**seen, **given})


def model_data_config(model: nn.Module) -> dict[str, Any]:
    """Return how timm prepares images for a model, of the size that the model was built for.

    timm's own function gives the size of the pretrained weights, whatever `img_size` was built.
    """
    size = get_model_input_config(model)["input_size"]
    return {**resolve_model_data_config(model), "input_size": size}


def build_images(recipe: Recipe, splits: Splits, target: nn.Module, process: ProcessInfo) -> Images:
    """Return the loaders.

    Args:
        recipe: The recipe.
        splits: The splits that `build_splits` returned.
        target: The target's model; timm's pipeline uses its image size and normalization.
        process: The process that reads the batches.

    Raises:
        RecipeError: The images or their settings are wrong.
    """
    build = _in_memory if recipe.data.pipeline == "memory" else _by_timm
    try:
        return build(recipe, splits, target, process)
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error


def _in_memory(recipe: Recipe, splits: Splits, target: nn.Module, process: ProcessInfo) -> Images:
    data = recipe.data

    def decoded(split: Dataset) -> tuple[Tensor, Tensor]:
        keys = splits.input_key, splits.target_key
        return decode(split, *keys, data.img_size, data.in_chans, data.cache)

    every = {role: _checked(role, decoded, split) for role, split in _roles(splits).items()}
    _check_sizes({role: images for role, (images, _) in every.items()})
    pixels, labels = every["training"]
    image_size = (pixels.shape[-2], pixels.shape[-1])
    mean, std = (data.mean, data.std) if data.mean and data.std else _measured(pixels)
    pixels, labels = pixels.to(process.device), labels.to(process.device)  # once for all seeds

    def loader(pixels: Tensor, labels: Tensor, train: bool = False, seed: int = 0) -> Loader:
        return MemoryLoader(
            pixels,
            labels,
            batch_size=recipe.train.batch_size if train else recipe.train.evaluation_batch_size,
            mean=mean,
            std=std,
            train=train,
            pad=data.pad,
            hflip=data.hflip,
            repeats=max(1, data.aug_repeats),
            seed=seed,
            device=process.device,
            rank=process.rank,
            world_size=process.world_size,
        )

    def train_from(seed: int) -> Loader:
        return _mixed(recipe, splits, loader(pixels, labels, True, seed), process, seed, image_size)

    return Images(
        train=train_from(recipe.train.seed),
        train_from=train_from,
        train_again=lambda: loader(pixels, labels),
        val=loader(*every["validation"]) if "validation" in every else None,
        test=(lambda: loader(*every["test"])) if "test" in every else None,
        size=image_size,
        mean=mean,
        std=std,
        # The images are of this size already, or `decode` has resized them so.
        preparation=Preparation(
            (data.in_chans, *image_size), "bicubic", crop_pct=1.0, crop_mode="squash"
        ),
    )


def _measured(pixels: Tensor) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel of the images.

    Raises:
        ValueError: A channel is the same everywhere.
    """
    mean, std = channel_stats(pixels)
    if 0 in std:
        raise ValueError(
            f"data.std: should be given, with data.mean: channel {std.index(0)} is the same in all "
            "training images, so its standard deviation is 0."
        )
    return mean, std


def _by_timm(recipe: Recipe, splits: Splits, target: nn.Module, process: ProcessInfo) -> Images:
    data, config, test = recipe.data, model_data_config(target), splits.test
    for role, split in _roles(splits).items():
        _checked(role, lambda split: _check_readable(split, splits.input_key), split)
    mean = data.mean or fitted(config["mean"], data.in_chans)
    std = data.std or fitted(config["std"], data.in_chans)
    size = data.img_size or int(config["input_size"][-1])
    crop_pct = data.crop_pct or config["crop_pct"]
    preparation = Preparation(
        (data.in_chans, size, size), config["interpolation"], crop_pct, "center"
    )

    def loader(split: Dataset | Stream, train: bool = False, seed: int = 0) -> Loader:
        way = delivery(data, mean, std, (size, size), process.device, train)
        keys = splits.input_key, splits.target_key
        transform = build_transform(data, preparation, mean, std, train, way.as_bytes)
        batch_size = recipe.train.batch_size if train else recipe.train.evaluation_batch_size
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": process.device,
            "train": train,
            "in_chans": data.in_chans,
            "workers": data.workers,
            "seed": seed,
            "rank": process.rank,
            "world_size": process.world_size,
            "to_device": way.to_device,
        }
        if not isinstance(split, Stream):
            options["repeats"] = max(1, data.aug_repeats)
            return TransformLoader(split, *keys, transform, **options)
        options |= {"num_classes": splits.num_classes, "buffer": data.shuffle_buffer}
        return StreamLoader(split, *keys, transform, **options)

    def train_from(seed: int) -> Loader:
        return _mixed(recipe, splits, loader(splits.train, True, seed), process, seed, (size, size))

    return Images(
        train=train_from(recipe.train.seed),
        train_from=train_from,
        train_again=lambda: loader(splits.train),
        val=None if splits.val is None else loader(splits.val),
        test=None if test is None else lambda: loader(test),
        size=(size, size),
        mean=mean,
        std=std,
        preparation=preparation,
    )


def _roles(splits: Splits) -> dict[str, Any]:
    """Return the splits by what they are for; the labels of the test split are checked here.

    Those of streams are checked as they are read.

    Raises:
        ValueError: A label of the test split is missing or is not a class.
    """
    if splits.test is not None and not isinstance(splits.test, Stream):
        check_labels(splits.test, splits.target_key, splits.num_classes)
    roles = {"training": splits.train, "validation": splits.val, "test": splits.test}
    return {role: split for role, split in roles.items() if split is not None}


def _checked(role: str, read: Callable[[Any], T], split: Any) -> T:
    """Read a split; an error says whose images are wrong."""
    try:
        return read(split)
    except ValueError as error:
        said = str(error).removesuffix(".")
        raise ValueError(f"{said}. Found in the {role} images.") from error


def _check_readable(split: Dataset | Stream, input_key: str) -> None:
    """Raise ValueError if one of some images cannot be read."""
    if isinstance(split, Stream):
        check_first(split, input_key)
    else:
        check_some(split, input_key)


def _check_sizes(images: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the images of one role have another size than the training images."""
    sizes = {role: f"{each.shape[3]}x{each.shape[2]}" for role, each in images.items()}
    for role, size in sizes.items():
        if size != sizes["training"]:
            raise ValueError(
                f"data.img_size: images should be of one size. Found {sizes['training']} in the "
                f"training images and {size} in the {role} images. Set data.img_size."
            )


def _mixed(
    recipe: Recipe,
    splits: Splits,
    loader: Loader,
    process: ProcessInfo,
    seed: int,
    size: tuple[int, int],
) -> Loader:
    data = recipe.data
    if not data.mixes:
        return loader
    if data.cutmix_minmax is not None:
        low, high = (int(min(size) * share) for share in data.cutmix_minmax)
        if low >= high:  # timm draws from low .. high - 1
            raise ValueError(
                "data.cutmix_minmax: should span a pixel of the shorter side or more. Found "
                f"{low} to {high} pixels of {min(size)}."
            )
    return MixupLoader(
        loader,
        num_classes=splits.num_classes,
        mixup=data.mixup,
        cutmix=data.cutmix,
        cutmix_minmax=data.cutmix_minmax,
        mixup_prob=data.mixup_prob,
        mixup_switch_prob=data.mixup_switch_prob,
        mixup_mode=data.mixup_mode,
        mixup_off_epoch=data.mixup_off_epoch,
        smoothing=recipe.train.smoothing,
        seed=seed,
        rank=process.rank,
    )
