"""The knowledge transfer graph: nodes, edges, one forward of every node, one loss for each."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..errors import did_you_mean
from .edge import Edge
from .gates import EdgeContext
from .losses import NodeOutput
from .node import Channels, Member, Node
from .node_threads import NodeThreads
from .topology import (
    LABEL,
    Pair,
    edge_problems,
    name_problem,
    nodes_that_matter,
    target_problem,
)

_logger = logging.getLogger(__name__)

Reduction = Literal["sum", "mean"]


class GraphLosses(NamedTuple):
    """The losses of one step.

    Args:
        total: What to call `backward` on: the sum of all nodes' losses, a scalar.
        nodes: L_t of every node that learns (Eq. 3), scalars.
        edges: L_st of every edge (Eq. 2), detached scalars.
        passed: Share of samples in 0..1 whose loss an edge's gate did not stop, detached scalars.
    """

    total: Tensor
    nodes: dict[str, Tensor]
    edges: dict[Pair, Tensor]
    passed: dict[Pair, Tensor]


class KnowledgeTransferGraph(nn.Module):
    """Networks that teach each other while they learn.

    Edges whose gate is `cutoff` are dropped, and nodes that then have no path to the target are
    left out. What remains without an incoming edge is frozen.

    Args:
        nodes: The networks.
        edges: Who learns from whom.
        target: Name of the node that the user wants.
        reduction: How a node's losses from networks add up: `sum` (Eq. 3), or `mean` as in Zhang et
            al. 2018 (deep mutual learning). The label's loss is always added whole.
        keep: Names of nodes to train even if they cannot influence the target.
        mean: Per-channel mean that the images given to the graph are normalised with; needed when a
            node expects another one.
        std: Per-channel standard deviation, likewise.

    Attributes:
        threads: Runs the nodes side by side on a CPU; None: they run one after another.

    Raises:
        ValueError: Everything that is wrong with the graph, a line each.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        edges: Sequence[Edge],
        target: str,
        reduction: Reduction = "sum",
        keep: Collection[str] = (),
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        super().__init__()
        _raise_if_any([*_problems(nodes, edges, target, keep), *_reduction_problem(reduction)])
        edges = [edge for edge in edges if not edge.is_cut_off]
        matter = nodes_that_matter([edge.pair for edge in edges], target, keep)
        left_out = [node.name for node in nodes if node.name not in matter]
        if left_out:
            _logger.warning(
                "Left out of training, for they cannot influence the target `%s`: %s.",
                target,
                ", ".join(left_out),
            )
        self.threads: NodeThreads | None = None
        self.target = target
        self.reduction = reduction
        self.left_out = tuple(left_out)
        self.edges = tuple(edge for edge in edges if edge.destination in matter)
        nodes = [node for node in nodes if node.name in matter]
        learners = {edge.destination for edge in self.edges}
        _raise_if_any(
            [
                f"nodes.{node.name}: a node that learns from nothing is frozen and should hold "
                "trained weights (pretrained=True). Found pretrained=False."
                for node in nodes
                if node.name not in learners and not node.pretrained
            ]
        )
        self.members = nn.ModuleDict(
            {node.name: Member(node, node.name not in learners, mean, std) for node in nodes}
        )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the nodes that do not learn."""
        return tuple(name for name in self.members if self.member(name).frozen)

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the nodes that learn."""
        return tuple(name for name in self.members if not self.member(name).frozen)

    @property
    def untapped(self) -> tuple[str, ...]:
        """Names of the nodes without taps: those that torch.compile can take, which skips hooks."""
        return tuple(name for name in self.members if not self.member(name).capture.names)

    def model(self, name: str) -> nn.Module:
        """Return the model of the node `name`, the very one that was given."""
        return self.member(name).model

    def member(self, name: str) -> Member:
        """Return the node `name` at work."""
        member = self.members[name]
        assert isinstance(member, Member)
        return member

    def speed_up_frozen(
        self, images: Tensor, dtype: torch.dtype | None = None, torchcompile: bool = False
    ) -> None:
        """Let frozen nodes without taps compute with copies: BatchNorm folded, weights cast once.

        For a graph that is on its device. The models stay as they are, and changes of their weights
        reach the copies by `load_state_dict` only.

        Args:
            images: Images [B, 3, H, W] such as the graph will get.
            dtype: The type of autocast that the graph will work under; None: there is none.
            torchcompile: Compile the copies.
        """
        for name in set(self.frozen) & set(self.untapped):
            self.member(name).speed_up(images, dtype, torchcompile)

    def forward(self, images: Tensor) -> dict[str, NodeOutput]:
        """Return every node's output for the same images [B, 3, H, W]."""
        if self.threads is not None:
            return self.threads({name: self.member(name) for name in self.members}, images)
        return {name: member(images) for name, member in self.members.items()}

    def losses(
        self, outputs: dict[str, NodeOutput], labels: Tensor, progress: float | Tensor = 1.0
    ) -> GraphLosses:
        """Return the losses of a batch.

        Args:
            outputs: What `forward` returned.
            labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
            progress: k / k_end in (0, 1], where k counts optimizer updates from 1, this one
                included, and k_end is their total in the whole run.

        Raises:
            ContractError: A gate or a loss returned something other than [B] attached losses.
        """
        sources = {name: output.detach() for name, output in outputs.items()}
        sources[LABEL] = _label_output(labels, next(iter(outputs.values())).logits)
        terms: dict[Pair, Tensor] = {}
        passed: dict[Pair, Tensor] = {}
        for edge in self.edges:
            context = EdgeContext(sources[edge.source], outputs[edge.destination], labels, progress)
            losses = edge.measure(context)
            gated = edge.gated(losses, context)
            terms[edge.pair] = gated.mean()  # Eq. 2, over the whole batch, stopped samples included
            # A sample that has no loss to stop counts as passed.
            passed[edge.pair] = ((gated != 0) | (losses == 0)).float().mean().detach()
        nodes = {name: self._node_loss(name, terms) for name in self.learning}
        edges = {pair: term.detach() for pair, term in terms.items()}
        return GraphLosses(torch.stack(list(nodes.values())).sum(), nodes, edges, passed)

    def _node_loss(self, name: str, terms: dict[Pair, Tensor]) -> Tensor:
        """Return L_t, the sum over incoming edges (Eq. 3)."""
        label = [terms[pair] for pair in terms if pair == (LABEL, name)]
        networks = [terms[pair] for pair in terms if pair[1] == name and pair[0] != LABEL]
        loss = torch.stack([*label, *networks]).sum()
        if self.reduction == "mean" and networks:
            loss = torch.stack([*label, torch.stack(networks).mean()]).sum()
        return loss


def _problems(
    nodes: Sequence[Node], edges: Sequence[Edge], target: str, keep: Collection[str]
) -> Iterator[str]:
    names = [node.name for node in nodes]
    pairs = [edge.pair for edge in edges]
    for name in names:
        problem = name_problem(name)
        if hasattr(nn.ModuleDict(), name):
            problem = f"`{name}` is a name that torch keeps for itself; choose another."
        if problem or names.count(name) > 1:
            yield f"nodes.{name}: {problem or 'two nodes should not have the same name.'}"
    for (source, destination), problem in edge_problems(names, pairs):
        yield f"edges.{source}->{destination}: {problem}"
    problem = target_problem(names, [edge.pair for edge in edges if not edge.is_cut_off], target)
    if problem:
        yield f"target: {problem}"
    for name in keep:
        if name not in names:
            yield f"keep: `{name}` is no node.{did_you_mean(name, names)}"
    models = [id(node.model) for node in nodes]
    for node in nodes:
        if models.count(id(node.model)) > 1:
            yield f"nodes.{node.name}: should have a model of its own. Found it in two nodes."
    classes = {
        node.name: node.model.num_classes for node in nodes if hasattr(node.model, "num_classes")
    }
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in classes.items())
        yield f"nodes: all should have the same number of classes. Found {counts}."


def _reduction_problem(reduction: str) -> list[str]:
    if reduction in get_args(Reduction):
        return []
    return [f"reduction: should be one of {', '.join(get_args(Reduction))}. Found `{reduction}`."]


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(problems))


def _label_output(labels: Tensor, like: Tensor) -> NodeOutput:
    """Return the labels as a node's output: the one-hot, or the mixed labels as they are."""
    if labels.ndim == 2:
        return NodeOutput(labels)
    # Not F.one_hot, which reads the largest label back from the device.
    one_hot = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return NodeOutput(one_hot.scatter_(1, labels[:, None], 1.0))
