"""The content of the page of runs: a table of the results, the graphs, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..records.metrics import ALL_NETWORKS
from ..records.sample import gain
from .pictures import picture, title
from .run_data import RunData
from .run_figures import accuracy_figure, loss_figure, targets_figure, weight_figure


def runs_page(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return what the template needs to show runs."""
    figures: dict[str, Mapping[str, go.Figure]] = {"targets": {"": targets_figure(runs)}}
    for index, run in enumerate(runs):
        figures[f"accuracy-{index}"] = {"": accuracy_figure(run)}
        figures[f"loss-{index}"] = {"": loss_figure(run)}
        figures[f"weight-{index}"] = {"": weight_figure(run)}
    return {
        "title": str(runs[0].path) if len(runs) == 1 else f"{len(runs)} runs",
        "rows": [row for run in runs for row in _rows(run, runs[0])],
        "runs": [{"run": run, "svg": picture(run.graph)} for run in runs],
        "figures": figures,
    }


def _rows(run: RunData, first: RunData) -> list[dict[str, Any]]:
    """Return a row for every node of a run, the target first, and one for all networks."""
    gained = "-"
    if run is not first and run.splits == first.splits:
        gained = gain(first.accuracy(first.target), run.accuracy(run.target))
    nodes = sorted(run.graph["nodes"], key=lambda name: name != run.target)
    models = {node: title(run.graph["nodes"][node]) for node in nodes}
    if run.accuracy(ALL_NETWORKS) is not None:
        models[ALL_NETWORKS] = "mean of the logits"
    return [
        {
            "run": str(run.path),
            "node": f"{node} (target)" if node == run.target != "target" else node,
            "model": model,
            "state": run.state,
            "split": run.splits,
            "top1": run.accuracy(node),
            "top5": run.accuracy(node, "top5"),
            "gain": gained if node == run.target else "",
        }
        for node, model in models.items()
    ]
