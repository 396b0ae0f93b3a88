"""What the best graphs of a search are compared with, on the same nodes and by the same losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import product

from optuna import Study

from ..graph.edge import default_loss
from ..graph.topology import LABEL
from ..recipe.search_config import LossConfig, SearchConfig, SearchRecipe
from .canonical import (
    ALONE,
    EVERY,
    TARGET,
    THROUGH,
    CanonicalGraph,
    all_through,
    distillation,
    taught,
    worded,
)
from .result import INDEPENDENT, LABEL_ONLY, Row
from .space import Choices, edge_word
from .teachers import teachers_of
from .trials import COMPLETE, best_first, records

SUM, MEAN = "all-through sum", "all-through mean"
SMOOTHING = 0.1
TEMPERATURES = (1.0, 4.0)


def best_and_controls(
    study: Study, choices: Choices, recipe: SearchRecipe, values: Mapping[str, float]
) -> list[Row]:
    """Return the best graphs and, beside them, the controls on the same nodes as the best.

    Args:
        study: The study.
        choices: What there was to draw.
        recipe: The search's.
        values: Validation top-1 in percent of models that were trained on the labels alone.
    """
    search, found = recipe.search, []
    whole = [trial for trial in records(study) if trial.rung == search.top_rung]
    best = best_first(trial for trial in whole if trial.state == COMPLETE)
    for rank, trial in enumerate(best[: max(1, search.top_k)], start=1):
        graph = choices.graph(trial.trial.params)
        assert graph is not None  # it was trained
        name, cost = f"best-{rank}", trial.cost
        found.append(Row(name, graph, search.reduction, trial.number, trial.value, cost=cost))
    target, label = search.target_model, _label_word(search)
    alone = all_through(target, ())
    # A teacher of the target's model was trained on the labels, too, and by the usual loss.
    tried = {alone.key: values.get(target)} | {row.graph.key: row.value for row in found}
    only = worded(alone, label)
    reference = Row(LABEL_ONLY, only, "sum", value=tried.get(only.key))
    controls = [reference]
    if found and search.objective != ALONE:
        alone = taught(found[0].graph, (LABEL,))
        controls = [Row(INDEPENDENT, worded(alone, label), "sum")]
    if not recipe.train.smoothing:  # which smooths the usual loss
        controls.append(Row(f"label smoothing {SMOOTHING}", alone, "sum", smoothing=SMOOTHING))
    if found:
        controls += _all_through(found[0].graph, label)
        controls += _distilled(found[0].graph, search, values)
    if reference not in controls:
        controls.append(reference)
    return [*found, *controls]


def _label_word(search: SearchConfig) -> str:
    """Return the word of the controls' label edges: the usual loss, or else the first candidate."""
    words = [edge_word((LABEL, TARGET), THROUGH, each.shown) for each in search.label_losses]
    return words[0] if words and THROUGH not in words else THROUGH


def _kd(search: SearchConfig, temperature: float) -> tuple[str, float]:
    """Return how to write KD at a temperature, so that a graph that is the same has the same key.

    Returns:
        The word of an edge, and the temperature that it does not say.
    """
    loss = LossConfig(loss=default_loss(TARGET), temperature=temperature).shown
    if temperature != 1 and loss in [each.shown for each in search.losses]:
        return edge_word((TARGET, TARGET), THROUGH, loss), 1.0
    return THROUGH, temperature


def _all_through(graph: CanonicalGraph, label: str) -> list[Row]:
    """Return the controls in which the networks of a graph learn from each other.

    Args:
        graph: The graph.
        label: The word on the edges from the label.
    """
    target, *auxiliaries = (node.model for node in graph.nodes)
    if not auxiliaries:
        return []
    through = all_through(target, auxiliaries)
    if graph.objective != ALONE:  # those that learn stay the same, and so does the ensemble
        through = taught(graph, (LABEL, *graph.models))
    through = worded(through, label)
    rows = [Row(SUM, through, "sum")]
    if len(auxiliaries) > 1:  # of one source, the sum is the mean
        rows.append(Row(MEAN, through, "mean"))
    return rows


def _distilled(
    graph: CanonicalGraph, search: SearchConfig, values: Mapping[str, float]
) -> list[Row]:
    """Return the controls in which the target, or every member, learns from the frozen nodes.

    Args:
        graph: The graph.
        search: The section of the recipe.
        values: Validation top-1 in percent of the teachers that were trained, by model.
    """
    models, rows = graph.models, []
    teachers = teachers_of(graph, 0)
    kinds = [("KD", list(teachers), 1)] if teachers else []
    if len(teachers) > 1:
        # Where the teachers are judged, too, the second of a model is no other control.
        every = graph.objective == EVERY
        single = [name for name, each in teachers.items() if each.number == 1 or not every]
        if all(models[name] in values for name in teachers):  # those that are given have none
            single = [max(teachers, key=lambda name: values[models[name]])]
        several = Counter(models[name] for name in single)
        for name in single:
            model, number = models[name], teachers[name].number
            said = f"{model} {number}" if several[model] > 1 else model
            kinds.append((f"KD from {said}", [name], number))
    for (name, sources, first), temperature in product(kinds, TEMPERATURES):
        distilled = distillation(models[TARGET], *(models[source] for source in sources))
        if graph.objective != ALONE:
            distilled = taught(graph, (LABEL, *sources))
        word, left = _kd(search, temperature)
        distilled = worded(distilled, _label_word(search), word)
        full = f"{name} T={temperature:g}"
        rows.append(Row(full, distilled, search.reduction, temperature=left, teacher=first))
    return rows
