"""Knowledge transfer graphs for timm: models that teach each other while they learn.

Importing the package registers its CIFAR models with timm.
"""

from . import models as models
from .graph.edge import Edge
from .graph.gates import EdgeContext, Gate, check_gate, create_gate, list_gates, register_gate
from .graph.graph import GraphLosses, KnowledgeTransferGraph
from .graph.losses import EdgeLoss, NodeOutput, create_loss, list_losses, register_loss
from .graph.node import Node
from .plugin.attach import attach
from .plugin.task import KnowledgeTransferTask

__version__ = "0.1.0"

__all__ = [
    "Edge",
    "EdgeContext",
    "EdgeLoss",
    "Gate",
    "GraphLosses",
    "KnowledgeTransferGraph",
    "KnowledgeTransferTask",
    "Node",
    "NodeOutput",
    "attach",
    "check_gate",
    "create_gate",
    "create_loss",
    "list_gates",
    "list_losses",
    "register_gate",
    "register_loss",
]
