"""Inputs for the tests of losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import timm_ktg as ktg
from tests.nets import CLASSES, output

NO_LABELS = torch.zeros(1, dtype=torch.int64)
# Losses that need the class of each sample.
UNMIXED = {"dkd"}
OF_LABELS = {"cross_entropy", "bce", "jsd"}
ARGUMENTS = {"jsd": {"splits": 2}}  # of batches that have 8 images, or 2 views of 4
OF_FEATURES = {"attention", "attention_windows", "srd"}


def logits(seed: int, batch: int = 8, num_classes: int = CLASSES, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, num_classes, generator=generator)


def maps(seed: int, channels: int, height: int = 4, width: int = 4, batch: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator)


def ends(dtype: torch.dtype = torch.float32) -> tuple[ktg.NodeOutput, ktg.NodeOutput]:
    """Outputs of a source and a destination, with one tap each, of different sizes."""
    return (
        ktg.NodeOutput(logits(0).to(dtype), {"body.2": maps(2, 6).to(dtype)}),
        ktg.NodeOutput(logits(1).to(dtype), {"layer3": maps(3, 3, 8, 8).to(dtype)}),
    )


def made(
    name: str, source: ktg.NodeOutput, destination: ktg.NodeOutput, **arguments: Any
) -> Callable[..., Tensor]:
    """The loss of that name for these outputs; the same weights each time, if it has any."""
    arguments = {**ARGUMENTS.get(name, {}), **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ktg.create_loss(name, **arguments).built(source, destination)


def call(
    name: str, source: Tensor, destination: Tensor, temperature: float = 1.0, **arguments: Any
) -> Tensor:
    """The losses between two logits, without labels."""
    loss = ktg.create_loss(name, **arguments)
    return loss(output(source), output(destination), NO_LABELS, temperature=temperature)


class Published(NamedTuple):
    """The inputs on which the authors' published code was run once, in float64."""

    source: Tensor
    destination: Tensor
    labels: Tensor
    source_map: Tensor
    destination_map: Tensor
    weight: Tensor
    bias: Tensor


def published() -> Published:
    """RandomState's numbers are the same in every version of numpy."""
    random = np.random.RandomState(0)
    source, destination = 3 * random.standard_normal((8, 5)), 3 * random.standard_normal((8, 5))
    labels = random.randint(5, size=8)
    source_map, destination_map = (random.standard_normal((8, c, 4, 4)) for c in (6, 3))
    weight, bias = random.standard_normal((6, 3)), random.standard_normal(6)
    found = [source, destination, source_map, destination_map, weight, bias]
    as32 = [torch.tensor(each, dtype=torch.float32) for each in found]
    return Published(*as32[:2], torch.tensor(labels, dtype=torch.int64), *as32[2:])
