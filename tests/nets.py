"""Tiny networks and data without timm, and reference losses in numpy and float64."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from timm_ktg import Edge, KnowledgeTransferGraph, Node, NodeOutput, create_gate

CLASSES = 4
SIZE = 6

Array = npt.NDArray[np.float64]


class LinearNet(nn.Module):
    def __init__(self, seed: int = 0, num_classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.num_classes = num_classes
        self.flat = nn.Flatten()
        self.head = nn.Linear(3 * SIZE * SIZE, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(x))


class ConvNet(nn.Module):
    def __init__(self, seed: int = 0, num_classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.num_classes = num_classes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.stem(x)).mean((2, 3)))


def images(batch: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def hard_labels(batch: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CLASSES, (batch,), generator=generator)


def soft_labels(batch: int = 8, seed: int = 2, num_classes: int = CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, num_classes, generator=generator)).softmax(-1)


def output(logits: Any) -> NodeOutput:
    return NodeOutput(torch.as_tensor(logits, dtype=torch.float32))


def edge(source: str, destination: str, gate: str = "through", **options: Any) -> Edge:
    return Edge(source, destination, create_gate(gate), **options)


def graph_of(*edges: Edge, frozen: tuple[str, ...] = (), **options: Any) -> KnowledgeTransferGraph:
    """A graph of small ConvNets, one with its own seed per name on an edge; the target is a."""
    ends = {end for edge in edges for end in edge.pair} - {"label"}
    names = sorted(ends | set(options.get("keep", ())))
    nodes = [
        Node(name, ConvNet(seed), pretrained=name in frozen) for seed, name in enumerate(names)
    ]
    return KnowledgeTransferGraph(nodes, edges, "a", **options)


def gradients(module: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, which must have one."""
    found = [parameter.grad for parameter in module.parameters()]
    assert found and all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists hold the same tensors, bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


# The references: only numpy, in float64.


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def kl_reference(source: Tensor, destination: Tensor, temperature: float = 1.0) -> Array:
    """T^2 sum_c p_s (log p_s - log p_t), one loss per sample."""
    log_s = log_softmax(array(source) / temperature)
    log_t = log_softmax(array(destination) / temperature)
    return np.asarray(temperature**2 * (np.exp(log_s) * (log_s - log_t)).sum(-1))


def ce_reference(destination: Tensor, labels: Tensor, smoothing: float = 0.0) -> Array:
    """- sum_c q log p_t, q = (1 - smoothing) y + smoothing / C, one loss per sample."""
    log_t = log_softmax(array(destination))
    y = np.eye(log_t.shape[-1])[labels.numpy()] if labels.ndim == 1 else array(labels)
    return np.asarray(-(((1 - smoothing) * y + smoothing / log_t.shape[-1]) * log_t).sum(-1))
