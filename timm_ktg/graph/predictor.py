"""One node of a graph as a model of its own."""

from __future__ import annotations

from torch import Tensor, nn

from .graph import KnowledgeTransferGraph
from .losses import NodeOutput


class Predictor(nn.Module):
    """A node of a graph, with the nodes that it is made from, without the rest.

    It shares its modules with the graph.

    Args:
        graph: The graph.
        name: Name of the node; None: the target.

    Attributes:
        members: The modules of the nodes, by name, each after those that it needs.
    """

    def __init__(self, graph: KnowledgeTransferGraph, name: str | None = None) -> None:
        super().__init__()
        self.name = graph.target if name is None else name
        names = graph.topology.made_from(self.name)
        self.members = nn.ModuleDict({each: graph.members[each] for each in names})

    def forward(self, images: Tensor) -> Tensor:
        """Return the node's logits [B, C] for images [B, 3, H, W]."""
        outputs: dict[str, NodeOutput] = {}
        for name, member in self.members.items():
            outputs[name] = member(images, outputs)
        return outputs[self.name].logits
