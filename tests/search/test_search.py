"""The search program: from a recipe to the best graph, restarts, and errors."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

import timm_ktg as ktg
from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from tests.tiny_data import VAL, rows, save
from tests.training_cases import run_main, summary_of
from timm_ktg.data import images as data_images
from timm_ktg.recipe import images as recipe_images
from timm_ktg.recipe.recipe import check_section, load_recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search import processes
from timm_ktg.search.canonical import all_through
from timm_ktg.search.sampler import GraphSampler, suggest
from timm_ktg.search.space import build_choices

pytestmark = pytest.mark.slow


def search(tmp_path: Path, values: dict[str, Values], *flags: str) -> int:
    recipe = write_recipe(tmp_path / "s.yaml", values)
    return run_search(recipe, "--output-dir", tmp_path / "run", *flags)


def test_search_hands_back_the_best_graph_as_a_recipe_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(top_k=2)) == 0
    said, run = capsys.readouterr().out, tmp_path / "run"
    study = study_in(run, "s")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    for trial in study.trials:
        assert set(trial.intermediate_values) <= {1, 2, 4}
        assert trial.user_attrs["epochs"] == max(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[4]
        correct = (trial.value or 0) * VAL / 100
        assert correct == pytest.approx(round(correct))
    rows = {row["name"]: row for row in result_in(run)["rows"]}
    assert rows["best-1"]["trial"] == best.number
    assert rows["best-1"]["validation top1"] == best.value
    assert rows["best-1"]["edges"] == best.user_attrs["edges"]
    assert rows["label-only"]["edges"] == [["label", "target", "through"]]
    assert f"best-1 (trial {best.number})" in said and "Spent: complete" in said

    # The final runs are ordinary runs, on all training images, tested once.
    trained = rows["label-only"]["same as"] or "label-only"  # a trial may have drawn it
    folder = run / "final" / f"{trained}-{rows['label-only']['graph'][:6]}"
    figures = [summary_of(folder / f"seed-{seed}")["nodes"]["target"]["top1"] for seed in (0, 1)]
    assert rows["label-only"]["test top1"]["values"] == figures
    recipe = load_recipe(str(run / "best.yaml"))
    assert recipe.data.holdout == 0 and recipe.train.epochs == 4
    assert (run / "best-2.yaml").is_file()
    assert run_main(run / "best.yaml", "--output-dir", tmp_path / "again") == 0
    again = summary_of(tmp_path / "again")
    assert again["split"] == "test"
    assert again["nodes"]["target"]["top1"] == rows["best-1"]["test top1"]["values"][0]


def test_same_command_again_goes_on_to_as_many_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(trials=3, final_seeds=[0])
    assert search(tmp_path, values) == 0
    numbers = [trial.number for trial in study_in(tmp_path / "run", "s").trials]
    assert numbers == [0, 1, 2]
    before = study_in(tmp_path / "run", "s").trials
    assert search(tmp_path, values, "--resume") == 0  # nothing left to do
    assert len(study_in(tmp_path / "run", "s").trials) == 3
    assert search(tmp_path, values, "--search.trials", "5") == 0
    after = study_in(tmp_path / "run", "s").trials
    assert len(after) == 5
    assert [trial.params for trial in after[:3]] == [trial.params for trial in before]
    graphs = [trial.user_attrs["graph"] for trial in after]
    assert len(set(graphs)) == 5  # a graph that was seen is drawn again


def test_resume_without_a_study_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(), "--resume") == 2
    assert capsys.readouterr().err == "resume: there is no study `s`.\n"


def test_study_of_other_choices_is_refused_and_the_difference_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(trials=1, top_k=0)) == 0
    others = {
        "search.gates": ("--search.gates", '["through", "linear"]'),
        "search.models": ("--search.models", "ktg_tiny"),
        "search.nodes": ("--search.nodes", "1"),
        "train.epochs": ("--train.epochs", "5"),
        "data.pad": ("--data.pad", "2"),
        "data (images and labels)": ("--data.split_seed", "1"),
    }
    for where, flags in others.items():
        capsys.readouterr()
        assert search(tmp_path, search_values(trials=1, top_k=0), *flags) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("Go on with the same choices")
        assert any(line.startswith(f"{where}: study `s` was made with") for line in lines), lines


def test_frozen_nodes_have_weights_that_are_trained_once(tmp_path: Path) -> None:
    values = search_values(models=["ktg_tiny_wide"], frozen=True, trials=8, sampler="brute_force")
    assert search(tmp_path, values) == 0
    run = tmp_path / "run"
    study, jobs = study_in(run, "s"), study_in(run, "s/teachers")
    frozen = [
        trial
        for trial in study.trials
        if "aux1" in trial.user_attrs["models"]
        and not any(edge[1] == "aux1" for edge in trial.user_attrs["edges"])
    ]
    assert frozen  # seed 0 draws some
    (job,) = jobs.trials
    assert job.state == TrialState.COMPLETE and job.params == {
        "job": "ktg_tiny_wide, teacher 1, seed 0"
    }
    (copy,) = (run / "weights").iterdir()
    artifacts = [path.read_bytes() for path in (run / "artifacts").iterdir()]
    assert copy.read_bytes() in artifacts  # the others were trained on all images
    digest = sha256(copy.read_bytes()).hexdigest()[:16]
    assert copy.name == f"ktg_tiny_wide-{digest}.safetensors"


def test_two_frozen_nodes_of_the_best_graph_have_teachers_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ["through", "linear"]
    values = search_values(nodes=3, frozen=True, gates=gates, trials=1, seed=24, final_seeds=[0])
    assert search(tmp_path, values) == 0
    graph = load_recipe(str(tmp_path / "run" / "best.yaml")).graph
    frozen = {node.model: node for node in graph.nodes.values() if not node.learns_from}
    assert frozen.keys() == {"ktg_tiny", "ktg_tiny_wide"}  # as seed 24 draws
    for model, node in frozen.items():
        run = tmp_path / "run" / "final" / f"teacher-{model}-1/seed-0/nodes" / "target.safetensors"
        assert node.checkpoint_path and Path(node.checkpoint_path).read_bytes() == run.read_bytes()
    finals = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/final/*/seed-0/*.json")}
    # Best; label-only, smoothed; all-through sum, mean; KD at T = 1 and 4 from both, from one; and
    # two teachers.
    assert len(finals) == 11
    capsys.readouterr()
    assert search(tmp_path, values, "--search.final_seeds", "[0, 1]") == 0  # one more seed
    assert {path: path.stat().st_mtime_ns for path in finals} == finals
    result = result_in(tmp_path / "run")
    assert [row["test top1"]["n"] for row in result["rows"]] == [2] * 9
    assert (result["seeds"], result["planned seeds"], result["seen"]) == ([0, 1], [0], 2)
    said = capsys.readouterr().out
    assert "Added after a first look at test figures: 1." in said and "seen 2 times" in said
    assert "[n" in said.partition("Best graphs and controls")[2]  # of `[n too small]`, wrapped
    assert said.index(result["verdict"]) < said.index("Best graphs and controls")
    runs = (tmp_path / "run" / "final").glob("KD-T=4-*/seed-*/recipe.yaml")
    files = [
        node.checkpoint_path
        for run in runs
        for node in load_recipe(str(run)).graph.nodes.values()
        if node.checkpoint_path
    ]
    assert len(set(files)) == 4  # two teachers for each seed


def test_weights_that_the_user_has_are_taken(tmp_path: Path) -> None:
    values = search_values(models=["ktg_tiny_wide"], frozen=True, trials=1, top_k=0)
    assert search(tmp_path, values) == 0
    artifact = next((tmp_path / "run" / "artifacts").iterdir())
    weights = {"ktg_tiny_wide": str(artifact.rename(tmp_path / "mine.safetensors"))}
    other = write_recipe(
        tmp_path / "o.yaml", {**values, "search": {**values["search"], "weights": weights}}
    )
    assert run_search(other, "--output-dir", tmp_path / "other") == 0
    names = {path.name for path in (tmp_path / "other").iterdir()}
    assert "weights" not in names
    with pytest.raises(KeyError):
        study_in(tmp_path / "other", "o/teachers")


def test_loss_that_is_not_finite_fails_its_trial_and_not_the_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infinite = {"gate": "breaking", "gate_kwargs": {"factor": "inf"}}
    values = search_values(
        nodes=1, models=[], gates=["through", infinite, "linear"], sampler="brute_force", trials=3
    )
    assert search(tmp_path, values) == 0
    trials = {t.params["gate/label->target"]: t for t in study_in(tmp_path / "run", "s").trials}
    assert len(trials) == 3
    bad = trials["breaking(factor=inf)"]
    assert bad.state == TrialState.FAIL
    assert "loss of node target is not finite" in bad.user_attrs["reason"]
    assert trials["linear"].state != TrialState.FAIL
    assert result_in(tmp_path / "run")["spent"]["failed"] == 1


def test_out_of_memory_fails_its_trial_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    train = processes.train_epoch

    def full(*arguments: Any) -> Any:
        epochs.append(len(epochs))
        if len(epochs) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return train(*arguments)

    monkeypatch.setattr(processes, "train_epoch", full)
    assert search(tmp_path, search_values(nodes=1, gates=["through", "linear"], trials=2)) == 0
    first, second = study_in(tmp_path / "run", "s").trials
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.user_attrs["reason"] == "OutOfMemoryError: out of memory"


def test_images_are_decoded_once_for_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def spy(split: Any, *arguments: Any) -> Any:
        decoded.append(len(split))
        return data_images.decode(split, *arguments)

    monkeypatch.setattr(recipe_images, "decode", spy)
    assert search(tmp_path, search_values(trials=5, top_k=0)) == 0
    assert len(decoded) == 3  # training, validation and test, which is checked before training


def test_controls_can_be_tried_first(tmp_path: Path) -> None:
    values = search_values(enqueue_controls=True, trials=3, top_k=0, pruner="none")
    assert search(tmp_path, values) == 0
    trials = study_in(tmp_path / "run", "s").trials
    assert [len(trial.user_attrs["edges"]) for trial in trials] == [1, 2, 4]
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_redraws_are_those_of_the_trial_itself() -> None:
    search_config = check_section(SearchRecipe, search_values()).search
    choices = build_choices(search_config)
    sampler = GraphSampler(choices, "random", 0, True)
    study = optuna.create_study(sampler=sampler)
    sampler.redrawn = {"invalid": 5, "seen": 5}  # of a trial before
    study.enqueue_trial(choices.params(all_through("ktg_tiny", ["ktg_tiny"])))
    suggest(study.ask(), choices)
    assert sampler.redrawn == {"invalid": 0, "seen": 0}


def test_gate_of_the_users_own_takes_part_when_it_is_named(tmp_path: Path) -> None:
    @ktg.register_gate
    def halving(losses: torch.Tensor, context: ktg.EdgeContext) -> torch.Tensor:
        return losses / 2

    values = search_values(nodes=1, gates=["halving"], trials=1, final_seeds=[0])
    assert search(tmp_path, values) == 0
    assert (
        load_recipe(str(tmp_path / "run" / "best.yaml"))
        .graph.nodes["target"]
        .learns_from["label"]
        .gate
        == "halving"
    )


def test_first_rung_can_be_later(tmp_path: Path) -> None:
    assert search(tmp_path, search_values(min_resource=3, trials=2, top_k=0)) == 0
    for trial in study_in(tmp_path / "run", "s").trials:
        assert set(trial.intermediate_values) <= {3}


def test_dry_run_builds_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(), "--dry-run") == 0
    assert "162 ways to choose" in capsys.readouterr().out  # 2 models, 3 gates, 4 edges
    assert not (tmp_path / "run").exists()


ERRORS = {
    "search.nodes": (None, "search.nodes: should be given"),
    "search.models": ([], "search.models: should name a candidate"),
    "search.target_model": ("resnet8_cifra", "Did you mean `resnet8_cifar`?"),
    "search.gates": (["through", "corect"], "Did you mean `correct`?"),
    "search.sampler": ("tpee", "search.sampler: should be `random`, `tpe` or"),
    "search.trails": (3, "search.trails: unknown key. Did you mean `trials`?"),
    "search.grace_period": (5, "search.grace_period: should be above heartbeat_interval, 60"),
    "search.final_seeds": ([0, 1, 0], "should be seeds, each only once. Found [0, 1, 0]."),
    "search.weights": ({"ktg_tiny": "nowhere"}, "should be a file of weights"),
    "data.holdout": (0, "data.holdout: should be above 0, because a search needs validation"),
    "data.dataset": ("nowhere/at/all", "nowhere/at/all"),
    "search.min_resource": (4, "min_resource should be below 4, the epochs of a trial"),
    "search.storage": ("sqlite:///x.db", "SQLite, which breaks when workers start together"),
}


@pytest.mark.parametrize("where", ERRORS)
def test_what_is_wrong_costs_one_line(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, (wrong, message) = search_values(), ERRORS[where]
    section, field = where.split(".")
    values[section][field] = wrong
    if wrong is None:
        del values[section][field]
    assert search(tmp_path, values) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_problems_are_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = search_values(trails=3, target_model="resnet8_cifra")
    values["train"]["lr"] = 0
    assert search(tmp_path, values) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_gates_that_show_the_same_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, search_values(gates=["through", "through"])) == 2
    assert "gates should name each only once" in capsys.readouterr().err


def test_graph_that_was_found_is_trained_on_other_data_with_other_classes(tmp_path: Path) -> None:
    assert search(tmp_path, search_values(gates=["through", "linear"], trials=1, top_k=0)) == 0
    found = load_recipe(str(tmp_path / "run" / "best.yaml")).graph
    save(tmp_path / "data", train=rows(70, classes=7), test=rows(21, classes=7))
    other = recipe_values(data={"dataset": str(tmp_path / "data"), "holdout": 0}, epochs=1)
    recipe, run = write_recipe(tmp_path / "r.yaml", other), tmp_path / "transferred"
    assert run_main(recipe, "--graph", tmp_path / "run" / "best.yaml", "--output-dir", run) == 0
    assert load_recipe(str(run / "recipe.yaml")).graph == found
    assert set(summary_of(run)["nodes"]) == {*found.nodes, "all-networks"}
    assert load_file(run / "nodes" / "target.safetensors")["head.weight"].shape[0] == 7
