"""The graphs of well-known methods: what each is made of, its example, and what it refuses."""

import inspect
import textwrap
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import timm_ktg as ktg
from tests.methods import PRESETS
from tests.nets import TinyNet, array, ce_reference, hard_labels, images, kl_reference
from timm_ktg import presets
from timm_ktg.graph.weights import export_node

Graph = ktg.KnowledgeTransferGraph

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def edges_of(graph: Graph) -> dict[str, tuple[str, float, float]]:
    """Loss, temperature and weight of each edge; every gate is `through`."""
    assert all(str(edge.gate) == "through" for edge in graph.edges)
    return {edge.name: (str(edge.loss), edge.temperature, edge.weight) for edge in graph.edges}


def label(weight: float = 1.0) -> tuple[str, float, float]:
    return ("cross_entropy", 1.0, weight)


def kl(temperature: float = 1.0, weight: float = 1.0) -> tuple[str, float, float]:
    return ("kl_div", temperature, weight)


def losses_of(graph: Graph) -> tuple[dict[str, Any], dict[str, Any]]:
    """The losses of the nodes on eight images, and the logits that they come from."""
    outputs = graph.eval()(images())
    nodes = graph.losses(outputs, hard_labels()).nodes
    return {n: array(x) for n, x in nodes.items()}, {n: o.logits for n, o in outputs.items()}


def test_kd_is_the_label_and_a_frozen_teacher() -> None:
    assert edges_of(presets.kd(TinyNet(0), TinyNet(1))) == {
        "label->student": label(),
        "teacher->student": kl(),
    }
    graph = presets.kd(TinyNet(0), TinyNet(1), temperature=4.0, weight=0.9, label_weight=0.1)
    assert (graph.target, graph.learning, graph.frozen) == ("student", ("student",), ("teacher",))
    assert edges_of(graph) == {"label->student": label(0.1), "teacher->student": kl(4.0, 0.9)}
    losses, z = losses_of(graph)
    expected = 0.1 * ce_reference(z["student"], hard_labels()).mean()
    expected += 0.9 * kl_reference(z["teacher"], z["student"], 4.0).mean()
    np.testing.assert_allclose(losses["student"], expected, rtol=1e-5)


def test_kd_takes_another_loss_by_name_or_with_arguments() -> None:
    for loss in ("dkd", ktg.create_loss("dkd", beta=2.0)):
        graph = presets.kd(TinyNet(0), TinyNet(1), loss=loss, temperature=2.0, weight=0.5)
        assert edges_of(graph)["teacher->student"] == (str(loss), 2.0, 0.5)


def test_kd_multi_gives_each_teacher_the_weight() -> None:
    graph = presets.kd_multi(TinyNet(0), [TinyNet(1), TinyNet(2), TinyNet(3)], weight=0.3)
    names = ("teacher1", "teacher2", "teacher3")
    assert (graph.target, graph.learning, graph.frozen) == ("student", ("student",), names)
    taught = {f"{name}->student": kl(1.0, 0.3) for name in names}
    assert edges_of(graph) == {"label->student": label(), **taught}


def test_kd_multi_has_the_gradient_of_the_mean_of_the_teachers() -> None:
    student = TinyNet(0)
    graph = presets.kd_multi(
        student, [TinyNet(1), TinyNet(2)], temperature=4, weight=0.5, label_weight=0
    )
    outputs = graph.eval()(images())
    outputs["student"].logits.retain_grad()
    graph.losses(outputs, hard_labels()).total.backward()
    p, p1, p2 = (
        (outputs[name].logits.detach() / 4).softmax(-1)
        for name in ("student", "teacher1", "teacher2")
    )
    found = outputs["student"].logits.grad
    torch.testing.assert_close(found, 4 * (p - (p1 + p2) / 2) / len(p))


@pytest.mark.parametrize(("reduction", "share"), [("mean", 0.5), ("sum", 1.0)])
def test_dml_is_every_peer_from_every_other(reduction: Any, share: float) -> None:
    graph = presets.dml([TinyNet(0), TinyNet(1), TinyNet(2)], reduction=reduction)
    peers = ("peer1", "peer2", "peer3")
    assert (graph.target, graph.learning, graph.reduction) == ("peer1", peers, reduction)
    assert edges_of(graph) == {
        **{f"label->{name}": label() for name in peers},
        **{f"{a}->{b}": kl() for b in peers for a in peers if a != b},
    }
    losses, z = losses_of(graph)
    for name in peers:
        others = [kl_reference(z[each], z[name]).mean() for each in peers if each != name]
        expected = ce_reference(z[name], hard_labels()).mean() + share * sum(others)
        np.testing.assert_allclose(losses[name], expected, rtol=1e-5)


def test_one_is_an_ensemble_that_teaches_its_members() -> None:
    graph = presets.one([TinyNet(0), TinyNet(1)], weight=0.5)
    assert (graph.target, graph.learning) == ("peer1", ("peer1", "peer2"))
    taught = {f"ensemble->{name}": kl(3.0, 0.5) for name in graph.learning}
    assert edges_of(graph) == {**taught, **{f"label->{name}": label() for name in graph.learning}}
    losses, z = losses_of(graph)
    mean = (z["peer1"] + z["peer2"]) / 2
    for name in graph.learning:
        expected = ce_reference(z[name], hard_labels()).mean()
        expected += 0.5 * kl_reference(mean, z[name], 3.0).mean()
        np.testing.assert_allclose(losses[name], expected, rtol=1e-5)


def test_mean_teacher_learns_from_its_own_slow_copy() -> None:
    graph = presets.mean_teacher(TinyNet(0), decay=0.9, warmup=False, weight=2.0)
    assert (graph.target, graph.learning, graph.frozen) == ("student", ("student",), ())
    assert edges_of(graph) == {"label->student": label(), "slow->student": kl(1.0, 2.0)}
    (slow,) = graph.emas
    assert (slow.name, slow.source, slow.decay, slow.warmup) == ("slow", "student", 0.9, False)


@pytest.mark.parametrize("kind", ["file", "state dict"])
def test_born_again_learns_from_a_frozen_copy_with_trained_weights(
    kind: str, tmp_path: Path
) -> None:
    model, trained = TinyNet(0), TinyNet(1)
    initial = deepcopy(model.state_dict())
    export_node(trained, tmp_path / "a.safetensors")
    weights: Any = tmp_path / "a.safetensors" if kind == "file" else trained.state_dict()
    graph = presets.born_again(model, weights, weight=0.5)
    assert (graph.target, graph.learning, graph.frozen) == ("student", ("student",), ("teacher",))
    assert edges_of(graph) == {"label->student": label(), "teacher->student": kl(1.0, 0.5)}
    assert graph.model("student") is model
    for name, given in (("student", initial), ("teacher", trained.state_dict())):
        own = graph.model(name).state_dict()
        assert all(torch.equal(own[key], given[key]) for key in given)


def test_born_again_expects_the_images_of_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    export_node(TinyNet(1), path, MEAN, STD)
    plain = presets.born_again(TinyNet(0), path)
    assert plain.network("teacher").scale is None and plain.network("student").scale is None
    own = ktg.Node("any", TinyNet(0), mean=STD, std=MEAN)
    other = presets.born_again(own, path)
    assert other.network("teacher").scale is not None and other.network("student").scale is None


def test_assistant_stands_between_teacher_and_student() -> None:
    graph = presets.assistant(TinyNet(0), TinyNet(1), TinyNet(2))
    assert (graph.target, graph.frozen) == ("student", ("teacher",))
    assert graph.learning == ("student", "assistant")
    assert edges_of(graph) == {
        "label->student": label(),
        "assistant->student": kl(),
        "label->assistant": label(),
        "teacher->assistant": kl(),
    }


def test_node_keeps_what_it_says_but_its_name() -> None:
    student = ktg.Node("a", TinyNet(0), taps=("stem",), mean=MEAN, std=STD)
    teacher = ktg.Node("b", TinyNet(1), mean=STD, std=MEAN)
    graph = presets.kd(student, teacher)
    assert list(graph.members) == ["student", "teacher"]
    outputs = graph(images())
    assert outputs["student"].features.keys() == {"stem"}
    expected = teacher.model.eval()(
        (
            images() * torch.tensor(STD).view(3, 1, 1)
            + torch.tensor(MEAN).view(3, 1, 1)
            - torch.tensor(STD).view(3, 1, 1)
        )
        / torch.tensor(MEAN).view(3, 1, 1)
    )
    torch.testing.assert_close(outputs["teacher"].logits, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_example_in_the_docstring_runs(name: str, workplace: Path) -> None:
    export_node(TinyNet(9), workplace / "teacher.safetensors")
    said = inspect.getdoc(getattr(presets, name)) or ""
    example = textwrap.dedent(said.partition("Example:\n")[2].partition("\n\n")[0])
    assert len(example.splitlines()) == 3
    roles = ("student", "teacher", "model", "another")
    names: dict[str, Any] = {role: TinyNet(seed) for seed, role in enumerate(roles)}
    names |= {"ktg": ktg, "images": images(), "labels": hard_labels(), "k": 1}
    exec(example, names)
    graph = names["graph"]
    for node in graph.learning:
        assert all(p.grad is not None for p in graph.model(node).parameters())


def test_presets_are_all_seven() -> None:
    assert set(PRESETS) == {
        *("assistant", "born_again", "dml", "kd", "kd_multi", "mean_teacher", "one")
    }


Call = Callable[[], Graph]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: presets.dml([TinyNet(0)]), "peers: should be 2 models or more. Found 1."),
        (lambda: presets.one([]), "peers: should be 2 models or more. Found 0."),
        (
            lambda: presets.kd_multi(TinyNet(0), []),
            "teachers: should be one model or more. Found 0.",
        ),
        (
            lambda: presets.kd("resnet18", TinyNet(1)),  # type: ignore[arg-type]
            "student: should be a torch.nn.Module or a Node. Found 'resnet18'.",
        ),
        (lambda: presets.kd(TinyNet(0), TinyNet(1), loss="dkdd"), "Did you mean `dkd`?"),
        (
            lambda: presets.kd(TinyNet(0), TinyNet(1), weight=-1),
            "teacher->student: weight should be finite and at least 0. Found -1.",
        ),
        (
            lambda: presets.kd(TinyNet(0), TinyNet(1), temperature=0),
            "teacher->student: temperature should be above 0. Found 0.",
        ),
        (
            lambda: presets.kd(TinyNet(0), TinyNet(1, 5)),
            "nodes: all should have the same number of classes. Found student: 4, teacher: 5.",
        ),
        (
            lambda: presets.mean_teacher(TinyNet(0), decay=1),
            "nodes.slow.decay: should be at least 0 and below 1. Found 1.",
        ),
        (
            lambda: presets.born_again(TinyNet(0), "nothere.safetensors"),
            "weights: `nothere.safetensors` cannot be read:",
        ),
        (
            lambda: presets.born_again(TinyNet(0), TinyNet(1, width=4).state_dict()),
            "weights: the state dict should hold the weights of this model. Found stem.0.weight "
            "[4, 3, 4, 4] instead of [8, 3, 4, 4]",
        ),
        (
            lambda: presets.born_again(TinyNet(0), TinyNet(0).state_dict()),
            "model: should start from weights of its own. Found the teacher's.",
        ),
    ],
)
def test_wrong_input_costs_one_line(call: Call, said: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)
