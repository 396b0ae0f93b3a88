"""From the section `data` to loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..data import (
    Loader,
    MemoryLoader,
    MixupLoader,
    Splits,
    TransformLoader,
    channel_stats,
    check_labels,
    decode,
    load_splits,
)
from ..errors import RecipeError
from ..graph.node import Channels
from .data_config import DataConfig
from .recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Place:
    """Where a loader's batches go: a device, and one process of several."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Images:
    """The loaders of a run.

    Args:
        train: Augmented training batches.
        val: Validation batches; None: no images are held out.
        test: Makes the test batches, which nothing reads before the end; None: no test split.
        size: Height and width of the images.
        mean: Per-channel mean that all batches are normalised with.
        std: Per-channel standard deviation, likewise.
    """

    train: Loader
    val: Loader | None
    test: Callable[[], Loader] | None
    size: tuple[int, int]
    mean: Channels
    std: Channels


def build_splits(data: DataConfig) -> Splits:
    """Return the data set's splits.

    Raises:
        RecipeError: What is wrong with the data set.
    """
    try:
        return load_splits(
            data.dataset,
            dataset_config=data.dataset_config,
            input_key=data.input_key,
            target_key=data.target_key,
            train_split=data.train_split,
            val_split=data.val_split,
            test_split=data.test_split,
            holdout=data.holdout,
            split_seed=data.split_seed,
            images_per_class=data.images_per_class,
        )
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error


def data_problems(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is wrong with the data set of a recipe that has other faults, if it is at hand.

    Args:
        values: A recipe, unchecked.
    """
    try:
        data = DataConfig.model_validate(values.get("data", {}))
    except ValidationError:  # said already, with the rest of the recipe
        return ()
    if "/" in data.dataset and not Path(data.dataset).exists():
        return ()  # a hub's: nothing is downloaded for a recipe that cannot run
    try:
        build_splits(data)
    except RecipeError as error:
        return error.problems
    return ()


def build_images(recipe: Recipe, splits: Splits, target: nn.Module, place: Place) -> Images:
    """Return the loaders.

    Args:
        recipe: The recipe.
        splits: What `build_splits` returned.
        target: The target's model, whose image size and normalisation timm's pipeline takes.
        place: Where batches go.

    Raises:
        RecipeError: What is wrong with the images.
    """
    build = _in_memory if recipe.data.pipeline == "memory" else _by_timm
    try:
        return build(recipe, splits, target, place)
    except ValueError as error:
        raise RecipeError(str(error).splitlines()) from error


def _in_memory(recipe: Recipe, splits: Splits, target: nn.Module, place: Place) -> Images:
    data = recipe.data

    def decoded(split: Dataset) -> tuple[Tensor, Tensor]:
        return decode(split, splits.input_key, splits.target_key, data.img_size)

    pixels, labels = decoded(splits.train)
    mean, std = (data.mean, data.std) if data.mean and data.std else channel_stats(pixels)

    def loader(pixels: Tensor, labels: Tensor, train: bool = False) -> Loader:
        return MemoryLoader(
            pixels,
            labels,
            batch_size=recipe.train.batch_size,
            mean=mean,
            std=std,
            train=train,
            pad=data.pad,
            hflip=data.hflip,
            seed=recipe.train.seed,
            device=place.device,
            rank=place.rank,
            world_size=place.world_size,
        )

    return Images(
        train=_mixed(recipe, splits, loader(pixels, labels, train=True), place),
        val=None if splits.val is None else loader(*decoded(splits.val)),
        test=_test(splits, lambda split: loader(*decoded(split))),
        size=(pixels.shape[-2], pixels.shape[-1]),
        mean=mean,
        std=std,
    )


def _by_timm(recipe: Recipe, splits: Splits, target: nn.Module, place: Place) -> Images:
    data, config = recipe.data, resolve_model_data_config(target)
    mean = data.mean or tuple(config["mean"])
    std = data.std or tuple(config["std"])
    size = data.img_size or int(config["input_size"][-1])

    def loader(split: Dataset, train: bool = False) -> Loader:
        return TransformLoader(
            split,
            splits.input_key,
            splits.target_key,
            batch_size=recipe.train.batch_size,
            img_size=size,
            mean=mean,
            std=std,
            train=train,
            workers=data.workers,
            scale=data.scale,
            ratio=data.ratio,
            hflip=data.hflip,
            vflip=data.vflip,
            color_jitter=data.color_jitter,
            auto_augment=data.aa,
            reprob=data.reprob,
            remode=data.remode,
            recount=data.recount,
            interpolation=data.interpolation if train else config["interpolation"],
            crop_pct=data.crop_pct or config["crop_pct"],
            no_aug=data.no_aug,
            seed=recipe.train.seed,
            device=place.device,
            rank=place.rank,
            world_size=place.world_size,
        )

    return Images(
        train=_mixed(recipe, splits, loader(splits.train, train=True), place),
        val=None if splits.val is None else loader(splits.val),
        test=_test(splits, loader),
        size=(size, size),
        mean=mean,
        std=std,
    )


def _test(splits: Splits, loader: Callable[[Dataset], Loader]) -> Callable[[], Loader] | None:
    """Return what reads the test split, once it is wanted."""
    split = splits.test
    if split is None:
        return None

    def test() -> Loader:
        check_labels(split, splits.target_key, splits.num_classes)
        return loader(split)

    return test


def _mixed(recipe: Recipe, splits: Splits, loader: Loader, place: Place) -> Loader:
    data = recipe.data
    if not data.mixes:
        return loader
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
        seed=recipe.train.seed,
        rank=place.rank,
    )
