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
from ..recipe.graph_config import GraphConfig
from ..recipe.tracking_config import TrackingConfig
from ..records.metrics import EPOCH, Metrics, top1_name
from ..tracking.wandb_run import (
    CONNECT_TIMEOUT,
    RunInfo,
    WandbRun,
    mode_of,
    wait_for_server,
    wandb_problems,
)
from .sampler import Choices
from .space import CUTOFF, TARGET, CanonicalGraph

WANDB = "wandb"  # attribute of the study: by what its runs are known
ABSENT = "none"  # model of an auxiliary that the graph does not have
ACCURACY = top1_name("val", TARGET)
METRIC = "target/top1/last"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyCard:
    """By what a study's runs are known in Weights & Biases.

    Args:
        name: Name of the study.
        id: What the ids of all its runs begin with.
        sweep: Id of the sweep its trials belong to, if there is one.
    """

    name: str
    id: str
    sweep: str | None

    def trial_id(self, number: int) -> str:
        """Return the id of a trial's run."""
        return f"{self.id}-trial-{number}"

    @property
    def study_id(self) -> str:
        """The id of the study's own run."""
        return f"{self.id}-study"


def make_card(study: Study, sweep: str | None = None) -> None:
    """Give a study what its runs will be known by, or a sweep of its own."""
    made = study.user_attrs.get(WANDB, {"id": secrets.token_hex(4)})
    study.set_user_attr(WANDB, {**made, "sweep": sweep})


def card_of(study: Study) -> StudyCard:
    """Return what a study's runs are known by."""
    if WANDB not in study.user_attrs:  # one that an earlier version made
        make_card(study)
    return StudyCard(study.study_name, **study.user_attrs[WANDB])


def search_tracking_problems(tracking: TrackingConfig) -> list[str]:
    """Return why a search cannot be shown in Weights & Biases, if so, and what to do."""
    problems = wandb_problems(tracking)
    if tracking.wandb and not problems and find_spec("plotly") is None:
        problems.append("tracking.wandb: a search needs plotly. pip install 'timm_ktg[wandb]'.")
    return problems


def sweep_config(name: str, choices: Choices) -> dict[str, Any]:
    """Return a study as a W&B sweep that nothing but the study drives."""
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

    A server that is not there costs `CONNECT_TIMEOUT` seconds. One that takes connections and does
    not answer is given up by wandb itself, after 20 s (n=1, wandb 0.31.0).

    Args:
        tracking: Where; offline there is none.
        name: Name of the study.
        choices: What there is to draw.
        runs: Ids of runs that are there already and belong to it.

    Returns:
        The id, or None: the runs are not shown, or offline, or there is no server, of which a line
        tells. `python -m timm_ktg.review wandb` makes the sweep later.
    """
    if not tracking.wandb or mode_of(tracking) != "online":
        return None
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
    models = {node.name: node.model for node in graph.nodes}
    gates = {(edge.source, edge.destination): edge.gate for edge in graph.edges}
    space = choices.largest
    config: dict[str, Any] = {
        f"model/{name}": models.get(name, ABSENT) for name in (TARGET, *space.auxiliaries)
    }
    config |= {f"gate/{s}->{d}": gates.get((s, d), CUTOFF) for s, d in space.pairs}
    return config | {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "cutoffs": len(space.pairs) - len(graph.edges),
        "frozen": len(graph.frozen_nodes),
        "graph": graph.key,
    }


class TrialRun:
    """A trial as it is shown while it goes on.

    Args:
        run: Its run; None: it is not shown.
    """

    def __init__(self, run: WandbRun | None) -> None:
        self._run = run
        self._values: list[float] = []
        self._epochs = self._rung = 0

    def draw(self, graph: GraphConfig) -> None:
        """Show its graph."""
        if self._run is not None:
            self._run.picture("graph", lambda path: draw_graph(graph, path))

    def log(self, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._epochs = int(metrics[EPOCH])
        if ACCURACY in metrics:
            self._values.append(metrics[ACCURACY])
        if self._run is not None:
            self._run.log(metrics)

    def reached(self, rung: int) -> None:
        """Take note of a rung, by its epoch, at which the trial has reported."""
        self._rung = rung

    def finish(self, state: str, reason: str | None = None) -> None:
        """Show how the trial ended."""
        if self._run is None:
            return
        summary: dict[str, Any] = {"state": state, "rung": self._rung, "epochs": self._epochs}
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
        tracking: Where.
        card: What the runs are known by.
        choices: What there was to draw.
        directory: Where wandb keeps its files.
    """

    tracking: TrackingConfig
    card: StudyCard
    choices: Choices
    directory: Path

    @contextmanager
    def trial(self, number: int, graph: CanonicalGraph) -> Iterator[TrialRun]:
        """Show a trial for as long as it is run, and how it ends; a pruned one is no failure."""
        shown = TrialRun(self._open(number, graph) if self.tracking.wandb else None)
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
        return self._run(self.card.study_id, self.card.name, "study", config, None)

    def _open(self, number: int, graph: CanonicalGraph) -> WandbRun:
        config = {**graph_config(graph, self.choices), "trial": number}
        name = f"trial {number}"
        return self._run(self.card.trial_id(number), name, "trial", config, self.card.sweep)

    def _run(
        self, id: str, name: str, job_type: str, config: Mapping[str, Any], sweep: str | None
    ) -> WandbRun:
        config = {**config, "study": self.card.name}
        info = RunInfo(id, name, job_type, self.card.name, config, sweep, console=False)
        return WandbRun(self.tracking, info, self.directory)
