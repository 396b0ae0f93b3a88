"""Ensembles, moving averages, and what an edge can say, in a recipe and on the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.recipe_cases import problems_of, recipe, write
from tests.training_cases import build
from timm_ktg.graph.edge import EdgeTaps
from timm_ktg.recipe.build import build_graph
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.recipe import check_recipe, read_recipe, save_recipe
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch

pytestmark = pytest.mark.usefixtures("workplace")

HELPER: dict[str, Any] = {"learns_from": {"label": "through"}}


def made(student: Any = None, **nodes: Any) -> Any:
    """A recipe of a student and a helper, with further nodes that are made from them."""
    values = recipe({"learns_from": {"label": "through", **(student or {})}}, HELPER)
    values["graph"]["nodes"] |= nodes
    return values


CROWD = {"ensemble": ["student", "helper"]}
SLOW = {"ema": "student"}


def test_made_nodes_become_those_of_the_graph() -> None:
    nodes = {
        "crowd": {**CROWD, "combine": "probabilities", "weights": [1, 2]},
        "slow": {**SLOW, "decay": 0.9, "warmup": True},
    }
    checked = check_recipe(made({"crowd": "through", "slow": "linear"}, **nodes))
    graph = build_graph(checked, 10)
    assert list(graph.members) == ["student", "helper", "crowd", "slow"]
    crowd: Any = graph.members["crowd"]
    assert (crowd.combine, crowd.shares) == ("probabilities", (1 / 3, 2 / 3))
    (slow,) = graph.emas
    assert (slow.source, slow.decay, slow.warmup) == ("student", 0.9, True)


def test_saved_recipe_of_made_nodes_says_the_same(tmp_path: Path) -> None:
    checked = check_recipe(made({"crowd": "through"}, crowd=CROWD, slow=SLOW))
    save_recipe(checked, tmp_path / "r.yaml")
    assert check_recipe(read_recipe(tmp_path / "r.yaml")) == checked


def test_edge_says_weight_taps_and_head() -> None:
    taps = {"source": "layer3", "destination": ["layer2", "layer3"]}
    edge = {"weight": 0.9, "taps": taps, "gate": "correct", "loss": "attention"}
    graph = build_graph(check_recipe(made({"helper": edge})), 10)
    found = next(each for each in graph.edges if each.name == "helper->student")
    assert found.weight == 0.9
    assert found.tapped == EdgeTaps(("layer3",), ("layer2", "layer3"))


@pytest.mark.parametrize(
    ("values", "where", "said"),
    [
        (made(crowd={"ensemble": ["student"]}), "nodes.crowd", "at least two different members"),
        (made(crowd={"ensemble": ["student", "crowd"]}), "nodes.crowd", "made of itself"),
        (made(crowd={"ensemble": ["student", "helpr"]}), "nodes.crowd", "Did you mean `helper`"),
        (made(crowd={"ensemble": "student"}), "nodes.crowd.ensemble", "should be a list."),
        (made(crowd={**CROWD, "weights": [1]}), "nodes.crowd.weights", "one for each of the 2"),
        (made(crowd={**CROWD, "weights": [1, -1]}), "nodes.crowd.weights", "positive and finite"),
        (
            made(crowd={**CROWD, "combine": "sum"}),
            "nodes.crowd.combine",
            "should be `logits` or `probabilities`.",
        ),
        (made(crowd={**CROWD, "wieghts": [1, 1]}), "nodes.crowd.wieghts", "Did you mean `weights`"),
        (
            made(crowd={**CROWD, "learns_from": {"label": "through"}}),
            "nodes.crowd.learns_from",
            "unknown key. Keys: ensemble, combine, weights.",
        ),
        (made(slow={"ema": "studnt"}), "nodes.slow", "Did you mean `student`"),
        (made(slow={**SLOW, "decay": 1}), "nodes.slow.decay", "less than 1"),
        (made(crowd=CROWD, slow={"ema": "crowd"}), "nodes.slow", "`crowd` is an ensemble."),
        (
            made({"helper": {"weight": -1}}),
            "nodes.student.learns_from.helper.weight",
            "should be 0 or more.",
        ),
        (
            made({"helper": {"weight": float("inf")}}),
            "nodes.student.learns_from.helper.weight",
            "should be finite",
        ),
        (
            made({"helper": {"taps": {"sorce": "layer3"}}}),
            "nodes.student.learns_from.helper.taps",
            "Did you mean `source`",
        ),
        (made({"crowd": "through"}), "nodes.student.learns_from", "`crowd` is not a node."),
    ],
)
def test_wrong_node_or_edge_costs_a_line(values: Any, where: str, said: str) -> None:
    (line,) = problems_of(values)
    assert line.startswith(f"graph.{where}:") and said in line


def test_tap_or_head_that_a_model_lacks_costs_a_line() -> None:
    for edge, said in (
        (
            {"taps": "layer9", "loss": "attention"},
            "graph.nodes.student.taps: `layer9` is not a module of",
        ),
        ({"head": "dist"}, "graph.nodes.student: the model has no head `dist`."),
    ):
        with pytest.raises(ValueError, match="^graph.nodes") as caught:
            build_graph(check_recipe(made({"helper": edge})), 10)
        assert said in str(caught.value)


def test_model_ema_needs_a_network_as_the_target() -> None:
    values = made(crowd=CROWD)
    values["graph"]["target"] = "crowd"
    values["train"]["model_ema"] = True
    (line,) = problems_of(values)
    assert line.startswith("train.model_ema: should be off, because the target is not a network.")


@pytest.mark.parametrize("node", [{"ema": "student", "decay": 0.5}, {"ema": "helper"}, CROWD])
def test_model_ema_beside_another_node_of_its_name_costs_a_line(node: Any) -> None:
    values = made(student_ema=node)
    values["train"]["model_ema"] = True
    (line,) = problems_of(values)
    assert line.startswith("train.model_ema: stands for a node `student_ema` of decay 0.9998")


def test_saved_recipe_with_model_ema_says_the_same(tmp_path: Path) -> None:
    values = made()
    values["train"] |= {"model_ema": True, "model_ema_decay": "0.9"}
    checked = check_recipe(values)
    save_recipe(checked, tmp_path / "r.yaml")
    assert check_recipe(read_recipe(tmp_path / "r.yaml")) == checked


def test_flags_reach_made_nodes_and_edges(tmp_path: Path) -> None:
    path = write(made({"crowd": "through"}, crowd=CROWD, slow=SLOW))
    flags = [
        *("--graph.nodes.crowd.combine", "probabilities", "--graph.nodes.crowd.weights", "[1, 3]"),
        *("--graph.nodes.slow.decay", "0.5", "--graph.target", "crowd"),
        *("--graph.nodes.student.learns_from.crowd.weight", "0.25"),
        *("--graph.nodes.helper.learns_from.student", "{weight: 2, temperature: 4}"),
    ]
    graph = parse_command([str(path), *flags], "prog").recipe.graph
    values = yaml.safe_load(graph.model_dump_json())
    assert values["nodes"]["crowd"] == {
        "ensemble": ["student", "helper"],
        "combine": "probabilities",
        "weights": [1.0, 3.0],
    }
    assert values["nodes"]["slow"]["decay"] == 0.5
    assert values["nodes"]["student"]["learns_from"]["crowd"]["weight"] == 0.25
    assert values["nodes"]["helper"]["learns_from"]["student"]["temperature"] == 4.0


def test_distilled_model_of_timm_learns_through_its_second_head(tmp_path: Path) -> None:
    values = made({"helper": {"loss": "hard", "head": "dist"}})
    tiny = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    student = values["graph"]["nodes"]["student"]
    student |= {"model": "deit_tiny_distilled_patch16_224", "model_kwargs": tiny}
    training = build(values)
    model: Any = training.graph.model("student")
    before = model.head_dist.weight.detach().clone()
    metrics = train_epoch(training, start_epoch(training))
    assert metrics["train/loss/helper->student"] > 0
    assert not torch.equal(before, model.head_dist.weight)
    assert training.images.test is not None
    assert "test/top1/student" in evaluate(training, training.images.test(), "test")


def test_network_takes_images_of_another_size() -> None:
    values = made({"helper": "through"})
    values["graph"]["nodes"]["helper"]["img_size"] = 12
    training = build(values)
    assert training.graph.network("helper").size == (12, 12)
    train_epoch(training, start_epoch(training))
