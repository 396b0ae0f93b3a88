"""A run's state, to go on from; and one node's weights, for timm and for other graphs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from .errors import RecipeError
from .node import Channels

_MANIFEST = "manifest.json"
_METADATA = "timm_ktg"
_KEPT = 2  # the newest, and the one before it should the newest turn out damaged


def export_node(
    model: nn.Module, path: Path, mean: Channels | None = None, std: Channels | None = None
) -> None:
    """Write a node's weights as timm reads them: `timm.create_model(..., checkpoint_path=path)`.

    Args:
        model: The node's model.
        path: A `.safetensors` file.
        mean: Per-channel mean that the model expects its images normalised with; kept in the
            file's metadata for graphs that use the node.
        std: Per-channel standard deviation, likewise.
    """
    # One key, because safetensors writes several in an order of chance.
    metadata = {_METADATA: json.dumps({"mean": mean, "std": std})}
    # Cloned, because safetensors refuses tensors that share memory or are not contiguous.
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)


def load_weights(model: nn.Module, path: str) -> dict[str, Channels]:
    """Load a file of weights into a model, all of them.

    Args:
        model: The model.
        path: What `export_node` or timm wrote.

    Returns:
        `mean` and `std` that the weights were trained with, if the file tells.

    Raises:
        ValueError: The file holds no weights, or not those of this model.
    """
    try:
        state = load_state_dict(path)
    except Exception as error:
        raise ValueError(f".checkpoint_path: `{path}` cannot be read: {error}") from error
    problems = list(_mismatches(model.state_dict(), state))
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(
            f".checkpoint_path: `{path}` should hold the weights of this model. "
            f"Found {problems[0]}{more}."
        )
    model.load_state_dict(state)
    return _normalisation(path)


def _mismatches(own: dict[str, Tensor], given: dict[str, Tensor]) -> Iterator[str]:
    for key, value in own.items():
        if key in given and given[key].shape != value.shape:
            yield f"{key} {list(given[key].shape)} for {list(value.shape)}"
    yield from (f"no {key}" for key in own if key not in given)
    yield from (f"{key}, which the model has not" for key in given if key not in own)


def _normalisation(path: str) -> dict[str, Channels]:
    if not path.endswith(".safetensors"):
        return {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    told = json.loads(metadata.get(_METADATA, "{}"))
    return {key: tuple(value) for key, value in told.items() if value is not None}


def save_state(accelerator: Accelerator, folder: Path, epoch: int, run: str) -> None:
    """Write the state of a run after an epoch; on all processes.

    Written to the side and moved into place, so that what is in place is whole.

    Args:
        accelerator: What the graph, the optimizer and the rest are registered with.
        folder: The run's `checkpoint` folder.
        epoch: Epochs done.
        run: What tells this run's states from another's.
    """
    partial, final = folder / f".epoch-{epoch:04d}", folder / f"epoch-{epoch:04d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = {"run": run, "epoch": epoch, "sha256": _checksums(partial)}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("epoch-*"))[:-_KEPT]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def newest_state(folder: Path, run: str) -> tuple[Path, list[str]]:
    """Return the newest state that is whole and of this run, and why newer ones are not.

    Args:
        folder: The run's `checkpoint` folder.
        run: What `save_state` was given.

    Raises:
        RecipeError: There is none.
    """
    refused: list[str] = []
    for state in sorted(folder.glob("epoch-*"), reverse=True):
        problem = _state_problem(state, run)
        if problem is None:
            return state, refused
        refused.append(f"{state}: {problem}")
    raise RecipeError([f"resume: {folder} holds no checkpoint to go on from.", *refused])


def _state_problem(state: Path, run: str) -> str | None:
    try:
        manifest: dict[str, Any] = json.loads((state / _MANIFEST).read_text())
    except (OSError, ValueError):
        return "half-written, its manifest cannot be read."
    if manifest.get("run") != run:
        return "of another run."
    damaged = sorted(manifest["sha256"].items() ^ _checksums(state).items())
    return f"damaged, {damaged[0][0]} is not what was written." if damaged else None


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }
