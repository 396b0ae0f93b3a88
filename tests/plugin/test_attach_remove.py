"""The graph in a user's loop: saving, working with other tools, and removal."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from tests.nets import CLASSES, TinyNet, edge, gradients, graph_of, hard_labels, images
from tests.plugin.test_attach import (
    MUTUAL,
    STEPS,
    attached,
    lookahead,
    loop,
    parts,
    sgd,
    steps,
)
from tests.recipe_cases import recipe_values
from tests.training_cases import same_state, state_of
from timm_ktg import KnowledgeTransferGraph, Node, attach
from timm_ktg.recipe.recipe import check_recipe

pytestmark = pytest.mark.usefixtures("workbench")


def plain_loop(model: nn.Module, optimizer: Optimizer, first: int = 0, last: int = STEPS) -> None:
    for x, labels in steps(first, last):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()


# Saving, and leaving.


def test_saved_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer, handle = attached()
    loop(model, optimizer, handle, last=3)
    saved: Any = {"model": model, "optimizer": optimizer, "ktg": handle}
    torch.save({name: each.state_dict() for name, each in saved.items()}, tmp_path / "state.pt")
    loop(model, optimizer, handle, first=3)

    other, its_optimizer, its_handle = attached()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    its_handle.load_state_dict(state["ktg"])
    assert its_handle.clock.updates == 3
    loop(other, its_optimizer, its_handle, first=3)
    assert same_state(state_of(handle.graph), state_of(its_handle.graph))


def hooks_of(model: nn.Module, optimizer: Optimizer) -> list[int]:
    found = [optimizer._optimizer_step_post_hooks, optimizer._optimizer_step_pre_hooks]
    for module in model.modules():
        found += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
    return [len(hooks) for hooks in found]


def test_removed_it_leaves_model_and_optimizer_as_they_were() -> None:
    alone = TinyNet(0).train()
    its_optimizer = sgd(alone.parameters())
    none = hooks_of(alone, its_optimizer)

    nodes = [Node("a", TinyNet(0), taps=("stem",)), Node("b", TinyNet(1))]
    graph = KnowledgeTransferGraph(nodes, [e for e in MUTUAL if "c" not in e.pair], "a")
    model = graph.model("a").train()
    optimizer = sgd(model.parameters())
    handle = attach(model, graph, optimizer, STEPS)
    loop(model, optimizer, handle, last=3)
    assert hooks_of(model, optimizer) != none
    handle.remove()

    assert hooks_of(model, optimizer) == none
    assert len(optimizer.param_groups) == 1
    assert set(optimizer.state) == set(model.parameters())
    assert optimizer.state_dict()["param_groups"] == its_optimizer.state_dict()["param_groups"]
    before = state_of(graph.model("b"))
    alone.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    plain_loop(model, optimizer, first=3)
    plain_loop(alone, its_optimizer, first=3)
    assert same_state(state_of(model), state_of(alone))
    assert same_state(state_of(graph.model("b")), before)
    with pytest.raises(ValueError, match="should run in training mode"):
        handle.loss(hard_labels())


def test_attached_and_removed_at_once_it_was_never_there() -> None:
    model, optimizer, handle = attached()
    handle.remove()
    plain_loop(model, optimizer)
    alone = TinyNet(0).train()
    plain_loop(alone, sgd(alone.parameters()))
    assert same_state(state_of(model), state_of(alone))


def test_removed_from_lookahead_its_state_holds_the_model_alone() -> None:
    model, optimizer, handle = attached(lookahead)
    loop(model, optimizer, handle)
    handle.remove()
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))


def test_refused_optimizer_is_left_as_it_was() -> None:
    graph = graph_of(*MUTUAL, edge("label", "c"))
    model = graph.model("a").train()
    optimizer = sgd([*model.parameters(), *graph.model("c").parameters()])
    with pytest.raises(ValueError, match="more than one parameter group"):
        attach(model, graph, optimizer, STEPS)
    assert len(optimizer.param_groups) == 1


def test_removed_after_a_state_was_loaded_it_leaves_the_optimizer_as_it_was() -> None:
    model, optimizer, handle = attached()
    loop(model, optimizer, handle, last=2)
    optimizer.load_state_dict(optimizer.state_dict())
    handle.remove()
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


def test_attached_twice_it_is_refused_but_a_copy_is_another_model() -> None:
    model, optimizer, handle = attached()
    with pytest.raises(ValueError, match="is attached already. Call its handle's remove"):
        attach(model, "presets/dml", optimizer, STEPS)
    other = copy.deepcopy(model)
    attach(other, "presets/dml", sgd(other.parameters()), STEPS).remove()
    handle.remove()
    attach(model, "presets/dml", optimizer, STEPS).remove()


def test_copy_for_a_moving_average_teaches_nobody() -> None:
    model, optimizer, handle = attached()
    loop(model, optimizer, handle, last=2)
    average = copy.deepcopy(model).eval()
    before = state_of(handle.graph)
    torch.testing.assert_close(average(images()), model.eval()(images()))
    assert same_state(before, state_of(handle.graph))
    model.train()
    loop(model, optimizer, handle, first=2)
    assert handle.clock.updates == STEPS


# A model with a distilled head, which returns both heads while the graph trains it.

DISTILLED: Any = {
    "a": {
        "model": "deit_tiny_distilled_patch16_224",
        "taps": ["blocks.0"],
        "learns_from": {"label": "through", "b": {"head": "dist"}},
    },
    "b": {"model": "resnet8_cifar", "learns_from": {"label": "through"}},
}


def distilled() -> tuple[Any, Optimizer]:
    small = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **small)
    return model.train(), sgd(model.parameters())


@pytest.mark.parametrize("both", [False, True])
def test_removed_it_leaves_a_distilled_head_as_it_was(both: bool) -> None:
    model, optimizer = distilled()
    model.set_distilled_training(both)
    none = hooks_of(model, optimizer)
    handle = attach(model, check_recipe(recipe_values(DISTILLED)), optimizer, STEPS)
    assert len(model(torch.randn(2, 3, 32, 32))) == 2
    handle.loss(hard_labels(2)).backward()
    optimizer.step()
    handle.remove()
    assert model.distilled_training is both and hooks_of(model, optimizer) == none
    assert isinstance(model(torch.randn(2, 3, 32, 32)), tuple if both else torch.Tensor)


LATE: Any = {"loss": "attention", "taps": ["blocks.0", "layer9"]}  # b lacks the second


@pytest.mark.parametrize(
    ("scheduled", "from_a", "options", "said"),
    [
        (True, None, {}, "attach should be called before the scheduler"),
        (False, None, {"total_updates": 0}, "total_updates should be at least 1"),
        (False, None, {"images": torch.zeros(2, 3, 8, 8)}, "Input height"),
        (False, LATE, {}, "`layer9` is not a module"),
    ],
    ids=["scheduler", "length", "images", "tap"],
)
def test_refused_it_leaves_the_model_as_it_was(
    scheduled: bool, from_a: Any, options: dict[str, Any], said: str
) -> None:
    model, optimizer = distilled()
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 2)
    none = hooks_of(model, optimizer)
    sources = {"label": "through", **({"a": from_a} if from_a else {})}
    recipe = check_recipe(
        recipe_values({**DISTILLED, "b": {**DISTILLED["b"], "learns_from": sources}})
    )
    with pytest.raises((ValueError, AssertionError), match=said):
        attach(model, recipe, optimizer, **{"total_updates": STEPS, **options})
    assert hooks_of(model, optimizer) == none and len(optimizer.param_groups) == 1
    assert model.training and not model.distilled_training


def test_given_graph_keeps_its_taps_where_it_is_refused() -> None:
    nodes = [Node("a", TinyNet(0), taps=("stem",)), Node("b", TinyNet(1))]
    graph = KnowledgeTransferGraph(nodes, [e for e in MUTUAL if "c" not in e.pair], "a")
    model = graph.model("a").train()
    optimizer = sgd(model.parameters())
    with pytest.raises(ValueError, match="total_updates should be at least 1"):
        attach(model, graph, optimizer, 0)
    handle = attach(model, graph, optimizer, STEPS)
    model(images())
    outputs = handle._outputs
    assert outputs is not None and list(outputs["a"].features) == ["stem"]


# Third-party tools.


def test_autocast_of_the_loop_holds_for_the_auxiliaries() -> None:
    model, optimizer, handle = attached()
    seen: list[torch.dtype] = []
    for name in ("a", "b", "c"):
        module = handle.graph.model(name).get_submodule("head")
        module.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
        loss = handle.loss(hard_labels())
    loss.backward()
    optimizer.step()
    assert seen == [torch.bfloat16] * 3
    assert loss.dtype == torch.float32 and bool(loss.isfinite())
    assert all(bool(each.isfinite().all()) for each in gradients(handle.graph.model("b")))


def test_optimizer_of_accelerate_trains_the_auxiliaries_and_advances_the_clock() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    graph, *own = parts()
    model, optimizer = accelerator.prepare(*own)
    handle = attach(model, graph, optimizer, total_updates=STEPS // 2)
    before = state_of(graph.model("b"))
    model.train()
    for x, labels in steps():
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            model(x)
            accelerator.backward(handle.loss(labels))
            optimizer.step()
    assert handle.clock.updates == STEPS // 2
    assert not same_state(before, state_of(graph.model("b")))
    handle.remove()
    assert len(optimizer.param_groups) == 1
