"""A study in Weights & Biases: a saved view of its runs, and the sweep that holds them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RecipeError, one_line
from ..recipe.recipe import check_section
from ..recipe.search_config import SearchRecipe
from ..recipe.tracking_config import TrackingConfig
from ..search.canonical import TARGET
from ..search.parameters import model_param
from ..search.space import Choices, build_choices
from ..search.tracking import (
    METRIC,
    WANDB,
    WandbRunIds,
    accuracy_of,
    create_sweep,
    make_run_ids,
    run_ids_of,
    search_tracking_problems,
)
from ..search.trials import records
from ..tracking.wandb_run import STEP
from .study_data import directory_of, find_study

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws


def show_wandb(path: Path, storage: str | None, name: str | None) -> list[tuple[str, str]]:
    """Save a view of a study's runs, and make their sweep if there is none yet.

    Args:
        path: The search's directory; its search.yaml says to which project the runs went.
        storage: Where the study is kept; None: where search.yaml says.
        name: Name of the study; None: the only one that is kept there.

    Returns:
        What was made, and where it is.

    Raises:
        RecipeError: There is no such study, its runs are not there, or there is no server.
    """
    study, values = find_study(path, storage, name)
    recipe = check_section(SearchRecipe, values)
    tracking = recipe.tracking.model_copy(update={"wandb": True, "mode": "online"})
    shown = [trial for trial in records(study) if trial.models]
    if not recipe.tracking.wandb or WANDB not in study.user_attrs or not shown:
        where = f"{directory_of(path)}: study `{study.study_name}`"
        raise RecipeError([f"{where} should have runs (--tracking.wandb true). Found none."])
    problems = search_tracking_problems(tracking)
    if find_spec("wandb_workspaces") is None:
        problems.append("wandb: needs wandb-workspaces. pip install 'timm_ktg[wandb]'.")
    if problems:
        raise RecipeError(problems)
    import wandb

    choices, ids, made = build_choices(recipe.search), run_ids_of(study), []
    _check_runs_are_there(tracking, ids, len(shown))
    if ids.sweep is None:
        runs = [ids.trial_id(trial.number) for trial in shown]
        sweep = create_sweep(tracking, ids.name, choices, runs)
        if sweep is None:
            raise RecipeError(["wandb: no sweep could be made; the reason is said above."])
        make_run_ids(study, sweep)  # the study keeps it
        made.append(("sweep", sweep))
    try:
        entity = tracking.entity or wandb.Api().default_entity or ""
        group = tracking.group or ids.name
        view = build_view(entity, tracking.project, group, choices).save()
    except (wandb.Error, ValueError, OSError) as error:
        raise RecipeError([f"wandb: the view could not be saved. {one_line(error)}"]) from error
    return [*made, ("view", str(view.url))]


def _check_runs_are_there(tracking: TrackingConfig, ids: WandbRunIds, count: int) -> None:
    """Raise RecipeError unless the server has a run of every trial, for the sweep to contain."""
    import wandb

    filters = {"group": tracking.group or ids.name, "jobType": "trial"}
    path = f"{tracking.entity}/{tracking.project}" if tracking.entity else tracking.project
    try:
        there = len(wandb.Api().runs(path, filters=filters))
    except (wandb.Error, ValueError, OSError) as error:
        raise RecipeError([f"wandb: the runs cannot be read. {one_line(error)}"]) from error
    if there < count:
        raise RecipeError(
            [
                f"wandb: there should be {count} runs of trials in {path}. Found {there}. Upload "
                "those that were written offline first: wandb sync <search>/wandb/offline-run-*"
            ]
        )


def build_view(entity: str, project: str, group: str, choices: Choices) -> ws.Workspace:
    """Return the view of a study's trials; nothing is sent.

    Args:
        entity: User or team.
        project: Project of the runs.
        group: Group of the study's runs.
        choices: What there was to draw.
    """
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    accuracy = wr.SummaryMetric(METRIC)
    chosen = [key for key in choices.largest.choices() if not key.startswith("role/")]
    columns = [wr.Config(key) for key in (model_param(TARGET), *chosen)]
    parallel = wr.ParallelCoordinatesPlot(
        title="Models, gates and accuracy",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=each) for each in (*columns, accuracy)],
    )
    by_epoch = wr.LinePlot(
        title="Target's accuracy by epoch", x=wr.Metric(STEP), y=[wr.Metric(accuracy_of(choices))]
    )
    edges = wr.ScatterPlot(
        title="Edges and accuracy", x=wr.Config("edges"), y=wr.SummaryMetric(METRIC)
    )
    # The running maximum is the front.
    costs = [
        wr.ScatterPlot(
            title=f"Accuracy over {title}",
            x=wr.SummaryMetric(f"cost/{name}"),
            y=accuracy,
            log_x=True,
            running_ymax=True,
        )
        for name, title in (
            ("inference_flops", "inference FLOPs"),
            ("training_flops", "training FLOPs"),
        )
    ]
    matters = wr.ParameterImportancePlot(with_respect_to=METRIC)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Study {group}",
        sections=[
            ws.Section("Search", [parallel, matters, by_epoch, edges, *costs], is_open=True),
            ws.Section("Graphs", [wr.MediaBrowser(media_keys=["graph"])], is_open=True),
            ws.Section("Side by side", [wr.RunComparer(diff_only="split")]),
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        # Grouping the runs would leave the importance panel empty.
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == group, expr.Metric("JobType") == "trial"),
            order=[expr.Ordering(expr.Summary(METRIC), ascending=False)],
        ),
    )
