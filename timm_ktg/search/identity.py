"""What must be the same for all workers of a study."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..graph.gates import create_gate
from ..graph.losses import create_loss
from ..graph.registry import Bound
from ..recipe.recipe import PLACE
from ..recipe.search_config import GateConfig, LossConfig, SearchRecipe
from ..recipe.search_problems import PRETRAINED
from ..recipe.splits import build_splits
from ..train.checks import code_of

# Fields that may differ between the workers of a study.
FREE = {
    "search": {
        *("trials", "budget", "study", "storage", "artifacts"),
        *("heartbeat_interval", "grace_period"),
        *("top_k", "final_seeds", "seed", "sampler", "unique", "enqueue_controls", "weights"),
        "frozen",  # it is told by the kinds
    },
    **PLACE,
}


def identity_of(recipe: SearchRecipe) -> dict[str, Any]:
    """Return what must be the same for all workers of a study, by its place in the recipe.

    Raises:
        RecipeError: What is wrong with the data set.
    """
    values = recipe.model_dump(mode="json")
    fields = {
        f"{section}.{field}": value
        for section, free in FREE.items()
        for field, value in values[section].items()
        if field not in free
    }
    if recipe.search.method != "short_runs":  # then they mean nothing
        del fields["search.rungs"]
    return {
        **fields,
        "search.kinds": list(recipe.search.auxiliary_kinds),
        "search.gates": [_identity_of_gate(gate) for gate in recipe.search.gates],
        **{
            f"search.{field}": [_identity_of_loss(loss) for loss in losses]
            for field, losses in (
                ("losses", recipe.search.losses),
                ("label_losses", recipe.search.label_losses),
            )
        },
        "search.weights": {
            model: _contents(files) for model, files in recipe.search.weights.items()
        },
        "data (images and labels)": build_splits(recipe.data).fingerprint,
    }


def _contents(paths: Sequence[str]) -> str:
    """Return what tells weights from others; a single file has the form of earlier versions."""
    return " ".join(
        path if path == PRETRAINED else sha256(Path(path).read_bytes()).hexdigest()[:16]
        for path in paths
    )


def _identity_of_loss(loss: LossConfig) -> str:
    """Return a loss in the same form as a gate."""
    return _with_code(loss.shown, create_loss(loss.loss, **loss.loss_kwargs))


def _with_code(shown: str, bound: Bound) -> str:
    ours = bound.function.__module__.startswith("timm_ktg.")
    return shown if ours else f"{shown} (code {code_of(bound)})"


def _identity_of_gate(gate: GateConfig) -> str:
    """Return a gate as it is shown, with its code if it is not ours, because that may change."""
    return _with_code(gate.shown, create_gate(gate.gate, **gate.gate_kwargs))
