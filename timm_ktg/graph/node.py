"""The nodes of a graph: networks, and anything else that maps a batch of images to an output."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import did_you_mean, one_line
from .inference import inference_copy
from .losses import NodeOutput
from .taps import Taps
from .topology import Traits

Channels = tuple[float, ...]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What a node needs to know about the graph that it joins.

    Args:
        frozen: Whether the node is frozen.
        mean: Per-channel mean that the images are normalized with.
        std: Per-channel standard deviation, likewise.
        taps: Names of the modules whose outputs the node's edges read.
        heads: Names of the heads that the node's edges train, beside the first.
    """

    frozen: bool = False
    mean: Channels | None = None
    std: Channels | None = None
    taps: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


class GraphNode(Protocol):
    """A node of a graph; `Node` is the kind that holds a network."""

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""

    def at_work(self, place: Place, others: Mapping[str, nn.Module]) -> nn.Module:
        """Return a module that maps `(images, outputs)` to a `NodeOutput`.

        `outputs` holds the outputs of the nodes that this node needs, by name.

        Args:
            place: The node's place in the graph.
            others: The modules of the nodes that this node needs, by name.

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
        img_size: Height and width that the model takes; other images are resized on the device, by
            bicubic interpolation. None: the images as they are.
        heads: What the model returns in training mode beside the logits, by name; None: `dist` for
            timm's models with a distillation head, nothing for others.

    Raises:
        ValueError: Only one of mean and std is given, or a size is not positive.
    """

    name: str
    model: nn.Module
    taps: tuple[str, ...] = ()
    pretrained: bool = False
    mean: Channels | None = None
    std: Channels | None = None
    img_size: int | tuple[int, int] | None = None
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that mean and std are given together, and settle sizes and heads."""
        if isinstance(self.img_size, int):
            object.__setattr__(self, "img_size", (self.img_size, self.img_size))
        if isinstance(self.img_size, tuple) and min(self.img_size) < 1:
            raise ValueError(
                f"nodes.{self.name}: img_size should be positive. Found {self.img_size}."
            )
        if self.heads is None:
            distills = hasattr(self.model, "set_distilled_training")
            object.__setattr__(self, "heads", ("dist",) if distills else ())
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"nodes.{self.name}: mean and std should be given together. "
                f"Found mean {self.mean} and std {self.std}."
            )

    @property
    def traits(self) -> Traits:
        """The node's traits for the topology."""
        return Traits(self.name, has_weights=self.pretrained)

    def at_work(self, place: Place, others: Mapping[str, nn.Module] | None = None) -> Network:
        """Return the node's module; see `Network`."""
        return Network(self, place)


class Network(nn.Module):
    """A network in a graph: its model, the images it expects, its taps and heads.

    Args:
        node: The node.
        place: Its place in the graph; if it is frozen, the module stays in evaluation mode.

    Raises:
        ValueError: A tap names no module, the model lacks a head, or the node expects a
            normalization and that of the images is unknown.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, node: Node, place: Place) -> None:
        super().__init__()
        self.name, self.model, self.frozen = node.name, node.model, place.frozen
        self.mean, self.std = node.mean or place.mean, node.std or place.std
        self.size = node.img_size
        self.heads = node.heads or ()
        self._check_heads(place.heads)
        scale, shift = _affine(node, place.mean, place.std)
        try:
            self.taps = Taps(node.model, dict.fromkeys([*node.taps, *place.taps]))
        except ValueError as error:
            raise ValueError(f"nodes.{node.name}.taps: {error}") from None
        # From here on, nothing is refused, so that a refused model stays as it was.
        self._distilled = self._distill(True) if place.heads else None
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._copy: _Copy | None = None
        if place.frozen:
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
        self._copy = _Copy(self.model, self._fitted(images), dtype, torchcompile)
        self.model.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            self._copy.renew
        )

    def forward(
        self, images: Tensor, outputs: Mapping[str, NodeOutput] | None = None
    ) -> NodeOutput:
        """Return the output for images [B, 3, H, W]; a network ignores the other outputs."""
        images = self._fitted(images)
        self.taps.clear()
        if not self.frozen:
            return self.output_of(self.model(images))
        if self._copy is not None and self._copy.works_on(images):
            return self.output_of(self._copy(images))
        with torch.no_grad():
            return self.output_of(self.model(images))

    def output_of(self, returned: Any) -> NodeOutput:
        """Return the node's output for what its model has just returned.

        In evaluation mode, timm's models with several heads return the mean of them, which then
        stands for each.

        Args:
            returned: Logits [B, C], or a sequence of logits of the first head and the others.

        Raises:
            ValueError: It is neither.
        """
        if isinstance(returned, Tensor):
            return NodeOutput(returned, self.taps.read(), dict.fromkeys(self.heads, returned))
        found = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(found) != 1 + len(self.heads) or not all(isinstance(z, Tensor) for z in found):
            kinds = ", ".join(type(each).__name__ for each in found)
            heads = "".join(f", those of {head}" for head in self.heads)
            raise ValueError(
                f"nodes.{self.name}: the model should return logits{heads}. Found {kinds}."
            )
        logits, *others = found
        return NodeOutput(logits, self.taps.read(), dict(zip(self.heads, others, strict=True)))

    def copied_model(self) -> nn.Module:
        """Return a copy of the model, without taps."""
        names = self.taps.names
        self.taps.remove()
        copy = deepcopy(self.model)
        self.taps = Taps(self.model, names)
        return copy

    def release(self) -> None:
        """Take the taps off the model, and let it return what it did before the graph was made."""
        self.taps.remove()
        if self._distilled is not None:
            self._distill(self._distilled)

    def _check_heads(self, wanted: Sequence[str]) -> None:
        """Raise ValueError if an edge trains a head that the model lacks."""
        for head in wanted:
            if head not in self.heads:
                known = ", ".join(self.heads) or "none beside the first"
                near = did_you_mean(head, self.heads)
                raise ValueError(
                    f"nodes.{self.name}: the model has no head `{head}`. Heads: {known}.{near}"
                )

    def _distill(self, on: bool) -> bool:
        """Say whether a model of timm's returns both heads in training; return whether it did."""
        before = bool(getattr(self.model, "distilled_training", False))
        distill: Any = getattr(self.model, "set_distilled_training", None)
        if distill is not None:
            distill(on)
        return before

    def _fitted(self, images: Tensor) -> Tensor:
        """Return the images as the model expects them: resized and renormalized."""
        if self.size is not None and images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        return images


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
            f"{node.std}; say what they are normalized with (mean=, std=)."
        )
    given_mean, given_std = torch.tensor(mean), torch.tensor(std)
    own_mean, own_std = torch.tensor(node.mean), torch.tensor(node.std)
    scale = (given_std / own_std).view(1, -1, 1, 1)
    return scale, ((given_mean - own_mean) / own_std).view(1, -1, 1, 1)
