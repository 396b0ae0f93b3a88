"""A node of the graph: anything that maps a batch of images to a `NodeOutput`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hooks import OutputCapture
from .losses import NodeOutput

Channels = tuple[float, ...]


@dataclass(frozen=True)
class Node:
    """A network of the graph.

    Args:
        name: A letter, then letters, digits and `_`.
        model: Maps images [B, 3, H, W] to logits [B, C]; used as it is, never copied.
        taps: Names of submodules whose outputs `NodeOutput.features` holds.
        pretrained: The model holds trained weights. A node with no incoming edge is frozen and
            must: a random teacher that never learns fails without a sound.
        mean: Per-channel mean that the model expects its images normalised with, in 0..1; None:
            the images are right as they come.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: Only one of mean and std is given.
    """

    name: str
    model: nn.Module
    taps: tuple[str, ...] = ()
    pretrained: bool = False
    mean: Channels | None = None
    std: Channels | None = None

    def __post_init__(self) -> None:
        """Check that the normalisation is whole."""
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"nodes.{self.name}: mean and std should be given together. "
                f"Found mean {self.mean} and std {self.std}."
            )


class Member(nn.Module):
    """A node at work: its model, the normalisation it expects, its taps, and whether it learns.

    Args:
        node: The node.
        frozen: It does not learn: evaluation mode always, no gradients.
        mean: Per-channel mean that the images come normalised with.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: A tap names no module, or the node expects a normalisation and the images' own
            is not known.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self, node: Node, frozen: bool, mean: Channels | None, std: Channels | None
    ) -> None:
        super().__init__()
        self.model = node.model
        self.frozen = frozen
        self.mean, self.std = node.mean or mean, node.std or std
        try:
            self.capture = OutputCapture(node.model, node.taps)
        except ValueError as error:
            raise ValueError(f"nodes.{node.name}.taps: {error}") from None
        scale, shift = _affine(node, mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._make_copy: Callable[[], nn.Module] | None = None
        self._copy: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no submodule
        self._copy_type: torch.dtype | None = None
        if frozen:
            self.model.requires_grad_(False)
            self.eval()
            self.register_load_state_dict_post_hook(_renew_copy)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Member:
        """Set the mode; a frozen node stays in evaluation mode.

        The authors' code leaves a frozen teacher's BatchNorm in training mode; this does not.
        """
        return super().train(mode and not self.frozen)

    def use_copy(self, make: Callable[[], nn.Module], dtype: torch.dtype | None) -> None:
        """Compute with a copy of the model from now on; of a frozen node without taps.

        Args:
            make: Makes the copy from the model; called now, and whenever weights are loaded. Other
                changes of the model do not reach the copy.
            dtype: The type of autocast that the copy works under; outside it the model is used.
                None: it works anywhere.
        """
        self._make_copy, self._copy_type = make, dtype
        _renew_copy(self)

    def forward(self, images: Tensor) -> NodeOutput:
        """Return the node's output for images [B, 3, H, W]."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        self.capture.clear()
        if not self.frozen:
            return NodeOutput(self.model(images), self.capture.read())
        with torch.inference_mode():
            logits = self._model_for(images)(images)
        # Autograd cannot keep what inference mode made, and losses have it keep their sources.
        features = {name: tensor.clone() for name, tensor in self.capture.read().items()}
        return NodeOutput(logits.clone(), features)

    def _model_for(self, images: Tensor) -> nn.Module:
        """Return the copy where there is one that works here, else the model."""
        kind = images.device.type
        under = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._copy[0] if self._copy and self._copy_type in (None, under) else self.model


def _renew_copy(member: Member, keys: object = None) -> None:
    """Make the copy that a member computes with anew, if it has one."""
    if member._make_copy is not None:
        member._copy = (member._make_copy(),)


def _affine(
    node: Node, mean: Channels | None, std: Channels | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and shift [1, C, 1, 1] from the images' normalisation to the node's own."""
    if node.mean is None or node.std is None or (node.mean, node.std) == (mean, std):
        return None, None
    if mean is None or std is None:
        raise ValueError(
            f"nodes.{node.name}: expects images normalised with mean {node.mean} and std "
            f"{node.std}; say what they are normalised with (mean=, std= of the graph)."
        )
    given_mean, given_std = torch.tensor(mean), torch.tensor(std)
    own_mean, own_std = torch.tensor(node.mean), torch.tensor(node.std)
    scale = (given_std / own_std).view(1, -1, 1, 1)
    return scale, ((given_mean - own_mean) / own_std).view(1, -1, 1, 1)
