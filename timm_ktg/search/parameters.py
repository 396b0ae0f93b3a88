"""What Optuna's parameters are called."""

from __future__ import annotations

from ..graph.topology import Pair

NODES = "nodes"  # the number of nodes


def model_param(name: str) -> str:
    """Return the name of the parameter that chooses a node's model."""
    return f"model/{name}"


def gate_param(pair: Pair) -> str:
    """Return the name of the parameter that chooses an edge's gate."""
    return f"gate/{pair[0]}->{pair[1]}"


def loss_param(pair: Pair) -> str:
    """Return the name of the parameter that chooses an edge's loss."""
    return f"loss/{pair[0]}->{pair[1]}"


def role_param(name: str) -> str:
    """Return the name of the parameter that chooses whether a node learns, say, or is frozen."""
    return f"role/{name}"
