"""The main job: what a run measures, writes and reads, and how it ends."""

import json
import math
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import timm_ktg.recipe.images
import timm_ktg.train.run
from tests import training_cases as cases
from tests.nets import ktg_tiny
from tests.recipe_cases import MUTUAL, Values, recipe_values, write_recipe
from tests.tiny_data import TEST, TRAIN, UPDATES, VAL, small_digits
from tests.training_cases import (
    assert_same_run,
    metrics_of,
    on_cpu,
    run_main,
    summary_of,
    train_run,
    weights_of,
)
from timm_ktg import EdgeContext, register_gate

pytestmark = pytest.mark.slow

EDGES = ("label->a", "b->a", "label->b", "a->b")


@pytest.fixture(scope="module")
def terminal() -> StringIO:
    return StringIO()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, terminal: StringIO) -> Path:
    """A run of two epochs, to look at."""
    with redirect_stdout(terminal):
        return train_run(tmp_path_factory.mktemp("train") / "run", recipe_values(seed=4))


# What a run leaves.


def test_line_of_an_epoch_holds_every_measure(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line) == {
            *("epoch", "lr", "images_per_second", "seconds"),
            *(f"train/loss/{name}" for name in ("a", "b", *EDGES)),
            *(f"train/weight/{edge}" for edge in EDGES),
            "train/passed/b->a",
            *(
                f"{split}/top{top}/{n}"
                for split in ("train", "val")
                for top in (1, 5)
                for n in "ab"
            ),
            *(f"val/top{top}/all-networks" for top in (1, 5)),
            *(f"val/loss/{name}" for name in ("a", "b", "all-networks")),
        }
        assert all(map(math.isfinite, line.values()))
        assert line["images_per_second"] * line["seconds"] == pytest.approx(TRAIN)
        assert line["train/loss/a"] == pytest.approx(
            line["train/loss/label->a"] + line["train/loss/b->a"], rel=1e-5
        )
        # `correct` passes what its source gets right in training mode, and top-1 counts the same.
        assert line["train/passed/b->a"] * 100 == pytest.approx(line["train/top1/b"], rel=1e-5)
        assert line["val/top1/a"] * VAL / 100 == pytest.approx(
            round(line["val/top1/a"] * VAL / 100)
        )


def test_learning_rate_follows_timms_schedule(run: Path) -> None:
    rates = [line["lr"] for line in metrics_of(run)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 2)) / 2 for e in (0, 1)])


@on_cpu
def test_summary_holds_what_was_promised(run: Path) -> None:
    summary = summary_of(run)
    assert summary["target"] == "a" and summary["split"] == "test"
    assert (summary["seed"], summary["epochs"], summary["processes"]) == (4, 2, 1)
    assert summary["images"] == TEST
    assert summary["device"] == "cpu" and summary["wall_seconds"] > summary["training_seconds"] > 0
    assert summary["device_name"] == torch.cpu.get_capabilities().get("cpu_name")
    versions = {name: summary["packages"][name] for name in ("torch", "timm", "accelerate")}
    assert versions["timm"] == timm.__version__ and versions["torch"].split("+")[0]
    assert set(summary["nodes"]) == {"a", "b", "all-networks"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert set(weights_of(run)) == {"a.safetensors", "b.safetensors"}
    assert summary["training_seconds"] == pytest.approx(sum(seconds))


def test_accuracy_is_that_of_the_exported_weights_on_the_test_images(run: Path) -> None:
    test = load_from_disk(small_digits())["test"]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in test["image"]])
    summary = summary_of(run)
    mean, std = (np.array(summary["data"][name]) for name in ("mean", "std"))
    images = torch.tensor((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    labels = np.array(test["label"])
    for name, kwargs in (("a", {}), ("b", {"width": 6})):
        path = run / "nodes" / f"{name}.safetensors"
        model = timm.create_model("ktg_tiny", checkpoint_path=str(path), **kwargs).eval()
        ranks = (-model(images).detach().numpy()).argsort(1)
        for top in (1, 5):
            share = 100 * np.mean((ranks[:, :top] == labels[:, None]).any(1))
            assert summary["nodes"][name][f"top{top}"] == pytest.approx(share, abs=1e-9)


def test_pictures_of_the_graph_and_of_its_curves_are_in_a_run(run: Path) -> None:
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 600
    graph = (run / "graph.svg").read_text()
    for edge in EDGES:
        assert f"edge-{edge.replace('->', '-')}" in graph
    for name in "ab":
        top1 = summary_of(run)["nodes"][name]["top1"]
        assert f"<!-- {top1:.2f} % top-1 -->" in graph


def test_terminal_shows_graph_epochs_and_result(run: Path, terminal: StringIO) -> None:
    text = terminal.getvalue()
    for wanted in ("target", "b: correct", "a: through, T=2", "epoch 1/2", "epoch 2/2", "a* "):
        assert wanted in text
    top1 = summary_of(run)["nodes"]["a"]["top1"]
    assert f"{top1:.2f}" in text and str(run / "summary.json") in text
    assert f"{run / 'graph.svg'}, curves.png" in text


def test_recipe_of_a_run_repeats_it(run: Path, tmp_path: Path) -> None:
    assert run_main(run / "recipe.yaml", "--output-dir", tmp_path / "again") == 0
    assert_same_run(run, tmp_path / "again")
    assert (run / "recipe.yaml").read_text() == (tmp_path / "again" / "recipe.yaml").read_text()


def test_node_of_a_run_teaches_in_another_and_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    weights = run / "nodes" / "b.safetensors"
    frozen = {
        "model": "ktg_tiny",
        "model_kwargs": {"width": 6, "norm": False},
        "checkpoint_path": str(weights),
    }
    student = {"model": "ktg_tiny", "learns_from": {"label": "through", "b": "correct"}}
    other = train_run(tmp_path / "kd", recipe_values({"a": student, "b": frozen}))
    before, after = load_file(weights), load_file(other / "nodes" / "b.safetensors")
    assert cases.same_state(before, after)
    assert summary_of(other)["nodes"]["b"] == summary_of(run)["nodes"]["b"]
    assert "train/loss/b" not in metrics_of(other)[0] and "val/top1/b" in metrics_of(other)[0]


# What a run reads.


@pytest.mark.parametrize("pipeline", ["memory", "timm"])
def test_test_images_are_checked_first_and_evaluated_once_and_last(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    images, running = timm_ktg.recipe.images, timm_ktg.train.run
    check, epoch, evaluate = images.check_labels, running.train_epoch, running.evaluate

    def spy(what: str, function: Any, *arguments: Any, **options: Any) -> Any:
        events.append(what or arguments[-1])
        return function(*arguments, **options)

    monkeypatch.setattr(images, "check_labels", partial(spy, "check", check))
    monkeypatch.setattr(running, "train_epoch", partial(spy, "epoch", epoch))
    monkeypatch.setattr(running, "evaluate", partial(spy, "", evaluate))
    data = {"pipeline": "timm", "workers": 0, "img_size": 8, "pad": 4}
    train_run(tmp_path / "run", recipe_values(data=data if pipeline == "timm" else {}))
    assert events == ["check", "epoch", "val", "epoch", "val", "test"]


def test_without_a_test_split_validation_is_the_result(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", recipe_values(data={"test_split": None}, epochs=1))
    summary, (line,) = summary_of(run), metrics_of(run)
    assert summary["split"] == "val"
    assert summary["nodes"]["a"] == {top: line[f"val/{top}/a"] for top in ("top1", "top5")}


def test_dry_run_builds_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values())
    assert run_main(recipe, "--output-dir", tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    sizes = [sum(each.numel() for each in ktg_tiny(width=w).parameters()) for w in (8, 6)]
    assert all(str(size) in said for size in sizes) and "nothing was trained" in said
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_dry_run_refuses_the_directory_of_a_run_as_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values())
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.read_text())
    for flags in ([], ["--dry-run"]):
        assert run_main(recipe, "--output-dir", run, *flags) == 2
        assert f"output-dir: {run} holds a run." in capsys.readouterr().err
    assert run_main(recipe, "--output-dir", run, "--overwrite", "--dry-run") == 0
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


# How a run ends before its time.

BROKEN: Values = {
    **MUTUAL,
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "b": {"gate": "breaking"}}},
}


@pytest.mark.parametrize("factor", ["inf", "nan"])
def test_gate_that_turns_bad_ends_the_run_in_one_line(
    factor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe_values(BROKEN, epochs=3)
    values["graph"]["nodes"]["a"]["learns_from"]["b"]["gate_kwargs"] = {"factor": factor}
    run = tmp_path / "run"
    assert run_main(write_recipe(tmp_path / "r.yaml", values), "--output-dir", run) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "update/s" not in each]
    first_bad = 1 + int(0.6 * 3 * UPDATES)
    assert f"node a is not finite at update {first_bad}, on b->a (gate breaking(" in line
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["epoch-0001"]
    assert [each["epoch"] for each in metrics_of(run)] == [1]
    assert not (run / "summary.json").exists()


def test_run_goes_on_from_before_a_loss_turned_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = {"loss": "erratic", "loss_kwargs": {"good": 2 * UPDATES + 5}}  # three before it trains
    values = recipe_values({"a": {"model": "ktg_tiny", "learns_from": {"label": label}}}, epochs=3)
    cases.calls["erratic"] = -1000
    whole = train_run(tmp_path / "whole", values)
    cases.calls["erratic"] = 0
    recipe, broken = write_recipe(tmp_path / "r.yaml", values), tmp_path / "broken"
    assert run_main(recipe, "--output-dir", broken) == 1
    said = capsys.readouterr().err
    assert f"node a is not finite at update {2 * UPDATES + 3}, on label->a" in said
    cases.calls["erratic"] = -1000
    assert run_main("--resume", broken) == 0
    assert_same_run(whole, broken)


def test_interrupted_run_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timm_ktg.train.run, "train_epoch", interrupt)
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values())
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "--resume" in line


def test_gate_with_an_argument_that_must_be_given_can_be_trained_with(tmp_path: Path) -> None:
    def halving(losses: Tensor, context: EdgeContext, *, by: float) -> Tensor:
        return losses / by

    register_gate(halving)
    edge = {"gate": "halving", "gate_kwargs": {"by": 2.0}}
    nodes = {"a": {"model": "ktg_tiny", "learns_from": {"label": edge}}}
    run = train_run(tmp_path / "run", recipe_values(nodes, epochs=1))
    assert run_main(run / "recipe.yaml", "--output-dir", tmp_path / "again") == 0
    assert_same_run(run, tmp_path / "again")
