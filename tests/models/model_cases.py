"""The registered models, for the tests of timm_ktg.models."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_ktg.models  # noqa: F401 (registers the models)

# name: (n in 6n + 2 or 6n + 4, parameters at 100 classes). The KTG paper has ResNet-32, ResNet-110
# and WRN-28-2.
MODELS = {
    "resnet8_cifar": (1, 81_140),
    "resnet14_cifar": (2, 178_356),
    "resnet20_cifar": (3, 275_572),
    "resnet32_cifar": (5, 470_004),
    "resnet44_cifar": (7, 664_436),
    "resnet56_cifar": (9, 858_868),
    "resnet110_cifar": (18, 1_733_812),
    "wrn16_2_cifar": (2, 703_284),
    "wrn28_2_cifar": (4, 1_479_220),
    "wrn40_2_cifar": (6, 2_255_156),
}
SMALL = ["resnet8_cifar", "wrn16_2_cifar"]
each_model = pytest.mark.parametrize("name", MODELS)
each_small_model = pytest.mark.parametrize("name", SMALL)


def create(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def images(batch: int = 2, chans: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, chans, size, size, generator=torch.Generator().manual_seed(1))


def stir(model: nn.Module) -> None:
    """Randomize the norms' parameters and statistics, which all start at 0 or 1."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
        for tensor in (norm.bias, norm.running_mean):
            nn.init.normal_(tensor, std=0.2)


def stages(name: str) -> list[int]:
    return [16, 16, 32, 64] if name.startswith("resnet") else [16, 32, 64, 128]
