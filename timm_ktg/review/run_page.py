"""The content of the page of runs: a table of the results, the graphs, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..records.metrics import ALL_NETWORKS
from ..records.sample import Sample, gain
from .figures import samples_figure
from .pictures import picture, title
from .plot import Drawing
from .run_data import RunData
from .run_figures import accuracy_figure, loss_figure, targets_figure, weight_figure
from .same_images import on_same_images


def runs_page(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return what the template needs to show runs."""
    drawings = {"targets": targets_figure(runs)}
    compared = _compared(runs)
    if len(compared) > 1:
        axis = f"{runs[0].splits} top-1 %"
        drawings["compared"] = samples_figure(compared, axis, "Accuracy of every run's target")
    for index, run in enumerate(runs):
        drawings[f"accuracy-{index}"] = accuracy_figure(run)
        drawings[f"loss-{index}"] = loss_figure(run)
        drawings[f"weight-{index}"] = weight_figure(run)
    figures: dict[str, Mapping[str, Drawing]] = {
        name: {"": drawing} for name, drawing in drawings.items()
    }
    return {
        "title": str(runs[0].path) if len(runs) == 1 else f"{len(runs)} runs",
        "lead": _lead(runs, compared),
        "rows": [row for run in runs for row in _rows(run, runs[0])],
        "runs": [{"run": run, "svg": picture(run.graph)} for run in runs],
        "figures": figures,
        "stage": "",
    }


def _compared(runs: Sequence[RunData]) -> dict[str, Sample]:
    """Return the targets' accuracy by run, of the runs measured on the images of the first."""
    first = runs[0].results
    found = {
        str(run.path): run.accuracy(run.target)
        for run in runs
        if on_same_images(first, run.results)
    }
    return {name: sample for name, sample in found.items() if sample is not None}


def _lead(runs: Sequence[RunData], compared: Mapping[str, Sample]) -> list[str]:
    """Return what came out, a sentence for each run."""
    first = runs[0]
    base = compared.get(str(first.path))
    if base is None:
        return []
    said = [f"{first.path}: {first.target} has {base} % on the {first.splits} images."]
    together = first.accuracy(ALL_NETWORKS)
    if together is not None:
        said[0] += f" All networks together have {together} %."
    for run in runs[1:]:
        sample = compared.get(str(run.path))
        if sample is not None:
            said.append(f"{run.path}: {sample} %, {gain(base, sample)} over {first.path}.")
    return said


def _rows(run: RunData, first: RunData) -> list[dict[str, Any]]:
    """Return a row for every node of a run, the target first, and one for all networks."""
    gained = "-"
    if run is not first:
        gained = gain(first.accuracy(first.target), run.accuracy(run.target))
        if not on_same_images(first.results, run.results):
            gained = "other images"
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
