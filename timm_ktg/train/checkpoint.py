"""Saves and loads the state of a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import RecipeError

_MANIFEST = "manifest.json"
_KEPT = 2  # the newest, and the one before in case the newest is damaged


def save_state(accelerator: Accelerator, folder: Path, epoch: int, run: str) -> None:
    """Write the state of a run after an epoch; call it on all processes.

    The state is written elsewhere and then moved into place, so it is never half-written.

    Args:
        accelerator: The accelerator that the graph, the optimizer and the rest are registered with.
        folder: The run's `checkpoint` folder.
        epoch: The number of epochs done.
        run: Identifies the run.
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


def newest_state(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """Return the newest good state of this run, and why newer ones are refused.

    Args:
        folder: The run's `checkpoint` folder.
        run: The value given to `save_state`.

    Returns:
        The state's folder, or None if the run was killed before it wrote one; and a line for each
        refused state.

    Raises:
        RecipeError: There are states, but all are refused.
    """
    refused: list[str] = []
    for state in sorted(folder.glob("epoch-*"), reverse=True):
        problem = _state_problem(state, run)
        if problem is None:
            return state, refused
        refused.append(f"{state}: {problem}")
    if refused:
        raise RecipeError([f"resume: {folder} holds no usable checkpoint.", *refused])
    return None, []


def _state_problem(state: Path, run: str) -> str | None:
    try:
        manifest: dict[str, Any] = json.loads((state / _MANIFEST).read_text())
    except (OSError, ValueError):
        return "half-written (its manifest cannot be read)."
    if manifest.get("run") != run:
        return "from another run (recipe.yaml or the data have changed)."
    damaged = sorted(manifest["sha256"].items() ^ _checksums(state).items())
    return f"damaged ({damaged[0][0]} is not what was written)." if damaged else None


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }
