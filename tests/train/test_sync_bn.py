"""Synchronized BatchNorm: which nodes have it, and where it is refused. Tried without a GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from tests.recipe_cases import PLAIN, recipe_values, write_recipe
from tests.training_cases import on_cpu, run_main, same_state, state_of
from timm_ktg.errors import RecipeError
from timm_ktg.graph.edge import Edge
from timm_ktg.graph.node import Node
from timm_ktg.recipe.train_config import TrainConfig
from timm_ktg.search.study import IDENTITY, _check_identity
from timm_ktg.train.checks import check_sync_bn
from timm_ktg.train.training import synchronized


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if "BatchNorm" in type(module).__name__}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet8_cifar", nn.SyncBatchNorm), ("mobilenetv3_small_050", SyncBatchNormAct)],
)
def test_learning_nodes_alone_are_synchronized_and_keep_their_weights(
    name: str, kind: type[nn.Module]
) -> None:
    nodes = [Node(each, timm.create_model(name), pretrained=each == "teacher") for each in "ab"]
    nodes.append(Node("teacher", timm.create_model(name), pretrained=True))
    edges = [Edge("label", "a"), Edge("b", "a"), Edge("label", "b"), Edge("teacher", "a")]
    before = {node.name: state_of(node.model) for node in nodes}
    teacher = kinds(nodes[2].model)
    after = {node.name: node for node in synchronized(nodes, edges)}
    assert list(after) == ["a", "b", "teacher"]
    assert kinds(after["a"].model) == kinds(after["b"].model) == {kind}
    assert kinds(after["teacher"].model) == teacher and kind not in teacher
    assert all(same_state(before[each], state_of(after[each].model)) for each in after)


@on_cpu
def test_sync_bn_is_refused_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(PLAIN))
    capsys.readouterr()
    assert run_main(recipe, "--dry-run", "--train.sync_bn", "true") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.sync_bn: should be off on this device") and "Found cpu." in line


def test_sync_bn_is_allowed_on_accelerators() -> None:
    for device in ("cuda", "xpu"):
        check_sync_bn(TrainConfig(sync_bn=True), torch.device(device))
    check_sync_bn(TrainConfig(), torch.device("cpu"))


@pytest.mark.parametrize("made", [{}, {"train.sync_bn": False}])
def test_study_of_a_version_without_sync_bn_goes_on_without_it(made: dict[str, Any]) -> None:
    study = cast(Any, SimpleNamespace(user_attrs={IDENTITY: made}, study_name="s"))
    _check_identity(study, {"train.sync_bn": False})
    with pytest.raises(RecipeError, match=r"train\.sync_bn: study `s` was made with False"):
        _check_identity(study, {"train.sync_bn": True})
