"""A run's states: whole or refused by name, and the one before is used. A node's weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests import training_cases as cases
from tests.nets import ktg_tiny
from tests.recipe_cases import Values, recipe_values
from tests.training_cases import (
    assert_same_run,
    identity_in,
    metrics_of,
    run_main,
    same_state,
    stop_run,
    summary_of,
    train_run,
)
from timm_ktg.graph.weights import export_node, load_weights
from timm_ktg.train.checkpoint import newest_state

pytestmark = pytest.mark.slow

NODES: Values = {
    "a": {
        "model": "ktg_tiny",
        "model_kwargs": {"drop_rate": 0.2, "norm": True},
        "learns_from": {"label": "through", "b": "linear"},
    },
    "b": {"model": "ktg_tiny", "learns_from": {"label": "through", "a": "correct"}},
}


def values() -> Values:
    return recipe_values(NODES, data={"mixup": 0.2}, epochs=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return train_run(tmp_path_factory.mktemp("whole") / "run", values())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in the last of its four epochs."""
    return stop_run(tmp_path_factory.mktemp("stopped") / "run", values(), epoch=4)


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    """The stopped run, to be spoiled."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def states(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoint").iterdir())


def test_the_two_newest_states_are_kept(whole: Path, interrupted: Path) -> None:
    assert states(interrupted) == ["epoch-0002", "epoch-0003"]
    assert states(whole) == ["epoch-0003", "epoch-0004"]


def test_interrupted_run_goes_on_to_the_same_end(
    whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(metrics_of(run)) == 3 and not (run / "summary.json").exists()
    assert run_main("--resume", run) == 0
    assert "Refused" not in capsys.readouterr().out
    assert_same_run(whole, run)


def test_run_without_a_state_starts_anew(whole: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoint")
    assert run_main("--resume", run) == 0
    assert_same_run(whole, run)


def test_finished_run_is_evaluated_again_and_stays_the_same(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "nodes")
    before = (run / "metrics.jsonl").read_bytes()
    assert run_main("--resume", run) == 0
    assert_same_run(whole, run)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert summary_of(run)["training_seconds"] == summary_of(whole)["training_seconds"]


# States that are not whole.


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def claim(manifest: Path) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "data": "others"}))


OTHER_DATA = "from another run (the data have changed: other images, labels or splits)."
Spoil = Callable[[Path], object]
SPOILT = [
    ("model.safetensors", cut, "damaged (model.safetensors is not what was written)."),
    ("optimizer.bin", cut, "damaged (optimizer.bin is not what was written)."),
    ("model.safetensors", change_a_bit, "damaged (model.safetensors is not what was written)."),
    ("random_states_0.pkl", Path.unlink, "damaged (random_states_0.pkl is not what was written)."),
    ("one_too_many.bin", Path.touch, "damaged (one_too_many.bin is not what was written)."),
    ("manifest.json", cut, "half-written (its manifest cannot be read)."),
    ("manifest.json", Path.unlink, "half-written (its manifest cannot be read)."),
    ("manifest.json", claim, OTHER_DATA),
]


@pytest.mark.parametrize(("file", "spoil", "reason"), SPOILT)
def test_spoilt_state_is_refused_by_name(file: str, spoil: Spoil, reason: str, run: Path) -> None:
    newest, before = (run / "checkpoint" / name for name in ("epoch-0003", "epoch-0002"))
    identity = identity_in(newest)
    assert newest_state(run / "checkpoint", identity) == (newest, [])
    spoil(newest / file)
    found = newest_state(run / "checkpoint", identity)
    assert found == (before, [f"{newest}: {reason}"])


def test_run_goes_on_from_the_state_before_a_spoilt_one(
    whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoint" / "epoch-0003"
    cut(newest / "model.safetensors")
    capsys.readouterr()
    assert run_main("--resume", run) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"Refused {newest}: damaged (model.safetensors is not what was written)." in said
    assert any("epoch-0002" in line and "epochs done: 2" in line for line in said)
    assert_same_run(whole, run)
    assert states(run) == ["epoch-0003", "epoch-0004"]


def test_with_no_whole_state_the_run_is_left_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(run / "checkpoint" / "epoch-0002" / "optimizer.bin")
    (run / "checkpoint" / "epoch-0003" / "manifest.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert run_main("--resume", run) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"resume: {run / 'checkpoint'} holds no usable checkpoint."
    assert [line.split(":")[0] for line in others] == [
        str(run / "checkpoint" / "epoch-0003"),
        str(run / "checkpoint" / "epoch-0002"),
    ]
    assert (run / "metrics.jsonl").read_bytes() == before
    assert states(run) == ["epoch-0002", "epoch-0003"]


def test_states_of_a_recipe_that_was_changed_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("lr: 0.05", "lr: 0.06"))
    capsys.readouterr()
    assert run_main("--resume", run) == 2
    lines = capsys.readouterr().err.splitlines()
    said = "from another run (recipe.yaml has changed: train.lr was 0.05, is 0.06)."
    assert [line.endswith(said) for line in lines] == [False, True, True]


def test_leftovers_of_a_killed_run_are_harmless(whole: Path, run: Path) -> None:
    """A state half moved to its place, a line half written."""
    checkpoint = run / "checkpoint"
    shutil.copytree(checkpoint / "epoch-0003", checkpoint / ".epoch-0004")
    cut(checkpoint / ".epoch-0004" / "optimizer.bin")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "train/lo')
    assert run_main("--resume", run) == 0
    assert_same_run(whole, run)
    assert states(run) == ["epoch-0003", "epoch-0004"]


def test_what_is_no_run_cannot_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("--resume", tmp_path / "nothing") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a run" in line


# A node's weights.


def net(width: int = 8, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return ktg_tiny(width=width, norm=True).train()


def test_exported_weights_are_timms(tmp_path: Path) -> None:
    model, path = net().to(memory_format=torch.channels_last), tmp_path / "node.safetensors"
    model(torch.randn(4, 3, 8, 8))
    export_node(model, path)
    other = timm.create_model("ktg_tiny", norm=True, checkpoint_path=str(path))
    assert same_state(model.state_dict(), other.state_dict())
    assert load_file(path)["stem.1.num_batches_tracked"] == 1


def test_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        export_node(net(), tmp_path / name, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_weights_tell_what_images_were_normalised_with(tmp_path: Path) -> None:
    path, other = tmp_path / "node.safetensors", net(seed=1)
    export_node(net(), path, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    told = load_weights(other, str(path))
    assert told == {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    assert same_state(other.state_dict(), net().state_dict())
    export_node(net(), path)
    assert load_weights(other, str(path)) == {}


def test_weights_of_another_model_are_refused_whole(tmp_path: Path) -> None:
    path, model = tmp_path / "node.safetensors", net(width=6)
    export_node(net(), path)
    before = cases.state_of(model)
    said = r"should hold the weights of this.*\[8, 3, 4, 4\] instead of \[6, 3, 4, 4\] and \d more"
    with pytest.raises(ValueError, match=said):
        load_weights(model, str(path))
    assert same_state(before, model.state_dict())


def test_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(net(), str(path))
