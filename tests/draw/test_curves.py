"""A run's curves, and how its pictures are kept up to date."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from PIL import Image

import timm_ktg.train.pictures
from tests.draw.picture_cases import checked_graph
from timm_ktg.draw.curves import draw_curves, plot_curves
from timm_ktg.draw.scene import scene_of
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.graph_config import GraphConfig
from timm_ktg.records.metrics import Metrics
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.train.pictures import RunPictures

pytestmark = pytest.mark.usefixtures("workbench")

GRAPH = checked_graph(
    {
        "student": {"label": "through", "helper": "correct", "teacher": "correct"},
        "helper": {"label": "linear"},
        "teacher": {},
    }
)
EDGES = ("label->student", "helper->student", "teacher->student", "label->helper")


def measured(epochs: int, val: bool) -> list[Metrics]:
    splits = ("train", "val") if val else ("train",)
    return [
        {
            "epoch": epoch,
            **{f"train/loss/{name}": 2 / epoch for name in ("student", "helper", *EDGES)},
            **{f"train/weight/{edge}": 1 - 0.5 / epoch for edge in EDGES},
            **{f"train/passed/{edge}": 1.0 for edge in EDGES if edge == "helper->student"},
            **{f"{split}/top1/{name}": 90.0 for name in GRAPH.nodes for split in splits},
        }
        for epoch in range(1, epochs + 1)
    ]


def a_run(path: Path, epochs: int = 2, val: bool = False) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir()
    run.recipe.write_text(json.dumps({"graph": GRAPH.model_dump(mode="json")}))
    for metrics in measured(epochs, val):
        run.log(metrics)
    return run


def legend_of(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_an_image(epochs: int, val: bool, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", epochs, val)
    draw_curves(run.path)
    with Image.open(run.curves) as image:
        assert image.format == "PNG" and min(image.size) > 600
    assert {path.name for path in run.path.iterdir()} == {
        *("recipe.yaml", "metrics.jsonl", "curves.png")
    }


@pytest.mark.parametrize("target", ["student", "slow"])
def test_slow_copy_that_teaches_nobody_is_shown(target: str) -> None:
    learning = {"model": "resnet8_cifar", "learns_from": {"label": "through"}}
    nodes = {"student": learning, "slow": {"ema": "student"}}
    graph = GraphConfig.model_validate({"target": target, "nodes": nodes})
    epochs: list[Metrics] = [
        {
            "epoch": epoch,
            "train/loss/student": 1.0,
            "train/top1/student": 80.0,
            "val/top1/student": 70.0,
            "val/top1/slow": 70.0 + epoch,
            "train/weight/label->student": 1.0,
        }
        for epoch in (1, 2)
    ]
    _, top1, _ = plot_curves(epochs, scene_of(graph)).axes
    assert any(
        name.startswith("slow") and name.endswith(": val, best 72.00 at 2")
        for name in legend_of(top1)
    )


def test_panels_show_every_node_and_every_edge() -> None:
    loss, top1, weight = axes = plot_curves(measured(3, val=True), scene_of(GRAPH)).axes
    assert [each.get_ylabel() for each in axes] == [
        "loss",
        "top-1 %",
        "mean weight, gate times edge",
    ]
    assert weight.get_xlabel() == "epoch"
    assert legend_of(loss) == ["student (target)", "helper"]  # a frozen node has no loss
    assert legend_of(top1) == [
        f"{name}: val (train thin), best 90.00 at 1"
        for name in ("student (target)", "helper", "teacher (frozen)")
    ]
    assert len(top1.lines) == 6
    assert legend_of(weight) == [
        *("label → student: through", "helper → student: correct (samples thin)"),
        *("teacher → student: correct", "label → helper: linear"),
    ]
    thin = [line for line in weight.lines if line.get_linewidth() < 1]
    assert [list(line.get_ydata()) for line in thin] == [[1.0, 1.0, 1.0]]
    thick = [line for line in weight.lines if line not in thin]
    colours = {edge.word: edge.color.lower() for edge in scene_of(GRAPH).edges}
    for line, name in zip(thick, legend_of(weight), strict=True):
        assert to_hex(line.get_color()) == colours[name.split(": ")[1].split(" (")[0]]
        assert list(line.get_ydata()) == pytest.approx([0.5, 0.75, 1 - 0.5 / 3])
    dashes = [line.get_linestyle() for line in thick[1:3]]
    assert dashes[0] != dashes[1]  # two edges with one gate


def test_validation_loss_is_thin_beside_that_of_training() -> None:
    epochs = [{**epoch, "val/loss/student": 1.0} for epoch in measured(3, val=True)]
    axes = plot_curves(epochs, scene_of(GRAPH)).axes[0]
    assert legend_of(axes) == ["student (target): train (val thin)", "helper"]
    train, val, _ = axes.lines
    assert list(val.get_ydata()) == [1.0] * 3 and val.get_linewidth() < train.get_linewidth()


def test_training_top1_is_thick_where_there_is_no_validation() -> None:
    epochs = measured(3, val=False)
    watched = plot_curves(measured(3, val=True), scene_of(GRAPH)).axes[1].lines
    alone = plot_curves(epochs, scene_of(GRAPH)).axes[1]
    assert legend_of(alone)[0] == "student (target): train, best 90.00 at 1"
    train, val = watched[0].get_linewidth(), watched[1].get_linewidth()
    assert train < val == alone.lines[0].get_linewidth()


def test_curve_goes_on_over_epochs_that_were_not_evaluated() -> None:
    first, second, third = measured(3, val=True)
    del second["val/top1/student"]
    val = plot_curves([first, second, third], scene_of(GRAPH)).axes[1].lines[1]
    assert list(val.get_xdata()) == [1, 3] and list(val.get_ydata()) == [90.0, 90.0]


def test_best_epoch_is_marked_and_named() -> None:
    epochs = measured(4, val=True)
    for epoch, value in zip(epochs, (70.0, 93.5, 93.5, 91.0), strict=True):
        epoch["val/top1/student"] = value
    top1 = plot_curves(epochs, scene_of(GRAPH)).axes[1]
    assert legend_of(top1)[0].endswith("best 93.50 at 2")
    mark, *_ = top1.collections
    assert mark.get_offsets().tolist() == [[2, 93.5]]


def test_one_epoch_is_a_mark() -> None:
    for axes in plot_curves(measured(1, val=True), scene_of(GRAPH)).axes:
        assert all(line.get_marker() == "o" for line in axes.lines)
        assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]


def test_directory_without_measures_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", epochs=0)
    with pytest.raises(RecipeError, match=r"run: should hold metrics\.jsonl.*Found none\.$"):
        draw_curves(run.path)


# While a run trains.


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is drawn, without drawing it."""
    drawings: list[str] = []
    for name in ("draw_graph", "draw_curves"):
        monkeypatch.setattr(
            timm_ktg.train.pictures, name, lambda *_, name=name: drawings.append(name)
        )
    return drawings


def test_curves_are_drawn_once_a_minute_while_a_run_trains(
    tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("timm_ktg.train.pictures.time.monotonic", lambda: clock[-1])
    pictures = RunPictures(GRAPH, a_run(tmp_path / "run"), is_main=True)
    pictures.begin()
    assert drawn == ["draw_graph"]
    for seconds in (30, 59, 61, 100, 122):
        clock.append(1000.0 + seconds)
        pictures.go_on()
    assert drawn == ["draw_graph", "draw_curves", "draw_curves"]
    pictures.end()
    assert drawn[3:] == ["draw_graph", "draw_curves"]


def test_only_the_main_process_draws(tmp_path: Path, drawn: list[str]) -> None:
    pictures = RunPictures(GRAPH, a_run(tmp_path / "run"), is_main=False)
    pictures.begin()
    pictures.end()
    assert drawn == []


def test_drawing_that_fails_costs_a_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = a_run(tmp_path / "run")
    monkeypatch.setattr(timm_ktg.train.pictures, "draw_graph", full)
    with caplog.at_level(logging.WARNING, logger="timm_ktg"):
        RunPictures(GRAPH, run, is_main=True).end()
    [record] = caplog.records
    assert "no picture: OSError: [Errno 28] No space left on device" in record.getMessage()
    assert run.curves.is_file()
