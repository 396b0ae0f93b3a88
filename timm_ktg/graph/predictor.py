"""One node of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .graph import KnowledgeTransferGraph
from .losses import NodeOutput
from .node import Channels


class Predictor(nn.Module):
    """A node, with the nodes that it is made from, as a module that maps images to logits.

    Args:
        members: The modules of these nodes by name, each after those that it needs. The last one's
            logits are the prediction.
        mean: Per-channel mean that the images should be normalized with, if known.
        std: Per-channel standard deviation, likewise.
        class_names: [C] names, if known.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        mean: Channels | None = None,
        std: Channels | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.members = nn.ModuleDict(dict(members))
        self.mean, self.std, self.class_names = mean, std, tuple(class_names)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] for normalized images [B, 3, H, W]."""
        outputs: dict[str, NodeOutput] = {}
        for name, member in self.members.items():
            outputs[name] = member(images, outputs)
        return outputs[name].logits


def predictor_of(graph: KnowledgeTransferGraph, name: str | None = None) -> Predictor:
    """Return a node of a graph, which it shares its modules with.

    Args:
        graph: The graph.
        name: Name of the node; None: the target.
    """
    names = graph.topology.made_from(graph.target if name is None else name)
    return Predictor({each: graph.members[each] for each in names})
