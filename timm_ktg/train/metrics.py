"""The metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ..graph.gates import dominant, stops_samples
from ..graph.graph import GraphLosses, KnowledgeTransferGraph
from ..graph.losses import NodeOutput
from ..graph.registry import shown
from ..records.metrics import TOP, Metrics, loss_name, passed_name, top_name, weight_name


class TrainingError(RuntimeError):
    """A run cannot go on: a loss is not finite, or an update cannot be recorded as asked."""


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the samples of a batch that are right in the top 1 and in the top 5, or top C if C < 5.

    Args:
        logits: [B, C].
        labels: Class indices [B], or class probabilities [B, C]; then the dominant class counts.

    Returns:
        Counts [2].
    """
    ranked = logits.topk(min(max(TOP), logits.shape[-1]), dim=-1).indices
    hits = ranked == dominant(labels)[:, None]
    return torch.stack([hits[:, :top].sum() for top in TOP])


class EpochMeter:
    """Sums up an epoch's metrics on the device; they are read once, at the end.

    Args:
        graph: The graph.
        accelerator: Gives the device, and sums over processes.
    """

    def __init__(self, graph: KnowledgeTransferGraph, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.nodes = graph.learning
        self.edges = {edge.name: edge for edge in graph.edges}
        running = graph.topology.in_training
        self.counted = tuple(name for name in graph.members if name in running)
        self.stopping = [name for name, edge in self.edges.items() if stops_samples(edge.gate)]
        target = graph.topology.made_from(graph.target)
        self._of_target = [index for index, name in enumerate(self.nodes) if name in target]
        columns = len(self.nodes) + 3 * len(self.edges)
        self._sums = torch.zeros(columns, device=accelerator.device)
        self._correct = torch.zeros(len(self.counted), len(TOP), device=accelerator.device)
        self._first_bad = torch.full((len(self.edges),), math.inf, device=accelerator.device)
        self._images = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def reset(self) -> None:
        """Begin an epoch."""
        for sums in (self._sums, self._correct, self._images):
            sums.zero_()
        self._first_bad.fill_(math.inf)

    def update(
        self,
        losses: GraphLosses,
        outputs: dict[str, NodeOutput],
        labels: Tensor,
        update: float | Tensor,
    ) -> None:
        """Add a batch without reading from the device.

        Args:
            losses: The losses.
            outputs: The outputs.
            labels: The labels, [B] or [B, C].
            update: Number of the optimizer update, from 1; a float32 scalar.
        """
        edges = torch.stack([losses.edges[name] for name in self.edges])
        nodes = torch.stack([losses.nodes[name].detach() for name in self.nodes])
        ungated = torch.stack([losses.ungated[name] for name in self.edges])
        passed = torch.stack([losses.passed[name] for name in self.edges])
        self._sums += torch.cat([nodes, edges, ungated, passed]) * len(labels)
        logits = (outputs[name].logits.detach() for name in self.counted)
        self._correct += torch.stack([correct_counts(each, labels) for each in logits])
        bad = torch.where(edges.isfinite(), math.inf, update)
        torch.minimum(self._first_bad, bad, out=self._first_bad)
        self._images += len(labels)

    @property
    def images(self) -> int:
        """Images seen on this process."""
        return int(self._images.item())

    def running_loss(self) -> float:
        """Return the target's mean loss in this epoch so far, on this process.

        It waits for the device. If the target is made from several nodes, it is the mean of theirs.
        """
        sums = self._sums[self._of_target]
        return float((sums.mean() / self._images).item())

    def read(self) -> Metrics:
        """Return the epoch's means over all processes.

        Raises:
            TrainingError: A loss was not finite; names the edge, the node and the update.
        """
        first_bad = self.accelerator.gather(self._first_bad[None]).amin(0).tolist()
        sums, correct, count = self.accelerator.reduce(
            (self._sums, self._correct, self._images), reduction="sum"
        )
        self._raise_if_bad(first_bad)
        sizes = [len(self.nodes), *[len(self.edges)] * 3]
        nodes, gated, ungated, passed = (part.tolist() for part in (sums / count).split(sizes))
        means = {loss_name(name): value for name, value in zip(self.nodes, nodes, strict=True)}
        for name, after, before, share in zip(self.edges, gated, ungated, passed, strict=True):
            means[loss_name(name)] = after
            means[weight_name(name)] = _mean_weight(after, before, self.edges[name].weight)
            if name in self.stopping:
                means[passed_name(name)] = share
        return means | accuracies("train", self.counted, correct, count)

    def _raise_if_bad(self, first_bad: Sequence[float]) -> None:
        update = min(first_bad)
        if update == math.inf:
            return
        edges = [
            edge for edge, bad in zip(self.edges.values(), first_bad, strict=True) if bad == update
        ]
        named = ", ".join(f"{edge} (gate {shown(edge.gate)})" for edge in edges)
        nodes = ", ".join(sorted({edge.destination for edge in edges}))
        raise TrainingError(
            f"The loss of node {nodes} is not finite at update {update:.0f}, on {named}."
        )


def _mean_weight(gated: float, ungated: float, weight: float) -> float:
    """Return what counted over what came; the edge's weight where there was nothing to weigh."""
    return gated / ungated if ungated and math.isfinite(ungated) else weight


def accuracies(split: str, names: Sequence[str], correct: Tensor, count: Tensor) -> Metrics:
    """Return top-1 and top-5 of every node in percent, by the name of the metric.

    Args:
        split: `train`, `val` or `test`.
        names: Nodes [M].
        correct: Counts [M, 2].
        count: Images, a scalar.
    """
    shares = (100 * correct.cpu().double() / count.cpu().double()).tolist()
    return {
        top_name(top, split, name): share
        for name, row in zip(names, shares, strict=True)
        for top, share in zip(TOP, row, strict=True)
    }
