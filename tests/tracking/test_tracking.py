"""A run in Weights & Biases, read back from its files, and in accelerate's trackers."""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.training_cases import interrupted_in, run_main, summary_of, train_run
from tests.wandb_log import epochs_of, logs_in
from tests.wandb_log import nobody as nobody
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.recipe import bundled_recipes
from timm_ktg.records.metrics import ALL_NETWORKS
from timm_ktg.tracking.wandb_run import STEP, flat

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"

OFFLINE = {"wandb": True, "mode": "offline"}


def tracked(tracking: Values = OFFLINE, **train: Any) -> Values:
    return {**recipe_values(**train), "tracking": tracking}


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_wandb_holds_all_of_a_run(tmp_path: Path) -> None:
    tracking = {**OFFLINE, "project": "pets", "entity": "us", "tags": ["a", "b"], "group": "g"}
    path = train_run(tmp_path / "run", tracked(tracking))
    (log,) = logs_in(path)
    run = log.run
    assert (run.project, run.entity, run.run_group, list(run.tags)) == (
        "pets",
        "us",
        "g",
        ["a", "b"],
    )
    assert (run.display_name, run.job_type, log.exit_code) == ("run", "train", 0)
    assert run.run_id == json.loads((path / "wandb.json").read_text())["id"]
    assert epochs_of(log) == lines_of(path)
    assert log.step_metrics == {STEP: "", "*": STEP}
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    del recipe["tracking"]
    assert {key: log.config[key] for key in flat(recipe)} == flat(recipe)
    assert log.config["graph.nodes.b.learns_from.label"] == "linear"
    summary = flat(summary_of(path), "/")
    del summary["data/class_names"]  # they can be thousands
    assert {key: log.summary[key] for key in summary} == summary
    assert [(each.name, each.type) for each in log.artifacts] == [("run-a", "model")]
    (entry,) = log.artifacts[0].manifest.contents
    assert entry.path == "a.safetensors"
    weights = (path / "nodes" / "a.safetensors").read_bytes()
    assert Path(entry.local_path).read_bytes() == weights
    pictures = [name for name in log.files if name.startswith("media/images/graph")]
    assert len(pictures) == 2  # at the start, and with what each node came to
    for name in pictures:
        (file,) = path.glob(f"wandb/offline-run-*/files/{name}")
        assert file.read_bytes().startswith(b"\x89PNG")


def test_wandb_holds_an_ensemble_with_its_members(tmp_path: Path) -> None:
    values = tracked(epochs=1)
    values["graph"]["nodes"] |= {"crowd": {"ensemble": ["a", "b"]}, "slow": {"ema": "a"}}
    values["graph"]["target"] = "crowd"
    path = train_run(tmp_path / "run", values)
    (log,) = logs_in(path)
    assert log.config["graph.nodes.crowd.ensemble"] == ["a", "b"]
    assert log.summary["target"] == "crowd"
    names = ("a", "b", "crowd", "slow", ALL_NETWORKS)
    assert {f"nodes/{name}/top1" for name in names} <= set(log.summary)
    assert epochs_of(log) == lines_of(path)
    (artifact,) = log.artifacts
    assert artifact.name == "run-crowd"
    files = sorted(entry.path for entry in artifact.manifest.contents)
    assert files == ["a.safetensors", "b.safetensors"]
    assert len([name for name in log.files if name.startswith("media/images/graph")]) == 2


def test_wandb_goes_on_with_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with interrupted_in(epoch=2):
        recipe = write_recipe(tmp_path / "r.yaml", tracked())
        assert run_main(recipe, "--output-dir", path) == 130
    assert run_main("--resume", path) == 0
    first, second = logs_in(path)
    assert first.run.run_id == second.run.run_id
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [row["epoch"] for log in (first, second) for row in epochs_of(log)] == [1, 2]
    assert epochs_of(first) + epochs_of(second) == lines_of(path)


def test_wandb_tells_of_a_run_that_failed(tmp_path: Path) -> None:
    values = tracked(epochs=5)
    values["graph"]["nodes"]["b"]["learns_from"]["a"] = {
        "gate": "breaking",
        "gate_kwargs": {"factor": "inf"},
    }
    recipe = write_recipe(tmp_path / "r.yaml", values)
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 1
    (log,) = logs_in(tmp_path / "run")
    assert log.exit_code == 1
    assert len(epochs_of(log)) == len(lines_of(tmp_path / "run"))
    assert "nodes/a/top1" not in log.summary


def test_wandb_groups_the_seeds_of_a_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tracked(epochs=1))
    path = tmp_path / "runs"
    assert run_main(recipe, "--seeds", "3", "5", "--output-dir", path) == 0
    found = {}
    for seed in (3, 5):
        (log,) = logs_in(path / f"seed-{seed}")
        assert log.config["train.seed"] == seed
        assert (log.run.display_name, log.run.run_group) == (f"runs/seed-{seed}", "runs")
        found[log.run.run_id] = seed
    assert len(found) == 2


def test_wandb_takes_the_id_of_an_agents_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    path = train_run(tmp_path / "run", tracked(epochs=1))
    (log,) = logs_in(path)
    assert (log.run.run_id, log.run.sweep_id) == ("agents1", "sweep1")
    recipe = write_recipe(tmp_path / "r.yaml", tracked(epochs=1))
    assert run_main(recipe, "--seeds", "0", "1", "--output-dir", tmp_path / "runs") == 2
    assert "agent" in capsys.readouterr().err


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("listening", [False, True])
def test_wandb_out_of_reach_does_not_stop_a_run(
    listening: bool,
    silent: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = silent.getsockname()[1]
    if not listening:
        silent.close()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    for name in ("CONNECT_TIMEOUT", "INIT_TIMEOUT"):
        monkeypatch.setattr(f"timm_ktg.tracking.wandb_run.{name}", 2.0)
    with caplog.at_level(logging.WARNING, "timm_ktg.tracking.wandb_run"):
        path = train_run(tmp_path / "run", tracked({"wandb": True}))
    (line,) = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("timm_ktg.tracking")
    ]
    assert "cannot be reached" in line and "wandb sync" in line
    *failed, log = logs_in(path)
    assert [each.run.run_id for each in failed] == [log.run.run_id] * listening
    assert epochs_of(log) == lines_of(path)
    assert log.exit_code == 0
    again = train_run(tmp_path / "again", tracked({"wandb": True}))
    (log,) = logs_in(again)  # and none that tried to be online first
    assert epochs_of(log) == lines_of(again)


def test_tracker_that_fails_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = TensorBoardTracker.log

    def full(self: TensorBoardTracker, values: Any, step: int, **options: Any) -> None:
        if step == 2:
            raise OSError("No space left on device")
        log(self, values, step, **options)

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    path = train_run(tmp_path / "run", tracked({"with": "tensorboard"}, epochs=3))
    (line,) = [
        each.getMessage() for each in caplog.records if each.name == "timm_ktg.tracking.trackers"
    ]
    assert line.startswith("tensorboard failed") and "No space left" in line
    assert len(lines_of(path)) == 3


def test_tracker_that_cannot_be_opened_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(self: TensorBoardTracker) -> None:
        raise OSError("Permission denied")

    monkeypatch.setattr(TensorBoardTracker, "start", start)
    recipe = write_recipe(tmp_path / "r.yaml", tracked({"with": "tensorboard"}))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    said = "tracking.with: tensorboard: OSError: Permission denied"
    assert capsys.readouterr().err.splitlines() == [said]


def test_wandb_that_is_not_ready_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tracked({"wandb": True}))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tracking.wandb" in line and "wandb login" in line and "offline" in line
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "tracking.wandb: needs wandb. pip install 'timm_ktg[wandb]'."
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_every_epoch(tmp_path: Path) -> None:
    path = train_run(tmp_path / "run", tracked({"with": "tensorboard"}))
    shown = EventAccumulator(str(path / "trackers" / "tensorboard" / "run")).Reload()
    for name in ("val/top1/a", "train/loss/a->b", "lr"):
        expected = [(row["epoch"], row[name]) for row in lines_of(path)]
        events = shown.Scalars(name.replace("->", "-to-"))
        found = [(event.step, event.value) for event in events]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    (last,) = shown.Scalars("test/top1/target")
    assert last.value == pytest.approx(summary_of(path)["nodes"]["a"]["top1"])
    for name in ("graph", "curves"):
        (picture,) = shown.Images(name)
        assert picture.step == 2 and min(picture.width, picture.height) > 100
    (hparams,) = path.rglob("hparams.yml")
    assert yaml.safe_load(hparams.read_text())["train.lr"] == 0.05


def test_a_tracker_that_is_not_installed_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tracked({"with": ["aim", "tensorboard"]}))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    assert capsys.readouterr().err == "tracking.with: aim should be installed. It is not.\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "Did you mean `tensorboard`?"),
        ("wandb", "--tracking.wandb true"),
    ],
)
def test_an_unknown_tracker_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tracked({"with": [name]}))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_wandb_agents_drive_a_training_by_its_flags() -> None:
    sweep = yaml.safe_load((RECIPES / "wandb-sweep.yaml").read_text())
    assert "wandb-sweep" not in bundled_recipes()
    drawn = {name: {"value": _first(values)} for name, values in sweep["parameters"].items()}
    flags = create_sweep_command_args({"args": drawn})["args"]
    command = create_sweep_command(sweep["command"])
    at = command.index("timm_ktg.train")
    assert command[1:3] == ["accelerate", "launch"] and command[-1] == "${args}"
    asked = parse_command([*command[at + 1 : -1], *flags], "train")
    config = flat(asked.recipe.model_dump(mode="json"))
    assert {name: config[name] for name in drawn} == {
        name: each["value"] for name, each in drawn.items()
    }
    assert asked.recipe.tracking.wandb
    assert sweep["metric"]["name"] == f"val/top1/{asked.recipe.graph.target}"
    assert sweep["project"] == asked.recipe.tracking.project


def _first(values: Values) -> Any:
    return values["values"][1] if "values" in values else values["min"]
