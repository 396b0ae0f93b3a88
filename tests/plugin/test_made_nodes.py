"""Ensembles and exponential moving averages in a user's loop."""

import torch
from timm.utils import ModelEmaV3
from torch.optim import SGD

import timm_ktg as ktg
from tests.nets import TinyNet, edge, hard_labels, images
from tests.training_cases import same_state, state_of

STEPS = 4


def graph_with_both(target: str = "a") -> ktg.KnowledgeTransferGraph:
    nodes = [
        ktg.Ensemble("crowd", ("a", "b")),
        ktg.Ema("slow", "a", decay=0.5),
        *(ktg.Node(name, TinyNet(seed)) for seed, name in enumerate("ab")),
    ]
    edges = [edge("label", "a"), edge("label", "b"), edge("slow", "a"), edge("crowd", "a")]
    return ktg.KnowledgeTransferGraph(nodes, edges, target)


def test_average_follows_an_attached_model_and_is_saved() -> None:
    graph = graph_with_both()
    model = graph.model("a").train()
    optimizer = SGD(model.parameters(), lr=0.1)
    theirs = ModelEmaV3(model, decay=0.5)
    handle = ktg.attach(model, graph, optimizer, STEPS)
    for step in range(STEPS):
        model(images(seed=step))
        optimizer.zero_grad()
        handle.loss(hard_labels(seed=step)).backward()
        optimizer.step()
        theirs.update(model, step=step + 1)
        assert same_state(state_of(graph.model("slow")), state_of(theirs.module))
    saved = handle.state_dict()
    assert set(saved["auxiliaries"]) == {"slow", "b"}
    other = graph_with_both()
    target = other.model("a")
    fresh = ktg.attach(target, other, SGD(target.parameters(), lr=0.1), STEPS)
    fresh.load_state_dict(saved)
    assert same_state(state_of(other.model("slow")), state_of(theirs.module))


def test_ensemble_as_the_target_of_a_task_is_validated_as_one_model() -> None:
    graph = graph_with_both(target="crowd")
    parameters = [each for each in graph.parameters() if each.requires_grad]
    task = ktg.KnowledgeTransferTask(graph, SGD(parameters, lr=0.1), STEPS, verbose=False)
    result = task(images(), hard_labels())
    model = task.eval().get_eval_model()
    assert model is not None
    expected = torch.stack([graph.model(name)(images()) for name in "ab"]).mean(0)
    torch.testing.assert_close(model(images()), expected)
    assert result["output"].shape == expected.shape
    assert set(model.state_dict()) == {
        f"members.{name}.model.{key}" for name in "ab" for key in graph.model(name).state_dict()
    }
