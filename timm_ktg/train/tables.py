"""Tables of frozen nodes' logits on disk, shared by the processes and the runs of a host."""

from __future__ import annotations

import logging
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ..data import MemoryLoader, allowed_bytes, cache_folder, claim, make_room
from ..errors import one_line
from ..graph.graph import KnowledgeTransferGraph
from ..graph.table import LogitTable

_logger = logging.getLogger(__name__)

BYTES = 2  # of a number in float16
VERSIONS = (torch.__version__, timm.__version__)  # others may compute other last bits


def tables_of(
    graph: KnowledgeTransferGraph, loader: MemoryLoader, num_classes: int, precision: str
) -> dict[str, LogitTable]:
    """Return tables for the frozen nodes without taps, filled as far as earlier runs did.

    They are kept in `timm_ktg/tables` of the user's cache folder (XDG_CACHE_HOME).

    Args:
        graph: The graph, its weights loaded.
        loader: The training images.
        num_classes: C.
        precision: What the nodes compute in, such as `bf16`.

    Returns:
        The tables by node; none, and a log line, if they do not fit.
    """
    names = [name for name in graph.frozen if name in graph.untapped]
    rows = len(loader.images) * loader.views
    size, allowed = rows * num_classes * BYTES, allowed_bytes()
    if names and size * len(names) > allowed:
        needed, given = (f"{each / 2**30:.1f} GiB" for each in (size * len(names), allowed))
        _logger.warning("Frozen nodes are computed: tables take %s, above %s.", needed, given)
        return {}
    images = loader.content if names else ""
    tables = {}
    for name in names:
        network = graph.network(name)
        facts = (images, loader.pad, loader.normalization, precision, num_classes, VERSIONS)
        own = (network.mean, network.std, network.size, contents_of(network.model))
        key = sha256(repr((*facts, *own)).encode()).hexdigest()[:24]
        try:
            tables[name] = LogitTable(
                _opened(cache_folder("tables") / key, rows, num_classes, allowed - size)
            )
        except OSError as error:
            _logger.warning("Frozen nodes are computed: no table. %s", one_line(error))
            return {}
    return tables


def _opened(path: Path, rows: int, num_classes: int, others: int) -> Tensor:
    """Return a table in a file, which is made if it is not there.

    Args:
        path: The file.
        rows: R.
        num_classes: C.
        others: Bytes that the tables of other nodes may keep.

    Raises:
        OSError: The file cannot be made, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = rows * num_classes * BYTES
    with path.open("a+b") as file:
        claim(file, size)
        os.utime(path)
    make_room(path, others)
    table = np.memmap(path, np.float16, "r+", shape=(rows, num_classes))
    return torch.from_numpy(table)


def contents_of(model: nn.Module) -> str:
    """Return a hash of a model's weights and architecture."""
    found = sha256(str(model).encode())
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
