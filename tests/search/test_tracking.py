"""A search in Weights & Biases, read back from its files."""

import json
import logging
import socket
from pathlib import Path

import pytest
import wandb

from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from tests.wandb_log import Log, epochs_of, logs_in
from tests.wandb_log import nobody as nobody
from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.recipe.tracking_config import TrackingConfig
from timm_ktg.search import tracking as search_tracking
from timm_ktg.search.space import build_choices
from timm_ktg.search.tracking import METRIC, create_sweep
from timm_ktg.search.trials import COSTS

pytestmark = pytest.mark.slow

ACCURACY = "val/top1/target"


def test_search_is_shown_as_a_run_per_trial_and_one_of_the_study(shown: Path) -> None:
    logs = logs_in(shown)
    study = study_in(shown, "s")
    trials = {log.config["trial"]: log for log in logs if log.run.job_type == "trial"}
    assert sorted(trials) == [trial.number for trial in study.trials]
    ids = study.user_attrs["wandb"]
    seen = set()
    for trial in study.trials:
        log = trials[trial.number]
        run = log.run
        assert run.run_id == f"{ids['id']}-trial-{trial.number}"
        assert (run.project, run.run_group, run.sweep_id) == ("pets", "s", "sweep1")
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[trial.state.name]
        seen.add(state)
        assert log.summary["state"] == state
        assert log.exit_code == (1 if state == "failed" else 0)
        assert ("reason" in log.summary) == (state == "failed")
        reported = trial.intermediate_values
        rows = {row["epoch"]: row for row in epochs_of(log)}
        assert {epoch: rows[epoch][ACCURACY] for epoch in reported} == reported
        assert len(rows) == trial.user_attrs["epochs"] == log.summary["epochs"]
        assert log.summary["rung"] == max(reported, default=0)
        if reported:
            assert log.summary["target/top1/best"] == max(reported.values())
            assert log.summary[METRIC] == reported[max(reported)]
        cost = trial.user_attrs.get("cost", {})
        assert cost == {
            name: log.summary[f"cost/{name}"] for name in COSTS if f"cost/{name}" in log.summary
        }
        assert log.config["graph"] == trial.user_attrs["graph"]
        assert any(name.startswith("media/images/graph") for name in log.files)
    assert seen == {"complete", "pruned", "failed"}


def test_config_of_a_trial_is_its_graph_in_flat_keys(shown: Path) -> None:
    trials = [log.config for log in logs_in(shown) if log.run.job_type == "trial"]
    gates = [f"gate/{pair}" for pair in ("label->target", "aux1->target", "target->aux1")]
    for config in trials:
        assert config["train.epochs"] > 0 and config["train.opt"] == "sgd"
        assert config["data.dataset"] and "train.seed" in config
        assert {"model/target", "model/aux1", *gates} <= config.keys()
        drawn = [value for key, value in config.items() if key.startswith("gate/")]
        assert config["edges"] == 4 - drawn.count("cutoff")
        assert config["edges"] + config["cutoffs"] == 4
        assert (config["model/aux1"] == "none") == (config["nodes"] == 1)
    assert len({config["gate/aux1->target"] for config in trials}) > 1
    frozen = [config for config in trials if config["frozen"]]
    assert frozen and all(config["gate/target->aux1"] == "cutoff" for config in frozen)


def test_run_of_the_study_shows_its_result(shown: Path) -> None:
    (log,) = [log for log in logs_in(shown) if log.run.job_type == "study"]
    assert log.run.run_id == f"{study_in(shown, 's').user_attrs['wandb']['id']}-study"
    assert (log.run.run_group, log.run.sweep_id, log.exit_code) == ("s", "", 0)
    rows = result_in(shown)["rows"]
    table = _table(shown, log)
    assert [row[0] for row in table["data"]] == [row["name"] for row in rows]
    test = rows[0]["test top1"]
    assert table["data"][0][3:6] == [test["mean"], test["std"], test["n"]]
    for name in ("history", "epochs", "importances", "parallel"):
        assert any(file.startswith(f"media/plotly/optuna/{name}") for file in log.files)
    for name in ("front-training", "best-so-far"):
        assert any(file.startswith(f"media/plotly/search/{name}") for file in log.files)
    assert any(file.startswith("media/images/best graph") for file in log.files)
    best = [each for each in log.artifacts if each.type == "model"]
    assert [entry.path for entry in best[0].manifest.contents] == [
        "best.yaml",
        "target.safetensors",
    ]
    for name in ("verdict", "control wins"):
        assert log.summary[name] == result_in(shown)[name]
    assert log.summary["verdict"]
    spent = result_in(shown)["spent"]
    assert {name: log.summary[f"spent/{name}"] for name in spent} == spent


def test_same_command_again_adds_no_second_study_run(shown: Path) -> None:
    before = len(logs_in(shown))
    assert run_search(shown.parent / "s.yaml", "--output-dir", shown) == 0
    assert len(logs_in(shown)) == before


def _table(directory: Path, log: Log) -> dict[str, list[list[object]]]:
    (name,) = [file for file in log.files if file.startswith("media/table/leaderboard")]
    (path,) = directory.glob(f"wandb/offline-run-*/files/{name}")
    found: dict[str, list[list[object]]] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tracking.with", "tensorboard"], ["tracking.with", "wandb"]),
        (["--tracking.wandb", "true"], ["wandb login"]),
    ],
)
def test_search_that_cannot_be_shown_is_said_at_once(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values())
    assert run_search(recipe, *arguments, "--output-dir", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_sweep_is_not_made_where_no_server_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setattr(search_tracking, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(wandb, "sweep", lambda *arguments: pytest.fail("it was asked"))
    tracking = TrackingConfig(wandb=True, mode="online")
    choices = build_choices(SearchConfig.model_validate(search_values()["search"]))
    with caplog.at_level(logging.WARNING, search_tracking.__name__):
        assert create_sweep(tracking, "s", choices) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no sweep was made" in line and "refused" in line
