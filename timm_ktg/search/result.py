"""What a search came to: the best graphs beside the controls, their figures, and the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from rich.table import Table

from ..recipe.search_config import SearchConfig
from ..records.sample import Sample, gain
from ..terminal import console
from .canonical import CanonicalGraph, all_through
from .space import Choices
from .trials import COMPLETE, DUPLICATE, FAILED, PRUNED, best_first, finished, records

LABEL_ONLY = "label-only"
SUM, MEAN = "all-through sum", "all-through mean"


@dataclass(frozen=True)
class Row:
    """A graph to train again.

    The jobs of the final trainings are named by its repr (see `final.digest_of`).

    Args:
        name: What it is called in the table and on the disk.
        graph: The graph.
        reduction: How a node's losses from networks add up.
        trial: Number of the trial that found it; None: a control.
        value: Validation top-1 in percent of one training on the search's split, if there was one.
    """

    name: str
    graph: CanonicalGraph
    reduction: str
    trial: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Result:
    """What a search came to.

    Args:
        rows: The best graphs and, after them, the controls.
        samples: Test top-1 in percent of each row by its name, over the seeds; None: no figure.
        spent: What the search cost.
    """

    rows: Sequence[Row]
    samples: Mapping[str, Sample | None]
    spent: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the result as result.json holds it."""
        tested = {name: sample and sample.as_json() for name, sample in self.samples.items()}
        rows = [
            {
                "name": row.name,
                "trial": row.trial,
                "validation top1": row.value,
                "test top1": tested[row.name],
                "graph": row.graph.key,
                "reduction": row.reduction,
                "edges": row.graph.edges,
                "models": row.graph.models,
            }
            for row in self.rows
        ]
        return {"rows": rows, "spent": dict(self.spent)}


def best_and_controls(
    study: Study, choices: Choices, search: SearchConfig, label_only: float | None
) -> list[Row]:
    """Return the best graphs and, beside them, the controls on the same nodes as the best.

    Args:
        study: The study.
        choices: What there was to draw.
        search: The section of the recipe.
        label_only: Validation top-1 in percent of the target trained on the labels alone.
    """
    found = []
    best = best_first(trial for trial in records(study) if trial.state == COMPLETE)
    for rank, trial in enumerate(best[: max(1, search.top_k)], start=1):
        graph = choices.graph(trial.trial.params)
        assert graph is not None  # it was trained
        found.append(Row(f"best-{rank}", graph, search.reduction, trial.number, trial.value))
    target = search.target_model
    controls = [Row(LABEL_ONLY, all_through(target, ()), "sum", value=label_only)]
    auxiliaries = found[0].graph.nodes[1:] if found else ()
    if auxiliaries:
        graph = all_through(target, [node.model for node in auxiliaries])
        controls += [Row(SUM, graph, "sum"), Row(MEAN, graph, "mean")]
    return [*found, *controls]


def spent(study: Study, epochs: int) -> dict[str, int]:
    """Return what a search cost.

    Args:
        study: The study.
        epochs: Epochs of a whole trial.
    """
    trained = [trial for trial in finished(study) if trial.edges]
    ended = Counter(trial.state for trial in trained)
    redrawn = sum((Counter(trial.attributes.get("redrawn")) for trial in trained), Counter[str]())
    duplicates = sum(trial.state == DUPLICATE for trial in records(study))
    return {
        "complete": ended[COMPLETE],
        "pruned": ended[PRUNED],
        "failed": ended[FAILED],
        "epochs": sum(trial.epochs for trial in trained),
        "epochs without pruning": len(trained) * epochs,
        "duplicates avoided": redrawn["seen"] + duplicates,
        "invalid graphs drawn again": redrawn["invalid"],
    }


def show_result(result: Result, directory: Path) -> None:
    """Print the best graphs beside the controls, what was spent, and where everything lies.

    Args:
        result: The search's result.
        directory: Where everything lies.
    """
    samples = result.samples
    table = Table(title="Best graphs and controls; the choice was made by validation images")
    bases = [name for name in (LABEL_ONLY, SUM) if name in samples]
    gains = [f"over {name} [95 %]" for name in bases]
    for column in ("graph", "val top-1 %", "test top-1 %", *gains, "edges"):
        table.add_column(column, justify="left" if column in ("graph", "edges") else "right")
    for row in result.rows:
        table.add_row(
            row.name if row.trial is None else f"{row.name} (trial {row.trial})",
            "-" if row.value is None else f"{row.value:.2f}",
            str(samples[row.name] or "-"),
            *(
                "-" if row.name == base else gain(samples[base], samples[row.name])
                for base in bases
            ),
            str(row.graph).replace("; ", "\n"),
            style=None if row.trial is None else "bold",
        )
    console().print(table)
    print("Spent: " + ", ".join(f"{what} {count:,}" for what, count in result.spent.items()) + ".")
    print(f"result     {directory / 'result.json'}")
    print(f"best graph {directory / 'best.yaml'}")
    print(f"train it   accelerate launch -m timm_ktg.train {directory / 'best.yaml'}")
