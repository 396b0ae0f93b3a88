"""What a training does to each network that learns, before it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import located
from ..graph.node import Node
from .train_config import TrainConfig


def prepare_to_learn(node: Node, train: TrainConfig) -> None:
    """Change a network in place as the section `train` says.

    Args:
        node: The network, with its weights.
        train: The section.

    Raises:
        RecipeError: Its model does not support it.
    """
    with located("train.head_init_scale"):
        if train.head_init_scale is not None:
            scale_heads(node, train.head_init_scale)
    with located("train.head_init_bias"):
        if train.head_init_bias is not None:
            set_biases(node, train.head_init_bias)
    with located("train.grad_checkpointing"):
        if train.grad_checkpointing:
            checkpoint(node)


@torch.no_grad()
def scale_heads(node: Node, scale: float) -> None:
    """Multiply weights and biases of a network's classifiers."""
    for head in _heads(node):
        for parameter in head.parameters():
            parameter.mul_(scale)


def set_biases(node: Node, value: float) -> None:
    """Set the biases of a network's classifiers.

    Raises:
        ValueError: A classifier has no bias.
    """
    for head in _heads(node):
        bias: Any = getattr(head, "bias", None)
        if bias is None:
            raise ValueError(
                f"should be null, because the classifier of `{node.name}` has no bias."
            )
        nn.init.constant_(bias, value)


def checkpoint(node: Node) -> None:
    """Let a network compute its activations again instead of keeping them.

    Raises:
        ValueError: Its model cannot.
    """
    model: Any = node.model
    try:
        model.set_grad_checkpointing(enable=True)
    except (AttributeError, AssertionError):  # timm asserts
        raise ValueError(
            f"should be false, because the model of `{node.name}` does not support it."
        ) from None


def _heads(node: Node) -> tuple[nn.Module, ...]:
    """Return the last layers of a network's classifiers; timm's distilled models have two.

    Raises:
        ValueError: It has none.
    """
    model: Any = node.model
    heads = model.get_classifier() if hasattr(model, "get_classifier") else ()
    heads = heads if isinstance(heads, tuple) else (heads,)
    layers = tuple(layer for head in heads for layer in _last_layers(head, model.num_classes))
    if not any(True for layer in layers for _ in layer.parameters()):
        raise ValueError(
            f"should be null, because `{node.name}` has no classifier that timm knows."
        )
    return layers


def _last_layers(head: nn.Module, classes: int) -> list[nn.Module]:
    """Return the layers that give a classifier's logits; some of timm's begin with others."""
    if isinstance(getattr(head, "weight", None), Tensor):
        return [head]
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [layer for layer in linear if len(layer.weight) == classes] or [head]
