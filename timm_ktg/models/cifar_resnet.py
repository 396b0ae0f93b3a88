"""ResNets for CIFAR.

Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2;
arXiv 1512.03385.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from .cifar_net import cifar_cfg, create_cifar_net

default_cfgs = generate_default_cfgs(
    {
        f"resnet{depth}_cifar": cifar_cfg(paper="arXiv:1512.03385")
        for depth in (8, 14, 20, 32, 44, 56, 110)
    }
)


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A): every stride-th pixel, padded with zero channels.

    Args:
        in_chs: Input channels.
        out_chs: Output channels; the additional ones come last and are zero.
        stride: Factor by which height and width shrink.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.pad_chs = out_chs - in_chs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad_chs))


class BasicBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), Eq. 1.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        same = in_chs == out_chs and stride == 1
        self.shortcut = nn.Identity() if same else PadShortcut(in_chs, out_chs, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.act2(residual + self.shortcut(x))
        return out


def _create_resnet(depth: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    return create_cifar_net(
        f"resnet{depth}_cifar",
        pretrained,
        block=BasicBlock,
        blocks=(depth - 2) // 6,
        widths=(16, 16, 32, 64),
        preact=False,
        **kwargs,
    )


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-8."""
    return _create_resnet(8, pretrained, **kwargs)


@register_model
def resnet14_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-14."""
    return _create_resnet(14, pretrained, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20."""
    return _create_resnet(20, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32."""
    return _create_resnet(32, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-44."""
    return _create_resnet(44, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56."""
    return _create_resnet(56, pretrained, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-110."""
    return _create_resnet(110, pretrained, **kwargs)
