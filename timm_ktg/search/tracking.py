"""A search in Weights & Biases: a run for every trial, and one for the study."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optuna import Study, TrialPruned

from ..draw.picture import draw_graph
from ..errors import one_line
from ..graph.topology import CUTOFF, EMA
from ..recipe.recipe import Recipe
from ..recipe.tracking_config import TrackingConfig
from ..records.metrics import EPOCH, Metrics, top1_name
from ..tracking.wandb_run import (
    CONNECT_TIMEOUT,
    RunInfo,
    WandbRun,
    flat,
    wait_for_server,
    wandb_problems,
)
from .canonical import TARGET, CanonicalGraph, judged_node
from .parameters import gate_param, loss_param, model_param
from .space import Choices
from .trials import Attributes, TrialRecord

WANDB = "wandb"  # attribute of the study: what identifies its runs
ABSENT = "none"  # model of an auxiliary that the graph does not have
METRIC = "target/top1/last"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbRunIds:
    """What identifies a study's runs in Weights & Biases.

    Args:
        name: Name of the study.
        id: What the ids of all its runs begin with.
        sweep: Id of the sweep that its trials belong to, if there is one.
    """

    name: str
    id: str
    sweep: str | None

    def trial_id(self, number: int) -> str:
        """Return the id of a trial's run."""
        return f"{self.id}-trial-{number}"


def make_run_ids(study: Study, sweep: str | None = None) -> None:
    """Give a study the id of its runs if it has none, and the id of its sweep."""
    made = study.user_attrs.get(WANDB, {"id": secrets.token_hex(4)})
    study.set_user_attr(WANDB, {**made, "sweep": sweep})


def run_ids_of(study: Study) -> WandbRunIds:
    """Return what identifies a study's runs."""
    if WANDB not in study.user_attrs:  # an earlier version made the study
        make_run_ids(study)
    return WandbRunIds(study.study_name, **study.user_attrs[WANDB])


def search_tracking_problems(tracking: TrackingConfig) -> list[str]:
    """Return what keeps a search from being shown in Weights & Biases, and what to do about it."""
    problems = wandb_problems(tracking)
    if tracking.wandb and not problems and find_spec("plotly") is None:
        problems.append("tracking.wandb: a search needs plotly. pip install 'timm_ktg[wandb]'.")
    return problems


def sweep_config(name: str, choices: Choices) -> dict[str, Any]:
    """Return a study as a W&B sweep whose runs are chosen by the study, not by W&B."""
    return {
        "name": name,
        "method": "custom",
        "metric": {"name": METRIC, "goal": "maximize"},
        "parameters": {
            parameter: {"values": list(values)}
            for parameter, values in choices.largest.choices().items()
        },
    }


def create_sweep(
    tracking: TrackingConfig, name: str, choices: Choices, runs: Sequence[str] = ()
) -> str | None:
    """Make a sweep in Weights & Biases that shows a study, and return its id.

    A server that is not there costs `CONNECT_TIMEOUT` seconds. If one takes connections and does
    not answer, wandb itself gives up after 20 s (n=1, wandb 0.31.0).

    Args:
        tracking: Where to make it.
        name: Name of the study.
        choices: What there is to draw.
        runs: Ids of runs that are there already and belong to it.

    Returns:
        The id, or None if there is no server, which is logged. `python -m timm_ktg.review wandb`
        makes the sweep later.
    """
    import wandb

    config = sweep_config(name, choices)
    try:
        wait_for_server(wandb.setup().settings.base_url, CONNECT_TIMEOUT)
        return wandb.sweep(config, tracking.entity, tracking.project, list(runs) or None)
    except (OSError, wandb.Error) as error:
        _logger.warning("Weights & Biases: no sweep was made. %s", one_line(error))
        return None


def graph_config(graph: CanonicalGraph, choices: Choices) -> dict[str, Any]:
    """Return a graph in flat keys that sort and plot, the same for every graph of a search."""
    space, models = choices.largest, graph.models
    parts = {
        pair: (space.parts_of(pair, word) or (word, ABSENT)) if word else (CUTOFF, ABSENT)
        for pair in space.pairs
        for word in (graph.gates.get(pair),)
    }
    return {
        **{model_param(name): models.get(name, ABSENT) for name in (TARGET, *space.auxiliaries)},
        **{gate_param(pair): parts[pair][0] for pair in space.pairs},
        **{loss_param(pair): parts[pair][1] for pair in space.pairs if space.losses_of(pair)},
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "cutoffs": len(space.pairs) - len(graph.edges),
        "frozen": len(graph.frozen_nodes),
        **({EMA: list(models.values()).count(EMA)} if EMA in space.kinds else {}),
        "graph": graph.key,
    }


def accuracy_of(choices: Choices) -> str:
    """Return the name of the metric that the trials of a search are judged by."""
    return top1_name("val", judged_node(choices.largest.objective))


class TrialRun:
    """Shows a trial while it goes on.

    Args:
        run: The run in Weights & Biases; None: nothing is shown.
        accuracy: Name of the metric that the trial is judged by.
    """

    def __init__(self, run: WandbRun | None, accuracy: str) -> None:
        self._run, self._accuracy = run, accuracy
        self._values: list[float] = []
        self._epochs = self._rung = 0
        self._costs: dict[str, int] = {}

    def begin(self, recipe: Recipe) -> None:
        """Show what the trial trains: its graph, and how and on what it is trained."""
        if self._run is not None:
            values = recipe.model_dump(mode="json", include={"train", "data"})
            self._run.configure(flat(values))
            self._run.picture("graph", lambda path: draw_graph(recipe.graph, path))

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._epochs = int(metrics[EPOCH])
        if self._accuracy in metrics:
            self._values.append(metrics[self._accuracy])
        if self._run is not None:
            self._run.log(metrics)

    def reached(self, rung: int) -> None:
        """Note that the trial has reported at a rung, given by its epoch."""
        self._rung = rung

    def spent(self, spent: Attributes) -> None:
        """Note what the trial has cost."""
        self._costs = {f"cost/{name}": value for name, value in spent.get("cost", {}).items()}

    def finish(self, state: str, reason: str | None = None) -> None:
        """Show how the trial ended."""
        if self._run is None:
            return
        summary: dict[str, Any] = {"state": state, "rung": self._rung, "epochs": self._epochs}
        summary |= self._costs
        if self._values:
            best, last = max(self._values), self._values[-1]
            summary |= {"target/top1/best": best, METRIC: last}
        if reason is not None:
            summary["reason"] = reason
        self._run.finish(summary, exit_code=1 if state == "failed" else 0)


@dataclass(frozen=True)
class StudyTracking:
    """Shows a study's trials.

    Args:
        tracking: Where to show them.
        run_ids: What identifies the runs.
        choices: What there is to draw.
        directory: Where wandb keeps its files.
    """

    tracking: TrackingConfig
    run_ids: WandbRunIds
    choices: Choices
    directory: Path

    @contextmanager
    def trial(self, trial: TrialRecord, graph: CanonicalGraph) -> Iterator[TrialRun]:
        """Show a trial while it runs, and how it ends; being pruned is no failure."""
        run = self._open(trial, graph) if self.tracking.wandb else None
        shown = TrialRun(run, accuracy_of(self.choices))
        try:
            yield shown
        except TrialPruned:
            shown.finish("pruned")
            raise
        except BaseException as error:
            shown.finish("failed", one_line(error))
            raise
        shown.finish("complete")

    def open_study(self, config: Mapping[str, Any]) -> WandbRun:
        """Return the study's own run, which shows its result."""
        ids = self.run_ids
        return self._run(f"{ids.id}-study", ids.name, "study", config)

    def _open(self, trial: TrialRecord, graph: CanonicalGraph) -> WandbRun:
        number, ids = trial.number, self.run_ids
        config = {**graph_config(graph, self.choices), "trial": number}
        if trial.promotes is not None:
            config["promotes"] = trial.promotes
        return self._run(ids.trial_id(number), f"trial {number}", "trial", config, ids.sweep)

    def _run(
        self, id: str, name: str, kind: str, config: Mapping[str, Any], sweep: str | None = None
    ) -> WandbRun:
        study = self.run_ids.name
        info = RunInfo(id, name, kind, study, {**config, "study": study}, sweep, console=False)
        return WandbRun(self.tracking, info, self.directory)
