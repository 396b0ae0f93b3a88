"""Searches by short runs that really train: the program, restarts, several processes, errors."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.recipe_cases import Values, write_recipe
from tests.search.test_processes import searching
from tests.search.test_processes import values as plain_values
from tests.search_cases import make_shown_search, result_in, run_search, search_values, study_in
from tests.train.test_distributed import logs, start_two
from tests.training_cases import finish
from tests.wandb_log import logs_in
from timm_ktg.records.metrics import top1_name
from timm_ktg.review.study_data import read_study
from timm_ktg.review.study_page import study_page
from timm_ktg.search.canonical import TARGET
from timm_ktg.search.trials import records

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"method": "short_runs", "trials": 8, "final_seeds": [0]}
SHORT |= {"rungs": [0.25, 0.5, 1.0]}


def search(tmp_path: Path, values: dict[str, Values], *flags: str) -> int:
    recipe = write_recipe(tmp_path / "s.yaml", values)
    return run_search(recipe, "--output-dir", tmp_path / "run", *flags)


def test_short_runs_best_graph_is_the_best_of_the_whole_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(**SHORT)) == 0
    said, run = capsys.readouterr().out, tmp_path / "run"
    assert "short_runs: 8 graphs, the best 1 in 2 promoted, for 1, 2, 4 epochs." in said
    trials = records(study_in(run, "s"))
    for trial in trials:
        epochs = (1, 2, 4)[trial.rung]
        assert trial.state == "complete" and trial.epochs == epochs
        assert trial.values == {epochs: trial.value}
        promotes = "" if trial.promotes is None else f" promotes trial {trial.promotes}"
        assert f"trial {trial.number}{promotes}: target ktg_tiny <- " in said
    count = [sum(trial.rung == rung for trial in trials) for rung in range(3)]
    assert count[0] == 8 and count[1] >= 4 and count[2] >= 2
    best = max((t for t in trials if t.rung == 2), key=lambda t: (t.value or 0, -t.number))
    result = result_in(run)
    assert result["rows"][0]["trial"] == best.number
    assert result["rows"][0]["validation top1"] == best.value
    spent = result["spent"]
    assert (spent["complete"], spent["promoted"]) == (len(trials), len(trials) - 8)
    assert spent["epochs"] == count[0] + 2 * count[1] + 4 * count[2]
    assert spent["epochs without pruning"] == 8 * 4

    # The report shows the rungs as stages.
    shown = read_study(run)
    assert {epoch: len(trials) for epoch, trials in shown.stages.items()} == dict(
        zip((1, 2, 4), count, strict=True)
    )
    assert shown.best[0].number == best.number
    page = study_page(shown)
    assert [stage["epoch"] for stage in page["stages"]] == [1, 2, 4]
    assert f"The best, trial {best.number}, has" in page["lead"]


def test_short_runs_same_command_again_goes_on_to_as_many_graphs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(**{**SHORT, "trials": 3, "top_k": 0})
    assert search(tmp_path, values) == 0
    before = study_in(tmp_path / "run", "s").trials
    assert search(tmp_path, values, "--resume") == 0  # nothing left to do
    assert len(study_in(tmp_path / "run", "s").trials) == len(before)
    assert search(tmp_path, values, "--search.trials", "6") == 0
    trials = records(study_in(tmp_path / "run", "s"))
    drawn = [trial for trial in trials if trial.promotes is None]
    assert len(drawn) == 6 == len({trial.graph for trial in drawn})
    capsys.readouterr()
    assert search(tmp_path, values, "--search.rungs", "[0.5, 1]") == 2
    assert "search.rungs: study `s` was made with [0.25, 0.5, 1.0]. Found [0.5, 1.0]" in (
        capsys.readouterr().err
    )


def test_short_runs_space_that_is_exhausted_still_promotes(tmp_path: Path) -> None:
    values = search_values(**{**SHORT, "nodes": 1, "models": [], "trials": 50, "top_k": 0})
    assert search(tmp_path, values) == 0  # two graphs: through, linear
    trials = [trial for trial in records(study_in(tmp_path / "run", "s"))]
    assert sorted(trial.rung for trial in trials if trial.state == "complete") == [0, 0, 1, 2]


def test_short_runs_controls_can_be_tried_first(tmp_path: Path) -> None:
    values = search_values(**{**SHORT, "enqueue_controls": True, "trials": 4, "top_k": 0})
    assert search(tmp_path, values) == 0
    trials = [t for t in records(study_in(tmp_path / "run", "s")) if t.promotes is None]
    assert [len(trial.edges) for trial in trials][:3] == [1, 2, 4]
    assert len(trials) == 4


@pytest.mark.parametrize("method", ["asha", "short_runs"])
def test_search_budget_ends_a_search_before_its_trials(method: str, tmp_path: Path) -> None:
    fields = {**SHORT, "method": method, "trials": 100, "budget": 15, "top_k": 0}
    if method == "asha":
        del fields["rungs"]
    assert search(tmp_path, search_values(**fields)) == 0
    spent = result_in(tmp_path / "run")["spent"]["epochs"]
    assert 15 <= spent < 19 if method == "asha" else 10 <= spent <= 15


def test_short_runs_in_two_processes_are_those_of_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", plain_values(**{**SHORT, "top_k": 0}))
    processes = start_two(tmp_path, searching, recipe, "--output-dir", tmp_path / "run")
    assert finish(*processes) == [0, 0], logs(tmp_path)
    assert run_search(recipe, "--output-dir", tmp_path / "one") == 0
    two, alone = (study_in(tmp_path / name, "s").trials for name in ("run", "one"))
    for first, second in zip(alone, two, strict=True):
        assert (second.params, second.state) == (first.params, TrialState.COMPLETE)
        assert second.user_attrs.get("promotes") == first.user_attrs.get("promotes")
        assert second.intermediate_values == pytest.approx(first.intermediate_values)


def test_short_runs_in_wandb_say_what_they_promote(tmp_path: Path) -> None:
    out = make_shown_search(tmp_path, method="short_runs")
    trials = records(study_in(out, "s"))
    shown = {log.config["trial"]: log for log in logs_in(out) if log.run.job_type == "trial"}
    assert sorted(shown) == [trial.number for trial in trials if trial.seed is not None]
    assert any(trial.promotes is not None for trial in trials)
    for trial in trials:
        log = shown[trial.number]
        assert log.config.get("promotes") == trial.promotes
        if trial.state == "complete":
            summary = log.summary
            assert (summary["state"], summary["rung"]) == ("complete", trial.epochs)
            assert summary["target/top1/last"] == trial.value
            assert summary[top1_name("val", TARGET)] == trial.value


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "short_run"}, "search.method: should be `asha` or `short_runs`"),
    "rungs fall": ({"rungs": [0.5, 0.25, 1]}, "search.rungs: should be shares of train.epochs"),
    "rungs end early": ({"rungs": [0.25, 0.5]}, "rise from above 0 to 1. Found [0.25, 0.5]."),
    "rungs begin at 0": ({"rungs": [0, 1]}, "rise from above 0 to 1. Found [0.0, 1.0]."),
    "no rungs": ({"rungs": []}, "search.rungs: should be shares of train.epochs"),
    "rungs are equal": (
        {"rungs": [0.3, 0.35, 1]},
        "search: rungs should differ in epochs. Found 1, 1, 4, of 4.",
    ),
    "budget": (
        {"budget": 6},
        "search: budget should have room for a graph on every rung, 1, 2, 4 epochs: 7. Found 6.",
    ),
    "sampler": (
        {"sampler": "tpe"},
        "search.sampler: should be random or brute_force with search.method `short_runs`, because "
        "tpe would mix the values of all rungs. Found tpe.",
    ),
    "rungs of asha": (
        {"method": "asha", "rungs": [0.5, 1]},
        "search.rungs: is for search.method `short_runs`. Found method `asha`.",
    ),
    "rung of asha": (
        {"min_resource": 5},
        "search.min_resource: is for search.method `asha`. Found method `short_runs`.",
    ),
    "pruner of asha": (
        {"pruner": "none"},
        "search.pruner: is for search.method `asha`. Found method `short_runs`.",
    ),
}


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize("name", ERRORS)
def test_short_runs_what_is_wrong_costs_one_line(
    name: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, message = ERRORS[name]
    assert search(tmp_path, search_values(**{**SHORT, **wrong}), *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_short_runs_dry_run_says_what_would_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(**SHORT), "--dry-run", "--search.budget", "60") == 0
    said = capsys.readouterr().out
    assert "for 1, 2, 4 epochs, 60 epochs at most." in said
