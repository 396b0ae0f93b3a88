"""Measures the nodes of a run, each alone and all together, on any labeled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import (
    Loader,
    Splits,
    Stream,
    StreamLoader,
    TransformLoader,
    check_labels,
)
from ..data.class_map import other_class
from ..errors import RecipeError, located
from ..graph.losses import NodeOutput
from ..recipe.data_config import DataConfig
from ..recipe.splits import build_splits
from ..recipe.trained import TrainedRun
from ..records.metrics import ALL_NETWORKS
from .tally import Measured, Tally

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "val", "test")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What the nodes of a run reach on some images.

    Args:
        dataset: The data set.
        split: `train`, `val` or `test`.
        images: Number of images.
        class_names: [C] names.
        nodes: What each node reaches. With two or more networks, `all-networks`, the mean of their
            logits, is one of them.
        agreement: Share of the images in percent that two nodes predict the same class for, by
            both names.
    """

    dataset: str
    split: str
    images: int
    class_names: tuple[str, ...]
    nodes: Mapping[str, Measured]
    agreement: Mapping[str, Mapping[str, float]]


@torch.inference_mode()
def validate(
    run: TrainedRun, data: DataConfig, split: str, node: str | None, device: torch.device
) -> Validation:
    """Measure a run's nodes.

    Images are prepared as the run prepared them for evaluation, in float32.

    Args:
        run: The run.
        data: Which images; nothing else of the section matters.
        split: `train`, `val` or `test`.
        node: The only node to measure; None: all, and all networks together.
        device: Where to compute.

    Raises:
        RecipeError: There are no such images, node or files, or the images have other classes.
        DataError: An image cannot be read.
    """
    names = run.nodes if node is None else [run.name_of(node)]
    members = {name: each.to(device) for name, each in run.load(*names).items()}
    class_names = run.result.data.class_names
    if split == "test":  # which training images the run took may not fit other data
        data = data.model_copy(update={"holdout": 0, "images_per_class": None})
    # The run knows what its file listed, which may be gone or changed.
    as_run = data.class_map is not None and data.class_map == run.recipe.data.class_map
    splits = _read(data, split, class_names if as_run else None)
    images = _images(splits, split)
    _check_classes(splits.class_names, class_names)
    loader = _loader(images, splits, run, data, device)
    topology = run.recipe.graph.topology
    networks = (*topology.learning, *topology.frozen) if node is None else ()
    tallies, agreement = _predict_all(loader, members, names, networks, len(class_names))
    count = next(iter(tallies.values())).images  # an epoch of a stream is not always its images
    return Validation(
        data.dataset,
        split,
        count,
        class_names,
        {name: tally.measured() for name, tally in tallies.items()},
        _shares(list(tallies), agreement, count),
    )


def _read(data: DataConfig, split: str, classes: Sequence[str] | None) -> Splits:
    """Return the images; if there are none to train on, the classes are those of the split.

    Raises:
        RecipeError: The data cannot be read.
    """
    try:
        return build_splits(data, classes)
    except RecipeError as error:
        named = {"val": data.val_split, "test": data.test_split}.get(split)
        lacks = all(each.startswith("data.train_split: ") for each in error.problems)
        if named is None or not lacks:
            raise
    alone = {"train_split": named, "val_split": None, "test_split": None, "holdout": 0}
    every = {"images_per_class": None, "train_num_samples": None}
    try:
        splits = build_splits(data.model_copy(update={**alone, **every}), classes)
    except RecipeError as error:
        said = [each.replace("data.train_split", f"data.{split}_split") for each in error.problems]
        raise RecipeError(said) from error
    _logger.warning("There are no training images: the classes are those of `%s`.", named)
    return (
        replace(splits, val=splits.train) if split == "val" else replace(splits, test=splits.train)
    )


def _predict_all(
    loader: Loader,
    members: Mapping[str, nn.Module],
    names: Sequence[str],
    networks: Sequence[str],
    classes: int,
) -> tuple[dict[str, Tally], Tensor]:
    """Return a tally for each node, and for all networks, and how often they agree [K, K]."""
    together = [ALL_NETWORKS] * (len(networks) > 1)
    tallies = {name: Tally(classes) for name in (*names, *together)}
    agreement = torch.zeros(len(tallies), len(tallies), dtype=torch.int64)
    for images, labels in tqdm(loader, total=len(loader), unit="batch", leave=False, disable=None):
        outputs: dict[str, NodeOutput] = {}
        for name, member in members.items():
            outputs[name] = member(images, outputs)
        logits = {name: outputs[name].logits.float().cpu() for name in names}
        for each in together:
            logits[each] = torch.stack([logits[name] for name in networks]).mean(0)
        predicted = torch.stack(
            [tallies[name].update(logits[name], labels.cpu()) for name in tallies]
        )
        agreement += (predicted[:, None] == predicted).sum(-1)
    return tallies, agreement


def _shares(names: Sequence[str], counts: Tensor, images: int) -> dict[str, dict[str, float]]:
    shares = (100 * counts.double() / images).tolist()
    return {
        name: dict(zip(names, row, strict=True)) for name, row in zip(names, shares, strict=True)
    }


def _loader(
    images: Dataset | Stream,
    splits: Splits,
    run: TrainedRun,
    data: DataConfig,
    device: torch.device,
) -> Loader:
    options: dict[str, Any] = {
        "batch_size": run.recipe.train.evaluation_batch_size,
        "device": device,
        "train": False,
        "in_chans": run.preparation().input_size[0],
        "workers": data.workers if data.pipeline == "timm" else 0,
    }
    given = (splits.input_key, splits.target_key, run.transform())
    if isinstance(images, Stream):
        return StreamLoader(images, *given, num_classes=splits.num_classes, **options)
    return TransformLoader(images, *given, **options)


def _images(splits: Splits, split: str) -> Dataset | Stream:
    """Return the images of a split, whose labels are checked; a stream's as they are read.

    Raises:
        RecipeError: There are none, or a label is not a class.
    """
    there = {"train": splits.train, "val": splits.val, "test": splits.test}
    images = there[split]
    if images is None:
        found = ", ".join(name for name, each in there.items() if each is not None)
        raise RecipeError([f"--split: the data have no {split} images. Found {found}."])
    if isinstance(images, Stream):
        return images
    with located(f"--split {split}"):
        check_labels(images, splits.target_key, splits.num_classes, field=f"data.{split}_split")
    return images


def _check_classes(found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse images of other classes; warn if only their names are others.

    Raises:
        RecipeError: The classes are others, or in another order.
    """
    if len(found) != len(expected):
        said = f"should have the {len(expected)} classes of the run. Found {len(found)}."
        raise RecipeError([f"data.target_key: {said}"])
    other = other_class(found, expected)
    if other is None:
        return
    here, there, is_moved = other
    if is_moved:
        said = f"should have the run's classes in its order. Found `{here}` for `{there}`."
        raise RecipeError([f"data.target_key: {said}"])
    _logger.warning("data.target_key: `%s` is taken for the run's class `%s`.", here, there)
