"""Graphs of well-known methods, each in one call.

A model is an `nn.Module`, or a `Node` to say more about it, such as its normalization; the node is
renamed after its role. Images should be normalized as the node of the target says (`mean`, `std`);
nodes that expect another normalization renormalize them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import found, located
from .edge import Edge
from .ema import Ema
from .ensemble import Ensemble
from .graph import KnowledgeTransferGraph
from .losses import EdgeLoss, create_loss
from .node import GraphNode, Node
from .problems import Reduction
from .topology import LABEL
from .weights import load_weights

Model = nn.Module | Node


def kd(
    student: Model,
    teacher: Model,
    *,
    loss: str | EdgeLoss = "kl_div",
    temperature: float = 1.0,
    weight: float = 1.0,
    label_weight: float = 1.0,
) -> KnowledgeTransferGraph:
    """Return the graph of knowledge distillation: label_weight CE + weight L(teacher).

    The target is `student`. The defaults did better on a small part of CIFAR-100 than temperature
    4, weight 0.9, label_weight 0.1, which are usual on the whole of it: 32.5 ± 0.3 % (n=5) against
    30.3 ± 0.4 % (n=5; `recipes/evidence`). With other losses than `kl_div` they were not tried.

    Example:
        graph = ktg.presets.kd(student, teacher, loss="dkd", temperature=4.0)
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        student: The model that learns.
        teacher: A trained model, which is frozen.
        loss: The loss of the teacher's edge, one between logits: its name, or what `create_loss`
            returns. `hard` needs temperature 1.
        temperature: T > 0.
        weight: Weight of the teacher's loss, at least 0.
        label_weight: Weight of the label's loss, at least 0.

    Raises:
        ValueError: The models do not fit together, or a number is out of its range.

    Reference:
        Hinton, Vinyals, and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    nodes = [_node("student", student), _node("teacher", teacher, trained=True)]
    edges = _edges("student", ["teacher"], weight, label_weight, temperature, loss)
    return _graph(nodes, edges, "student")


def kd_multi(
    student: Model,
    teachers: Sequence[Model],
    *,
    loss: str | EdgeLoss = "kl_div",
    temperature: float = 1.0,
    weight: float = 1.0,
    label_weight: float = 1.0,
) -> KnowledgeTransferGraph:
    """Return the graph of several teachers: label_weight CE + weight sum_m L(teacher m).

    The target is `student`. Hinton et al. average the predictions of the teachers instead of the
    losses. With `kl_div` and weight w / M, the gradient is that of w times the loss from the mean
    of their probabilities at T. For the defaults, see `kd`.

    Example:
        graph = ktg.presets.kd_multi(student, [teacher, another])
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        student: The model that learns.
        teachers: M trained models, at least one, which are frozen.
        loss: The loss of the teachers' edges, one between logits: its name, or what `create_loss`
            returns. `hard` needs temperature 1.
        temperature: T > 0.
        weight: Weight of each teacher's loss, at least 0.
        label_weight: Weight of the label's loss, at least 0.

    Raises:
        ValueError: There is no teacher, the models do not fit together, or a number is out of its
            range.

    Reference:
        Hinton, Vinyals, and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    frozen = _numbered("teacher", teachers, least=1, trained=True)
    names = [node.name for node in frozen]
    edges = _edges("student", names, weight, label_weight, temperature, loss)
    return _graph([_node("student", student), *frozen], edges, "student")


def dml(models: Sequence[Model], *, reduction: Reduction = "mean") -> KnowledgeTransferGraph:
    """Return the graph of deep mutual learning: CE + 1/(M - 1) sum_m KL(p_m || p) for every peer.

    The target is `peer1`. All peers are updated at once (Algorithm 1 of Minami et al.), whereas
    Zhang et al. update one after another.

    Example:
        graph = ktg.presets.dml([model, another])
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        models: M models that learn, at least two.
        reduction: `mean` over the other peers, as Zhang et al. do, or `sum`, as in Eq. 3 of Minami
            et al.

    Raises:
        ValueError: There are fewer than two models, or they do not fit together.

    Reference:
        Zhang, Xiang, Hospedales, and Lu, "Deep Mutual Learning", CVPR 2018.
    """
    peers = _numbered("peer", models, least=2)
    names = [peer.name for peer in peers]
    edges = [
        edge for name in names for edge in _edges(name, [each for each in names if each != name])
    ]
    return _graph(peers, edges, "peer1", reduction)


def one(
    models: Sequence[Model], *, temperature: float = 3.0, weight: float = 1.0
) -> KnowledgeTransferGraph:
    """Return the graph of ONE: CE + weight T^2 KL(p_ensemble || p) for every peer.

    The target is `peer1`; the ensemble averages the peers' logits. Lan et al. differ in three
    points: their peers are branches that share the first layers, a module that is trained weighs
    the branches for every sample, and the ensemble learns from the label, too.

    Example:
        graph = ktg.presets.one([model, another])
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        models: Models that learn, at least two.
        temperature: T > 0.
        weight: Weight of the ensemble's loss, at least 0.

    Raises:
        ValueError: There are fewer than two models, they do not fit together, or a number is out of
            its range.

    Reference:
        Lan, Zhu, and Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018.
    """
    peers = _numbered("peer", models, least=2)
    names = tuple(peer.name for peer in peers)
    edges = [
        edge
        for name in names
        for edge in _edges(name, ["ensemble"], weight, temperature=temperature)
    ]
    return _graph([*peers, Ensemble("ensemble", names)], edges, "peer1")


def mean_teacher(
    model: Model, *, decay: float = 0.999, warmup: bool = True, weight: float = 1.0
) -> KnowledgeTransferGraph:
    """Return the graph of a mean teacher: CE + weight KL(p_slow || p), slow: an average of weights.

    The target is `student`; `slow` is its exponential moving average. Call `graph.update_emas`
    after every update. Tarvainen and Valpola differ in four points: they use the mean squared error
    of the probabilities instead of KL, raise the weight from 0 at the beginning, augment the images
    separately for the two networks, and use images without labels, too.

    Example:
        graph = ktg.presets.mean_teacher(model)
        graph.losses(graph(images), labels).total.backward()
        graph.update_emas(k)

    Args:
        model: The model that learns.
        decay: Share in 0..1, below 1, of the average that an update keeps.
        warmup: Whether the decay grows to `decay` as 1 - k^(-2/3) with the number k of updates.
        weight: Weight of the average's loss, at least 0.

    Raises:
        ValueError: A number is out of its range.

    Reference:
        Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """
    nodes: list[GraphNode] = [_node("student", model), Ema("slow", "student", decay, warmup)]
    return _graph(nodes, _edges("student", ["slow"], weight), "student")


def born_again(
    model: Model, weights: str | Path | Mapping[str, Tensor], *, weight: float = 1.0
) -> KnowledgeTransferGraph:
    """Return the graph of a born-again network: CE + weight KL(p_teacher || p).

    The target is `student`; `teacher` has the same architecture, with the given weights. This is
    one generation; for the next, call it again with the weights that come out.

    Example:
        graph = ktg.presets.born_again(model, "teacher.safetensors")
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        model: The model that learns, with initial weights of its own.
        weights: Trained weights of such a model: a file, or a state dict. A file that a run wrote
            says how its images were normalized; if the model is no `Node` that says otherwise,
            images should be normalized in the same way.
        weight: Weight of the teacher's loss, at least 0.

    Raises:
        ValueError: The weights cannot be read, do not fit the model, or are those that it starts
            from; or a number is out of its range.

    Reference:
        Furlanello et al., "Born-Again Neural Networks", ICML 2018.
    """
    student = _node("student", model)
    copy = deepcopy(student.model)
    with located("weights"):
        told = load_weights(copy, weights)
    if all(map(torch.equal, student.model.parameters(), copy.parameters())):
        raise ValueError("model: should start from weights of its own. Found the teacher's.")
    teacher = replace(student, name="teacher", model=copy, pretrained=True)
    if told:
        teacher = replace(teacher, mean=told["mean"], std=told["std"])
    if student.mean is None:
        student = replace(student, mean=teacher.mean, std=teacher.std)
    return _graph([student, teacher], _edges("student", ["teacher"], weight), "student")


def assistant(
    student: Model,
    assistant: Model,
    teacher: Model,
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    label_weight: float = 1.0,
) -> KnowledgeTransferGraph:
    """Return the graph of a teacher assistant: `kd` from teacher to assistant, and on to student.

    The target is `student`. Both learn at once, whereas Mirzadeh et al. train the assistant first
    and freeze it. The defaults are those of `kd`; for this graph they were not measured.

    Example:
        graph = ktg.presets.assistant(student, model, teacher)
        losses = graph.losses(graph(images), labels)
        losses.total.backward()

    Args:
        student: The model that learns from the assistant.
        assistant: The model that learns from the teacher, between both in size.
        teacher: A trained model, which is frozen.
        temperature: T > 0.
        weight: Weight of what the assistant and the teacher teach, at least 0.
        label_weight: Weight of the label's losses, at least 0.

    Raises:
        ValueError: The models do not fit together, or a number is out of its range.

    Reference:
        Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020.
    """
    nodes = [
        _node("student", student),
        _node("assistant", assistant),
        _node("teacher", teacher, trained=True),
    ]
    edges = [
        *_edges("student", ["assistant"], weight, label_weight, temperature),
        *_edges("assistant", ["teacher"], weight, label_weight, temperature),
    ]
    return _graph(nodes, edges, "student")


def _node(name: str, model: Model, trained: bool = False) -> Node:
    """Return the node of a model; `trained` says that it holds trained weights."""
    if isinstance(model, Node):
        return replace(model, name=name, pretrained=trained or model.pretrained)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: should be a torch.nn.Module or a Node. Found {found(model)}.")
    return Node(name, model, pretrained=trained)


def _numbered(
    role: str, models: Sequence[Model], *, least: int, trained: bool = False
) -> list[Node]:
    """Return the nodes of several models with the same role."""
    if len(models) < least:
        number = "one model" if least == 1 else f"{least} models"
        raise ValueError(f"{role}s: should be {number} or more. Found {len(models)}.")
    return [_node(f"{role}{i}", model, trained) for i, model in enumerate(models, start=1)]


def _edges(
    name: str,
    sources: Sequence[str],
    weight: float = 1.0,
    label_weight: float = 1.0,
    temperature: float = 1.0,
    loss: str | EdgeLoss = "kl_div",
) -> list[Edge]:
    """Return a node's edges from the label and from other nodes."""
    loss = create_loss(loss) if isinstance(loss, str) else loss
    others = [
        Edge(source, name, loss=loss, temperature=temperature, weight=weight) for source in sources
    ]
    return [Edge(LABEL, name, weight=label_weight), *others]


def _graph(
    nodes: Sequence[GraphNode], edges: Sequence[Edge], target: str, reduction: Reduction = "sum"
) -> KnowledgeTransferGraph:
    """Return the graph; its images are normalized as the node of the target says."""
    images = next(node for node in nodes if isinstance(node, Node) and node.name == target)
    return KnowledgeTransferGraph(nodes, edges, target, reduction, mean=images.mean, std=images.std)
