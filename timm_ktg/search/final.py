"""What becomes of the best graphs: trained again on all training images, tested beside controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from ..recipe.data_config import DataConfig
from ..recipe.recipe import Recipe
from ..recipe.search_config import SearchRecipe
from ..records.sample import Sample
from .objective import EDGES, EPOCHS, REDRAWN, Builder
from .sampler import GRAPH, Choices
from .space import CanonicalGraph, SearchSpace, all_through
from .study import DUPLICATE, finished

LABEL_ONLY = "label-only"
SUM, MEAN = "all-through sum", "all-through mean"


@dataclass(frozen=True)
class Row:
    """A graph to train again.

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
        described = []
        for row in self.rows:
            found = self.samples[row.name]
            described.append(
                {
                    "name": row.name,
                    "trial": row.trial,
                    "validation top1": row.value,
                    "test top1": None if found is None else found.as_json(),
                    "graph": row.graph.key,
                    "reduction": row.reduction,
                    "edges": [list(edge) for edge in row.graph.edges],
                    "models": {node.name: node.model for node in row.graph.nodes},
                }
            )
        return {"rows": described, "spent": dict(self.spent)}


def best_trials(study: Study, count: int) -> list[FrozenTrial]:
    """Return the complete trials of the best graphs, the best first, each graph once."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best: dict[str, FrozenTrial] = {}
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        best.setdefault(trial.user_attrs[GRAPH], trial)
    return list(best.values())[:count]


def rows(
    study: Study, choices: Choices, recipe: SearchRecipe, label_only: float | None
) -> list[Row]:
    """Return the best graphs and, beside them, the controls on the same nodes as the best.

    Args:
        study: The study.
        choices: What there was to draw.
        recipe: The search's.
        label_only: Validation top-1 in percent of the target trained on the labels alone.
    """
    search, space = recipe.search, choices.largest
    found = []
    for rank, trial in enumerate(best_trials(study, max(1, search.top_k)), start=1):
        graph = choices.graph(trial.params)
        assert graph is not None  # it was trained
        found.append(Row(f"best-{rank}", graph, search.reduction, trial.number, trial.value))
    return [*found, *_controls(space, found, label_only)]


def _controls(space: SearchSpace, found: Sequence[Row], value: float | None) -> list[Row]:
    nodes = found[0].graph.nodes[1:] if found else ()
    label_only = Row(LABEL_ONLY, all_through(space, ()), "sum", value=value)
    if not nodes:
        return [label_only]
    graph = all_through(space, [node.model for node in nodes])
    return [label_only, Row(SUM, graph, "sum"), Row(MEAN, graph, "mean")]


def final_recipe(builder: Builder, row: Row) -> Recipe:
    """Return the recipe that trains a graph on all training images."""
    recipe = builder.recipe_of(row.graph)
    graph = recipe.graph.model_copy(update={"reduction": row.reduction})
    return recipe.model_copy(update={"graph": graph, "data": whole(recipe.data)})


def whole(data: DataConfig) -> DataConfig:
    """Return the section `data` with nothing held out of the training images."""
    return data.model_copy(update={"holdout": 0})


def job_name(row: str, seed: int) -> str:
    """Return the name of the job that trains a row with a seed."""
    return f"{row}, seed {seed}"


def sample(done: Mapping[str, FrozenTrial], row: Row, seeds: Sequence[int]) -> Sample | None:
    """Return a row's test figures over its seeds, or None if none succeeded."""
    names = [job_name(row.name, seed) for seed in seeds]
    values = tuple(done[name].value or 0.0 for name in names if name in done)
    return Sample(values) if values else None


def run_path(directory: Path, row: Row, seed: int) -> Path:
    """Return where a final run goes."""
    name = f"{row.name.replace(' ', '-')}-{row.graph.key[:6]}"
    return directory / "final" / name / f"seed-{seed}"


def spent(study: Study, epochs: int) -> dict[str, int]:
    """Return what a search cost.

    Args:
        study: The study.
        epochs: Epochs of a whole trial.
    """
    trials = study.get_trials(deepcopy=False)
    trained = [trial for trial in finished(study) if EDGES in trial.user_attrs]
    redrawn = [trial.user_attrs.get(REDRAWN, {}) for trial in trained]
    states = [trial.state for trial in trained]
    return {
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "epochs": sum(trial.user_attrs.get(EPOCHS, 0) for trial in trained),
        "epochs without pruning": len(trained) * epochs,
        "duplicates avoided": sum(each.get("seen", 0) for each in redrawn)
        + sum(DUPLICATE in trial.user_attrs for trial in trials),
        "invalid graphs drawn again": sum(each.get("invalid", 0) for each in redrawn),
    }
