"""What the page of a study says: its headline, the best graphs, all trials, its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..records.sample import Sample, gain
from ..search.canonical import ALONE, EVERY, FROZEN, GraphEdge, describe, role_of
from ..search.fronts import best_so_far, compared_costs
from ..search.recipes import graph_section
from ..search.trials import (
    COMPLETE,
    INFERENCE,
    PARAMETERS,
    RUNNING,
    TRAINING,
    TrialRecord,
)
from .figures import (
    best_figure,
    epochs_figure,
    front_figure,
    importance_figure,
    parallel_figure,
    samples_figure,
)
from .pictures import picture
from .plot import Drawing
from .stages import FEWEST
from .study_data import StudyData

MANY = 5 * FEWEST  # trials; with fewer, importance is mostly noise
DRAWN = 3  # how many of the best graphs are drawn, at least
EARLIER = ("label-only", "all-through sum", "all-through mean")  # without `compared with`

# Title, and how the page sorts and filters: by number, by one of a few words, or by any text.
COLUMNS = (
    ("trial", "number"),
    ("state", "choice"),
    ("last val top-1 %", "number"),
    ("best val top-1 %", "number"),
    ("rung reached", "number"),
    ("epochs trained", "number"),
    ("auxiliaries", "text"),
    ("edges", "text"),
    ("why it failed", "text"),
    ("inference MFLOPs", "number"),
    ("parameters", "number"),
    ("training GFLOPs", "number"),
)

Variants = Mapping[str, Drawing]


def study_page(study: StudyData) -> dict[str, Any]:
    """Return what the template needs of a study."""
    samples = {
        row["name"]: Sample(tuple(row["test top1"]["values"]))
        for row in study.tested
        if row["test top1"]
    }
    result = study.result
    bases = [name for name in result.get("compared with", EARLIER) if name in samples]
    return {
        "title": f"Search {study.name}",
        "verdict": result.get("verdict", ""),
        "notes": result.get("notes", ()),
        "lead": _lead(study),
        "tiles": _tiles(study),
        "rows": _rows(study, samples, bases),
        "gains": bases,
        "trials": {"columns": COLUMNS, "rows": [_trial(trial) for trial in study.trials]},
        "stages": _stages(study),
        "stage": str(_first_stage(study)),
        "few": FEWEST,
        "figures": _figures(study, samples),
    }


def _figures(study: StudyData, samples: Mapping[str, Sample]) -> dict[str, Variants]:
    """Return the figures by name, each in one variant, or in one for every stage."""
    parallel, importance = {}, {}
    for epoch, trials in study.stages.items():
        parallel[str(epoch)] = parallel_figure(trials, epoch)
        found = importance_figure(trials, epoch)
        if found is not None:
            importance[str(epoch)] = found
    whole = {"epochs": epochs_figure(study)}
    if samples:
        about = "Test accuracy of the best graphs and of the controls"
        whole["tested"] = samples_figure(samples, "test top-1 %", about)
    for name, (axis, points) in compared_costs(study.trials).items():
        whole[name] = front_figure(points, axis)
    best = best_so_far(study.trials)
    if best:
        whole["best-so-far"] = best_figure(best, study.trials)
    figures: dict[str, Variants] = {name: {"": drawing} for name, drawing in whole.items()}
    return {**figures, "parallel": parallel, "importance": importance}


def _stages(study: StudyData) -> list[dict[str, Any]]:
    """Return the epochs to choose from."""
    return [{"epoch": epoch, "count": len(trials)} for epoch, trials in study.stages.items()]


def _first_stage(study: StudyData) -> int:
    """Return the epoch that is chosen at first: the last that is not mostly noise."""
    telling = [epoch for epoch, trials in study.stages.items() if len(trials) >= MANY]
    return max(telling, default=min(study.stages))


def _lead(study: StudyData) -> str:
    """Return what was searched and what was found, in two sentences."""
    search, best = study.recipe["search"], study.best[0]
    data = study.recipe.get("data", {}).get("dataset", "?")
    running = sum(trial.state == RUNNING for trial in study.trials)
    going = f" so far, {running} of them running" if running else ""
    epoch = max(best.values)
    objective, judged = search.get("objective", ALONE), search["target_model"]
    if objective != ALONE:
        which = "all networks" if objective == EVERY else "all networks that learn"
        judged = f"the ensemble of {which}, {judged} among them,"
    return (
        f"Which graph makes {judged} most accurate on {data}: "
        f"{len(study.trials):,} trials{going}. The best, trial {best.number}, has "
        f"{best.values[epoch]:.2f} % on the validation images after epoch {epoch} of "
        f"{study.epochs}: {_words(best.edges)}."
    )


def _tiles(study: StudyData) -> list[tuple[str, str]]:
    """Return what was spent: a figure, and what it counts."""
    spent = study.spent
    whole = spent["epochs without pruning"]
    saved = f", {100 * (1 - spent['epochs'] / whole):.0f} % fewer than without pruning" * (
        0 < spent["epochs"] < whole
    )
    seconds = [trial.trial.duration for trial in study.trials if trial.trial.duration is not None]
    hours = sum(each.total_seconds() for each in seconds) / 3600
    tiles = [(f"{spent[name]:,}", f"{name} trials") for name in (COMPLETE, "pruned", "failed")]
    worked = (f"{hours:,.2f}", "hours of workers")
    if hours < 0.1:
        worked = (f"{60 * hours:.1f}", "minutes of workers")
    tiles += [(f"{spent['epochs']:,}", f"epochs{saved}"), worked]
    again = ("duplicates avoided", "invalid graphs drawn again")
    return [*tiles, *((f"{spent[name]:,}", name) for name in again)]


def _rows(
    study: StudyData, samples: Mapping[str, Sample], bases: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the best graphs and, after them, the controls, as far as they are known.

    They are rows of result.json, completed by what the page shows beside them.
    """
    search, tested = study.recipe["search"], study.tested
    known = {row["trial"] for row in tested}
    missing = max(0, DRAWN - len(known - {None}))
    more = [trial for trial in study.best if trial.number not in known][:missing]
    untested = [
        {
            "name": f"trial {trial.number}",
            "what": f"{trial.state}, after epoch {max(trial.values)}",
            "validation top1": trial.last,
            "reduction": search.get("reduction", "sum"),
            "models": trial.models,
            "edges": trial.edges,
        }
        for trial in more
    ]
    winners = [
        {"what": f"trial {row['trial']}", **row} for row in tested if row["trial"] is not None
    ]
    controls = [{"what": "control", **row} for row in tested if row["trial"] is None]
    rows, images = [*winners, *untested, *controls], study.result.get("test images")
    first = {row["name"]: row.get("same as") or row["name"] for row in rows}
    for row in rows:
        if row.get("same as"):
            row["what"] += f", the same training as {row['same as']}"
        row["test"] = samples.get(row["name"])
        row["error"] = (row.get("test top1") or {}).get("test set error")
        edges, temperature = row["edges"], row.get("temperature", 1.0)
        section = graph_section(row["models"], edges, row["reduction"], search, temperature)
        row["svg"] = picture(section)
        row["words"] = _words(row["edges"])
        row["gains"] = [
            "-"
            if first[row["name"]] == first.get(name)
            else gain(samples[name], row["test"], images)
            for name in bases
        ]
    return rows


def _words(edges: Iterable[GraphEdge]) -> str:
    """Return who learns from whom: `target ← label, aux1 (correct); aux1 ← label`."""
    return describe(edges, arrow="←")


def _trial(trial: TrialRecord) -> list[Any]:
    """Return a trial as a row of the table; see COLUMNS."""
    values = trial.values
    learning = {edge.destination for edge in trial.edges}
    auxiliaries = [
        f"{name} {model}" + " (frozen)" * (role_of(model, name in learning) == FROZEN)
        for name, model in list(trial.models.items())[1:]
    ]
    return [
        trial.number,
        trial.state,
        None if trial.last is None else round(trial.last, 2),
        round(max(values.values()), 2) if values else None,
        max(values, default=None),
        trial.epochs,
        ", ".join(auxiliaries),
        _words(trial.edges),
        trial.reason,
        _over(trial.cost.get(INFERENCE), 1e6),
        trial.cost.get(PARAMETERS),
        _over(trial.cost.get(TRAINING), 1e9),
    ]


def _over(number: int | None, unit: float) -> float | None:
    return None if number is None else float(f"{number / unit:.4g}")
