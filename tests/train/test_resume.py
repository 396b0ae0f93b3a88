"""A killed run resumes as if nothing had happened: bit for bit, except for times."""

import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests import training_cases as cases
from tests.recipe_cases import MUTUAL, PLAIN, Values, recipe_values, write_recipe
from tests.tiny_data import UPDATES, VAL, small_digits
from tests.training_cases import (
    DEADLINE,
    assert_same_run,
    finish,
    metrics_of,
    program,
    run_main,
    start,
    stop_run,
    summary_of,
    train_run,
)
from timm_ktg.records import run_directory
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.train import run as running

pytestmark = pytest.mark.slow

EPOCHS = 4


GRAPH = {
    "target": "student",
    "nodes": {
        "student": {
            "model": "resnet8_cifar",
            "model_kwargs": {"drop_rate": 0.3},
            "learns_from": {"label": "through", "peer": "correct", "helper": "through"},
        },
        "peer": {
            "model": "resnet8_cifar",
            "learns_from": {"label": "through", "student": "linear"},
        },
        "helper": {
            "model": "resnet8_cifar",
            "model_kwargs": {"drop_rate": 0.1},
            "learns_from": {"label": "through", "student": "negative_linear"},
        },
    },
}


def digits(folder: Path) -> list[str]:
    """Three learning nodes on tiny data, with dropout and mixup to draw from every generator."""
    return [
        *("digits", "--graph", str(write_recipe(folder / "graph.yaml", {"graph": GRAPH}))),
        *("--train.epochs", str(EPOCHS), "--train.seed", "3"),
        *("--train.batch_size", "64", "--train.eval_interval", "1"),
        *("--data.dataset", small_digits(), "--data.holdout", str(VAL)),
        *("--data.images_per_class", "null", "--data.mixup", "0.2", "--data.hflip", "0.5"),
    ]


def wait_for(process: BaseProcess, *paths: Path) -> None:
    """Wait until a process has made one of these files."""
    deadline = time.monotonic() + DEADLINE
    while not any(path.exists() for path in paths):
        assert process.is_alive() and time.monotonic() < deadline, f"{paths} never came"
        time.sleep(0.002)


def kill_when(process: BaseProcess, *paths: Path, delay: float = 0.0) -> None:
    """Kill a process, as `kill -9` does, once one of these files exists."""
    wait_for(process, *paths)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == [-signal.SIGKILL]


def test_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(tmp_path / "whole.log", program, *digits(tmp_path), "--output-dir", whole)
    assert finish(process) == [0], (tmp_path / "whole.log").read_text()

    # In the middle of an epoch, which is lost.
    process = start(tmp_path / "1.log", program, *digits(tmp_path), "--output-dir", killed)
    kill_when(process, killed / "checkpoint" / "epoch-0001", delay=0.05)
    assert len(metrics_of(killed)) < EPOCHS and not (killed / "summary.json").exists()

    # While a state is being written, or just moved into place.
    process = start(tmp_path / "2.log", program, "--resume", killed)
    kill_when(process, *(killed / "checkpoint" / name for name in (".epoch-0003", "epoch-0003")))
    assert not (killed / "summary.json").exists()

    process = start(tmp_path / "3.log", program, "--resume", killed)
    assert finish(process) == [0], (tmp_path / "3.log").read_text()
    assert "epochs done: 0" not in (tmp_path / "3.log").read_text()
    assert_same_run(whole, killed)
    assert [line["epoch"] for line in metrics_of(killed)] == list(range(1, EPOCHS + 1))


def test_run_that_another_process_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    new = (*digits(tmp_path), "--train.epochs", "1000", "--output-dir", run)
    process = start(tmp_path / "1.log", program, *new)
    wait_for(process, run / "checkpoint" / "epoch-0001")
    monkeypatch.setattr(run_directory, "_PATIENCE", 0.0)
    for arguments in (("--resume", run), (*new, "--overwrite")):
        assert run_main(*arguments) == 2
        said = f"output-dir: {run} is in use by another command. If it is not, remove {run}/.lock."
        assert said in " ".join(capsys.readouterr().err.split())
    kill_when(process, run / "recipe.yaml")
    epochs = [line["epoch"] for line in metrics_of(run)]
    assert epochs == list(range(1, len(epochs) + 1))
    with RunDirectory(run).held():  # nobody holds what a killed process held
        pass


TIMM = {"pipeline": "timm", "workers": 0, "img_size": 8, "pad": 4, "reprob": 0.3, "mixup": 0.2}
ADAM = {"opt": "adamw", "lr": 0.003, "sched_on_updates": True, "warmup_epochs": 1}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (TIMM, {"sched": "step", "decay_epochs": 1}),
        ({"cutmix": 1.0, "hflip": 0.5}, {**ADAM, "grad_accum_steps": 2, "clip_grad": 1.0}),
        ({"hflip": 0.5}, {"mixed_precision": "bf16", "warmup_epochs": 2, "channels_last": True}),
        ({}, {"opt": "lookahead_adamw", "lr": 0.003}),
    ],
    ids=["timm", "adamw", "bf16", "lookahead"],
)
def test_pipeline_optimizer_schedule_and_precision_go_on(
    data: Values, options: dict[str, Any], tmp_path: Path
) -> None:
    nodes: Values = {
        name: {**node, "model_kwargs": {"drop_rate": 0.2, "norm": True}}
        for name, node in MUTUAL.items()
    }
    values = recipe_values(nodes, data=data, **options)
    whole = train_run(tmp_path / "whole", values)
    stopped = stop_run(tmp_path / "stopped", values, epoch=2)
    assert len(metrics_of(stopped)) == 1
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)


def test_run_that_is_complete_keeps_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run(tmp_path / "run", recipe_values(epochs=1))
    before = (run / "summary.json").read_text()
    picture = (run / "graph.svg").read_text()
    (run / "graph.svg").unlink()  # as if it was killed between the result and the pictures
    monkeypatch.setattr(running, "evaluate", lambda *arguments: pytest.fail("images are read"))
    assert run_main("--resume", run) == 0
    assert (run / "summary.json").read_text() == before
    assert (run / "graph.svg").read_text() == picture


def test_complete_run_writes_weights_again_that_were_removed(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", recipe_values(PLAIN, epochs=1))
    weights = run / "nodes" / "a.safetensors"
    before, figures = weights.read_bytes(), summary_of(run)["nodes"]
    for remove in (weights.unlink, lambda: shutil.rmtree(run / "nodes")):
        remove()
        assert run_main("--resume", run) == 0
        assert weights.read_bytes() == before and (run / "nodes" / "README.md").is_file()
        assert summary_of(run)["nodes"] == figures


def test_clock_goes_on_at_the_update_it_had_reached(tmp_path: Path) -> None:
    nodes = {"a": {"model": "ktg_tiny", "learns_from": {"label": "recording"}}}
    stopped = stop_run(tmp_path / "run", recipe_values(nodes, epochs=3), epoch=3)
    done, last = 2 * UPDATES, 3 * UPDATES
    # The three updates of the epoch that Ctrl-C cut short are lost, and done again.
    assert cases.progress[-4:] == [update / last for update in range(done, done + 4)]
    cases.progress.clear()
    assert run_main("--resume", stopped) == 0
    assert cases.progress[-UPDATES:] == [update / last for update in range(done + 1, last + 1)]
    assert not {update / last for update in range(2, UPDATES)} & set(cases.progress)
