"""A node's weights in a file, for timm and for nodes of other graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from ..errors import one_line
from .node import Channels

_METADATA = "timm_ktg"


def export_node(
    model: nn.Module,
    path: Path,
    mean: Channels | None = None,
    std: Channels | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a node's weights so that `timm.create_model(..., checkpoint_path=path)` loads them.

    Args:
        model: The node's model.
        path: A `.safetensors` file.
        mean: Per-channel mean that the model expects its images normalized with; stored in the
            file's metadata for graphs that use the node.
        std: Per-channel standard deviation, likewise.
        class_names: [C] names of the classes, in the order of the logits, likewise; none: unknown.
    """
    told = {"mean": mean, "std": std, "class_names": list(class_names) or None}
    # One key, because safetensors writes several in random order.
    metadata = {_METADATA: json.dumps(told)}
    # Cloned, because safetensors refuses tensors that share memory or are not contiguous.
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor]
) -> dict[str, Channels]:
    """Load all weights in a file, or in a state dict, into a model.

    Args:
        model: The model.
        weights: A file that `export_node` or timm wrote, or a state dict.

    Returns:
        `mean` and `std` that the weights were trained with, if a file holds them.

    Raises:
        ValueError: The file cannot be read, or the weights do not fit the model.
    """
    if isinstance(weights, Mapping):
        _put(model, weights, "the state dict")
        return {}
    path = str(weights)
    try:
        state = load_state_dict(path)
    except Exception as error:
        raise ValueError(f"`{path}` cannot be read: {one_line(error)}") from error
    _put(model, state, f"`{path}`")
    told = _told(path)
    return {key: tuple(told[key]) for key in ("mean", "std") if told.get(key) is not None}


def class_names_in(path: str | Path) -> tuple[str, ...]:
    """Return the names of the classes that a file of weights holds; none, if it does not say."""
    return tuple(_told(str(path)).get("class_names") or ())


def _put(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict into a model; `name` is what messages call the state dict."""
    problems = list(_mismatches(model.state_dict(), state))
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(
            f"{name} should hold the weights of this model. Found {problems[0]}{more}."
        )
    model.load_state_dict(state)


def _mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for key, value in own.items():
        if key in given and given[key].shape != value.shape:
            yield f"{key} {list(given[key].shape)} instead of {list(value.shape)}"
    yield from (f"no {key}" for key in own if key not in given)
    yield from (f"{key}, which the model lacks" for key in given if key not in own)


def _told(path: str) -> dict[str, Any]:
    """Return what `export_node` wrote beside the weights."""
    if not path.endswith(".safetensors"):
        return {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    told: dict[str, Any] = json.loads(metadata.get(_METADATA, "{}"))
    return told
