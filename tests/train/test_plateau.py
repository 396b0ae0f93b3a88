"""Runs whose learning rate depends on their validation, and runs on a device by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.recipe_cases import recipe, recipe_values, write_recipe
from tests.training_cases import assert_same_run, metrics_of, run_main, stop_run, train_run

pytestmark = pytest.mark.slow

VALUES = recipe_values(
    **{"epochs": 8, "sched": "plateau", "patience_epochs": 0, "decay_rate": 0.5, "lr": 0.4}
)


def test_run_with_a_plateau_resumes_exactly(tmp_path: Path) -> None:
    whole = train_run(tmp_path / "whole", VALUES)
    top = [line["val/top1/a"] for line in metrics_of(whole)]
    rates, expected, best = [line["lr"] for line in metrics_of(whole)], [0.4], 0.0
    for metric in top[:-1]:  # the rule, by hand
        expected.append(expected[-1] * (1 if metric > best * (1 + 1e-4) else 0.5))
        best = max(best, metric)
    assert rates == pytest.approx(expected) and len(set(rates)) > 2
    stopped = stop_run(tmp_path / "stopped", VALUES, epoch=6)
    (state,) = sorted((stopped / "checkpoint").glob("epoch-*/manifest.json"))[-1:]
    assert json.loads(state.read_text())["plateau"] == [max(top[:5]), pytest.approx(0)]
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)


def test_warm_up_before_a_plateau_is_resumed_exactly(tmp_path: Path) -> None:
    values = recipe_values(
        **{"epochs": 5, "sched": "plateau", "warmup_epochs": 3, "warmup_lr": 0.1, "lr": 0.4}
    )
    whole = train_run(tmp_path / "whole", values)
    assert [line["lr"] for line in metrics_of(whole)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    stopped = stop_run(tmp_path / "stopped", values, epoch=3)
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)


def started(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, because accelerate chooses the device of a process once."""
    path = write_recipe(folder / "recipe.yaml", recipe(train={"epochs": 1}))
    command = [sys.executable, "-m", "timm_ktg.train", path, "--output-dir", folder / "run"]
    return subprocess.run([*map(str, command), *flags], capture_output=True, text=True)


def test_run_uses_the_device_that_is_named(tmp_path: Path) -> None:
    done = started(tmp_path, "--train.device", "cpu")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device should be missing")
def test_device_that_the_machine_lacks_costs_a_line(tmp_path: Path) -> None:
    done = started(tmp_path, "--train.device", "cuda:1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "train.device: " in done.stderr and not (tmp_path / "run").exists()
