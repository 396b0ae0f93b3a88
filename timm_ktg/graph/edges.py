"""All edges of a graph at work: the losses of a batch, computed for like edges at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ContractError
from .edge import Edge, EdgeModule
from .gates import EdgeContext
from .losses import NodeOutput, problem_of
from .registry import shown
from .topology import LABEL


class Edges(nn.ModuleDict):
    """The modules of the edges, by name, and the losses of a batch.

    The losses grow with the square of the nodes, so edges that differ only in their ends and gates
    are computed in one call; see `stackable`.

    Args:
        edges: The edges that train something.
        mean: Whether a node's losses from networks are divided by the number of these networks.

    Attributes:
        computed: The edges in the order of what `forward` returns.
    """

    weights: Tensor
    shares: Tensor
    order: Tensor

    def __init__(self, edges: Sequence[Edge], mean: bool = False) -> None:
        super().__init__({edge.name: EdgeModule(edge) for edge in edges})
        kin: dict[Hashable, list[Edge]] = {}
        for edge in edges:
            kin.setdefault(edge.kin, []).append(edge)
        self._groups = tuple(map(tuple, kin.values()))
        self.computed = tuple(edge for group in self._groups for edge in group)
        weights = torch.tensor([edge.weight for edge in self.computed])
        self.register_buffer("weights", weights, persistent=False)
        # Each destination's edges side by side, the label's first.
        self._incoming = _incoming(edges)
        at = {edge.name: number for number, edge in enumerate(self.computed)}
        self._numbers = {edge.name: at[edge.name] for edge in edges}
        sorted_edges = [edge for each in self._incoming.values() for edge in each]
        order = torch.tensor([at[edge.name] for edge in sorted_edges], dtype=torch.int64)
        self.register_buffer("order", order, persistent=False)
        counts = {
            name: len({e.source for e in each} - {LABEL}) for name, each in self._incoming.items()
        }
        shares = torch.tensor(
            [
                1 / counts[edge.destination] if mean and edge.source != LABEL else 1.0
                for edge in sorted_edges
            ]
        )
        self.register_buffer("shares", shares, persistent=False)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """Names of the edges that have yet to be built."""
        return tuple(edge.name for edge in self.computed if not self.edge(edge.name).is_built)

    def edge(self, name: str) -> EdgeModule:
        """Return the edge `name` at work."""
        module = self[name]
        assert isinstance(module, EdgeModule)
        return module

    def forward(self, contexts: Mapping[str, EdgeContext]) -> tuple[Tensor, Tensor]:
        """Return the losses [E, B] of all edges, and the gated ones [E, B], without weights.

        Args:
            contexts: What each edge sees of a batch, by the edge's name.

        Raises:
            ContractError: A loss or a gate returned a wrong shape or a detached tensor.
        """
        losses = [self._losses(group, contexts) for group in self._groups]
        gated = [
            self._gated(group, own, contexts)
            for group, own in zip(self._groups, losses, strict=True)
        ]
        return torch.cat(losses), torch.cat(gated)

    def by_edge(self, values: Tensor) -> dict[str, Tensor]:
        """Return the values [E] of all edges by name, in the order in which they were given."""
        found = values.unbind()
        return {name: found[number] for name, number in self._numbers.items()}

    def by_node(self, terms: Tensor) -> dict[str, Tensor]:
        """Return each node's loss L_t, the sum over its incoming edges (Eq. 3).

        Args:
            terms: The losses L_st [E] of all edges, with their weights.
        """
        incoming = self.shares * terms.index_select(0, self.order)
        parts = torch.split(incoming, [len(edges) for edges in self._incoming.values()])
        return {name: part.sum() for name, part in zip(self._incoming, parts, strict=True)}

    def _losses(self, group: Sequence[Edge], contexts: Mapping[str, EdgeContext]) -> Tensor:
        """Return the losses [E, B] of like edges."""
        if len(group) == 1:
            alone: Tensor = self.edge(group[0].name)(contexts[group[0].name])
            return alone[None]
        edge, context = group[0], contexts[group[0].name]
        ends = [self.edge(each.name).ends(*contexts[each.name][:2]) for each in group]
        sources, destinations = (_Rows.of(each) for each in zip(*ends, strict=True))
        losses: Tensor = self.edge(edge.name).loss(
            sources, destinations, context.labels, temperature=edge.temperature
        )
        attached = any(contexts[each.name].destination.logits.requires_grad for each in group)
        problem = problem_of(losses, (len(group), len(context.destination.logits)), attached)
        if problem:
            said = f"loss `{shown(edge.loss)}` of {len(group)} edges should return {problem}."
            raise ContractError(f"{edge}: {said}")
        return losses

    def _gated(
        self, group: Sequence[Edge], losses: Tensor, contexts: Mapping[str, EdgeContext]
    ) -> Tensor:
        """Return the gated losses [E, B] of like edges."""
        modules = [self.edge(edge.name) for edge in group]
        if all(module.is_open for module in modules):
            return losses
        return torch.stack(
            [
                module.gated(row, contexts[module.edge.name])
                for module, row in zip(modules, losses.unbind(), strict=True)
            ]
        )


def _incoming(edges: Sequence[Edge]) -> dict[str, list[Edge]]:
    """Return the edges by destination; the label's come first."""
    incoming: dict[str, list[Edge]] = {}
    for edge in sorted(edges, key=lambda edge: edge.source != LABEL):
        incoming.setdefault(edge.destination, []).append(edge)
    return incoming


class _Rows(NodeOutput):
    """The outputs of M nodes, stacked as logits [M, B, C], and which of them each edge has.

    Softmax is computed once for each node, although there can be many more edges.
    """

    rows: Sequence[int]

    @classmethod
    def of(cls, outputs: Sequence[NodeOutput]) -> _Rows:
        """Return the outputs [B, C] at one end of each edge as one."""
        found = {id(output.logits): output.logits for output in outputs}
        result = cls(torch.stack(list(found.values())))
        numbers = {key: number for number, key in enumerate(found)}
        result.rows = [numbers[id(output.logits)] for output in outputs]
        return result

    def log_probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return log softmax(z / T) [E, B, C] of the node at the end of each edge."""
        return self._at_edges(super().log_probabilities(temperature))

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return softmax(z / T) [E, B, C] of the node at the end of each edge."""
        return self._at_edges(super().log_probabilities(temperature).exp())

    def _at_edges(self, values: Tensor) -> Tensor:
        """Return the values [M, B, C] of the nodes at the ends of the edges [E, B, C]."""
        nodes = values.unbind()
        # Indexing would add gradients up in no fixed order on a GPU, so results would not repeat.
        return torch.stack([nodes[row] for row in self.rows])
