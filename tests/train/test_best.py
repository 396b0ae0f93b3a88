"""The best epoch of a run: which it is, that it is kept bit for bit, and how it is used."""

import json
import shutil
from pathlib import Path

import pytest

from tests.recipe_cases import PLAIN, Values, problems_of, recipe_values
from tests.train.test_resume import kill_when
from tests.training_cases import (
    metrics_of,
    on_cpu,
    program,
    run_main,
    start,
    stop_run,
    summary_of,
    train_run,
    weights_of,
)
from timm_ktg.predict import main as predict
from timm_ktg.recipe.recipe import check_recipe
from timm_ktg.search.recipes import on_all_images
from timm_ktg.validate import main as validate

pytestmark = pytest.mark.slow

EPOCHS = 8


def values(**train: object) -> Values:
    """A run whose best epoch is not its last: the learning rate is much too high to the end."""
    given = {
        "epochs": EPOCHS,
        "lr": 0.3,
        "seed": 1,
        "sched": "constant",
        "eval_metric": "top1",
        **train,
    }
    return recipe_values(PLAIN, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("best") / "run", values())


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The same run, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def best_epoch(run: Path) -> int:
    found: int = summary_of(run)["best"]["epoch"]
    return found


@on_cpu
def test_summary_names_the_first_epoch_that_was_best(whole: Path) -> None:
    top1 = [line["val/top1/a"] for line in metrics_of(whole)]
    best = top1.index(max(top1)) + 1
    assert summary_of(whole)["best"] == {"metric": "top1", "epoch": best, "value": max(top1)}
    assert 2 < best < EPOCHS - 2  # neither the last two, which are kept anyway, nor a trivial one


def test_best_epoch_has_the_weights_of_a_run_that_ends_there(whole: Path, tmp_path: Path) -> None:
    best = best_epoch(whole)
    shorter = train_run(tmp_path / "run", values(epochs=best, eval_metric=None))
    assert weights_of(whole / "best") == weights_of(shorter)
    assert summary_of(whole / "best")["nodes"] == summary_of(shorter)["nodes"]
    assert summary_of(whole / "best")["epochs"] == best
    assert not (shorter / "best").exists() and summary_of(shorter)["best"] is None


def test_last_epoch_is_reported_with_or_without_the_best(whole: Path, tmp_path: Path) -> None:
    without = train_run(tmp_path / "run", values(eval_metric=None))
    assert weights_of(whole) == weights_of(without) != weights_of(whole / "best")
    assert summary_of(whole)["nodes"] == summary_of(without)["nodes"]
    assert summary_of(whole)["epochs"] == EPOCHS and metrics_of(whole) == metrics_of(without)


def test_best_by_loss_is_the_lowest(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", values(eval_metric="loss", eval_interval=2))
    loss = {line["epoch"]: line["val/loss/a"] for line in metrics_of(run) if "val/loss/a" in line}
    assert list(loss) == [2, 4, 6, 8]
    best = min(loss, key=lambda epoch: loss[epoch])
    assert summary_of(run)["best"] == {"metric": "loss", "epoch": best, "value": loss[best]}


def test_programs_take_the_best_epoch_as_a_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = whole / "best"
    assert validate([str(best), "--split", "val", "-o", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "validation.json").read_text())["nodes"]["a"]["top1"]
    assert found == pytest.approx(summary_of(whole)["best"]["value"])
    assert predict([str(best), str(whole / "curves.png")]) == 0
    assert "epochs done" not in capsys.readouterr().out
    card = (best / "nodes" / "README.md").read_text()
    assert f"after {best_epoch(whole)} epochs" in card and f"{EPOCHS} epochs, batch" in card


def test_best_epoch_itself_cannot_go_on(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("--resume", whole / "best") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no checkpoint to go on from" in line and line.endswith(f": --from {whole}/best")


def test_state_of_the_best_epoch_is_kept(whole: Path) -> None:
    kept = {path.name for path in (whole / "checkpoint").iterdir()}
    assert kept == {f"epoch-{number:04d}" for number in (best_epoch(whole), EPOCHS - 1, EPOCHS)}


def same_best(first: Path, second: Path) -> bool:
    return summary_of(first)["best"] == summary_of(second)["best"] and (
        weights_of(first / "best") == weights_of(second / "best")
        and summary_of(first / "best")["nodes"] == summary_of(second / "best")["nodes"]
        and metrics_of(first / "best") == metrics_of(second / "best")
    )


@pytest.mark.parametrize("later", [0, 1, 3])
@on_cpu
def test_run_that_was_stopped_after_its_best_epoch_keeps_it(
    later: int, whole: Path, tmp_path: Path
) -> None:
    stopped = stop_run(tmp_path / "run", values(), epoch=best_epoch(whole) + later)
    assert run_main("--resume", stopped) == 0
    assert same_best(whole, stopped)


def test_run_killed_at_any_write_keeps_its_best_epoch(whole: Path, tmp_path: Path) -> None:
    killed, best = tmp_path / "killed", best_epoch(whole)
    recipe, checkpoint = whole.with_suffix(".yaml"), killed / "checkpoint"
    process = start(tmp_path / "0.log", program, recipe, "--output-dir", killed)
    kill_when(process, checkpoint / f".epoch-{best:04d}", checkpoint / f"epoch-{best:04d}")
    after = checkpoint / f"epoch-{best + 1:04d}"
    for number, files in enumerate(
        [(after.with_name(f".{after.name}"), after), (killed / "nodes",), (killed / "best",)]
    ):
        process = start(tmp_path / f"{number + 1}.log", program, "--resume", killed)
        kill_when(process, *files)
        assert not (killed / "summary.json").exists()
    assert run_main("--resume", killed) == 0
    assert same_best(whole, killed) and weights_of(whole) == weights_of(killed)


def test_damaged_best_epoch_is_refused_by_name_and_the_rest_is_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights_of(run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "best")
    file = run / "checkpoint" / f"epoch-{best_epoch_of_state(run):04d}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run_main("--resume", run) == 0
    said = f"Refused {file.parent}: damaged (model.safetensors is not what was written)."
    assert f"{said} There is no {run / 'best'}.\n" in capsys.readouterr().out
    assert weights_of(run) == before and not (run / "best").exists()
    assert summary_of(run)["best"] is None


def best_epoch_of_state(run: Path) -> int:
    manifest = run / "checkpoint" / f"epoch-{EPOCHS:04d}" / "manifest.json"
    found: int = json.loads(manifest.read_text())["best"]["epoch"]
    return found


def test_best_epoch_needs_validation_images() -> None:
    asked = values()
    asked["data"]["holdout"] = 0
    said = "train.eval_metric: needs validation images: data.holdout or data.val_split. Found top1."
    assert problems_of(asked) == (said,)
    asked["data"]["val_split"] = "test"
    assert problems_of(asked) == ()
    final = on_all_images(check_recipe(values()))  # of a search
    assert problems_of(final.model_dump(mode="json")) == ()
