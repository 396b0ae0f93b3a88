"""The hooks of `attach` beside the loop: copies, autocast, clipping, forgotten losses."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

import timm_ktg as ktg
from tests.nets import TinyNet, edge, gradients, hard_labels, images
from tests.plugin.test_attach import STEPS, attached, loop, parts, sgd, steps
from tests.training_cases import one_process_group as one_process_group
from tests.training_cases import same_state, state_of
from timm_ktg.plugin.attach import Attachment, attach

pytestmark = pytest.mark.usefixtures("workbench")


def tapped() -> tuple[nn.Module, Attachment]:
    """A model that a feature loss taps, attached and in the middle of a step."""
    nodes = [ktg.Node(name, TinyNet(seed)) for seed, name in enumerate("ab")]
    by_features = ktg.Edge("b", "a", loss=ktg.create_loss("attention"), taps="stem")
    graph = ktg.KnowledgeTransferGraph(nodes, [edge("label", "b"), by_features], "a")
    model = graph.model("a").train()
    handle = attach(model, graph, sgd(model.parameters()), STEPS)
    model(images())
    return model, handle


# Copies and pickles.


def moving_average(model: nn.Module) -> nn.Module:
    return ModelEmaV3(model).module


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, moving_average, pickled, saved_whole]


@pytest.mark.parametrize("copied", COPIES)
def test_copy_of_the_model_is_that_of_a_model_alone(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    for model, handle in (tapped(), attached()[::2]):
        double = copied(model).train()
        before = state_of(handle.graph)
        double(images(seed=3))
        assert same_state(before, state_of(handle.graph))  # the auxiliaries' BatchNorm moves
        assert handle.clock.updates == 0


def test_copy_of_the_model_copies_only_its_own_tensors() -> None:
    model, handle = tapped()
    memo: dict[int, Any] = {}
    copy.deepcopy(model, memo)
    held = {id(each) for each in handle.graph.state_dict(keep_vars=True).values()}
    own = {id(each) for each in model.state_dict(keep_vars=True).values()}
    assert own < held
    assert held & memo.keys() == own
    assert len(pickle.dumps(model)) < 1.2 * len(pickle.dumps(TinyNet(0)))


def test_copy_of_the_model_holds_no_activations() -> None:
    model, _ = tapped()
    double = copy.deepcopy(model)
    kept: list[Tensor] = []
    double.get_submodule("stem").register_forward_hook(lambda *given: kept.append(given[2]))
    double(images())
    keep, *_ = double.get_submodule("stem")._forward_hooks.values()
    assert len(kept) == 1
    assert all(value is not kept[0] for value in vars(keep).values())


def test_copy_of_a_graph_reads_its_own_taps() -> None:
    _, handle = tapped()
    double = copy.deepcopy(handle.graph)
    outputs = double(images(seed=5))
    assert outputs["a"].features.keys() == {"stem"}
    double.losses(outputs, hard_labels()).total.backward()
    assert handle.loss(hard_labels()).isfinite()


# Autocast.


def types_seen(handle: Attachment) -> dict[str, torch.dtype]:
    seen: dict[str, torch.dtype] = {}
    for name in handle.graph.networks:
        head = handle.graph.model(name).get_submodule("head")
        head.register_forward_hook(lambda *given, name=name: seen.update({name: given[2].dtype}))
    return seen


@pytest.mark.parametrize("first", ["prepare", "attach"])
def test_autocast_that_accelerate_puts_into_the_model_holds_for_the_auxiliaries(
    first: str,
) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    graph, model, optimizer = parts()
    if first == "prepare":
        model, optimizer = accelerator.prepare(model, optimizer)
    handle = attach(model, graph, optimizer, STEPS)
    if first == "attach":
        model, optimizer = accelerator.prepare(model, optimizer)
    seen = types_seen(handle)
    model(images())
    accelerator.backward(handle.loss(hard_labels()))
    optimizer.step()
    assert seen == dict.fromkeys("abc", torch.bfloat16)
    assert handle.clock.updates == 1


def test_autocast_that_accelerate_switches_off_is_off_for_the_auxiliaries() -> None:
    off = AutocastKwargs(enabled=False)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", kwargs_handlers=[off])
    graph, model, optimizer = parts()
    model, optimizer = accelerator.prepare(model, optimizer)
    handle = attach(model, graph, optimizer, STEPS)
    seen = types_seen(handle)
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert seen == dict.fromkeys("abc", torch.float32)


class Bare(nn.Module):
    """A model without parts."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 192) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight)


def test_model_without_parts_shares_the_autocast_of_the_loop() -> None:
    model = Bare().train()
    nodes = [ktg.Node("a", model), ktg.Node("b", TinyNet(1))]
    graph = ktg.KnowledgeTransferGraph(nodes, [edge("b", "a"), edge("label", "b")], "a")
    handle = attach(model, graph, sgd(model.parameters()), STEPS)
    seen: list[torch.dtype] = []
    graph.model("b").get_submodule("head").register_forward_hook(
        lambda *given: seen.append(given[2].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    handle.loss(hard_labels())
    model(images())
    assert seen == [torch.bfloat16, torch.float32]


def test_auxiliaries_follow_a_model_to_another_device() -> None:
    model, _, handle = attached()
    model.to("meta")
    model(images().to("meta"))
    assert all(each.is_meta for each in handle.graph.state_dict().values())


# Clipping.


def test_parameters_are_those_of_all_nodes_that_learn() -> None:
    _, optimizer, handle = attached()
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert set(map(id, handle.parameters())) == set(map(id, held))
    frozen = {id(each) for each in handle.graph.model("c").parameters()}
    assert not frozen & set(map(id, handle.parameters()))


def test_clipping_the_handles_parameters_reaches_every_node() -> None:
    model, _, handle = attached()
    model(images())
    (100 * handle.loss(hard_labels())).backward()
    helper = handle.graph.model("b")
    before = gradients(helper)
    clip_grad_norm_(model.parameters(), 0.1)
    assert all(map(torch.equal, before, gradients(helper)))  # as its docstring warns
    clip_grad_norm_(handle.parameters(), 0.1)
    whole = torch.cat([each.flatten() for each in gradients(model) + gradients(helper)])
    torch.testing.assert_close(float(whole.norm()), 0.1, rtol=1e-3, atol=0)


@pytest.mark.parametrize("order", ["before the forward", "before the backward"])
def test_gradients_that_the_model_clears_are_cleared_everywhere(order: str) -> None:
    expected, optimizer, handle = attached()
    loop(expected, optimizer, handle)
    model, its_optimizer, its_handle = attached()
    for x, labels in steps():
        if order == "before the forward":
            model.zero_grad()
        model(x)
        loss = its_handle.loss(labels)
        if order == "before the backward":
            model.zero_grad()
        loss.backward()
        its_optimizer.step()
    assert same_state(state_of(its_handle.graph), state_of(handle.graph))


def test_gradients_are_cleared_where_another_loss_of_the_model_comes_first() -> None:
    model, _, handle = attached()
    for _ in range(2):  # the same batch twice
        model.zero_grad()
        model(images())
        loss = handle.loss(hard_labels())
        sum(each.square().sum() for each in model.parameters()).backward()  # type: ignore[union-attr]
        loss.backward()
        found = gradients(handle.graph.model("b"))
    other, _, its_handle = attached()
    other(images())
    its_handle.loss(hard_labels()).backward()
    assert all(map(torch.equal, found, gradients(its_handle.graph.model("b"))))


def test_gradients_of_several_batches_add_up_in_every_node() -> None:
    model, _, handle = attached()
    for x, labels in steps(last=2):
        model(x)
        handle.loss(labels).backward()
    summed = gradients(handle.graph.model("b"))
    other, _, its_handle = attached()
    parts_ = []
    for x, labels in steps(last=2):
        other.zero_grad()
        other(x)
        its_handle.loss(labels).backward()
        parts_.append(gradients(its_handle.graph.model("b")))
    for whole, *terms in zip(summed, *parts_, strict=True):
        torch.testing.assert_close(whole, sum(terms))


# Losses that nobody asks for.


def test_forgotten_loss_is_said_once() -> None:
    model, _, handle = attached()
    model(images())
    with pytest.warns(UserWarning, match="loss was never asked for"):
        model(images())
    model(images())
    handle.loss(hard_labels())


def test_ordinary_loop_gives_no_warning() -> None:
    model, optimizer, handle = attached()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(model, optimizer, handle, last=3)
        model.eval()(images())
        model(images())
        loop(model.train(), optimizer, handle, first=3)


# Mean and std.

WITH_TEACHER = {
    "graph": {
        "target": "student",
        "nodes": {
            "student": {
                "model": "ktg_tiny",
                "learns_from": {"label": "through", "other": "linear"},
            },
            "other": {"model": "resnet18", "checkpoint_path": "other.safetensors"},
        },
    },
    "data": {"dataset": "digits"},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def around(given: nn.Module, **options: Any) -> Attachment:
    from timm_ktg.recipe.recipe import check_recipe

    recipe = check_recipe(WITH_TEACHER)
    return attach(given, recipe, SGD(given.parameters(), lr=0.1), STEPS, **options)


def test_teacher_of_another_normalization_gets_its_own(workplace: Any) -> None:
    from timm_ktg.graph.weights import export_node

    export_node(timm.create_model("resnet18", num_classes=4), workplace / "other.safetensors")
    with pytest.raises(ValueError, match=r"expects images normalized with.*\(mean=, std=\)"):
        around(TinyNet())
    with pytest.raises(ValueError, match="mean and std should be given together"):
        around(TinyNet(), mean=MEAN)
    handle = around(TinyNet(), mean=list(MEAN), std=list(STD))
    teacher = handle.graph.network("other")
    x = torch.rand(2, 3, 8, 8)

    def normalized(mean: Any, std: Any) -> Tensor:
        return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    expected = teacher.model(
        normalized(*(teacher.model.pretrained_cfg[k] for k in ("mean", "std")))
    )
    torch.testing.assert_close(teacher(normalized(MEAN, STD)).logits, expected)


def test_graph_by_hand_has_its_own_mean_and_std() -> None:
    graph, model, optimizer = parts()
    with pytest.raises(ValueError, match="should be given to the KnowledgeTransferGraph itself"):
        attach(model, graph, optimizer, STEPS, mean=MEAN, std=STD)


# Several processes, after all.


def test_processes_that_start_later_are_refused(
    monkeypatch: pytest.MonkeyPatch, one_process_group: None
) -> None:
    model, _, _ = attached()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="attach works in one process"):
        model(images())
    model.eval()(images())


def test_replica_of_the_model_is_refused() -> None:
    model, _, _ = attached()
    replica = copy.copy(model)  # what DataParallel makes for each device
    with pytest.raises(ValueError, match="attach works in one process"):
        replica(images())
