"""Several seeds of one recipe, and run directories side by side."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

import timm_ktg.train.__main__
import timm_ktg.train.run
from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.records.result_cases import a_result
from tests.training_cases import (
    assert_same_run,
    interrupted_in,
    metrics_of,
    run_main,
    summary_of,
    train_run,
)
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.recipe import Recipe, check_recipe
from timm_ktg.records import run_directory
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.review.__main__ import main as review
from timm_ktg.train.pictures import RunPictures
from timm_ktg.train.seeds import run_seed
from timm_ktg.train.training import Training, build_training

pytestmark = pytest.mark.slow


def values() -> Values:
    return recipe_values(epochs=1)


def test_seeds_are_the_runs_that_each_would_be_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values())
    assert run_main(recipe, "--seeds", "3", "5", "--output-dir", tmp_path / "runs") == 0
    said = capsys.readouterr().out
    for seed in (3, 5):
        alone = train_run(tmp_path / f"alone-{seed}", recipe_values(epochs=1, seed=seed))
        assert_same_run(alone, tmp_path / "runs" / f"seed-{seed}")
    result = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    figures = [summary_of(tmp_path / "runs" / f"seed-{s}")["nodes"]["a"]["top1"] for s in (3, 5)]
    assert figures[0] != figures[1]
    found = result["nodes"]["a"]["top1"]
    assert found == {"mean": mean(figures), "std": stdev(figures), "n": 2, "values": figures}
    assert f"{mean(figures):.2f} ± {stdev(figures):.2f} (n=2)" in said
    assert (result["seeds"], result["target"], result["split"]) == ([3, 5], "a", "test")


def test_seeds_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", recipe_values(epochs=2)), tmp_path / "runs"
    whole = tmp_path / "whole"
    assert run_main(recipe, "--seeds", "0", "1", "--output-dir", whole) == 0
    with interrupted_in(epoch=2):
        assert run_main(recipe, "--seeds", "0", "1", "--output-dir", path) == 130
    assert not (path / "seed-0" / "summary.json").exists()
    assert run_main("--resume", path) == 0
    first = (path / "seed-0" / "summary.json").stat().st_mtime_ns
    for seed in (0, 1):
        assert_same_run(whole / f"seed-{seed}", path / f"seed-{seed}")
    assert run_main("--resume", path) == 0  # nothing is left to do
    assert (path / "seed-0" / "summary.json").stat().st_mtime_ns == first


def test_seed_that_stopped_before_its_first_state_has_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(timm_ktg.train.run, "save_state", interrupt)
        assert run_main(recipe, "--seeds", "0", "--output-dir", path) == 130
    assert run_main("--resume", path) == 0
    assert [line["epoch"] for line in metrics_of(path / "seed-0")] == [1]


def test_seed_that_stopped_after_its_result_gets_pictures_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(RunPictures, "end", interrupt)
        assert run_main(recipe, "--seeds", "0", "--output-dir", path) == 130
    seed = RunDirectory(path / "seed-0")
    before = seed.summary.read_bytes()
    assert not seed.card.exists()
    monkeypatch.setattr(timm_ktg.train.run, "evaluate", lambda *_: pytest.fail("images are read"))
    assert run_main("--resume", path) == 0
    assert seed.card.is_file() and seed.summary.read_bytes() == before


@pytest.mark.parametrize("file", ["write_seeds", "save_recipe"])
def test_seeds_that_were_not_written_down_are_no_run_of_one_seed(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    command = (recipe, "--seeds", "3", "5", "--output-dir", path)
    with monkeypatch.context() as patch:
        patch.setattr(timm_ktg.train.__main__, file, interrupt)
        assert run_main(*command) == 130
    assert run_main("--resume", path) == 2
    assert run_main(*command) == 0
    assert RunDirectory(path / "seed-5").summary.exists()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_seed_that_another_command_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_directory, "_PATIENCE", 0.0)
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    new = (recipe, "--seeds", "3", "5", "--output-dir", path)
    assert run_main(*new) == 0
    (path / "seed-5" / "summary.json").unlink()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with RunDirectory(path / "seed-5").held():
        for arguments in (("--resume", path), (*new, "--overwrite")):
            assert run_main(*arguments) == 2
            said = f"output-dir: {path}/seed-5 is in use by another command."
            assert said in capsys.readouterr().err
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after == before
    assert run_main("--resume", path) == 0
    assert run_main(*new, "--overwrite") == 0


def test_no_training_is_built_that_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []

    def build(recipe: Recipe, *arguments: Any) -> Training:
        built.append(recipe.train.seed)
        return build_training(recipe, *arguments)

    for module in ("__main__", "seeds"):
        monkeypatch.setattr(f"timm_ktg.train.{module}.build_training", build)
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    arguments = (recipe, "--seeds", "4", "2", "--output-dir", path)
    assert run_main(*arguments, "--dry-run") == 0
    assert built == [4] and not path.exists()
    capsys.readouterr()
    assert run_main(*arguments) == 0
    said = capsys.readouterr().out
    assert built == [4, 4, 2]
    assert said.count("Knowledge transfer graph") == 1
    assert said.index("Knowledge transfer graph") < said.index("Seed 4, 1 of 2.")
    (path / "seed-2" / "summary.json").unlink()
    assert run_main("--resume", path) == 0
    assert built == [4, 4, 2, 2]
    assert run_main("--resume", path) == 0  # all are complete
    assert built == [4, 4, 2, 2]


def test_a_seed_that_is_given_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values())
    assert run_main(recipe, "--seeds", "1", "1") == 2
    assert "seeds: should be 0 or more, each only once. Found 1 1." in capsys.readouterr().err


def test_run_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = tmp_path / "seed-0"
    train_run(path, values())
    recipe = check_recipe(values())
    assert run_seed(recipe, 0, RunDirectory(path)).as_json() == summary_of(path)
    elsewhere = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"torchcompile": True})}
    )
    assert run_seed(elsewhere, 0, RunDirectory(path)).as_json() == summary_of(path)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        run_seed(check_recipe(recipe_values(epochs=1, lr=0.04)), 0, RunDirectory(path))


def test_directory_of_seeds_is_replaced_as_a_whole(tmp_path: Path) -> None:
    recipe, path = write_recipe(tmp_path / "r.yaml", values()), tmp_path / "runs"
    assert run_main(recipe, "--seeds", "0", "1", "--output-dir", path) == 0
    assert run_main(recipe, "--seeds", "2", "--output-dir", path) == 2
    assert run_main(recipe, "--seeds", "2", "--output-dir", path, "--overwrite") == 0
    assert sorted(each.name for each in path.glob("seed*")) == ["seed-2", "seeds.json"]


# Side by side.


def save_summary(path: Path, top1: float, split: str = "test", **others: Any) -> None:
    path.mkdir(parents=True)
    RunDirectory(path).write_result(a_result({"a": top1, "b": 1.0}, split=split, **others))


def test_compare_shows_n_mean_std_and_the_interval_of_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, top1 in enumerate((70.0, 71.0, 72.0)):
        save_summary(Path("base", f"seed-{seed}"), top1)
    for seed, top1 in enumerate((73.0, 74.0, 75.0)):
        save_summary(Path("graph", f"seed-{seed}"), top1, images=10_000)
    save_summary(Path("one"), 80.0)
    assert review(["compare", "base", "graph", "one"]) == 0
    rows = {
        name: " ".join(line.replace("│", " ").split())
        for line in capsys.readouterr().out.splitlines()
        for name in ("base", "graph", "one")
        if f" {name} " in line
    }
    # Welch: t(4 degrees, 97.5 %) = 2.776, standard error sqrt(1/3 + 1/3).
    assert rows["base"].endswith("a 2 3 71.00 1.00 - - -")  # an earlier version's
    # Binomial: sqrt(74 x 26 / 10,000).
    assert rows["graph"].endswith("a 2 3 74.00 1.00 ± 0.44 +3.00 +0.73 .. +5.27")
    assert rows["one"].endswith("a 2 1 80.00 - - +9.00 n too small")


def test_compare_takes_another_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_summary(tmp_path / "one", 80.0)
    assert review(["compare", str(tmp_path / "one"), "--node", "b"]) == 0
    assert "1.00" in capsys.readouterr().out
    assert review(["compare", str(tmp_path / "one"), "--node", "c"]) == 2
    assert "`c` is no node. Nodes: a, b." in capsys.readouterr().err


def test_compare_refuses_what_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_summary(tmp_path / "one", 80.0)
    save_summary(tmp_path / "two", 80.0, split="val")
    assert review(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    assert "should be evaluated on one split" in capsys.readouterr().err
    assert review(["compare", str(tmp_path)]) == 2
    assert "should hold a complete run" in capsys.readouterr().err
    (tmp_path / "two" / "summary.json").write_text("{}")
    assert review(["compare", str(tmp_path / "two")]) == 2
    assert "cannot be read" in capsys.readouterr().err
