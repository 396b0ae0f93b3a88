"""What can be drawn: a recipe, its name, or a graph that was built by hand."""

from pathlib import Path

import pytest

import timm_ktg as ktg
from tests.nets import TinyNet, edge
from timm_ktg.draw.config import config_of
from timm_ktg.draw.scene import scene_of


def by_hand() -> ktg.KnowledgeTransferGraph:
    nodes = [ktg.Node(name, TinyNet(seed)) for seed, name in enumerate(("a", "b", "idle"))]
    nodes.append(ktg.Node("old", TinyNet(9), pretrained=True))
    edges = [
        edge("label", "a"),
        edge("b", "a", temperature=2.0),
        ktg.Edge("b", "a", loss=ktg.create_loss("cross_entropy", smoothing=0.1)),
        edge("old", "a", "correct"),
        edge("label", "b", "linear"),
        edge("a", "idle"),
        edge("old", "b", "cutoff"),
    ]
    return ktg.KnowledgeTransferGraph(nodes, edges, "a")


def test_graph_by_hand_is_drawn_with_its_roles_and_words() -> None:
    scene = scene_of(config_of(by_hand()))
    assert {node.name: (node.role, node.model) for node in scene.nodes} == {
        "a": ("target", "TinyNet"),
        "b": ("", "TinyNet"),
        "old": ("frozen", "TinyNet"),
        "idle": ("left out", ""),
    }
    assert {edge.link.name: edge.word for edge in scene.edges} == {
        "label->a": "through",
        "b->a/kl_div": "through, T=2",
        "b->a/cross_entropy": "through, cross_entropy(smoothing=0.1)",
        "old->a": "correct",
        "label->b": "linear",
        "a->idle": "through",
    }


@pytest.mark.parametrize("ending", ["svg", "png", "md"])
def test_draw_graph_takes_a_graph_a_recipe_and_a_name(ending: str, tmp_path: Path) -> None:
    recipe = ktg.load_recipe("digits")
    for number, graph in enumerate((by_hand(), recipe, recipe.graph, "digits")):
        ktg.draw_graph(graph, tmp_path / f"{number}.{ending}")
    files = [(tmp_path / f"{number}.{ending}").read_bytes() for number in range(4)]
    assert files[1] == files[2] == files[3] != files[0]


def test_function_for_a_gate_and_a_loss_is_shown_by_its_name() -> None:
    def half(losses, context):  # type: ignore[no-untyped-def]
        return losses / 2

    nodes = [ktg.Node("a", TinyNet()), ktg.Node("b", TinyNet(1), pretrained=True)]
    graph = ktg.KnowledgeTransferGraph(nodes, [ktg.Edge("b", "a", gate=half)], "a")
    assert [edge.word for edge in scene_of(config_of(graph)).edges] == ["half"]
