"""What a run measures, and what each measure is called.

A name says on which images something was measured, what it is, and whose: `train/loss/student`,
`val/loss/student`, `val/top1/student`, `train/weight/helper->student`. An edge's name contains
`->`, and may contain `/` as well: `helper->student/attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

Metrics = dict[str, float]

TOP = (1, 5)
EPOCH, LR = "epoch", "lr"
IMAGES_PER_SECOND, SECONDS = "images_per_second", "seconds"

# Stands in the place of a node's name for all networks of a run together: the accuracy of the mean
# of their logits. No node can be called so.
ALL_NETWORKS = "all-networks"

_LOSS, _WEIGHT, _PASSED = "train/loss/", "train/weight/", "train/passed/"


def loss_name(owner: str) -> str:
    """Return what the training loss of a node or an edge is called."""
    return _LOSS + owner


def evaluated_loss_name(split: str, node: str) -> str:
    """Return what a node's cross-entropy on the images of a split is called.

    Args:
        split: `val` or `test`.
        node: The node.
    """
    return f"{split}/loss/{node}"


def weight_name(edge: str) -> str:
    """Return what the mean weight of an edge's gate is called: what passed over what came."""
    return _WEIGHT + edge


def passed_name(edge: str) -> str:
    """Return what the share of the samples that an edge's gate let through is called."""
    return _PASSED + edge


def top_name(top: int, split: str, node: str) -> str:
    """Return what a node's top-1 or top-5 is called.

    Args:
        top: 1 or 5.
        split: `train`, `val` or `test`.
        node: The node.
    """
    return f"{split}/top{top}/{node}"


def top1_name(split: str, node: str) -> str:
    """Return what a node's top-1 is called."""
    return top_name(1, split, node)


def node_losses(metrics: Metrics) -> Metrics:
    """Return the training losses by node."""
    return {owner: value for owner, value in _below(_LOSS, metrics).items() if not _is_edge(owner)}


def val_losses(metrics: Metrics) -> Metrics:
    """Return the cross-entropy on the validation images by node; empty if it was not measured."""
    return _below(evaluated_loss_name("val", ""), metrics)


def mean_weights(metrics: Metrics) -> Metrics:
    """Return the mean weight of each gate, what passed over what came, by edge.

    Runs of earlier versions have the share of samples alone, which then stands in its place.
    """
    return _below(_WEIGHT, metrics) or shares_passed(metrics)


def shares_passed(metrics: Metrics) -> Metrics:
    """Return the share of the samples in 0..1 that passed, by edge, of gates that stop some."""
    return _below(_PASSED, metrics)


def top1_by_node(metrics: Metrics, split: str) -> Metrics:
    """Return the top-1 in percent by node, on the images of a split; empty if none was measured."""
    return _below(top1_name(split, ""), metrics)


def newest_watched(epochs: Sequence[Metrics]) -> Metrics:
    """Return the newest epoch that was measured on validation images, or the newest of all.

    Args:
        epochs: The metrics of each epoch, at least one.
    """
    watched = [epoch for epoch in epochs if watched_split(epoch) == "val"]
    return (watched or epochs)[-1]


def watched_split(metrics: Metrics) -> str:
    """Return the split to watch a run by: `val`, or `train` if there are no validation images."""
    return "val" if top1_by_node(metrics, "val") else "train"


def _below(prefix: str, metrics: Metrics) -> Metrics:
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def _is_edge(owner: str) -> bool:
    return "->" in owner
