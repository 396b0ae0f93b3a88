"""Checks that a new graph works with the images and is the same on all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from types import CodeType
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..data import derive_seed
from ..errors import ContractError, RecipeError, one_line
from ..graph.contract import contract_problems
from ..graph.edge import Edge
from ..graph.graph import KnowledgeTransferGraph
from ..graph.label_losses import JSD_SPLITS
from ..graph.losses import NodeOutput
from ..graph.node import Network
from ..graph.registry import Bound, shown
from ..graph.taps import TapError
from ..graph.topology import Link
from ..recipe.recipe import Recipe
from ..recipe.train_config import TrainConfig


def check_batch_size(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError if a batch does not divide evenly into its parts."""
    parts = processes * recipe.train.grad_accum_steps
    if recipe.train.batch_size % parts:
        raise RecipeError(
            [
                f"train.batch_size: should be a multiple of {parts}, the processes ({processes}) "
                f"times grad_accum_steps. Found {recipe.train.batch_size}."
            ]
        )


def check_gradients(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError if several processes train a node whose classifier gets no gradient.

    They exchange the gradients of all parameters, and would wait for those.
    """
    if processes == 1:
        return
    edges = recipe.graph.edges
    live = recipe.graph.topology.live
    by_logits = {link.destination for link in live if not (edges[link].taps or edges[link].head)}
    problems = [
        f"graph.nodes.{name}.learns_from: several processes need an edge without taps and head, "
        "so that the classifier learns. Found none."
        for name in dict.fromkeys(link.destination for link in live)
        if name not in by_logits
    ]
    if problems:
        raise RecipeError(problems)


def check_lone_image(
    graph: KnowledgeTransferGraph, recipe: Recipe, size: int, processes: int, alone: Tensor
) -> None:
    """Raise RecipeError if an update gets a single image, which the graph cannot learn from.

    BatchNorm cannot, where an image leaves one value for a channel.

    Args:
        graph: The graph, on its device; its weights and statistics stay as they are.
        recipe: The recipe.
        size: Training images of an epoch.
        processes: The number of processes.
        alone: All views [V, 3, H, W] of an image, on the device.
    """
    if smallest_update(recipe, size, processes) > 1:
        return
    batch, parts = recipe.train.batch_size, recipe.train.grad_accum_steps
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    labels = torch.zeros(len(alone), dtype=torch.int64, device=alone.device)
    graph.train()
    try:
        with torch.random.fork_rng():
            graph.losses(graph(alone), labels)
    except ValueError as error:
        said = f"leaves a single image for an update: {size} images, {batch} a batch"
        said += f", in {parts} parts" * (parts > 1)
        raise RecipeError([f"train.batch_size: {said}. {one_line(error)}"]) from error
    finally:
        graph.load_state_dict(before)
        graph.eval()


def smallest_update(recipe: Recipe, size: int, processes: int) -> int:
    """Return how many images the smallest forward pass of an epoch has on a process.

    Args:
        recipe: The recipe.
        size: Training images of an epoch.
        processes: The number of processes.
    """
    batch, parts = recipe.train.batch_size, recipe.train.grad_accum_steps
    shares = {batch // processes, size % batch // processes} - {0}
    return min(len(part) for share in shares for part in torch.arange(share).chunk(parts))


def check_views(recipe: Recipe) -> None:
    """Raise RecipeError if a loss needs another number of views than batches have."""
    splits, parts = recipe.data.aug_splits, recipe.train.grad_accum_steps
    problems = []
    if splits and parts > 1:
        said = f"should be 1: a batch with data.aug_splits cannot be divided. Found {parts}."
        problems.append(f"train.grad_accum_steps: {said}")
    for link, edge in recipe.graph.edges.items():
        wanted = edge.loss_kwargs.get("splits", JSD_SPLITS)
        if edge.loss == "jsd" and wanted != splits:
            where = f"graph.nodes.{link.destination}.learns_from.{link.key}.loss"
            problems.append(f"{where}: jsd needs data.aug_splits {wanted}. Found {splits}.")
    if problems:
        raise RecipeError(problems)


def check_grad_checkpointing(train: TrainConfig, graph: KnowledgeTransferGraph) -> None:
    """Raise RecipeError if activations are computed twice, and a node that learns has taps."""
    tapped = [name for name in graph.learning if name not in graph.untapped]
    if train.grad_checkpointing and tapped:
        said = "should be false beside taps, whose modules would run twice"
        raise RecipeError([f"train.grad_checkpointing: {said}. Found taps on {', '.join(tapped)}."])


def check_sync_bn(train: TrainConfig, device: torch.device) -> None:
    """Raise RecipeError if `sync_bn` is on and torch cannot synchronize BatchNorm on the device."""
    if train.sync_bn and device.type in ("cpu", "mps"):
        raise RecipeError(
            [f"train.sync_bn: should be off on this device, where torch has none. Found {device}."]
        )


@torch.no_grad()
def check_outputs(
    graph: KnowledgeTransferGraph,
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
    count: int = 2,
) -> dict[str, NodeOutput]:
    """Return every node's output for a few images of the given size.

    Args:
        graph: The graph, on its device.
        shape: Channels, height and width of the images.
        num_classes: C.
        device: The device.
        count: The number of images, N.

    Raises:
        RecipeError: Nodes do not map such images to logits [N, C]; lists all.
    """
    problems, outputs = [], dict[str, NodeOutput]()
    # Not all the same, because the losses are tried on what comes out.
    size = shape[1:]
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    graph.eval()
    for name in graph.topology.order:
        made = graph.made.get(name)
        if made is not None and not outputs.keys() >= set(made.traits.needs):
            continue  # a node that it is made from has the problem
        try:
            outputs[name] = graph.members[name](images, outputs)
            found = list(outputs[name].logits.shape)
        except TapError as error:
            problems.append(f"graph.nodes.{name}: {error}")
            continue
        except Exception as error:  # a model can raise anything for images it was not made for
            network = graph.networks.get(name)
            taken = network.size if network and isinstance(network.size, tuple) else size
            problems.append(
                f"graph.nodes.{name}: cannot take images of {taken[0]}x{taken[1]}: "
                f"{one_line(error)}{_size_hint(network, taken)}"
            )
            continue
        if found != [count, num_classes]:
            problems.append(
                f"graph.nodes.{name}: should map {count} images to logits "
                f"[{count}, {num_classes}]. Found {found}."
            )
    if problems:
        raise RecipeError(problems)
    return outputs


def _size_hint(network: Network | None, size: tuple[int, int]) -> str:
    """Return what to say of a model that timm builds for one size of images."""
    config = getattr(network.model, "pretrained_cfg", {}) if network else {}
    if not config.get("fixed_input_size") or size[0] != size[1]:
        return ""
    return f" Did you mean `model_kwargs: {{img_size: {size[0]}}}`?"


def build_edge_modules(
    graph: KnowledgeTransferGraph, outputs: Mapping[str, NodeOutput], seed: int
) -> None:
    """Build the losses and gates that have parameters.

    Args:
        graph: The graph.
        outputs: What `check_outputs` returned.
        seed: Seed of the run. Each edge derives its own, so a new edge does not change the others.

    Raises:
        RecipeError: A loss or a gate cannot be built for these outputs, or is lazy.
    """
    try:
        graph.build_edges(outputs, lambda name: derive_seed(f"init {name}", seed))
    except ContractError as error:
        unbuilt = (edge for edge in graph.edges if not graph.edge_module(edge.name).is_built)
        link = next(unbuilt).link  # the first, because they are built in this order
        said = str(error).removeprefix(f"{link.name}: ")
        raise RecipeError([f"{_place(link)}: {said}"]) from error
    lazy = [
        f"{_place(edge.link)}: a loss or a gate should know its shapes once it is built. Found "
        "parameters of a lazy module."
        for edge in graph.edges
        if any(map(is_lazy, graph.edge_module(edge.name).parameters()))
    ]
    if lazy:
        raise RecipeError(lazy)


def _place(link: Link) -> str:
    """Return the place of an edge in a recipe."""
    return f"graph.nodes.{link.destination}.learns_from.{link.key}"


def check_contracts(
    graph: KnowledgeTransferGraph,
    outputs: Mapping[str, NodeOutput],
    mixed: bool,
    checked: set[Any],
) -> None:
    """Call every loss and every gate once on the nodes' outputs.

    Args:
        graph: The graph, its edges built.
        outputs: What `check_outputs` returned.
        mixed: Whether the labels of the training are mixed.
        checked: The pairs of loss and gate that were checked before, for outputs of the same
            shapes; more are added. Those are left out, because a search uses few, again and again.

    Raises:
        RecipeError: All losses and gates that break their contracts.
    """
    signs = {edge.name: _sign(edge, outputs, mixed) for edge in graph.edges}
    new = [name for name, sign in signs.items() if sign not in checked]
    problems = [
        f"{_place(link)}.{part}: {problem}"
        for link, part, problem in contract_problems(graph, outputs, mixed, new)
    ]
    if problems:
        raise RecipeError(problems)
    checked |= set(signs.values())


def _sign(edge: Edge, outputs: Mapping[str, NodeOutput], mixed: bool) -> Hashable:
    """Return all that decides whether an edge keeps its contracts."""
    ends = [outputs[name] for name in edge.pair if name in outputs]  # the label is no node
    shapes = [
        (output.logits.shape, *((name, each.shape) for name, each in output.features.items()))
        for output in ends
    ]
    parts = (shown(edge.loss), code_of(edge.loss), shown(edge.gate), code_of(edge.gate))
    return (*parts, edge.temperature, edge.tapped, edge.head, mixed, *shapes)


def check_processes_agree(graph: KnowledgeTransferGraph) -> None:
    """Raise RecipeError unless the graph and its gates' code are the same on all processes."""
    edges = {
        str(
            edge
        ): f"{shown(edge.gate)} {code_of(edge.gate)}, {shown(edge.loss)} {code_of(edge.loss)}"
        for edge in graph.edges
    }
    everywhere = gather_object([edges])
    for number, others in enumerate(everywhere):
        different = sorted(set(everywhere[0].items()) ^ set(others.items()))
        if different:
            edge = different[0][0]
            raise RecipeError(
                [
                    f"graph: all processes should have the same gates and losses. On {edge}, "
                    f"process 0 has {everywhere[0].get(edge)} and process {number} has "
                    f"{others.get(edge)}."
                ]
            )


def code_of(function: Any) -> str:
    """Return a fingerprint of a function's code, valid within one version of Python."""
    function = function.function if isinstance(function, Bound) else function
    if isinstance(function, type):
        methods = [each for each in vars(function).values() if hasattr(each, "__code__")]
        return hashlib.sha256(" ".join(map(code_of, methods)).encode()).hexdigest()[:8]
    code = getattr(function, "__code__", None)
    seen = _parts(code) if code else repr(type(function))
    values = [
        *(getattr(function, "__defaults__", None) or ()),
        *(getattr(function, "__kwdefaults__", None) or {}).values(),
    ]
    defaults = [code_of(value) if callable(value) else repr(value) for value in values]
    return hashlib.sha256(f"{seen} {defaults}".encode()).hexdigest()[:8]


def _parts(constant: Any) -> str:
    """Return a code constant as text, without addresses and independent of set order."""
    if isinstance(constant, CodeType):
        inner = [_parts(each) for each in constant.co_consts]
        return f"{constant.co_code!r} {constant.co_names} {inner}"
    return str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
