"""The knowledge transfer graph: nodes, edges, and one forward and one loss for every node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .edge import Edge, EdgeModule, tagged, unbuilt_said
from .edges import Edges
from .ema import Ema
from .gates import EdgeContext
from .losses import NodeOutput
from .members import modules_of
from .node import Channels, GraphNode, Network
from .problems import Reduction, graph_problems
from .streams import Streams
from .table import LogitTable
from .topology import LABEL, Topology

_logger = logging.getLogger(__name__)


class GraphLosses(NamedTuple):
    """The losses of one step.

    Args:
        total: The sum of all nodes' losses, a scalar to call `backward` on.
        nodes: L_t of every node that learns (Eq. 3), scalars. They are computed together, so the
            backward of one gives the others gradients of zero.
        edges: L_st by edge name (Eq. 2), detached scalars.
        ungated: Mean loss by edge name before the gate, detached scalars.
        passed: Share in 0..1 of the samples that an edge's gate let pass, detached scalars.
    """

    total: Tensor
    nodes: dict[str, Tensor]
    edges: dict[str, Tensor]
    ungated: dict[str, Tensor]
    passed: dict[str, Tensor]


class KnowledgeTransferGraph(nn.Module):
    """Networks that teach each other while they learn.

    Edges whose gate is `cutoff` are dropped, and networks that then have no path to the target are
    left out. A remaining network without an incoming edge is frozen.

    The parameters of a loss or a gate belong to the node that learns through it. If a graph has
    losses or gates registered as classes, call `build_edges` before you make an optimizer.

    Args:
        nodes: The networks, and other kinds of nodes.
        edges: Who learns from whom. Several edges may join the same two nodes.
        target: Name of the node to make accurate.
        reduction: How a node's losses from networks add up: `sum` (Eq. 3), or `mean` over the
            sources, as in Zhang et al. 2018 (deep mutual learning). The label's loss is always
            added whole.
        keep: Names of nodes to train even if they cannot influence the target.
        mean: Per-channel mean that the images are normalized with; needed if a node expects a
            different one.
        std: Per-channel standard deviation, likewise.

    Attributes:
        topology: Which nodes learn, are frozen, or are left out.
        edges: The edges that train something.
        members: The modules of the nodes, by name.
        edge_modules: The modules of the edges, by name.
        tables: Logits of frozen nodes by name, which are looked up if `forward` gets views.
        emas: The exponential moving averages among the nodes.
        made: The nodes that are made from others, by name; those that are left out, too.

    Raises:
        ValueError: The graph is wrong; lists all problems, a line each.

    Reference:
        Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020.
    """

    def __init__(
        self,
        nodes: Sequence[GraphNode],
        edges: Sequence[Edge],
        target: str,
        reduction: Reduction = "sum",
        keep: Collection[str] = (),
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        super().__init__()
        edges = tagged(list(edges))
        traits = tuple(node.traits for node in nodes)
        links = tuple(edge.link for edge in edges)
        self.topology = topology = Topology(traits, links, target, tuple(keep))
        problems = dict.fromkeys(graph_problems(topology, nodes, edges, reduction))
        if problems:
            raise ValueError("\n".join(problems))
        if topology.left_out:
            _logger.warning(
                "Left out of training, because they cannot influence the target `%s`: %s.",
                target,
                ", ".join(topology.left_out),
            )
        self.target = target
        self.reduction = reduction
        active = {link.name for link in topology.active}
        self.edges = tuple(edge for edge in edges if edge.name in active)
        self.edge_modules = Edges(self.edges, mean=reduction == "mean")
        by_name = {node.traits.name: node for node in nodes}
        self.made = {name: node for name, node in by_name.items() if node.traits.needs}
        self.members = nn.ModuleDict(modules_of(by_name, topology, self.edges, mean, std))
        self.tables: dict[str, LogitTable] = {}
        self._streams: Streams | None = None
        self.emas = tuple(
            node for node in nodes if isinstance(node, Ema) and node.name in self.members
        )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the networks that do not learn."""
        return self.topology.frozen

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the nodes that learn."""
        return self.topology.learning

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the nodes that cannot influence the target."""
        return self.topology.left_out

    @property
    def networks(self) -> dict[str, Network]:
        """The networks among the nodes, by name."""
        return {name: node for name, node in self.members.items() if isinstance(node, Network)}

    @property
    def untapped(self) -> tuple[str, ...]:
        """Networks without taps. Only these can be compiled, because torch.compile skips hooks."""
        return tuple(name for name, network in self.networks.items() if not network.taps.names)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """Names of the edges that `build_edges` has yet to build."""
        return self.edge_modules.unbuilt

    def network(self, name: str) -> Network:
        """Return the module of the network `name`."""
        network = self.members[name]
        assert isinstance(network, Network)
        return network

    def model(self, name: str) -> nn.Module:
        """Return the model of the network `name`, the same object that was given."""
        return self.network(name).model

    def owned_modules(self) -> dict[str, tuple[nn.Module, ...]]:
        """Return the modules that each learning node trains: its model and its incoming edges."""
        return {
            name: (
                self.model(name),
                *(self.edge_module(edge.name) for edge in self.edges if edge.destination == name),
            )
            for name in self.learning
        }

    def parameter_owners(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by owner: each learning node, with its incoming edges.

        Use them to make an optimizer, to clip node by node, and to save.

        Raises:
            ValueError: An edge is not built yet.
        """
        if self.unbuilt:
            raise ValueError(unbuilt_said(", ".join(self.unbuilt)))
        return {
            name: [parameter for module in modules for parameter in module.parameters()]
            for name, modules in self.owned_modules().items()
        }

    def build_edges(
        self, outputs: Mapping[str, NodeOutput], seed_of: Callable[[str], int] | None = None
    ) -> None:
        """Build the losses and gates that are registered as module classes.

        Args:
            outputs: What `forward` returned for a few images; only shapes and devices matter.
            seed_of: Maps an edge's name to the seed of its initial weights; None: use the global
                generator.

        Raises:
            ContractError: A constructor raised an error.
        """
        for edge in self.edges:
            destination = outputs[edge.destination]
            label = destination.logits.new_zeros(len(destination.logits), dtype=torch.int64)
            known = {LABEL: label_output(label, destination.logits), **outputs}
            seed = seed_of(edge.name) if seed_of else None
            self.edge_module(edge.name).build(known[edge.source], destination, seed)

    def speed_up_frozen(
        self, images: Tensor, dtype: torch.dtype | None = None, torchcompile: bool = False
    ) -> None:
        """Let frozen nodes without taps compute with copies: BatchNorm folded, weights cast once.

        Call it when the graph is on its device. The models stay as they are. Later changes of their
        weights reach the copies only through `load_state_dict`.

        Args:
            images: Images [B, 3, H, W] like those that the graph will get.
            dtype: The autocast type that the graph will run under; None: no autocast.
            torchcompile: Compile the copies.
        """
        for name in set(self.frozen) & set(self.untapped):
            self.network(name).speed_up(images, dtype, torchcompile)

    def fork(self, device: torch.device) -> None:
        """Let networks compute side by side in training; for updates that are recorded.

        Args:
            device: The graph's CUDA device.
        """
        self._streams = Streams(self.networks, device)

    def forward(
        self,
        images: Tensor,
        views: Tensor | None = None,
        known: Mapping[str, NodeOutput] = MappingProxyType({}),
    ) -> dict[str, NodeOutput]:
        """Return the nodes' outputs for the same images.

        In training mode these are the nodes that a training step needs, otherwise all.

        Args:
            images: [B, 3, H, W].
            views: The row of each image in `tables`, int64 [B]; None: compute all nodes.
            known: Outputs of nodes for these images, which need not be computed.
        """
        names = self.topology.in_training if self.training else self.topology.order
        if self.training and self._streams is not None and views is None:
            networks = {name: self.network(name) for name in names if name in self.networks}
            known = {**known, **self._streams.run(networks, images)}
        outputs: dict[str, NodeOutput] = {}
        for name in names:
            if name in known:
                outputs[name] = known[name]
            elif views is not None and name in self.tables:
                outputs[name] = self.tables[name].look_up(views, images, self.network(name))
            else:
                outputs[name] = self.members[name](images, outputs)
        return outputs

    def update_emas(self, update: float | Tensor) -> None:
        """Move every exponential moving average; call it after every optimizer update.

        Args:
            update: Number k of the update, from 1; a tensor if the update is recorded.
        """
        for ema in self.emas:
            ema.follow(self.model(ema.source), self.model(ema.name), update)

    def losses(
        self, outputs: Mapping[str, NodeOutput], labels: Tensor, progress: float | Tensor = 1.0
    ) -> GraphLosses:
        """Return the losses of a batch.

        Args:
            outputs: What `forward` returned.
            labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).
            progress: k / k_end in (0, 1], where k counts optimizer updates from 1, this one
                included, and k_end is their total in the whole run.

        Raises:
            ContractError: A gate or a loss returned something other than attached losses [B].
            ValueError: An edge is not built yet, or the labels do not fit the logits.
        """
        sources = {name: output.detach() for name, output in outputs.items()}
        sources[LABEL] = label_output(labels, next(iter(outputs.values())).logits)
        contexts = {
            edge.name: EdgeContext(
                sources[edge.source], outputs[edge.destination], labels, progress
            )
            for edge in self.edges
        }
        losses, gated = self.edge_modules(contexts)
        # Eq. 2, over the whole batch, stopped samples included.
        terms = self.edge_modules.weights * gated.mean(1)
        # A sample whose loss is 0 anyway counts as passed.
        passed = ((gated != 0) | (losses == 0)).float().mean(1)
        by_node = self.edge_modules.by_node(terms)
        nodes = {name: by_node[name] for name in self.learning}
        total = torch.stack(list(nodes.values())).sum()
        edges, ungated, shares = (
            self.edge_modules.by_edge(each.detach()) for each in (terms, losses.mean(1), passed)
        )
        return GraphLosses(total, nodes, edges, ungated, shares)

    def edge_module(self, name: str) -> EdgeModule:
        """Return the edge `name` at work."""
        return self.edge_modules.edge(name)


def label_output(labels: Tensor, like: Tensor) -> NodeOutput:
    """Return the labels as a node's output: the one-hot, or the mixed labels as they are.

    Args:
        labels: Class indices [B], or class probabilities [B, C].
        like: Logits [B, C].

    Raises:
        ValueError: The labels have another shape; [B, 1] would be taken for probabilities.
    """
    if labels.shape not in (like.shape[:1], like.shape):
        raise ValueError(
            f"labels should be class indices {list(like.shape[:1])} or class probabilities "
            f"{list(like.shape)}. Found {list(labels.shape)}."
        )
    if labels.ndim == 2:
        return NodeOutput(labels)
    # F.one_hot would read the largest label back from the device.
    one_hot = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return NodeOutput(one_hot.scatter_(1, labels[:, None], 1.0))
