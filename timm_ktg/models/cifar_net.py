"""What the CIFAR networks share: stem, three stages, head, and timm's interface."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import torch
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F


class BlockFactory(Protocol):
    """Builds one residual block."""

    def __call__(self, in_chs: int, out_chs: int, stride: int, /) -> nn.Module:
        """Build a block from [B, in_chs, H, W] to [B, out_chs, H / stride, W / stride]."""


class CifarNet(nn.Module):
    """A residual network of three stages; the second and the third halve the resolution.

    No ReLU works in place, so a forward hook on a submodule sees exactly what it returned.

    Convolutions start from N(0, 2 / fan_out), biases from zero, the classifier's weight from
    PyTorch's default. The authors of the knowledge transfer graph do the same in their code, but
    draw a ResNet's classifier from N(0, 2 / fan_in). Everything is drawn on the CPU and then moved
    to `device`, so that a seed gives the same weights everywhere.

    Args:
        block: Builds the blocks of a stage.
        blocks: Blocks per stage, the n of 6n + 2 and 6n + 4.
        widths: Channels of the stem and of each stage.
        preact: Whether blocks begin with a norm. If so, another norm follows the last stage; if
            not, one follows the stem's convolution.
        num_classes: Classes C; 0: no classifier.
        in_chans: Input channels.
        global_pool: Pooling before the classifier, any of timm's; "": none.
        drop_rate: Dropout before the classifier, in [0, 1].
        stem_stride: Stride of the stem's convolution, 1 in both architectures.
        device: Where the weights go.
        dtype: Type that the weights are cast to.
    """

    def __init__(
        self,
        block: BlockFactory,
        blocks: int,
        widths: tuple[int, int, int, int],
        preact: bool,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        stem_stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        conv = nn.Conv2d(in_chans, widths[0], 3, stem_stride, padding=1, bias=False)
        self.stem = _named(conv=conv) if preact else _named(conv=conv, **_norm_act(widths[0]))
        self.layer1 = _stage(block, blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(block, blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(block, blocks, widths[2], widths[3], stride=2)
        self.norm = _named(**_norm_act(widths[3])) if preact else nn.Identity()
        self.feature_info = _feature_info(widths, stem_stride)

        self.num_features = widths[3]
        self.apply(_init_weights)
        self._create_head(global_pool)
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images [B, in_chans, H, W] to the last feature map [B, num_features, H', W']."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer3(self.layer2(self.layer1(x)))
        x = self.norm(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last feature map to logits [B, C].

        Args:
            x: What `forward_features` returned.
            pre_logits: Stop before the classifier and return [B, head_hidden_size].
        """
        x = self.global_pool(x)
        x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, in_chans, H, W] to logits [B, C]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the feature maps after the stem (0) and after each stage (1 to 3).

        Args:
            x: Images [B, in_chans, H, W].
            indices: Maps to return: the last n, a list (negative from the end), or None: all.
            norm: Apply the final norm, if there is one, to the last stage's map.
            stop_early: Do not compute the stages after the last wanted one.
            output_fmt: "NCHW", the only format.
            intermediates_only: Return only the list.

        Returns:
            What `forward_features` returns (if stopped early, the last map computed), and the list
            of wanted maps.

        Raises:
            ValueError: `output_fmt` is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt should be 'NCHW'. Found {output_fmt!r}.")
        wanted, last = feature_take_indices(4, indices)
        stages = (self.layer1, self.layer2, self.layer3)[: last if stop_early else 3]

        x = self.stem(x)
        intermediates = [x] if 0 in wanted else []
        for index, stage in enumerate(stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in wanted:
                intermediates.append(self.norm(x) if norm and index == 3 else x)
        if intermediates_only:
            return intermediates
        return self.norm(x) if len(stages) == 3 else x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the layers that the wanted feature maps do not need.

        Args:
            indices: Which maps, as in `forward_intermediates`.
            prune_norm: Drop the final norm even if the last stage is kept.
            prune_head: Drop the head even if the last stage is kept.

        Returns:
            The indices of the wanted maps, none of them negative.
        """
        wanted, last = feature_take_indices(4, indices)
        for index in range(last + 1, 4):
            setattr(self, f"layer{index}", nn.Sequential())
        if prune_norm or last < 3:
            self.norm = nn.Identity()
        if last < 3:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last < 3:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a new one.

        Args:
            num_classes: Classes of the new one; 0: no classifier.
            global_pool: Pooling before it; None: keep the present one.
        """
        self.num_classes = num_classes
        self._create_head(self.global_pool.pool_type if global_pool is None else global_pool)

    def _create_head(self, global_pool: str) -> None:
        self.global_pool, self.fc = create_classifier(
            self.num_features, self.num_classes, pool_type=global_pool
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc.apply(_init_weights)
        self.fc.to(next(self.parameters()))
        for module in (self.global_pool, self.fc):
            module.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group the parameters by depth: by block, or by stage if coarse."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^layer(\d+)"}
        # timm reads 99999 as "in the same group as the one before".
        return {"stem": r"^stem", "blocks": [(r"^layer(\d+)\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their results."""
        self.grad_checkpointing = enable


def create_cifar_net(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build a registered CIFAR network as timm does: a `CifarNet`, or its feature extractor.

    Args:
        variant: The registered name.
        pretrained: Load weights; timm raises RuntimeError if there are none.
        **kwargs: Arguments of `CifarNet` and of timm's `build_model_with_cfg`.
    """
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    model: nn.Module = build_model_with_cfg(
        CifarNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs
    )
    return model


def cifar_cfg(paper: str) -> dict[str, Any]:
    """Describe a CIFAR network to timm, with the pixel statistics of CIFAR-100's training set.

    Args:
        paper: Where the architecture comes from, in timm's notation: "arXiv:1512.03385".
    """
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": "stem.conv",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": paper,
    }


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _norm_act(chs: int) -> dict[str, nn.Module]:
    return {"bn": nn.BatchNorm2d(chs), "act": nn.ReLU()}


def _stage(
    block: BlockFactory, blocks: int, in_chs: int, out_chs: int, *, stride: int
) -> nn.Sequential:
    first = block(in_chs, out_chs, stride)
    return nn.Sequential(first, *(block(out_chs, out_chs, 1) for _ in range(blocks - 1)))


def _feature_info(widths: tuple[int, int, int, int], stem_stride: int) -> list[dict[str, Any]]:
    modules = ("stem", "layer1", "layer2", "layer3")
    reductions = (stem_stride, stem_stride, 2 * stem_stride, 4 * stem_stride)
    return [
        {"num_chs": chs, "reduction": reduction, "module": module}
        for chs, reduction, module in zip(widths, reductions, modules, strict=True)
    ]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
