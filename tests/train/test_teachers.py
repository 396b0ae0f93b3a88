"""Teachers that a run trains first: from which seed, once only, and also after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file

import timm_ktg
import timm_ktg.train.__main__
from tests.recipe_cases import Values, problems_of, recipe_values, write_recipe
from tests.training_cases import (
    assert_same_run,
    finish,
    interrupted_in,
    metrics_of,
    on_cpu,
    program,
    run_main,
    same_state,
    start_two,
    summary_of,
    train_run,
    weights_of,
)
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.build import build_graph
from timm_ktg.recipe.recipe import check_recipe, load_recipe

pytestmark = pytest.mark.slow

TAUGHT: Values = {
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "t": "through"}},
    "t": {"model": "ktg_tiny", "train_first": True},
}


def taught(**train: Any) -> Values:
    return recipe_values(TAUGHT, **train)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("taught") / "run", taught())


def test_teacher_is_a_run_of_the_labels_alone_from_a_seed_of_its_own(run: Path) -> None:
    teacher = load_recipe(str(run / "teachers" / "t"))
    assert list(teacher.graph.nodes) == ["t"] == [teacher.graph.target]
    assert teacher.graph.nodes["t"].learns_from.keys() == {"label"}
    assert teacher.train.seed != load_recipe(str(run)).train.seed
    assert teacher.train.model_copy(update={"seed": 0}) == load_recipe(str(run)).train
    own = timm.create_model("ktg_tiny", num_classes=10).state_dict()
    assert load_file(run / "teachers/t/nodes/t.safetensors").keys() == own.keys()


def test_student_learns_from_the_teachers_weights(run: Path) -> None:
    weights = weights_of(run)["t.safetensors"]
    assert weights == weights_of(run / "teachers" / "t")["t.safetensors"]
    top1 = summary_of(run / "teachers" / "t")["nodes"]["t"]
    assert summary_of(run)["nodes"]["t"] == top1
    values = taught()
    file = run / "teachers" / "t" / "nodes" / "t.safetensors"
    values["graph"]["nodes"]["t"] = {"model": "ktg_tiny", "checkpoint_path": str(file)}
    given = train_run(run.parent / "given", values)
    assert metrics_of(given) == metrics_of(run) and weights_of(given) == weights_of(run)


def test_card_says_what_the_teachers_took(run: Path) -> None:
    took = summary_of(run / "teachers" / "t")["cost"]["training_flops"]
    card = (run / "nodes" / "README.md").read_text(encoding="utf-8")
    assert f"Training its teachers first took another {took / 1e6:,.1f} MFLOPs." in card
    alone = (run / "teachers/t/nodes/README.md").read_text(encoding="utf-8")
    assert "MFLOPs for each image in each epoch." in alone and "teachers" not in alone


def test_run_can_be_used_and_started_from(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(run)
    loaded = timm_ktg.load_run(moved, "t").state_dict()
    file = load_file(run / "nodes" / "t.safetensors")
    assert same_state({key.removeprefix("members.t.model."): loaded[key] for key in loaded}, file)
    assert run_main("--from", moved, "--output-dir", tmp_path / "more", "--train.epochs", "1") == 0
    assert not (tmp_path / "more" / "teachers").exists()


@pytest.mark.parametrize("target", ["t", "a"])
def test_interrupted_run_goes_on_bit_for_bit(
    run: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", taught()), tmp_path / "run"
    with interrupted_in(2, target):
        assert run_main(recipe, "--output-dir", path) == 130
    teacher = path / "teachers" / "t" / "summary.json"
    assert teacher.exists() == (target == "a")
    before = teacher.stat().st_mtime_ns if target == "a" else 0
    assert "Training t first, on the labels alone" in capsys.readouterr().out
    assert run_main("--resume", path) == 0
    assert ("Training t first" in capsys.readouterr().out) == (target == "t")
    assert_same_run(run, path)
    assert target == "t" or teacher.stat().st_mtime_ns == before  # it was not trained again


@pytest.mark.parametrize("target", ["t", "a"])
def test_resumed_run_may_be_tested_on_other_images(target: str, tmp_path: Path) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", taught()), tmp_path / "run"
    with interrupted_in(2, target):
        assert run_main(recipe, "--output-dir", path) == 130
    assert run_main("--resume", path, "--data.test_split", "null") == 0
    result = summary_of(path)
    assert (result["split"], result["data"]["split_seed"]) == ("val", 0)
    assert load_recipe(str(path / "teachers" / "t")).data.test_split is None


def test_run_whose_teachers_it_trained_does_not_get_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train_run(tmp_path / "run", taught(epochs=1, sched="constant"))
    capsys.readouterr()
    assert run_main("--resume", path, "--train.epochs", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "train.epochs: should stay 1, because the run trained teachers for as many"
    )
    assert "--from" in line


def test_each_seed_has_a_teacher_of_its_own(run: Path, tmp_path: Path) -> None:
    seeds = train_run(tmp_path / "seeds", taught(), "--seeds", "0", "1")
    first, second = (seeds / f"seed-{seed}" / "teachers" / "t" for seed in (0, 1))
    assert weights_of(first) == weights_of(run / "teachers" / "t") != weights_of(second)
    assert weights_of(seeds / "seed-0") == weights_of(run)


@on_cpu
def test_two_processes_train_the_teacher_together(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", taught(epochs=1))
    processes = start_two(tmp_path, program, recipe, "--output-dir", tmp_path / "run")
    assert finish(*processes) == [0, 0], (tmp_path / "0.log").read_text()
    assert summary_of(tmp_path / "run" / "teachers" / "t")["processes"] == 2
    names = {"a.safetensors", "t.safetensors"}
    assert set(weights_of(tmp_path / "run")) == names


def test_average_of_the_target_is_not_of_its_teacher(tmp_path: Path) -> None:
    average = {"model_ema": True, "model_ema_decay": 0.9, "model_ema_warmup": True}
    values = taught(epochs=1, eval_metric="top1", **average)
    run = train_run(tmp_path / "run", values)
    for folder in (run, run / "best"):
        card = (folder / "nodes" / "README.md").read_text(encoding="utf-8")
        assert "Training its teachers first took another" in card
    assert not load_recipe(str(run / "teachers" / "t")).train.model_ema
    assert "a_ema" in summary_of(run)["nodes"]


def test_dry_run_builds_the_recipes_of_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*_: object) -> None:
        raise RecipeError(["train.lr: is wrong for a teacher"])

    monkeypatch.setattr(timm_ktg.train.__main__, "teacher_recipe", wrong)
    recipe = write_recipe(tmp_path / "r.yaml", taught())
    assert run_main(recipe, "--dry-run") == 2
    assert "wrong for a teacher" in capsys.readouterr().err


def test_dry_run_trains_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path / "r.yaml", taught())
    assert run_main(recipe, "--dry-run", "--output-dir", tmp_path / "run") == 0
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "timm_ktg" / "tables").exists()  # untrained, it is of no use


def test_run_with_teachers_can_be_replaced(tmp_path: Path) -> None:
    values = taught(epochs=1)
    path = train_run(tmp_path / "run", values)
    values["graph"]["nodes"]["a"]["learns_from"] = {"label": "through"}
    train_run(path, values, "--overwrite")
    assert not (path / "teachers").exists()


def test_teacher_that_cannot_influence_the_target_is_not_trained() -> None:
    values = taught()
    values["graph"]["nodes"]["a"]["learns_from"] = {"label": "through"}
    assert check_recipe(values).graph.trained_first == []
    assert check_recipe(taught()).graph.trained_first == ["t"]


def test_node_that_learns_is_not_trained_first() -> None:
    values = taught()
    values["graph"]["nodes"]["t"]["learns_from"] = {"label": "through"}
    (line,) = problems_of(values)
    assert line.startswith("graph.nodes.t.train_first: should be off for a node that learns")


def test_graph_for_a_loop_of_ones_own_needs_weights() -> None:
    with pytest.raises(RecipeError, match=r"graph\.nodes\.t\.train_first: only timm_ktg\.train"):
        build_graph(check_recipe(taught()), 10)
