"""Saves and loads the state of a run.

A state holds the weights, the optimizer and the number of epochs done. Nothing more is needed,
because timm's schedules and all generators depend on the epoch alone; `plateau` adds two numbers,
and a stream the place of each reader. Loading a state never runs code from its files: weights are
safetensors, and the rest is JSON or is read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.checkpointing import load_accelerator_state
from accelerate.utils.constants import SAFE_WEIGHTS_NAME
from pydantic import PositiveInt, TypeAdapter
from safetensors.torch import load_model

from ..errors import RecipeError, found, located
from ..recipe.schedule import Plateau
from ..records.files import writing
from ..records.result import Best
from .identity import Identity
from .stream_state import load_stream, save_stream
from .tables import contents_of
from .training import Training, together

_MANIFEST = "manifest.json"
_UNREADABLE = "half-written (its manifest cannot be read)."
_KEPT = 2  # the newest, and the one before in case the newest is damaged


@dataclass(frozen=True)
class _Manifest:
    """The manifest of a state.

    Args:
        epoch: The number of epochs done.
        sha256: The checksum of each file.
        recipe: The values of the recipe that decide the training; None: see `run`.
        data: Fingerprint of the images.
        run: By what an earlier version identified the run.
        seconds: The time that the epochs took; None if an earlier version wrote it elsewhere.
        best: The best epoch so far, whose state is kept as long as this one.
        plateau: The state of the schedule `plateau`; None for others, which have none.
    """

    epoch: PositiveInt
    sha256: Mapping[str, str]
    recipe: Mapping[str, Any] | None = None
    data: str = ""
    run: str = ""
    seconds: float | None = None
    best: Best | None = None
    plateau: tuple[float, int] | None = None


def save_state(training: Training, folder: Path, identity: Identity) -> None:
    """Write the state of a run after an epoch; call it on all processes.

    The state is written elsewhere and then moved into place, so it is never half-written.

    Args:
        training: The run.
        folder: The run's `checkpoint` folder.
        identity: Identifies the run.

    Raises:
        StorageError: The state cannot be written; the states before it stay as they are.
    """
    accelerator, epoch = training.accelerator, training.state.epochs
    final = _folder_of(folder, epoch)
    partial = final.with_name(f".{final.name}")
    with together(), writing(partial):
        if accelerator.is_main_process:
            folder.mkdir(exist_ok=True)  # without parents, so that a run that is gone stays gone
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
    with together(), writing(partial):
        accelerator.save_state(str(partial))
        save_stream(training, partial)
    with together(), writing(final):
        if accelerator.is_main_process:
            _finish(partial, final, training, identity)


def _finish(partial: Path, final: Path, training: Training, identity: Identity) -> None:
    """Write the manifest of a state, move the state into place, and drop old ones."""
    state, schedule = training.state, training.scheduler
    manifest = {
        **{"epoch": state.epochs, "seconds": state.seconds},
        **{"recipe": identity.values, "data": identity.data},
        "best": None if state.best is None else asdict(state.best),
        "plateau": schedule.state if isinstance(schedule, Plateau) else None,
        "sha256": _checksums(partial),
    }
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    states = _states(final.parent)
    kept = {*states[-_KEPT:], *_best_of(states[-_KEPT:])}
    for old in set(states) - kept:
        shutil.rmtree(old)


def _folder_of(folder: Path, epoch: int) -> Path:
    """Return where the state after an epoch is."""
    return folder / f"epoch-{epoch:04d}"


def _best_of(states: Sequence[Path]) -> Iterator[Path]:
    """Yield the states of the best epochs that states name; a damaged one names none."""
    for state in states:
        with suppress(OSError, ValueError):
            best = _read_manifest(state).best
            if best is not None:
                yield _folder_of(state.parent, best.epoch)


def load_best(training: Training, folder: Path) -> str | None:
    """Load the weights after the best epoch into the graph; call it on all processes.

    Args:
        training: The run, whose state names the best epoch.
        folder: The run's `checkpoint` folder.

    Returns:
        Why they cannot be loaded; None: they are.
    """
    assert training.state.best is not None
    state = _folder_of(folder, training.state.best.epoch)
    try:
        problem = _damage(state, _read_manifest(state))
    except (OSError, ValueError):
        problem = _UNREADABLE
    if problem is None:
        load_model(training.graph, str(state / SAFE_WEIGHTS_NAME))
    return problem and f"{state}: {problem}"


def load_state(training: Training, state: Path) -> None:
    """Load a state that `newest_state` found; call it on all processes.

    Accelerate's own `load_state` would run code from a file `custom_checkpoint_<n>.pkl`.

    Args:
        training: The run.
        state: The state's folder.

    Raises:
        RecipeError: The state does not fit the run, or holds more than tensors and numbers.
    """
    accelerator, optimizer = training.accelerator, training.optimizer
    options = [_kinds(group) for group in optimizer.param_groups]
    # Tables and copies were made from the weights that the recipe names.
    graph = training.graph
    named = {name: contents_of(graph.model(name)) for name in graph.frozen}
    with located(f"resume: {state} cannot be loaded"):
        manifest = _read_manifest(state)
        load_accelerator_state(
            str(state),
            models=[training.graph],  # accelerate saves it without the wrapper of DDP
            optimizers=[optimizer],
            schedulers=[],
            dataloaders=[],
            process_index=accelerator.process_index,
            scaler=accelerator.scaler,
        )
        _check_optimizer(optimizer, options)
        for name, contents in named.items():
            if contents_of(graph.model(name)) != contents:
                said = "should have the weights that the run began with. Found others"
                raise ValueError(f"graph.nodes.{name} {said}")
        if isinstance(training.scheduler, Plateau):
            assert manifest.plateau is not None
            training.scheduler.load(manifest.plateau)
        load_stream(training, state)
        seconds = _former_seconds(state) if manifest.seconds is None else manifest.seconds
    progress = training.state
    progress.epochs, progress.seconds, progress.best = manifest.epoch, seconds, manifest.best


def _kinds(group: Mapping[str, Any]) -> dict[str, type]:
    """Return the options of a group of parameters, and what each is; all numbers are alike."""
    return {
        key: float if isinstance(value, int | float) else type(value)
        for key, value in group.items()
    }


def _check_optimizer(
    optimizer: torch.optim.Optimizer, options: Sequence[Mapping[str, type]]
) -> None:
    """Raise ValueError if a loaded optimizer cannot compute an update.

    Args:
        optimizer: The optimizer; torch has taken whatever a file held.
        options: The options of its groups before it was loaded.
    """
    for group, before in zip(optimizer.param_groups, options, strict=True):
        now = _kinds(group)
        wrong = [key for key, kind in before.items() if now.get(key) is not kind]
        if wrong:
            raise ValueError(f"the optimizer's {', '.join(wrong)} should be as in this run")
    for state in optimizer.state_dict()["state"].values():  # Lookahead has none of its own
        for key, value in state.items():
            # Kron's factors are a list of tensors.
            parts = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(each, torch.Tensor | int | float | None) for each in parts):
                raise ValueError(f"the optimizer's {key} should be numbers. Found {found(value)}")


def newest_state(folder: Path, identity: Identity) -> tuple[Path | None, list[str]]:
    """Return the newest good state of this run, and why newer ones are refused.

    Args:
        folder: The run's `checkpoint` folder.
        identity: Identifies the run.

    Returns:
        The state's folder, or None if the run was killed before it wrote one; and a line for each
        refused state.

    Raises:
        RecipeError: There are states, but all are refused.
    """
    refused: list[str] = []
    for state in reversed(_states(folder)):
        problem = _state_problem(state, identity)
        if problem is None:
            return state, refused
        refused.append(f"{state}: {problem}")
    if refused:
        raise RecipeError([f"resume: {folder} holds no usable checkpoint.", *refused])
    return None, []


def _states(folder: Path) -> list[Path]:
    """Return the states in a folder; the newest comes last."""
    matches = {path: re.fullmatch(r"epoch-(\d+)", path.name) for path in folder.glob("epoch-*")}
    numbers = {path: int(match[1]) for path, match in matches.items() if match}
    return sorted(numbers, key=lambda path: numbers[path])


def epochs_done(folder: Path) -> int | None:
    """Return the epochs done at the newest state in a run's `checkpoint` folder; 0: none.

    None: an earlier version wrote the state, which does not say with which recipe.
    """
    states = _states(folder)
    if not states:
        return 0
    with suppress(OSError, ValueError):  # a damaged one is refused later
        if _read_manifest(states[-1]).recipe is None:
            return None
    return int(states[-1].name.removeprefix("epoch-"))


def _state_problem(state: Path, identity: Identity) -> str | None:
    try:
        manifest = _read_manifest(state)
    except (OSError, ValueError):
        return _UNREADABLE
    if manifest.recipe is None:
        known = manifest.run in identity.former
        problem = None if known else "from another run (recipe.yaml or the data have changed)."
    else:
        problem = identity.problem(manifest.recipe, manifest.data, manifest.epoch)
    return problem or _damage(state, manifest)


def _damage(state: Path, manifest: _Manifest) -> str | None:
    """Return which file of a state is not what was written; None: all are."""
    damaged = sorted(manifest.sha256.items() ^ _checksums(state).items())
    return f"damaged ({damaged[0][0]} is not what was written)." if damaged else None


def _read_manifest(state: Path) -> _Manifest:
    return TypeAdapter(_Manifest).validate_json((state / _MANIFEST).read_bytes())


def _former_seconds(state: Path) -> float:
    """Return the time that the epochs took, from a state that an earlier version wrote."""
    progress = torch.load(state / "custom_checkpoint_1.pkl", weights_only=True)
    return float(progress["seconds"])


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }
