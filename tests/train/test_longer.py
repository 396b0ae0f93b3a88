"""A run that goes on for longer: exactly the run that was as long from the start, or refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import timm_ktg as ktg
import timm_ktg.train.__main__
from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.training_cases import (
    assert_same_run,
    interrupted_in,
    run_main,
    stop_run,
    summary_of,
    train_run,
)
from timm_ktg.graph.gates import create_gate, follows_progress
from timm_ktg.recipe.longer import longer_problem
from timm_ktg.recipe.recipe import Recipe, check_recipe
from timm_ktg.recipe.resume import change_recipe

pytestmark = pytest.mark.slow

OPEN: Values = {
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "b": "correct"}},
    "b": {"model": "ktg_tiny", "learns_from": {"label": "through", "a": "through"}},
}
RAMP: Values = {**OPEN, "b": {"model": "ktg_tiny", "learns_from": {"label": "linear"}}}


def values(epochs: int, nodes: Values = OPEN, **train: Any) -> Values:
    return recipe_values(nodes, epochs=epochs, **{"sched": "constant", **train})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("short") / "run", values(2))


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    """The complete run of two epochs, to go on with."""
    return Path(shutil.copytree(short, tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line that a wrong command costs."""
    capsys.readouterr()
    assert run_main(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# For longer.


def test_longer_run_is_the_run_that_was_as_long_from_the_start(run: Path, tmp_path: Path) -> None:
    whole = train_run(tmp_path / "whole", values(5))
    with interrupted_in(4):
        assert run_main("--resume", run, "--train.epochs", "5") == 130
    assert not (run / "summary.json").exists()  # it would be of another run
    assert run_main("--resume", run) == 0
    assert_same_run(whole, run)
    assert summary_of(run)["epochs"] == 5
    assert (run / "recipe.yaml").read_text() == (whole / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "train",
    [
        {"sched": "step", "decay_epochs": 2, "eval_metric": "loss"},
        {"sched": "multistep", "decay_milestones": [2, 4], "sched_on_updates": False},
    ],
)
def test_schedule_that_looks_at_no_end_goes_on(train: dict[str, Any], tmp_path: Path) -> None:
    whole = train_run(tmp_path / "whole", values(4, **train))
    stopped = stop_run(tmp_path / "run", values(3, **train), epoch=3)
    assert run_main("--resume", stopped, "--train.epochs", "4") == 0
    assert_same_run(whole, stopped)
    assert summary_of(whole)["best"] == summary_of(stopped)["best"]


def test_all_seeds_go_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values(1))
    seeds = ["--seeds", "0", "1", "--output-dir"]
    assert run_main(recipe, *seeds, tmp_path / "run") == 0
    assert run_main("--resume", tmp_path / "run", "--train.epochs", "2") == 0
    assert run_main(recipe, "--train.epochs", "2", *seeds, tmp_path / "whole") == 0
    for seed in ("seed-0", "seed-1"):
        assert_same_run(tmp_path / "whole" / seed, tmp_path / "run" / seed)


def test_seed_without_a_checkpoint_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write_recipe(tmp_path / "r.yaml", values(1)), tmp_path / "run"
    assert run_main(recipe, "--seeds", "0", "--output-dir", run) == 0
    shutil.rmtree(run / "seed-0" / "checkpoint")
    said = f"resume: {run}/seed-0 is complete, and has no checkpoint to go on from. Start a new"
    for flags in (["--train.epochs", "2"], ["--data.test_split", "null"]):
        assert refused(capsys, "--resume", run, *flags).startswith(said)
    assert run_main("--resume", run) == 0
    assert summary_of(run / "seed-0")["epochs"] == 1


def test_run_without_a_usable_state_keeps_its_recipe_and_result(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in run.glob("checkpoint/*/model.safetensors"):
        weights.write_bytes(b"")
    kept = [run / name for name in ("recipe.yaml", "summary.json")]
    before = [file.read_bytes() for file in kept]
    for flags in (["--train.epochs", "3"], ["--data.test_split", "null"]):
        capsys.readouterr()
        assert run_main("--resume", run, *flags) == 2
        assert "holds no usable checkpoint." in capsys.readouterr().err
        assert [file.read_bytes() for file in kept] == before


def test_result_of_fewer_epochs_goes_before_the_recipe_changes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would be trained anyway, but one of several seeds would be taken for complete."""

    def interrupted(path: Path, recipe: Recipe) -> None:
        change_recipe(path, recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(timm_ktg.train.__main__, "change_recipe", interrupted)
    assert run_main("--resume", run, "--train.epochs", "3") == 130
    assert not (run / "summary.json").exists()


def test_run_that_would_have_been_another_is_refused_and_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cosine = train_run(tmp_path / "cosine", values(2, sched="cosine"))
    ramp = train_run(tmp_path / "ramp", values(2, RAMP))
    for path, epochs, said in (
        (
            cosine,
            "300",
            "train.epochs: should stay 2: with a cosine schedule over 300 epochs, the 2 epochs "
            "done would have had other learning rates. Start a new run from the weights of this "
            "one: --from.",
        ),
        (ramp, "3", "train.epochs: should stay 2, because the gate `linear` of label->b depends"),
        (run, "1", "train.epochs: should be 2 or more, the epochs done. Found 1."),
    ):
        before = (path / "recipe.yaml").read_bytes()
        assert refused(capsys, "--resume", path, "--train.epochs", epochs).startswith(said)
        assert (path / "recipe.yaml").read_bytes() == before and summary_of(path)["epochs"] == 2


def test_epochs_that_were_changed_by_hand_are_judged_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop_run(tmp_path / "run", values(2, sched="cosine"), epoch=2)
    recipe = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(recipe.replace("epochs: 2\n", "epochs: 3\n", 1))
    capsys.readouterr()
    assert run_main("--resume", stopped) == 2
    assert "train.epochs: should stay 2: with a cosine" in capsys.readouterr().err.splitlines()[1]


def judged(sched: str, done: int, before: int = 100, **train: Any) -> bool:
    """Whether a run goes on for 300 epochs."""
    first = check_recipe(values(before, sched=sched, **train)).train
    return longer_problem(first, check_recipe(values(300, sched=sched, **train)), done) is None


def test_schedule_is_judged_by_the_learning_rates_so_far() -> None:
    for sched in ("constant", "step", "multistep"):
        assert judged(sched, done=100, warmup_epochs=5), sched
    for sched in ("cosine", "tanh", "poly"):
        assert not judged(sched, done=1), sched
    assert not judged("cosine", done=1, sched_on_updates=True)
    assert judged("cosine", done=3, warmup_epochs=5, warmup_prefix=True)  # the warm-up is the same


def test_gates_that_follow_the_progress_of_a_run_are_known() -> None:
    def late(losses: Any, context: ktg.EdgeContext, *, start: float = 0.9) -> Any:
        return losses * float(context.progress > start)

    def with_features(losses: Any, context: ktg.EdgeContext) -> Any:
        return losses * context.source.features["layer3"].mean()

    for gate in (late, with_features):
        ktg.register_gate(gate)
    for name in ("linear", "negative_linear", "late", "with_features"):
        assert follows_progress(create_gate(name)), name
    for name in ("through", "cutoff", "correct"):
        assert not follows_progress(create_gate(name)), name
