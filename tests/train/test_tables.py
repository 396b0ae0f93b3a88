"""Tables of frozen nodes in runs: the same result full, empty, lost or without, within rounding."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nets import ktg_tiny
from tests.recipe_cases import Values, recipe_values
from tests.tiny_data import TRAIN
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    on_cpu,
    run_main,
    same_state,
    state_of,
    stop_run,
    train_run,
)
from timm_ktg.data import cache as cached
from timm_ktg.graph.weights import export_node
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch

pytestmark = on_cpu  # only a CPU has tables


TEACHER = "teacher.safetensors"


@pytest.fixture(autouse=True)
def cache(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher's weights, and an empty cache."""
    torch.manual_seed(5)
    export_node(ktg_tiny(norm=True), Path(TEACHER))
    folder = workplace / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "timm_ktg" / "tables"


def taught(**train: Any) -> Values:
    kwargs = {"norm": True}
    learns_from = {"label": "through", "b": {"gate": "correct", "temperature": 2.0}}
    nodes = {
        "a": {"model": "ktg_tiny", "learns_from": learns_from},
        "b": {"model": "ktg_tiny", "model_kwargs": kwargs, "checkpoint_path": TEACHER},
    }
    return recipe_values(nodes, **train)


def trained(**train: Any) -> dict[str, torch.Tensor]:
    training = build(taught(epochs=3, **train))
    for _ in range(training.epochs):
        train_epoch(training, start_epoch(training))
    return state_of(training.graph)


def test_run_with_a_table_is_that_without_within_rounding(cache: Path) -> None:
    never = trained(teacher_table="never")
    assert not cache.exists()
    empty = trained()
    (file,) = cache.iterdir()
    assert file.stat().st_size == TRAIN * 18 * 10 * 2
    full = trained()
    assert same_state(empty, full) and not same_state(empty, never)
    for name, value in never.items():
        torch.testing.assert_close(empty[name], value, rtol=2e-2, atol=2e-3)


def test_full_table_computes_nothing(cache: Path) -> None:
    training = build(taught())
    rows = len(training.images.train.images) * training.images.train.views  # type: ignore[union-attr]
    training.graph.tables["b"].logits.copy_(torch.rand(rows, 10) + 1)
    training.graph.network("b").forward = None  # type: ignore[assignment, method-assign]
    train_epoch(training, start_epoch(training))


def test_validation_images_are_computed_once_and_measured_as_before(cache: Path) -> None:
    training = build(taught())
    assert training.images.val is not None
    first = evaluate(training, training.images.val, "val")
    training.graph.network("b").forward = None  # type: ignore[assignment, method-assign]
    assert evaluate(training, training.images.val, "val") == first
    without = build(taught(teacher_table="never"))
    assert without.images.val is not None
    assert evaluate(without, without.images.val, "val") == first


@pytest.mark.slow
def test_run_goes_on_bit_for_bit_with_its_table_gone(tmp_path: Path, cache: Path) -> None:
    whole = train_run(tmp_path / "whole", taught(epochs=3))
    shutil.rmtree(cache)
    stopped = stop_run(tmp_path / "stopped", taught(epochs=3), epoch=2)
    assert len(metrics_of(stopped)) == 1
    shutil.rmtree(cache)
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)


def test_parts_of_a_batch_take_their_own_views(cache: Path) -> None:
    assert same_state(trained(grad_accum_steps=2), trained(grad_accum_steps=2))
    torch.testing.assert_close(trained(grad_accum_steps=2), trained(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "train"),
    [
        ({"mixup": 0.2}, {}),
        ({"pipeline": "timm", "workers": 0, "img_size": 8}, {}),
        ({}, {"table": "never"}),
    ],
)
def test_nodes_are_computed_where_a_table_would_not_be_exact_or_is_not_wanted(
    data: Values, train: Values, cache: Path
) -> None:
    values = taught(**({"teacher_table": "never"} if train else {}))
    values["data"] |= data
    if "pipeline" in data:
        del values["data"]["pad"]
    assert build(values).graph.tables == {} and not cache.exists()


def test_node_with_taps_is_computed(cache: Path) -> None:
    values = taught()
    values["graph"]["nodes"]["b"]["taps"] = ["act"]
    assert build(values).graph.tables == {} and not cache.exists()


def test_tables_have_keys_by_all_that_decides_the_logits(cache: Path) -> None:
    build(taught())
    first = {path.name for path in cache.iterdir()}
    same = [0.5, 0.5, 0.5]
    for section, change in (
        ("data", {"pad": 2}),
        ("data", {"holdout": 50}),
        ("data", {"mean": same, "std": same}),
        ("train", {"mixed_precision": "bf16"}),
        ("train", {"channels_last": False}),
    ):
        values = taught()
        values[section] |= change
        build(values)
    values = taught()
    values["graph"]["nodes"]["b"]["img_size"] = 8  # as large as the images, but said
    build(values)
    torch.manual_seed(6)
    export_node(ktg_tiny(norm=True), Path(TEACHER))
    build(taught())
    names = {path.name for path in cache.iterdir()}
    assert len(names) == 8 and first < names
    build(taught())
    assert {path.name for path in cache.iterdir()} == names


def test_oldest_tables_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(taught())
    (first,) = cache.iterdir()
    os.utime(first, (1, 1))
    monkeypatch.setattr(cached, "SHARE", 1.5 * first.stat().st_size / _memory())
    torch.manual_seed(6)
    export_node(ktg_tiny(norm=True), Path(TEACHER))
    build(taught())
    (second,) = cache.iterdir()
    assert second != first


def test_table_that_does_not_fit_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cached, "SHARE", 0.0)
    with caplog.at_level(logging.WARNING):
        assert build(taught()).graph.tables == {}
    assert "Frozen nodes are computed: tables take 0.0 GiB, above 0.0 GiB." in caplog.text
    monkeypatch.setattr(cached, "SHARE", 0.25)
    monkeypatch.setenv("XDG_CACHE_HOME", TEACHER)
    assert build(taught()).graph.tables == {}
    assert "Frozen nodes are computed: no table. NotADirectoryError" in caplog.text


def _memory() -> int:
    return int(cached.psutil.virtual_memory().total)
