"""In which type a training computes, what decides it, and what must not depend on it."""

import math
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.recipe_cases import NORMED, recipe_values, write_recipe
from tests.tiny_data import UPDATES
from tests.training_cases import (
    build,
    furthest,
    on_cpu,
    reset_accelerate,
    run_main,
    spy_on_losses,
    state_of,
    train,
)
from timm_ktg.recipe.recipe import check_recipe
from timm_ktg.train.loop import evaluate
from timm_ktg.train.program import create_accelerator, resolved

pytestmark = pytest.mark.slow


def test_bf16_computes_the_losses_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(recipe_values(mixed_precision="bf16"))
    steps = spy_on_losses(training, monkeypatch)
    seen: list[torch.dtype] = []
    stem = training.graph.model("a").get_submodule("stem")
    stem.register_forward_hook(lambda module, images, output: seen.append(output.dtype))
    (metrics,) = train(training)
    assert training.images.val is not None
    evaluate(training, training.images.val, "val")
    assert len(seen) > UPDATES and set(seen) == {torch.bfloat16}
    for _, _, losses in steps:
        every = [losses.total, *losses.nodes.values(), *losses.edges.values()]
        assert {each.dtype for each in every} == {torch.float32}
    assert {each.dtype for each in training.graph.parameters()} == {torch.float32}
    assert all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize(
    ("computes", "name", "accelerates", "recipe", "expected"),
    [
        ("avx512_bf16", "AMD EPYC", None, None, "bf16"),
        ("avx512_bf16", "Intel Xeon", None, None, "no"),
        ("amx_bf16", "Intel Xeon", "no", None, "bf16"),  # what accelerate's launcher says by itself
        ("avx2", "AMD EPYC", None, None, "no"),
        ("avx2", "AMD EPYC", "bf16", None, "bf16"),
        ("avx512_bf16", "AMD EPYC", None, "no", "no"),
    ],
)
def test_open_precision_is_bf16_where_a_cpu_gains_by_it(
    computes: str,
    name: str,
    accelerates: str | None,
    recipe: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capabilities = {computes: True, "cpu_name": name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if accelerates is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", accelerates)
    reset_accelerate()
    open_recipe = check_recipe(recipe_values(mixed_precision=recipe))
    accelerator = create_accelerator(open_recipe)
    assert resolved(open_recipe, accelerator).train.mixed_precision == expected


def test_open_precision_is_that_of_an_accelerator_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    reset_accelerate()
    Accelerator(cpu=True)
    accelerator = create_accelerator(check_recipe(recipe_values(mixed_precision=None)))
    assert accelerator.mixed_precision == "no"


@on_cpu
def test_deterministic_algorithms_are_used_if_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    reset_accelerate()
    found = []
    try:
        for wanted in (False, True):
            create_accelerator(check_recipe(recipe_values(deterministic=wanted)))
            cudnn = torch.backends.cudnn.deterministic
            found.append((torch.are_deterministic_algorithms_enabled(), cudnn))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert found == [(False, False), (True, True)]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


@pytest.mark.parametrize(("precision", "word"), [("no", "float32"), ("bf16", "bf16")])
def test_terminal_says_the_precision(
    precision: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(mixed_precision=precision))
    assert run_main(recipe, "--dry-run") == 0
    assert f"building 2 nodes ({word})." in capsys.readouterr().out


@on_cpu
def test_fp16_without_a_gpu_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(mixed_precision="fp16"))
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.mixed_precision: ") and "fp16" in line
    assert not (tmp_path / "run").exists()


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    plain, last = build(recipe_values(NORMED)), build(recipe_values(NORMED, channels_last=True))
    seen: list[Tensor] = []
    stem = last.graph.model("a").get_submodule("stem")
    stem.register_forward_hook(lambda module, images, output: seen.append(images[0]))
    (first,), (second,) = train(plain), train(last)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    weight = next(stem.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert furthest(state_of(plain.graph), state_of(last.graph)) < 1e-5
    assert second["train/loss/a"] == pytest.approx(first["train/loss/a"], abs=1e-5)
