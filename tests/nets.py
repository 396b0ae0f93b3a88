"""The tiny net of all tests, graphs and batches for it, and reference losses in float64."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models import register_model
from torch import Tensor, nn

from timm_ktg import Edge, KnowledgeTransferGraph, Node, NodeOutput, create_gate

CLASSES = 4
SIZE = 8

Array = npt.NDArray[np.float64]


class TinyNet(nn.Module):
    """Patches, an activation, dropout, a classifier, for images of 8x8; drawn by torch's generator.

    Args:
        seed: Seeds the generator first; None leaves it alone.
        norm: Whether BatchNorm follows the patches.
    """

    def __init__(
        self,
        seed: int | None = 0,
        num_classes: int = CLASSES,
        *,
        width: int = 8,
        drop_rate: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width) if norm else nn.Identity()
        )
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.act(self.stem(x)).flatten(1)))


@register_model
def ktg_tiny(
    pretrained: bool = False,
    num_classes: int = 10,
    width: int = 8,
    drop_rate: float = 0.0,
    norm: bool = False,
    **_: Any,
) -> TinyNet:
    return TinyNet(None, num_classes, width=width, drop_rate=drop_rate, norm=norm)


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
    """A graph of small TinyNets, one with its own seed per name on an edge; the target is a."""
    ends = {end for edge in edges for end in edge.pair} - {"label"}
    names = sorted(ends | set(options.get("keep", ())))
    nodes = [
        Node(name, TinyNet(seed), pretrained=name in frozen) for seed, name in enumerate(names)
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
