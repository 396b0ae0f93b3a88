"""A run's state, to go on from."""

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
_KEPT = 2  # the newest, and the one before it should the newest turn out damaged


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


def newest_state(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """Return the newest state that is whole and of this run, and why newer ones are not.

    Args:
        folder: The run's `checkpoint` folder.
        run: What `save_state` was given.

    Returns:
        The state's folder, None if the run was killed before it wrote one; and a line for each
        that is refused.

    Raises:
        RecipeError: There are states, and all are refused.
    """
    refused: list[str] = []
    for state in sorted(folder.glob("epoch-*"), reverse=True):
        problem = _state_problem(state, run)
        if problem is None:
            return state, refused
        refused.append(f"{state}: {problem}")
    if refused:
        raise RecipeError([f"resume: {folder} holds no checkpoint to go on from.", *refused])
    return None, []


def _state_problem(state: Path, run: str) -> str | None:
    try:
        manifest: dict[str, Any] = json.loads((state / _MANIFEST).read_text())
    except (OSError, ValueError):
        return "half-written, its manifest cannot be read."
    if manifest.get("run") != run:
        return "of another run: recipe.yaml or the data have changed since."
    damaged = sorted(manifest["sha256"].items() ^ _checksums(state).items())
    return f"damaged, {damaged[0][0]} is not what was written." if damaged else None


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }
