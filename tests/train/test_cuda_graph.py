"""Recorded updates: same results as unrecorded ones, and when updates are not recorded."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timm_ktg as ktg
from tests import training_cases as cases
from tests.nets import ktg_tiny
from tests.recipe_cases import MUTUAL, recipe_values, write_recipe
from tests.tiny_data import UPDATES
from tests.train.tape import Tape
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    run_main,
    same_state,
    state_of,
    stop_run,
    train_run,
)
from timm_ktg.graph import gates
from timm_ktg.graph.weights import export_node
from timm_ktg.records.metrics import Metrics
from timm_ktg.train import cuda_graph
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch
from timm_ktg.train.training import Training

pytestmark = pytest.mark.slow

EPOCHS = 3
# The last batch of an epoch is smaller than the recorded one.
REPLAYS = EPOCHS * (UPDATES - 1) - cuda_graph.WARM_UP

FADING = {**MUTUAL["b"], "learns_from": {"label": "linear", "a": "negative_linear"}}
NORM = {
    name: {**node, "model_kwargs": {"norm": True, "drop_rate": 0.2}}
    for name, node in MUTUAL.items()
}

MADE = {
    "a": {**NORM["a"], "learns_from": {"label": "through", "slow": {"weight": 0.5}, "crowd": {}}},
    "b": NORM["b"],
    "slow": {"ema": "a", "decay": 0.998, "warmup": True},
    "crowd": {"ensemble": ["a", "b"], "combine": "probabilities"},
}


class Cuda(cuda_graph.CudaRecorder):
    """The recorder of a GPU, which counts its replays."""

    replays = 0

    def record(self, update: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(update)

        def counted() -> None:
            Cuda.replays += 1
            replay()

        return counted


Recorder = type[Tape] | type[Cuda]
OURS: dict[str, Recorder] = {"cpu": Tape} if cases.ON_CPU else {"cuda": Cuda}


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Counts replays, and lets a CPU record."""
    monkeypatch.setattr(cuda_graph, "RECORDERS", {**cuda_graph.RECORDERS, **OURS})
    monkeypatch.setattr(cuda_graph, "FAILS_CLEANLY", True)  # with any version of torch
    monkeypatch.setattr(cuda_graph, "KNOWN", (*cuda_graph.KNOWN, "tests"))
    (ours,) = OURS.values()
    monkeypatch.setattr(ours, "replays", 0)
    yield ours


def values(mode: str, nodes: Any = MUTUAL, data: Any = None, **train: Any) -> dict[str, Any]:
    # The fused step is another kernel, and its last bit can differ.
    fused: dict[str, Any] = {"opt_kwargs": {"fused": True}, "epochs": EPOCHS, "cuda_graph": mode}
    return recipe_values(nodes, data, **(fused | train))


def trained(recipe: dict[str, Any]) -> tuple[Training, list[Metrics]]:
    training, found = build(recipe), []
    for _ in range(training.epochs):
        found.append(train_epoch(training, start_epoch(training)))
        assert training.images.val is not None
        found.append(evaluate(training, training.images.val, "val"))
    times = {name: 0.0 for name in cases.TIMES}
    return training, [each | times for each in found]


@pytest.mark.parametrize(
    ("nodes", "data", "train"),
    [
        ({**MUTUAL, "b": FADING}, {}, {}),
        (NORM, {}, {"sched_on_updates": True, "warmup_epochs": 1}),
        (MUTUAL, {}, {"clip_grad": 0.5, "weight_decay": 0.01, "filter_bias_and_bn": True}),
        (MUTUAL, {}, {"grad_accum_steps": 2, "batch_size": 64}),
        (MUTUAL, {}, {"mixed_precision": "bf16", "channels_last": True}),
        (MUTUAL, {"mixup": 0.2}, {}),
        (MADE, {}, {}),
    ],
    ids=["gates", "norm", "clip", "accumulate", "bf16", "mixup", "made"],
)
def test_replayed_updates_are_those_of_a_run_without(
    nodes: Any, data: Any, train: Any, tape: Recorder
) -> None:
    plain, expected = trained(values("never", nodes, data, **train))
    assert tape.replays == 0
    recorded, found = trained(values("always", nodes, data, **train))
    assert tape.replays == REPLAYS
    assert found == expected
    assert same_state(state_of(recorded.graph), state_of(plain.graph))
    rates = [group["lr"] for group in recorded.optimizer.param_groups]
    assert rates == [group["lr"] for group in plain.optimizer.param_groups]
    assert {type(rate) for rate in rates} == {float}  # not the tensor that the device reads


def test_batch_of_the_first_shape_is_recorded(tape: Recorder) -> None:
    # With two updates per epoch, the second is short, including the one after the warm-up.
    _, expected = trained(values("never", batch_size=192))
    _, found = trained(values("always", batch_size=192))
    assert tape.replays == 1
    assert found == expected


def test_adamw_is_replayed(tape: Recorder) -> None:
    # Without `capturable` its step is counted elsewhere, which rounds in another way.
    _, expected = trained(values("never", opt="adamw", lr=0.001))
    _, found = trained(values("auto", opt="adamw", lr=0.001))
    assert tape.replays == REPLAYS
    for first, second in zip(expected, found, strict=True):
        assert second == pytest.approx(first, rel=1e-5)


def test_frozen_node_is_replayed(tape: Recorder, tmp_path: Path) -> None:
    weights = tmp_path / "c.safetensors"
    export_node(ktg_tiny(norm=True), weights)
    frozen = {"model": "ktg_tiny", "model_kwargs": {"norm": True}, "checkpoint_path": str(weights)}
    learns = {"label": "through", "c": {"gate": "correct", "temperature": 2.0}}
    nodes = {"a": {"model": "ktg_tiny", "learns_from": learns}, "c": frozen}
    _, expected = trained(values("never", nodes, teacher_table="never"))
    _, found = trained(values("always", nodes))  # which has no table
    assert tape.replays == REPLAYS
    assert found == expected


def test_run_goes_on_with_what_was_recorded_anew(tape: Recorder, tmp_path: Path) -> None:
    whole = train_run(tmp_path / "whole", values("always"))
    assert tape.replays == REPLAYS
    stopped = stop_run(tmp_path / "stopped", values("always"), epoch=2)
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)
    assert metrics_of(whole) == metrics_of(train_run(tmp_path / "plain", values("never")))


@pytest.mark.parametrize(
    "train", [{"opt_kwargs": {}}, {"opt": "adamw", "lr": 0.001, "opt_kwargs": {}}]
)
def test_run_goes_on_where_updates_are_recorded_and_where_not(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The state says how steps were computed; the next machine may need another way.
    settled = values("auto", **train)
    monkeypatch.setattr(cuda_graph, "RECORDERS", {})
    whole = metrics_of(train_run(tmp_path / "whole", settled))
    begun = stop_run(tmp_path / "begun", settled, epoch=2)
    (ours,) = OURS.values()
    monkeypatch.setattr(cuda_graph, "RECORDERS", OURS)
    monkeypatch.setattr(cuda_graph, "FAILS_CLEANLY", True)
    monkeypatch.setattr(cuda_graph, "KNOWN", (*cuda_graph.KNOWN, "tests"))
    monkeypatch.setattr(ours, "replays", 0)
    assert run_main("--resume", begun) == 0
    assert ours.replays == REPLAYS - (UPDATES - 1)
    other = stop_run(tmp_path / "other", settled, epoch=2)
    replays = ours.replays
    monkeypatch.setattr(cuda_graph, "RECORDERS", {})
    assert run_main("--resume", other) == 0
    assert ours.replays == replays
    for run in (begun, other):
        for first, second in zip(whole, metrics_of(run), strict=True):
            assert second == pytest.approx(first, rel=1e-4)


def test_loss_that_is_not_finite_is_named_with_its_update(
    tape: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        apart = torch.as_tensor((context.progress - 0.62) * (context.progress - 0.9))
        return losses * apart.sqrt().float()  # NaN in between

    gates.register_gate(late)
    nodes = {**MUTUAL, "b": {**MUTUAL["b"], "learns_from": {"label": "through", "a": "late"}}}
    recipe = write_recipe(tmp_path / "r.yaml", values("always", nodes))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 1
    update = math.ceil(0.62 * EPOCHS * UPDATES)
    assert f"node b is not finite at update {update}, on a->b" in capsys.readouterr().err
    assert tape.replays > 0


# When they are not


def reading(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses * float(context.source.logits.isfinite().all())


READING = {**MUTUAL, "b": {**MUTUAL["b"], "learns_from": {"label": "through", "a": "reading"}}}


def test_gate_that_reads_values_back_is_said_where_recording_was_asked_for(
    tape: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates.register_gate(reading)
    recipe = write_recipe(tmp_path / "r.yaml", values("always", READING))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "train.cuda_graph: an update cannot be recorded: " in line
    assert "operation not permitted when stream is capturing" in line


def test_run_goes_on_without_a_recording_that_is_not_possible(
    tape: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    gates.register_gate(reading)
    _, expected = trained(values("never", READING))
    with caplog.at_level(logging.WARNING):
        _, found = trained(values("auto", READING))
    assert tape.replays == 0
    assert found == expected
    assert caplog.text.count("cannot be recorded") == 1


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"opt": "lamb", "opt_kwargs": {}}, ["fused", "lamb"]),
        ({"opt_kwargs": {"fused": False}}, ["opt_kwargs", "fused: False"]),
        ({"opt_kwargs": {"foreach": True}}, ["opt_kwargs", "foreach: True"]),
        ({"opt": "adamw", "opt_kwargs": {"capturable": False}}, ["capturable: False"]),
    ],
)
def test_recording_that_cannot_be_is_refused_or_left(
    train: Any,
    words: list[str],
    tape: Recorder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values("always", **train))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.cuda_graph" in line and all(word in line for word in words)
    trained(values("auto", **train, epochs=1))
    assert tape.replays == 0


def test_recording_is_not_tried_where_its_failure_may_crash(
    tape: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "FAILS_CLEANLY", False)
    with caplog.at_level(logging.WARNING):
        trained(values("auto", epochs=1))
    assert tape.replays == 0 and "needs torch 2.11" in caplog.text
    trained(values("always"))
    assert tape.replays == REPLAYS


def test_recording_succeeds_after_others_that_failed(tape: Recorder) -> None:
    gates.register_gate(reading)
    for _ in range(3):
        trained(values("auto", READING, epochs=1))
    assert tape.replays == 0
    trained(values("auto"))
    assert tape.replays == REPLAYS


@pytest.mark.parametrize("of", ["the gate reading, of tests", "the model of a, of tests"])
def test_code_of_others_is_recorded_only_if_that_is_asked_for(
    of: str, tape: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "KNOWN", ("timm_ktg", "timm", "torch"))
    gates.register_gate(reading)
    nodes = READING if "reading" in of else MUTUAL
    with caplog.at_level(logging.WARNING):
        trained(values("auto", nodes, epochs=1))
    assert tape.replays == 0 and "needs `always` for code" in caplog.text and of in caplog.text


def test_images_that_a_pipeline_delivers_are_recorded_only_if_that_is_asked_for(
    tape: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"pipeline": "timm", "workers": 0, "img_size": 8, "pad": 4, "reprob": 0.3}
    with caplog.at_level(logging.WARNING):
        _, expected = trained(values("auto", data=data))
    assert tape.replays == 0 and "needs `always` with data.pipeline timm" in caplog.text
    _, found = trained(values("always", data=data))
    assert tape.replays == REPLAYS
    assert found == expected


@pytest.mark.skipif(cases.ON_CPU, reason="a tape does not see what inductor computes")
def test_compiled_nodes_are_replayed(tape: Recorder) -> None:
    _, expected = trained(values("never", torchcompile=True))
    _, found = trained(values("always", torchcompile=True))
    assert tape.replays == REPLAYS
    for first, second in zip(expected, found, strict=True):
        assert second == pytest.approx(first, rel=1e-4)


def test_reason_of_a_failure_is_what_was_raised_first() -> None:
    first = RuntimeError("first")
    follows, alone = RuntimeError("follows"), RuntimeError("alone")
    follows.__context__ = first
    alone.__context__, alone.__suppress_context__ = first, True
    assert cuda_graph._cause(follows) is first
    assert cuda_graph._cause(alone) is alone


@cases.on_cpu
def test_cpu_does_not_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", values("always"))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.cuda_graph: needs a device of type cuda. Found cpu." in line
    _, expected = trained(values("never", opt_kwargs={}))
    _, found = trained(values("auto", opt_kwargs={}))
    assert found == expected
