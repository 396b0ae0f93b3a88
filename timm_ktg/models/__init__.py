"""Networks for 32 x 32 images; importing this package registers them with timm."""

from __future__ import annotations

from . import cifar_resnet, cifar_wrn
from .cifar_net import CifarNet

__all__ = ["CifarNet", "cifar_resnet", "cifar_wrn"]
