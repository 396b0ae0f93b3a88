"""What a run exports: the weights of every network, alone and as a folder for timm."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from ..errors import one_line
from ..graph.folder import export_folder
from ..graph.node import Network
from ..graph.weights import export_node
from ..recipe.images import Images
from ..records.run_directory import RunDirectory
from .training import Training

_logger = logging.getLogger(__name__)


def export_nodes(training: Training, directory: RunDirectory) -> None:
    """Write the weights of every network, and the folder that timm reads.

    If timm could not build a model again, a warning says why its folder is missing.

    Args:
        training: The run.
        directory: The directory of the run.
    """
    for name, network in training.graph.networks.items():
        path = directory.nodes / f"{name}.safetensors"
        classes = training.splits.class_names
        export_node(network.model, path, network.mean, network.std, classes)
        try:
            data_config = _data_config(network, training.images)
            export_folder(network.model, path, data_config, classes)
        except (AttributeError, KeyError, ValueError) as error:  # a model that is not timm's
            _logger.warning("%s: no folder for timm: %s", path, one_line(error))


def is_exported(training: Training, directory: RunDirectory) -> bool:
    """Return whether the weights of every network are there; they may have been removed."""
    names = training.graph.networks
    return all((directory.nodes / f"{name}.safetensors").is_file() for name in names)


def _data_config(network: Network, images: Images) -> dict[str, Any]:
    """Return how to prepare an image for a network, as timm's `resolve_model_data_config` does.

    A node with its own `img_size` gets images resized straight to that size. The run resizes them
    twice, so its pixels differ slightly.
    """
    config = {**asdict(images.preparation), "mean": network.mean, "std": network.std}
    if isinstance(network.size, tuple):
        config["input_size"] = (images.preparation.input_size[0], *network.size)
    return config
