"""Knowledge transfer graphs for timm: models that teach each other while they learn.

Importing the package registers its CIFAR models with timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models as models
from .graph import presets
from .graph.edge import Edge
from .graph.ema import Ema
from .graph.ensemble import Ensemble
from .graph.gates import EdgeContext, Gate, check_gate, create_gate, list_gates, register_gate
from .graph.graph import GraphLosses, KnowledgeTransferGraph
from .graph.losses import EdgeLoss, NodeOutput, create_loss, list_losses, register_loss
from .graph.node import Node
from .plugin.attach import attach
from .plugin.task import KnowledgeTransferTask

if TYPE_CHECKING:
    from .draw.picture import draw_graph
    from .recipe.build import build_graph
    from .recipe.recipe import load_recipe
    from .recipe.trained import load_run

__version__ = "0.1.0"

# What only some programs need, and where it is; imported when it is asked for.
_LAZY = {
    "build_graph": "recipe.build",
    "draw_graph": "draw.picture",
    "load_recipe": "recipe.recipe",
    "load_run": "recipe.trained",
}

__all__ = [
    "Edge",
    "EdgeContext",
    "EdgeLoss",
    "Ema",
    "Ensemble",
    "Gate",
    "GraphLosses",
    "KnowledgeTransferGraph",
    "KnowledgeTransferTask",
    "Node",
    "NodeOutput",
    "attach",
    "build_graph",
    "check_gate",
    "create_gate",
    "create_loss",
    "draw_graph",
    "list_gates",
    "list_losses",
    "load_recipe",
    "load_run",
    "presets",
    "register_gate",
    "register_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
