"""The graph as a training task of timm."""

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks

from tests.nets import CLASSES, TinyNet, edge, graph_of, hard_labels, images, soft_labels
from tests.training_cases import one_process_group as one_process_group
from tests.training_cases import same_state, state_of
from timm_ktg import KnowledgeTransferGraph, KnowledgeTransferTask, Node

pytestmark = pytest.mark.slow

STEPS = 6
EDGES = [
    edge("label", "a"),
    edge("b", "a", "linear"),
    edge("c", "a", "correct"),
    edge("label", "b"),
    edge("a", "b", "negative_linear"),
]


def mutual() -> KnowledgeTransferGraph:
    return graph_of(*EDGES, frozen=("c",))


def tapped() -> KnowledgeTransferGraph:
    nodes = [Node("a", TinyNet(0), taps=("stem",)), Node("b", TinyNet(1), taps=("act", "stem"))]
    return KnowledgeTransferGraph(nodes, [e for e in EDGES if "c" not in e.pair], "a")


def task_of(graph: KnowledgeTransferGraph) -> tuple[KnowledgeTransferTask, Optimizer]:
    optimizer = SGD(
        [each for each in graph.parameters() if each.requires_grad], lr=0.1, momentum=0.9
    )
    return KnowledgeTransferTask(graph, optimizer, STEPS, verbose=False), optimizer


def steps(first: int = 0, last: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    return ((images(8, seed=step), hard_labels(8, seed=step)) for step in range(first, last))


def loop(task: TrainingTask, optimizer: Optimizer, first: int = 0, last: int = STEPS) -> None:
    """A loop that uses only timm's contract."""
    task.train()
    for x, labels in steps(first, last):
        optimizer.zero_grad()
        task(x, labels)["loss"].backward()
        optimizer.step()
        task.update_ema()


# Training.


def test_result_names_loss_output_and_every_part() -> None:
    graph = mutual()
    task, _ = task_of(graph)
    expected = graph.losses(graph.eval()(images()), hard_labels(), 1 / STEPS)
    result = task.eval()(images(), hard_labels())
    edges = {f"loss/{name}" for name in expected.edges}
    assert set(result) == {"loss", "output", "loss/a", "loss/b"} | edges
    torch.testing.assert_close(result["loss"], expected.total)
    torch.testing.assert_close(result["output"], graph.model("a")(images()))
    torch.testing.assert_close(result["loss/b->a"], expected.edges["b->a"])
    assert result["loss"].requires_grad and not result["loss/a"].requires_grad
    torch.testing.assert_close(result["loss"].detach(), result["loss/a"] + result["loss/b"])


def test_task_does_what_the_graph_does() -> None:
    graph = mutual().train()
    _, optimizer = task_of(graph)
    for step, (x, labels) in enumerate(steps(), start=1):
        optimizer.zero_grad()
        graph.losses(graph(x), labels, step / STEPS).total.backward()
        optimizer.step()
    task, its_optimizer = task_of(mutual())
    loop(task, its_optimizer)
    assert isinstance(task.trainable_module, KnowledgeTransferGraph)
    assert same_state(state_of(graph), state_of(task.trainable_module))


def test_clock_counts_updates_and_ends_with_the_run() -> None:
    task, optimizer = task_of(mutual())
    assert task.clock.progress == 1 / STEPS
    task(*next(steps())), task.eval()(*next(steps()))
    assert task.clock.updates == 0
    loop(task, optimizer)
    assert task.clock.updates == STEPS
    with pytest.raises(ValueError, match=f"Found {STEPS}, and update {STEPS + 1} is being"):
        task(*next(steps()))


def test_frozen_node_stays_frozen_whatever_the_task_is_told() -> None:
    graph = mutual()
    task, optimizer = task_of(graph)
    before = state_of(graph.model("c"))
    loop(task, optimizer)
    assert graph.model("a").training and not graph.model("c").training
    assert same_state(before, state_of(graph.model("c")))


def test_task_takes_mixed_labels() -> None:
    task, _ = task_of(mutual())
    result = task(images(), soft_labels())
    assert result["output"].shape == (8, CLASSES) and bool(result["loss"].isfinite())


def test_optimizer_that_misses_a_node_is_refused() -> None:
    graph = mutual()
    optimizer = SGD(graph.model("a").parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Found node `b` left out.*create_optimizer_v2"):
        KnowledgeTransferTask(graph, optimizer, STEPS)
    KnowledgeTransferTask(graph, create_optimizer_v2(graph, opt="adamw", lr=0.1), STEPS)


@pytest.mark.parametrize("later", [False, True])
def test_optimizer_without_layers_that_the_user_froze_is_taken(later: bool) -> None:
    graph = mutual()
    graph.model("a").get_submodule("stem").requires_grad_(False)
    optimizer = create_optimizer_v2(graph, opt="adamw", lr=0.1)
    task = KnowledgeTransferTask(graph, None if later else optimizer, STEPS, verbose=False)
    loop(task, optimizer)
    assert task.clock.updates == STEPS


def test_optimizer_that_is_made_later_drives_the_clock_likewise() -> None:
    task, optimizer = task_of(mutual())
    loop(task, optimizer)
    later = KnowledgeTransferTask(mutual(), total_updates=STEPS, verbose=False)
    other, _ = task_of(mutual())  # its optimizer is not the task's
    its_optimizer = SGD(
        [each for each in later.get_trainable_module().parameters() if each.requires_grad],
        lr=0.1,
        momentum=0.9,
    )
    SGD(other.parameters(), lr=0.1).step()
    assert later.clock.updates == 0
    loop(later, its_optimizer)
    assert later.clock.updates == STEPS
    assert same_state(state_of(task.trainable_module), state_of(later.trainable_module))


def test_optimizer_that_is_made_later_and_misses_a_node_is_refused() -> None:
    task = KnowledgeTransferTask(mutual(), total_updates=STEPS, verbose=False)
    optimizer = SGD(task.get_eval_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Found node `b` left out"):
        loop(task, optimizer)


def test_task_that_is_dropped_leaves_no_hook() -> None:
    before = dict(_global_optimizer_post_hooks)
    task = KnowledgeTransferTask(mutual(), total_updates=STEPS, verbose=False)
    assert len(_global_optimizer_post_hooks) == len(before) + 1
    del task
    gc.collect()
    assert dict(_global_optimizer_post_hooks) == before


def test_recipe_around_a_model_is_a_task_of_one_line() -> None:
    model = timm.create_model("resnet8_cifar", num_classes=10)
    task = KnowledgeTransferTask("presets/dml", model=model, total_updates=2, verbose=False)
    assert task.get_eval_model() is model
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    task.train()
    for x, labels in steps(last=2):
        optimizer.zero_grad()
        task(x, labels)["loss"].backward()
        optimizer.step()
    assert task.clock.updates == 2
    with pytest.raises(ValueError, match="A recipe should come with `model`"):
        KnowledgeTransferTask("presets/dml", total_updates=2)
    with pytest.raises(ValueError, match=r"total_updates should be at least 1\. Found 0"):
        KnowledgeTransferTask(mutual())


def test_clipping_takes_the_nodes_that_learn() -> None:
    graph = mutual()
    task, _ = task_of(graph)
    nodes = {name: list(graph.model(name).parameters()) for name in ("a", "b")}

    def same(found: list[Any], expected: list[Any]) -> bool:
        return list(map(id, found)) == list(map(id, expected))

    assert same(task.get_clip_parameters(), nodes["a"] + nodes["b"])
    assert same(task.get_clip_parameters(exclude_head=True), nodes["a"][:-2] + nodes["b"][:-2])


# The target.


def test_model_to_evaluate_is_the_target_itself() -> None:
    graph = mutual()
    task, _ = task_of(graph)
    assert task.get_eval_model() is graph.model("a")
    assert task.get_eval_model(ema=True) is None and not task.has_ema()


def test_evaluator_measures_the_target() -> None:
    task, _ = task_of(mutual())
    model = task.eval().get_eval_model()
    assert model is not None
    evaluator = task.create_evaluator()
    right = 0
    for x, labels in steps(last=3):
        with torch.no_grad():
            logits = model(x)
        evaluator.update(logits, labels)
        right += int((logits.argmax(1) == labels).sum())
    summary = evaluator.summary()
    assert summary["top1"] == pytest.approx(100 * right / 24) and summary["top5"] == 100


@pytest.mark.parametrize("make", [mutual, tapped])
def test_compiled_nodes_give_the_same_loss_and_keep_their_taps(make: Any) -> None:
    torch.compiler.reset()
    plain, _ = task_of(make())
    task, _ = task_of(make())
    assert task.compile(backend="eager") is task.get_eval_model()
    first, second = (each.train()(images(), hard_labels()) for each in (plain, task))
    torch.testing.assert_close(first["loss"], second["loss"])
    assert same_state(state_of(plain.trainable_module), state_of(task.trainable_module))


# Checkpoints.


@pytest.mark.parametrize("make", [mutual, tapped])
def test_checkpoint_holds_the_target_plainly_and_the_rest_beside_it(
    make: Any, tmp_path: Path
) -> None:
    task, optimizer = task_of(make())
    loop(task, optimizer, last=3)
    state = task.get_checkpoint_state()
    assert set(state) == {"state_dict", "task_state"}
    TinyNet().load_state_dict(state["state_dict"])
    torch.save({**state, "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    loop(task, optimizer, first=3)

    other, its_optimizer = task_of(make())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    its_optimizer.load_state_dict(saved["optimizer"])
    assert other.clock.updates == 3
    loop(other, its_optimizer, first=3)
    assert same_state(state_of(task.trainable_module), state_of(other.trainable_module))


def test_checkpoint_of_plain_timm_is_loaded_into_the_target_alone() -> None:
    task, _ = task_of(mutual())
    before = state_of(task.trainable_module)
    target = TinyNet(seed=77)
    task.load_checkpoint_state(target.state_dict())
    model = task.get_eval_model()
    assert model is not None and same_state(state_of(model), state_of(target))
    after = state_of(task.trainable_module)
    others = [key for key in before if not key.startswith("members.a.")]
    assert all(torch.equal(before[key], after[key]) for key in others)


# The moving average.


@pytest.mark.parametrize("make", [mutual, tapped])
def test_moving_average_follows_every_node(make: Any) -> None:
    graph = make()
    task, optimizer = task_of(graph)
    task.setup_ema(decay=0.75)
    expected = state_of(graph)
    for step in range(STEPS):
        loop(task, optimizer, first=step, last=step + 1)
        for key, value in state_of(graph).items():
            if value.is_floating_point():
                expected[key] = 0.75 * expected[key] + 0.25 * value
    model = task.get_eval_model(ema=True)
    assert model is not None and model is not graph.model("a")
    model.eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[f"members.a.model.{key}"])
    average = TinyNet().eval()
    average.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images()), average(images()))


def test_average_of_a_node_with_taps_has_taps_of_its_own() -> None:
    task, optimizer = task_of(tapped())
    average = task.setup_ema(decay=0.5).module
    loop(task, optimizer, last=2)
    model = task.get_eval_model(ema=True)
    assert isinstance(average, KnowledgeTransferGraph) and model is not None
    model(images())  # validation, which reads no taps
    outputs = average(images(3))
    assert set(outputs["b"].features) == {"act", "stem"}
    assert outputs["a"].features["stem"].shape[0] == 3
    loop(task, optimizer, first=2)


def test_average_is_saved_and_loaded_beside_the_weights() -> None:
    task, optimizer = task_of(mutual())
    task.setup_ema(decay=0.5)
    loop(task, optimizer, last=3)
    state = copy.deepcopy({**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)})
    assert set(state) == {"state_dict", "task_state", "state_dict_ema", "task_state_ema"}
    other, _ = task_of(mutual())
    other.setup_ema(decay=0.5)
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    other.load_checkpoint_state(state["state_dict_ema"], state["task_state_ema"], ema=True)
    for ema in (False, True):
        first, second = task.get_trainable_module(ema=ema), other.get_trainable_module(ema=ema)
        assert first is not None and second is not None
        assert same_state(state_of(first), state_of(second))
    assert other.clock.updates == 3


# Several processes.


def test_whole_graph_is_wrapped_for_several_processes(one_process_group: None) -> None:
    alone, its_optimizer = task_of(mutual())
    loop(alone, its_optimizer)
    graph = mutual()
    task, optimizer = task_of(graph)
    assert task.prepare_distributed() is task
    assert isinstance(task.trainable_module, DistributedDataParallel)
    assert task.get_eval_model() is graph.model("a")
    loop(task, optimizer)
    assert same_state(state_of(alone.trainable_module), state_of(graph))
    assert same_state(task.get_checkpoint_state()["state_dict"], state_of(graph.model("a")))
    with task.no_sync():
        assert not task.trainable_module.require_backward_grad_sync
    other, _ = task_of(mutual())
    state = task.get_checkpoint_state()
    other.prepare_distributed().load_checkpoint_state(state["state_dict"], state["task_state"])
    assert same_state(state_of(other.trainable_module), state_of(task.trainable_module))
