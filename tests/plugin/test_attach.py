"""The graph in a user's loop: three lines more, and nothing else changes."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.optim import Lookahead, create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

import timm_ktg as ktg
from tests.nets import TinyNet, edge, graph_of, hard_labels, images
from tests.training_cases import one_process_group as one_process_group
from tests.training_cases import same_state, state_of
from timm_ktg import KnowledgeTransferGraph, Node, attach
from timm_ktg.plugin.attach import Attachment
from timm_ktg.recipe.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("workbench")

STEPS = 6
MUTUAL = [
    edge("label", "a"),
    edge("b", "a", "linear"),
    edge("c", "a", "correct"),
    edge("label", "b"),
    edge("a", "b", temperature=2.0),
]

Make = Callable[[Any], Optimizer]


def mutual(**options: Any) -> KnowledgeTransferGraph:
    """a learns from b and from c, which is frozen; b learns from a."""
    return graph_of(*MUTUAL, frozen=("c",), **options)


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)


def parts(make: Make = sgd) -> tuple[KnowledgeTransferGraph, nn.Module, Optimizer]:
    graph = mutual()
    model = graph.model("a").train()
    return graph, model, make(model.parameters())


Attached = tuple[nn.Module, Optimizer, Attachment]


def attached(make: Make = sgd, total_updates: int = STEPS) -> Attached:
    graph, model, optimizer = parts(make)
    return model, optimizer, attach(model, graph, optimizer, total_updates)


def steps(first: int = 0, last: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    return ((images(8, seed=step), hard_labels(8, seed=step)) for step in range(first, last))


def loop(
    model: nn.Module, optimizer: Optimizer, handle: Attachment, first: int = 0, last: int = STEPS
) -> None:
    """The loop of the README, with its three lines."""
    for x, labels in steps(first, last):
        optimizer.zero_grad()
        model(x)
        handle.loss(labels).backward()
        optimizer.step()


# It is the graph.


def timm_adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=0.01, weight_decay=0.1)


def lookahead(parameters: Any) -> Optimizer:
    optimizer: Optimizer = create_optimizer_v2(parameters, opt="lookahead_momentum", lr=0.1)
    return optimizer


@pytest.mark.parametrize("make", [sgd, timm_adamw, lookahead])
def test_loop_with_attach_does_what_the_graph_does(make: Make) -> None:
    graph = mutual().train()
    optimizer = make([{"params": graph.model(name).parameters()} for name in graph.learning])
    for step, (x, labels) in enumerate(steps(), start=1):
        optimizer.zero_grad()
        graph.losses(graph(x), labels, step / STEPS).total.backward()
        optimizer.step()
    model, optimizer, handle = attached(make)
    before = state_of(handle.graph)
    loop(model, optimizer, handle)
    assert same_state(state_of(graph), state_of(handle.graph))
    changed = {key for key, value in state_of(graph).items() if not torch.equal(value, before[key])}
    assert {key.split(".")[1] for key in changed} == {"a", "b"}


def test_images_may_come_by_name() -> None:
    model, _, handle = attached()
    model(x=images())
    by_name = handle.loss(hard_labels())
    model(images())
    assert float(handle.loss(hard_labels()).detach()) == float(by_name.detach())


def test_auxiliaries_run_only_where_the_model_trains() -> None:
    model, optimizer, handle = attached()
    loop(model, optimizer, handle, last=2)
    auxiliaries, ran = [handle.graph.model(name) for name in handle.auxiliaries], []
    before = [state_of(each) for each in auxiliaries]
    for each in auxiliaries:
        each.register_forward_hook(lambda *_: ran.append(1))
    model.eval()
    with torch.no_grad():
        model(images())
    model(images())
    model.train()
    with torch.no_grad():
        model(images())
    assert ran == [] and handle.clock.updates == 2
    assert all(map(same_state, before, map(state_of, auxiliaries)))
    model(images())
    assert len(ran) == 2


def test_evaluation_between_forward_and_loss_changes_nothing() -> None:
    model, _, handle = attached()
    model(images())
    expected = handle.loss(hard_labels())
    model(images())
    model.eval()(images(3, seed=9))
    assert float(handle.loss(hard_labels()).detach()) == float(expected.detach())


def test_clock_counts_updates_of_lookahead(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a new process, where no `zero_grad` of Lookahead has made its steps call hooks.
    monkeypatch.setattr(Lookahead, "step", getattr(Lookahead.step, "__wrapped__", Lookahead.step))
    model, optimizer, handle = attached(lookahead)
    for x, labels in steps():
        model.zero_grad()
        model(x)
        handle.loss(labels).backward()
        optimizer.step()
    assert handle.clock.updates == STEPS


def test_clock_counts_updates_and_not_losses() -> None:
    seen: list[float] = []

    def watching(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        seen.append(float(context.progress))
        return losses

    nodes = [Node("a", TinyNet())]
    graph = KnowledgeTransferGraph(nodes, [ktg.Edge("label", "a", watching)], "a")
    model = graph.model("a").train()
    optimizer = sgd(model.parameters())
    handle = attach(model, graph, optimizer, total_updates=3)
    for _ in range(3):
        for x, labels in steps(last=2):
            model(x)
            handle.loss(labels).backward()
        optimizer.step()
    assert seen == [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1.0, 1.0]


def test_taps_hold_what_the_model_made_of_these_images() -> None:
    captured: list[tuple[Tensor, Tensor]] = []

    def looking(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        ends = context.source, context.destination
        captured.append(tuple(end.features["stem"] for end in ends))  # type: ignore[arg-type]
        return losses

    nodes = [Node("a", TinyNet(0), taps=("stem",)), Node("b", TinyNet(1), taps=("stem",))]
    edges = [ktg.Edge("b", "a", looking), edge("label", "b")]
    graph = KnowledgeTransferGraph(nodes, edges, "a")
    model = graph.model("a").train()
    handle = attach(model, graph, sgd(model.parameters()), STEPS)
    model.eval()(images())  # captured too, and forgotten
    x = images(seed=4)
    model.train()(x)
    handle.loss(hard_labels()).backward()
    ((source, destination),) = captured
    assert not source.requires_grad and destination.requires_grad
    torch.testing.assert_close(source, graph.model("b").get_submodule("stem")(x))
    torch.testing.assert_close(destination, model.get_submodule("stem")(x))


# Recipes.


@pytest.mark.parametrize("form", [str, load_recipe])
def test_bundled_recipe_puts_its_nodes_around_a_model(form: Callable[[str], Any]) -> None:
    model = timm.create_model("resnet8_cifar", num_classes=10).train()
    optimizer = sgd(model.parameters())
    handle = attach(model, form("digits"), optimizer, total_updates=2)
    assert handle.auxiliaries == ("slow", "alone")
    assert handle.graph.model("student") is model
    before = state_of(handle.graph)
    model(torch.randn(4, 3, 8, 8))
    handle.loss(torch.arange(4)).backward()
    optimizer.step()
    moved = {key for key, v in state_of(handle.graph).items() if not torch.equal(v, before[key])}
    assert {key.split(".")[1] for key in moved} == {"student", "slow", "alone"}


def test_recipe_wants_to_know_the_number_of_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ValueError, match="should have `num_classes`"):
        attach(model, "digits", sgd(model.parameters()), STEPS)


def test_model_without_a_classifier_is_refused() -> None:
    model = timm.create_model("resnet8_cifar", num_classes=0)
    with pytest.raises(ValueError, match="num_classes of the model should be at least 1. Found 0"):
        attach(model, "digits", sgd(model.parameters()), STEPS)


# The optimizer.


def test_auxiliary_gets_the_options_of_the_one_group() -> None:
    _, optimizer, handle = attached()
    first, second = optimizer.param_groups
    options = first.keys() - {"params"}
    assert {key: first[key] for key in options} == {key: second[key] for key in options}
    assert list(map(id, second["params"])) == list(map(id, handle.graph.model("b").parameters()))


def test_timms_two_groups_are_split_alike() -> None:
    graph, model, _ = parts()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.2)
    attach(model, graph, optimizer, STEPS)
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.2, 0.0, 0.2]
    for own, auxiliary in zip(groups[:2], groups[2:], strict=True):
        assert [p.shape for p in own["params"]] == [p.shape for p in auxiliary["params"]]
        assert auxiliary["node"] == "b" and own["lr"] == auxiliary["lr"]


@pytest.mark.parametrize("group", [None, {"lr": 0.3}])
def test_optimizer_of_named_parameters_learns_the_auxiliarys_names(
    group: dict[str, float] | None,
) -> None:
    graph, model, _ = parts()
    optimizer = SGD(model.named_parameters(), lr=0.1)
    attach(model, graph, optimizer, STEPS, group)
    own, auxiliary = (each["param_names"] for each in optimizer.param_groups)
    assert own == [name for name, _ in model.named_parameters()]
    assert auxiliary == [
        f"members.b.model.{name}" for name, _ in graph.model("b").named_parameters()
    ]


def test_named_groups_with_and_without_decay_are_split_alike() -> None:
    graph, model, _ = parts()
    spared = [each for each in model.named_parameters() if each[1].ndim < 2]
    others = [each for each in model.named_parameters() if each[1].ndim > 1]
    optimizer = SGD([{"params": spared, "weight_decay": 0.0}, {"params": others}], weight_decay=0.1)
    attach(model, graph, optimizer, STEPS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1, 0.0, 0.1]


def test_groups_of_other_options_want_to_be_told() -> None:
    graph, model, _ = parts()
    head, *others = model.parameters()
    optimizer = SGD([{"params": [head], "lr": 1.0}, {"params": others}], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"2 groups with different options.*group=\{'lr'"):
        attach(model, graph, optimizer, STEPS)
    assert len(optimizer.param_groups) == 2 and not model._forward_hooks
    attach(model, graph, optimizer, STEPS, group={"lr": 0.3})
    assert optimizer.param_groups[2]["lr"] == 0.3 and optimizer.param_groups[2]["momentum"] == 0.9


@pytest.mark.parametrize(
    "schedule",
    [
        partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        partial(CosineLRScheduler, t_initial=5),
    ],
    ids=["torch", "timm"],
)
def test_optimizer_with_a_scheduler_is_refused(schedule: Callable[[Optimizer], Any]) -> None:
    graph, model, optimizer = parts()
    schedule(optimizer)
    with pytest.raises(ValueError, match="attach should be called before the scheduler"):
        attach(model, graph, optimizer, STEPS)
    assert len(optimizer.param_groups) == 1


def test_refused_length_leaves_the_optimizer_alone() -> None:
    graph, model, optimizer = parts()
    with pytest.raises(ValueError, match="total_updates should be at least 1. Found 0"):
        attach(model, graph, optimizer, 0)
    assert len(optimizer.param_groups) == 1 and not model._forward_hooks


# Refusals.


@pytest.mark.parametrize("wrapper", [DistributedDataParallel, DataParallel])
def test_wrapped_model_is_refused_and_the_graph_named(
    wrapper: Callable[[nn.Module], nn.Module], one_process_group: None
) -> None:
    graph, model, optimizer = parts()
    with pytest.raises(ValueError, match=r"KnowledgeTransferGraph.*DistributedDataParallel"):
        attach(wrapper(model), graph, optimizer, STEPS)
    attach(model, graph, optimizer, STEPS)  # a group of one process is fine


def test_one_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, one_process_group: None
) -> None:
    graph, model, optimizer = parts()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="attach works in one process"):
        attach(model, graph, optimizer, STEPS)


def test_another_model_than_the_target_is_refused() -> None:
    graph = mutual()
    for model in (copy.deepcopy(graph.model("a")), graph.model("b")):
        with pytest.raises(ValueError, match=r"target `a` should be the attached model"):
            attach(model, graph, sgd(model.parameters()), STEPS)


def test_loss_wants_a_forward_in_training_mode_each_time() -> None:
    model, _, handle = attached()
    with pytest.raises(ValueError, match="should run in training mode"):
        handle.loss(hard_labels())
    model(images())
    handle.loss(hard_labels())
    with pytest.raises(ValueError, match="should run in training mode"):
        handle.loss(hard_labels())


def test_run_that_is_longer_than_it_said_is_refused() -> None:
    model, optimizer, handle = attached(total_updates=2)
    loop(model, optimizer, handle, last=2)
    model(images())
    with pytest.raises(ValueError, match=r"Found 2, and update 3 is being computed"):
        handle.loss(hard_labels())


def test_losses_and_gates_are_tried_on_images_before_the_loop() -> None:
    def one_number(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses.mean()

    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", gate=one_number), edge("label", "b"))
    model = graph.model("a").train()
    with pytest.raises(ValueError, match="^b->a: gate `one_number` should return one loss per"):
        attach(model, graph, sgd(model.parameters()), STEPS, images=images(2))
    assert model.training
