"""A state that somebody forged runs no code; one that an earlier version wrote is read."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipe_cases import recipe_values
from tests.training_cases import (
    assert_same_run,
    identity_in,
    run_main,
    stop_run,
    summary_of,
    train_run,
)
from timm_ktg.errors import RecipeError
from timm_ktg.train.checkpoint import newest_state

pytestmark = pytest.mark.slow

EPOCHS = 2


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the last of its epochs."""
    return stop_run(tmp_path_factory.mktemp("stopped") / "run", recipe_values(), epoch=EPOCHS)


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    """The stopped run, to be spoiled."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoint" / f"epoch-{EPOCHS - 1:04d}"


def with_manifest(state: Path, **changes: Any) -> None:
    """Write the manifest of what lies in a state now, as a forger would."""
    manifest = json.loads((state / "manifest.json").read_text())
    manifest["sha256"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in state.iterdir()
        if path.name != "manifest.json"
    }
    content = {**manifest, **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (state / "manifest.json").write_text(json.dumps(content))


class Touch:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


FORGED = [
    (plain_pickle, "optimizer.bin", 2),
    (torch.save, "optimizer.bin", 2),
    (torch.save, "pytorch_model.bin", 2),
    (torch.save, "random_states_0.pkl", 0),
    (torch.save, "custom_checkpoint_1.pkl", 0),
]


@pytest.mark.parametrize(("write", "file", "code"), FORGED)
def test_forged_state_runs_no_code(
    write: Any, file: str, code: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not needed is not read; what is needed is refused in a line."""
    witness = run.parent / "ran"
    if file == "pytorch_model.bin":
        (newest(run) / "model.safetensors").unlink()
    write({"seconds": Touch(witness)}, newest(run) / file)
    with_manifest(newest(run))
    capsys.readouterr()
    assert run_main("--resume", run) == code
    assert not witness.exists()
    if code:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"resume: {newest(run)} cannot be loaded: ")


def test_forged_state_of_an_earlier_version_runs_no_code(run: Path) -> None:
    witness = run.parent / "ran"
    torch.save({"seconds": Touch(witness)}, newest(run) / "custom_checkpoint_1.pkl")
    with_manifest(newest(run), seconds=None)
    assert run_main("--resume", run) == 2
    assert not witness.exists()


def test_state_of_an_earlier_version_goes_on(run: Path) -> None:
    """Accelerate wrote the schedule and the progress of a run as objects of its own."""
    whole = train_run(run.parent / "whole", recipe_values())
    torch.save({"base_values": [0.05]}, newest(run) / "custom_checkpoint_0.pkl")
    torch.save({"epochs": 1, "seconds": 1000.0}, newest(run) / "custom_checkpoint_1.pkl")
    with_manifest(newest(run), seconds=None)
    assert run_main("--resume", run) == 0
    assert_same_run(whole, run)
    assert 1000 < summary_of(run)["training_seconds"] < 2000


@pytest.mark.parametrize(
    ("key", "value"), [("lr", None), ("momentum", None), ("lr", "fast"), ("state", "none")]
)
def test_optimizer_that_lacks_an_entry_is_refused(
    key: str, value: str | None, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = newest(run) / "optimizer.bin"
    optimizer = torch.load(file, weights_only=True)
    if key == "state":
        optimizer["state"] = {number: {"momentum_buffer": value} for number in optimizer["state"]}
    for group in optimizer["param_groups"] if key != "state" else ():
        group.update({key: value}) if value else group.pop(key)
    torch.save(optimizer, file)
    with_manifest(newest(run))
    capsys.readouterr()
    assert run_main("--resume", run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resume: {newest(run)} cannot be loaded: the optimizer's ")


MANIFESTS = [
    b"",
    b"\xff\xfe\x00",
    b"[]",
    b"5",
    b"[" * 5000,
    b'{"run": "x"}',
    b'{"run": "x", "epoch": "one", "sha256": {}}',
    b'{"run": "x", "epoch": 1, "sha256": [1]}',
    b'{"run": "x", "epoch": 1, "sha256": {"model.safetensors": 1}}',
    b'{"run": "x", "epoch": 1e999, "sha256": {}}',
]


@pytest.mark.parametrize("content", MANIFESTS)
def test_manifest_that_is_none_is_refused(content: bytes, run: Path) -> None:
    identity = identity_in(newest(run))
    (newest(run) / "manifest.json").write_bytes(content)
    spare = newest(run).with_name("epoch-0000")
    shutil.copytree(newest(run), spare)
    lines = [
        f"{state}: half-written (its manifest cannot be read)." for state in (newest(run), spare)
    ]
    with pytest.raises(RecipeError) as raised:
        newest_state(run / "checkpoint", identity)
    assert list(raised.value.problems[1:]) == lines


def test_states_are_in_the_order_of_their_epochs(run: Path) -> None:
    checkpoint = run / "checkpoint"
    identity = identity_in(newest(run))
    for epoch in (9999, 10000):
        shutil.copytree(newest(run), checkpoint / f"epoch-{epoch}")
    (checkpoint / "epoch-of-old").mkdir()
    assert newest_state(checkpoint, identity) == (checkpoint / "epoch-10000", [])
