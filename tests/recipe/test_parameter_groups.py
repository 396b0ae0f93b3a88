"""Parameter groups are those that timm's optimizer factory makes, node by node."""

from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from timm_ktg.errors import RecipeError
from timm_ktg.graph.edge import Edge
from timm_ktg.graph.graph import KnowledgeTransferGraph
from timm_ktg.graph.node import Node
from timm_ktg.plugin.attach import attach
from timm_ktg.recipe.build import build_optimizer
from timm_ktg.recipe.train_config import TrainConfig

TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=4, **TINY)


def graph_of(*models: nn.Module) -> KnowledgeTransferGraph:
    nodes = [Node(f"n{number}", model) for number, model in enumerate(models)]
    edges = [Edge("label", node.name) for node in nodes]
    edges += [Edge(node.name, "n0") for node in nodes[1:]]
    return KnowledgeTransferGraph(nodes, edges, "n0")


def table(model: nn.Module, groups: Any) -> dict[str, tuple[float, float]]:
    """Weight decay and scale of the learning rate by parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in groups
        for parameter in group["params"]
        if id(parameter) in names
    }


def ours(model: nn.Module, **values: Any) -> dict[str, tuple[float, float]]:
    train = TrainConfig(opt="adamw", lr=0.01, weight_decay=0.2, momentum=0.9, **values)
    return table(model, build_optimizer(train, graph_of(model)).param_groups)


def timms(model: nn.Module, **values: Any) -> dict[str, tuple[float, float]]:
    made = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.2, **values)
    return table(model, made.param_groups)


def test_layer_decay_is_timms() -> None:
    model = vit()
    found = ours(model, layer_decay=0.5, filter_bias_and_bn=True)
    assert found == timms(model, layer_decay=0.5)
    assert len({scale for _, scale in found.values()}) == 4  # embedding, two blocks, head
    assert found["pos_embed"] == (0.0, 0.125)


def test_layer_decay_goes_with_decay_on_all_parameters() -> None:
    model = vit()
    found = ours(model, layer_decay=0.5)
    assert {decay for decay, _ in found.values()} == {0.2}
    assert found["head.bias"][1] == 1.0


def test_filter_spares_what_a_model_names() -> None:
    model = vit()
    found = ours(model, filter_bias_and_bn=True)
    assert found == timms(model)
    assert found["pos_embed"][0] == found["cls_token"][0] == 0.0


def test_attach_spares_what_an_auxiliary_names() -> None:
    model, peer = vit(), vit()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.2)
    graph = graph_of(model, peer)
    attach(model, graph, optimizer, total_updates=1)
    assert table(peer, optimizer.param_groups) == timms(peer)


def test_rates_of_layers_follow_the_schedule(workplace: Any) -> None:
    from tests.recipe_cases import recipe_values
    from tests.training_cases import build
    from timm_ktg.train.loop import start_epoch, train_epoch

    nodes = {"a": {"model": "resnet8_cifar", "learns_from": {"label": "through"}}}
    training = build(recipe_values(nodes, epochs=2, lr=0.1, layer_decay=0.5))
    metrics = train_epoch(training, start_epoch(training))
    assert metrics["lr"] == 0.1
    groups = training.optimizer.param_groups
    assert {round(g["lr"] / g["lr_scale"], 12) for g in groups} == {0.05}  # cosine, half-way
    assert len({g["lr_scale"] for g in groups}) > 2
    assert all(torch.isfinite(p).all() for g in groups for p in g["params"])


@pytest.mark.parametrize("more", [{}, {"filter_bias_and_bn": True}, {"layer_decay": 0.5}])
def test_fallback_of_muon_is_timms(more: dict[str, Any]) -> None:
    model = vit()
    kwargs = {"fallback_list": ["head*"], "fallback_no_weight_decay": True}
    train = TrainConfig(opt="muon", lr=0.01, opt_kwargs=kwargs, **more)
    timms_own = {"filter_bias_and_bn": False, **more, **kwargs}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ours, theirs = (
        {
            names[id(parameter)]
            for group in made.param_groups
            for parameter in group["params"]
            if group.get("use_fallback")
        }
        for made in (
            build_optimizer(train, graph_of(model)),
            create_optimizer_v2(model, opt="muon", weight_decay=0.1, **timms_own),
        )
    )
    assert ours == theirs == {"head.weight", "head.bias", "pos_embed", "cls_token"}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"lr": 1.0}, r"should leave out `lr`, which has no effect here\. Say train\.lr\."),
        ({"layer_decay": 0.5}, r"should leave out `layer_decay`, .* Say train\.layer_decay\."),
        ({"layer_decay_no_opt_scale": 0.1}, r".*`layer_decay_no_opt_scale`, .* no effect here\.$"),
        ({"fallback_list": "head*"}, r"fallback_list should be a list"),
    ],
)
def test_argument_without_effect_is_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^train\.opt_kwargs: {said}"):
        build_optimizer(TrainConfig(opt="muon", opt_kwargs=kwargs), graph_of(vit()))


def test_optimizer_that_cannot_be_made_here_is_named_by_its_own_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def needs_cuda(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA required for APEX optimizers")

    monkeypatch.setattr("timm_ktg.recipe.build.create_optimizer_v2", needs_cuda)
    with pytest.raises(RecipeError, match=r"^train\.opt: .*CUDA required"):
        build_optimizer(TrainConfig(opt="fusedadam"), graph_of(vit()))
