"""What must be the same for all workers of a study."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..graph.gates import create_gate
from ..recipe.images import build_splits
from ..recipe.recipe import PLACE
from ..recipe.search_config import GateConfig, SearchRecipe
from ..train.checks import code_of

# Fields that may differ between the workers of a study.
FREE = {
    "search": {
        *("trials", "study", "storage", "artifacts", "heartbeat_interval", "grace_period"),
        *("top_k", "final_seeds", "seed", "sampler", "unique", "enqueue_controls", "weights"),
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
    return {
        **fields,
        "search.gates": [_identity_of_gate(gate) for gate in recipe.search.gates],
        "search.weights": {
            model: _contents(files) for model, files in recipe.search.weights.items()
        },
        "data (images and labels)": build_splits(recipe.data).fingerprint,
    }


def _contents(paths: Sequence[str]) -> str:
    """Return what tells files from others; a single file has the form of earlier versions."""
    return " ".join(sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths)


def _identity_of_gate(gate: GateConfig) -> str:
    """Return a gate as it is shown, with its code if it is not ours, because that may change."""
    bound = create_gate(gate.gate, **gate.gate_kwargs)
    ours = bound.function.__module__.startswith("timm_ktg.")
    return gate.shown if ours else f"{gate.shown} (code {code_of(bound)})"
