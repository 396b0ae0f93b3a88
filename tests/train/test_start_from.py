"""A new run that starts from a finished one: from its recipe and its weights."""

import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.train.test_longer import refused, values
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    on_cpu,
    run_main,
    same_state,
    train_run,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("short") / "run", values(2))


@on_cpu
def test_new_run_starts_from_weights_and_recipe_of_a_finished_one(
    short: Path, tmp_path: Path
) -> None:
    flags = ["--train.epochs", "3", "--train.sched", "cosine"]
    run = tmp_path / "run"
    assert run_main("--from", short, *flags, "--output-dir", run) == 0
    by_hand = values(3, sched="cosine")
    for name, node in by_hand["graph"]["nodes"].items():
        node["checkpoint_path"] = str(short / "nodes" / f"{name}.safetensors")
    assert_same_run(train_run(tmp_path / "by-hand", by_hand), run)
    assert [line["epoch"] for line in metrics_of(run)] == [1, 2, 3]
    again = tmp_path / "again"  # its recipe.yaml repeats it
    assert run_main(run / "recipe.yaml", "--output-dir", again) == 0
    assert_same_run(run, again)
    start = build(yaml.safe_load((run / "recipe.yaml").read_text())).graph
    for name in "ab":
        trained = load_file(short / "nodes" / f"{name}.safetensors")
        assert same_state(start.model(name).state_dict(), trained)


def test_new_run_can_start_from_the_best_epoch(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", values(2, eval_metric="top1"))
    assert run_main("--from", run / "best", "--output-dir", tmp_path / "next") == 0
    recipe = yaml.safe_load((tmp_path / "next" / "recipe.yaml").read_text())
    file = recipe["graph"]["nodes"]["a"]["checkpoint_path"]
    assert file == str(run / "best" / "nodes" / "a.safetensors")


def test_start_that_makes_no_sense_takes_a_line(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = Path(shutil.copytree(short, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    for argv, said in (
        (["--from", "nowhere"], "nowhere: should be a finished run (summary.json). Found none."),
        (["--from", unfinished], f"{unfinished}: should be a finished run"),
        (["--from", short, "digits"], f"from: takes recipe and graph from {short}. Found a recipe"),
        (["--from", short, "--graph", "digits"], "from: takes recipe and graph from"),
        (["--from", short, "--resume", short], "from: takes recipe and graph from"),
        (
            ["--from", short, "--graph.nodes.a.model_kwargs", "{width: 4}", "--dry-run"],
            "graph.nodes.a.checkpoint_path: ",
        ),
    ):
        assert refused(capsys, *argv).startswith(said)
