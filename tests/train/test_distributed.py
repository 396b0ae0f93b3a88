"""Two processes give the same results as one, and stop together."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import timm_ktg as ktg
from tests.recipe_cases import MUTUAL, NO_AUGMENTATION, Values, recipe_values, write_recipe
from tests.tiny_data import TRAIN, VAL, small_digits
from tests.training_cases import (
    DEADLINE,
    TIMES,
    assert_same_run,
    build,
    finish,
    furthest,
    metrics_of,
    on_cpu,
    program,
    same_state,
    start_two,
    state_of,
    summary_of,
    train_run,
)
from timm_ktg.records.metrics import Metrics
from timm_ktg.train import checks, loop
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch
from timm_ktg.train.training import Training

pytestmark = [pytest.mark.slow, on_cpu]

OPTIONS: Values = {"grad_accum_steps": 2, "clip_grad": 1.0, "momentum": 0.9, "weight_decay": 0.01}


def values() -> Values:
    return recipe_values(data=NO_AUGMENTATION, epochs=3, eval_metric="loss", **OPTIONS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(folder / "run.yaml", values())
    processes = start_two(folder, program, recipe, "--output-dir", folder / "run")
    assert finish(*processes) == [0, 0], logs(folder)
    return folder / "run"


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


# The same as one process.


def test_two_processes_train_to_the_weights_of_one(two: Path, tmp_path: Path) -> None:
    one = train_run(tmp_path / "one", values())
    assert (summary_of(one)["processes"], summary_of(two)["processes"]) == (1, 2)
    for name in ("a", "b"):
        file = Path("nodes", f"{name}.safetensors")
        assert furthest(load_file(one / file), load_file(two / file)) < 2e-6


def test_two_processes_keep_the_best_epoch_of_one(two: Path, tmp_path: Path) -> None:
    one = train_run(tmp_path / "one", values())
    first, second = summary_of(one)["best"], summary_of(two)["best"]
    assert second == {**first, "value": pytest.approx(first["value"], rel=1e-5)}
    file = Path("best", "nodes", "a.safetensors")
    assert furthest(load_file(one / file), load_file(two / file)) < 2e-6


def test_two_processes_measure_what_one_measures(two: Path, tmp_path: Path) -> None:
    one = train_run(tmp_path / "one", values())
    for first, second in zip(metrics_of(one), metrics_of(two), strict=True):
        for name in first:
            assert second[name] == pytest.approx(first[name], rel=1e-5), name
        correct = second["val/top1/a"] * VAL / 100
        assert correct == pytest.approx(round(correct))
    assert summary_of(one)["nodes"] == summary_of(two)["nodes"]


def test_two_processes_resume_bit_for_bit(two: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two, tmp_path / "run"))
    for path in (run / "checkpoint" / "epoch-0003", run / "nodes"):
        shutil.rmtree(path)
    (run / "summary.json").unlink()
    assert finish(*start_two(tmp_path, program, "--resume", run)) == [0, 0], logs(tmp_path)
    assert "epoch-0002" in (tmp_path / "0.log").read_text()
    assert_same_run(two, run)


def test_one_process_speaks(two: Path) -> None:
    log = two.parent / "0.log"
    assert "epoch 3/3" in log.read_text()
    assert "epoch" not in log.with_name("1.log").read_text()


# Inside.

ODD: Values = {**NO_AUGMENTATION, "holdout": VAL - 1}  # 267 images: a last batch of 11
NORMED: Values = {
    name: {**node, "model_kwargs": {**node.get("model_kwargs", {}), "norm": True}}
    for name, node in MUTUAL.items()
}


PROJECTED: Values = {
    "a": {
        "model": "ktg_tiny",
        "learns_from": {
            "label": "through",
            "b": ["through", {"loss": "projected", "loss_kwargs": {"norm": False}}],
        },
    },
    "b": MUTUAL["b"],
}


MADE: Values = {
    "a": {
        "model": "ktg_tiny",
        "learns_from": {"label": "through", "slow": {"weight": 0.5}, "crowd": "linear"},
    },
    "b": MUTUAL["b"],
    "slow": {"ema": "a", "decay": 0.75},
    "crowd": {"ensemble": ["a", "b", "slow"]},
}


def look_inside(folder: Path, recipes: dict[str, Values]) -> None:
    """Train an epoch of two graphs, and save what this process then has."""
    found: dict[str, Any] = {}
    average = loop._average_batch_norm

    def spy(training: Training) -> None:
        found["before"] = state_of(training.graph)
        average(training)

    loop._average_batch_norm = spy
    for name, values in recipes.items():
        training = build(values)
        assert training.accelerator.num_processes == 2
        assert isinstance(training.model, DistributedDataParallel)
        found[f"{name} metrics"] = train_epoch(training, start_epoch(training))
        found[name] = state_of(training.graph)
        assert training.images.val is not None
        found[f"{name} val"] = evaluate(training, training.images.val, "val")
    start_epoch(training)
    found["draw"] = torch.rand(())
    torch.save(found, folder / f"{training.accelerator.process_index}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("inside")
    nodes = {"plain": MUTUAL, "projected": PROJECTED, "made": MADE, "normed": NORMED}
    recipes = {name: recipe_values(each, data=ODD) for name, each in nodes.items()}
    assert finish(*start_two(folder, look_inside, folder, recipes)) == [0, 0], logs(folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def trimmed(training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch; the last lacks the image that two processes cannot share."""
    for images, labels in start_epoch(training):
        even = len(labels) // 2 * 2
        yield images[:even], labels[:even]


@pytest.mark.parametrize(
    ("case", "nodes"), [("plain", MUTUAL), ("projected", PROJECTED), ("made", MADE)]
)
def test_odd_last_batch_loses_one_image_and_nothing_else(
    case: str, nodes: Values, ranks: list[dict[str, Any]]
) -> None:
    training = build(recipe_values(nodes, data=ODD))
    metrics: Metrics = train_epoch(training, trimmed(training))
    assert training.images.val is not None
    metrics |= evaluate(training, training.images.val, "val")
    for rank in ranks:
        assert furthest(state_of(training.graph), rank[case]) < 1e-6
        found = rank[f"{case} metrics"] | rank[f"{case} val"]
        for name in metrics.keys() - TIMES:
            assert found[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-7), name
    speed = ranks[0][f"{case} metrics"]
    assert speed["images_per_second"] * speed["seconds"] == pytest.approx(TRAIN)


def test_batch_norm_statistics_are_the_mean_of_both_processes(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert same_state(first["normed"], second["normed"])
    keys = [key for key in first["normed"] if "running_" in key]
    assert len(keys) == 4
    for key in keys:
        own, others = first["before"][key], second["before"][key]
        assert not torch.equal(own, others)
        torch.testing.assert_close(first["normed"][key], (own + others) / 2)
    assert first["normed val"] == second["normed val"]


def test_processes_draw_apart(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["draw"] != ranks[1]["draw"]


# Together to the end.


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def one_sided(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses * (float("nan") if rank() == 1 and 0.6 < context.progress < 0.9 else 1.0)


def with_gate(gate: Any) -> Values:
    return recipe_values({"a": {"model": "ktg_tiny", "learns_from": {"label": gate}}})


def run_one_sided(recipe: Path) -> None:
    ktg.register_gate(one_sided)
    program(recipe, "--output-dir", recipe.with_suffix(""))


def test_loss_that_turns_bad_in_one_process_ends_both(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", with_gate("one_sided"))
    assert finish(*start_two(tmp_path, run_one_sided, recipe)) == [1, 1], logs(tmp_path)
    assert "node a is not finite at update 7, on label->a" in (tmp_path / "0.log").read_text()
    assert (tmp_path / "1.log").read_text().count("not finite") == 0


def run_two_minded(recipe: Path) -> None:
    def two_minded(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses

    def same_name(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses * 2

    same_name.__name__ = "two_minded"
    ktg.register_gate((two_minded, same_name)[rank()])
    program(recipe, "--output-dir", recipe.with_suffix(""))


def run_absent_minded(recipe: Path) -> None:
    def absent_minded(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses

    if rank() == 0:
        ktg.register_gate(absent_minded)
    program(recipe, "--output-dir", recipe.with_suffix(""))


def test_processes_with_different_gates_stop_and_name_the_edge(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", with_gate("two_minded"))
    codes = finish(*start_two(tmp_path, run_two_minded, recipe), deadline=120)
    assert codes == [2, 2], logs(tmp_path)
    lines = [line for line in logs(tmp_path).splitlines() if "two_minded" in line]
    assert len(lines) == 1 and "label->a" in lines[0]
    assert not (tmp_path / "r").exists()


def test_gate_that_one_process_does_not_have_stops_both_and_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", with_gate("absent_minded"))
    codes = finish(*start_two(tmp_path, run_absent_minded, recipe), deadline=120)
    assert codes == [2, 2], logs(tmp_path)
    assert "absent_minded" in logs(tmp_path) and "Traceback" not in logs(tmp_path)


def code_of(source: str) -> str:
    """Return the fingerprint of a gate's freshly compiled code."""
    space: dict[str, Any] = {}
    exec(compile(source, "a_plugin.py", "exec"), space)
    kept.append(space["gate"])  # so that the next one does not take its place in memory
    return checks.code_of(space["gate"])


kept: list[Any] = []
GATE = "def gate(losses, context, *, threshold=0.8): return losses * threshold"
NESTED = "def gate(losses, context): return (lambda values: values * 2)(losses)"


CALLED = "def gate(losses, context, *, by=lambda values: values * 2): return by(losses)"
SHORT = ["plain", "nested", "called"]


@pytest.mark.parametrize("source", [GATE, NESTED, CALLED], ids=SHORT)
def test_same_gate_is_the_same_wherever_it_lies_in_memory(source: str) -> None:
    assert code_of(source) == code_of(source)


@pytest.mark.parametrize("source", [GATE, NESTED, CALLED], ids=SHORT)
def test_gates_that_differ_in_a_number_are_different(source: str) -> None:
    assert code_of(source) != code_of(source.replace("0.8", "0.9").replace("* 2", "* 3"))


def launch_two(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Train `digits` on tiny data by accelerate's launcher, in two processes."""
    two = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    recipe = ("digits", "--train.epochs", "1", "--data.dataset", small_digits(), *flags)
    return subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *two),
            *("-m", "timm_ktg.train", *recipe, "--output-dir", str(folder / "run")),
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_data_that_cannot_be_split_stop_both(tmp_path: Path) -> None:
    done = launch_two(tmp_path, "--data.holdout", "800")
    assert done.returncode != 0
    assert "data.holdout: " in done.stderr


def test_accelerate_launch_starts_two(tmp_path: Path) -> None:
    done = launch_two(tmp_path, "--data.holdout", "61")
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["processes"] == 2
    (line,) = metrics_of(tmp_path / "run")
    assert line["epoch"] == 1
