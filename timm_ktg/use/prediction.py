"""Predicts the classes of image files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import Transform, decode_image
from ..errors import RecipeError, did_you_mean, first_line
from ..graph.predictor import Predictor

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a node predicts for an image.

    Args:
        image: The file.
        classes: Its likeliest classes, from the likeliest, each with its probability in 0..1.
    """

    image: Path
    classes: tuple[tuple[str, float], ...]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the image files among paths, and in those that are folders, at any depth.

    Links to folders are followed, and each folder is read once. In a folder, files that do not end
    like an image are skipped.

    Raises:
        RecipeError: A path does not exist, or a folder holds no image; lists all.
    """
    problems, files = list[str](), list[Path]()
    for path in paths:
        if path.is_dir():
            found = sorted(each for each in _files_below(path) if _is_image(each))
            problems += [] if found else [f"{path}: should hold images. Found none."]
            files += found
        elif path.is_file():
            files.append(path)
        else:
            near = did_you_mean(str(path), map(str, path.parent.glob("*")))
            problems.append(f"{path}: should be an image or a folder. Found nothing.{near}")
    if problems:
        raise RecipeError(problems)
    return list(dict.fromkeys(files))


@torch.inference_mode()
def predict(
    model: Predictor, transform: Transform, files: Sequence[Path], top: int, device: torch.device
) -> tuple[list[Prediction], list[str]]:
    """Predict the classes of images.

    Args:
        model: A node of a run.
        transform: Prepares an image as the run did.
        files: The images.
        top: Number of classes to return for each, at least 1; at most C are.
        device: Where to compute.

    Returns:
        A prediction for each image that can be read, and a line for each that cannot.
    """
    model, names = model.to(device), model.class_names
    in_chans = len(model.mean) if model.mean else 3
    predictions, problems = list[Prediction](), list[str]()
    for some, images in _batches(files, transform, problems, in_chans):
        probabilities = model(images.to(device)).float().softmax(-1)
        best = probabilities.topk(min(top, len(names)), dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for file, (indices, values) in zip(some, rows, strict=True):
            classes = zip((names[index] for index in indices), values, strict=True)
            predictions.append(Prediction(file, tuple(classes)))
    return predictions, problems


def _batches(
    files: Sequence[Path], transform: Transform, problems: list[str], in_chans: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield batches of files and their images [B, C, H, W]; add a line for each that is broken."""
    read = dict[Path, Tensor]()
    for number, file in enumerate(tqdm(files, unit="image", leave=False, disable=None), start=1):
        try:
            read[file] = transform(decode_image({"bytes": None, "path": str(file)}, in_chans))
        except Exception as error:  # Pillow's plugins raise all kinds of errors
            problems.append(f"{file}: cannot be read: {first_line(error)}")
        if read and (len(read) == _BATCH or number == len(files)):
            yield list(read), torch.stack(list(read.values()))
            read = {}


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, at any depth; links are followed, but no folder is read twice.

    Links wait until all else is read, so that a file is found at its own place, if that is below.
    """
    waiting, read = deque([folder]), set[Path]()
    while waiting:
        for at, below, names in os.walk(waiting.popleft()):
            here = Path(at)
            if (place := here.resolve()) in read:
                below.clear()
                continue
            read.add(place)
            below.sort()
            waiting += (here / each for each in below if (here / each).is_symlink())
            yield from (here / each for each in names)


def _is_image(path: Path) -> bool:
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and path.is_file()
