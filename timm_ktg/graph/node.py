"""The nodes of a graph: networks, and anything else that maps a batch of images to an output."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import one_line
from .inference import inference_copy
from .losses import NodeOutput
from .taps import Taps
from .topology import Traits

Channels = tuple[float, ...]

_logger = logging.getLogger(__name__)


class GraphNode(Protocol):
    """A node of a graph; `Node` is the kind that holds a network."""

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""

    def at_work(self, frozen: bool, mean: Channels | None, std: Channels | None) -> nn.Module:
        """Return a module that maps `(images, outputs)` to a `NodeOutput`.

        `outputs` holds the outputs of the nodes that this node needs, by name.

        Args:
            frozen: Whether the node is frozen.
            mean: Per-channel mean that the images are normalized with.
            std: Per-channel standard deviation, likewise.

        Raises:
            ValueError: The node does not fit into the graph.
        """


@dataclass(frozen=True)
class Node:
    """A network of the graph.

    Args:
        name: A letter, then letters, digits and `_`.
        model: Maps images [B, 3, H, W] to logits [B, C]; used as it is, never copied.
        taps: Names of the submodules whose outputs go into `NodeOutput.features`.
        pretrained: Whether the model holds trained weights. A node with no incoming edge is frozen
            and needs them, because a random teacher would go unnoticed.
        mean: Per-channel mean that the model expects its images normalized with, in 0..1; None:
            the images need no change.
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
        """Check that mean and std are given together."""
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"nodes.{self.name}: mean and std should be given together. "
                f"Found mean {self.mean} and std {self.std}."
            )

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""
        return Traits(self.name, has_weights=self.pretrained)

    def at_work(self, frozen: bool, mean: Channels | None, std: Channels | None) -> Network:
        """Return the node's module; see `Network`."""
        return Network(self, frozen, mean, std)


class Network(nn.Module):
    """A network in a graph: its model, the normalization it expects, its taps.

    Args:
        node: The node.
        frozen: Always in evaluation mode, no gradients.
        mean: Per-channel mean that the images are normalized with.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: A tap names no module, or the node expects a normalization and that of the
            images is unknown.
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
            self.taps = Taps(node.model, node.taps)
        except ValueError as error:
            raise ValueError(f"nodes.{node.name}.taps: {error}") from None
        scale, shift = _affine(node, mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._copy: _Copy | None = None
        if frozen:
            self.model.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> Network:
        """Set the mode; a frozen node stays in evaluation mode.

        The authors' code leaves a frozen teacher's BatchNorm in training mode.
        """
        return super().train(mode and not self.frozen)

    def speed_up(
        self, images: Tensor, dtype: torch.dtype | None = None, torchcompile: bool = False
    ) -> None:
        """Compute with a copy of the model from now on; for a frozen node without taps.

        If no copy can be made, the model is still used, and a warning says why. The copy is renewed
        whenever `load_state_dict` loads weights into the model. Other changes of the model do not
        reach it.

        Args:
            images: Images [B, 3, H, W] like those that the node will get.
            dtype: The autocast type that the copy works under; outside it the model is used. None:
                the copy works anywhere.
            torchcompile: Compile the copy.
        """
        self._copy = _Copy(self.model, images, dtype, torchcompile)
        self.model.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            self._copy.renew
        )

    def forward(
        self, images: Tensor, outputs: Mapping[str, NodeOutput] | None = None
    ) -> NodeOutput:
        """Return the output for images [B, 3, H, W]; a network ignores the other outputs."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        self.taps.clear()
        if not self.frozen:
            return NodeOutput(self.model(images), self.taps.read())
        if self._copy is not None and self._copy.works_on(images):
            return NodeOutput(self._copy(images))
        with torch.no_grad():
            return NodeOutput(self.model(images), self.taps.read())


class _Copy:
    """The copy that a frozen node computes with; not a module, so it is no submodule either."""

    def __init__(
        self, model: nn.Module, images: Tensor, dtype: torch.dtype | None, torchcompile: bool
    ) -> None:
        self.images, self.dtype, self.torchcompile = images, dtype, torchcompile
        self.model: nn.Module | None = None
        self.renew(model)

    def renew(self, model: nn.Module, keys: object = None) -> None:
        """Copy the model; the model calls this again whenever it has loaded weights."""
        self.model = None  # or the new copy would hold the old one, as it copies this hook, too
        try:
            self.model = inference_copy(model, self.images, self.dtype)
        except Exception as error:  # a model's code can raise anything
            _logger.warning("A frozen node computes without a copy: %s", one_line(error))
            return
        if self.torchcompile:
            self.model.compile()

    def works_on(self, images: Tensor) -> bool:
        """Return whether the copy can be used now."""
        kind = images.device.type
        under = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self.model is not None and self.dtype in (None, under)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, 3, H, W]."""
        assert self.model is not None
        with torch.inference_mode():
            logits: Tensor = self.model(images)
        # Autograd cannot save tensors made in inference mode, but a loss makes it save its source.
        return logits.clone()


def _affine(
    node: Node, mean: Channels | None, std: Channels | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and shift [1, C, 1, 1] from the images' normalization to the node's."""
    if node.mean is None or node.std is None or (node.mean, node.std) == (mean, std):
        return None, None
    if mean is None or std is None:
        raise ValueError(
            f"nodes.{node.name}: expects images normalized with mean {node.mean} and std "
            f"{node.std}; say what they are normalized with (mean=, std= of the graph)."
        )
    given_mean, given_std = torch.tensor(mean), torch.tensor(std)
    own_mean, own_std = torch.tensor(node.mean), torch.tensor(node.std)
    scale = (given_std / own_std).view(1, -1, 1, 1)
    return scale, ((given_mean - own_mean) / own_std).view(1, -1, 1, 1)
