"""Wide residual networks for CIFAR.

Reference: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016; arXiv 1605.07146.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .cifar_net import cifar_cfg, create_cifar_net

default_cfgs = generate_default_cfgs(
    {f"wrn{depth}_2_cifar": cifar_cfg(paper="arXiv:1605.07146") for depth in (16, 28, 40)}
)


class PreActBlock(nn.Module):
    """x + conv(dropout(relu(bn(conv(relu(bn(x))))))), Fig. 1.

    Where shapes change, the shortcut is a 1 x 1 convolution of relu(bn(x)) instead of x, as in the
    authors' code and not as in the figure.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        drop_rate: Dropout between the convolutions, in [0, 1].
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU()
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        same = in_chs == out_chs and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""
        preact = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(preact)
        residual = self.act2(self.bn2(self.conv1(preact)))
        residual = self.conv2(self.drop(residual))
        out: Tensor = shortcut + residual
        return out


def _create_wrn(
    depth: int, width: int, pretrained: bool, block_drop_rate: float = 0.0, **kwargs: Any
) -> nn.Module:
    return create_cifar_net(
        f"wrn{depth}_{width}_cifar",
        pretrained,
        block=partial(PreActBlock, drop_rate=block_drop_rate),
        blocks=(depth - 4) // 6,
        widths=(16, 16 * width, 32 * width, 64 * width),
        preact=True,
        **kwargs,
    )


@register_model
def wrn16_2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-16-2; `block_drop_rate` is the dropout inside the blocks."""
    return _create_wrn(16, 2, pretrained, **kwargs)


@register_model
def wrn28_2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-2; `block_drop_rate` is the dropout inside the blocks."""
    return _create_wrn(28, 2, pretrained, **kwargs)


@register_model
def wrn40_2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-40-2; `block_drop_rate` is the dropout inside the blocks."""
    return _create_wrn(40, 2, pretrained, **kwargs)
