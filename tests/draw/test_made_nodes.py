"""Pictures of ensembles, slow copies, and edges with weights, taps and heads."""

import re
from itertools import combinations
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.transforms import Bbox

import timm_ktg as ktg
from tests.draw.picture_cases import checked_graph, made_graph, results_of_graph
from tests.draw.test_draw import assert_nothing_overlaps, words_of
from tests.nets import TinyNet
from timm_ktg.draw.config import config_of
from timm_ktg.draw.curves import plot_curves
from timm_ktg.draw.hull import PAD
from timm_ktg.draw.layout import lay_out
from timm_ktg.draw.paint import _sizes, paint
from timm_ktg.draw.picture import mermaid_of, svg_of
from timm_ktg.draw.ring import ring_of
from timm_ktg.draw.scene import Results, Scene, scene_of
from timm_ktg.recipe.graph_config import GraphConfig
from timm_ktg.records.metrics import ALL_NETWORKS

LEARNS = {"label": "through", "crowd": {"temperature": 3.0}}
PEERS = {name: LEARNS for name in ("a", "b", "c")}
ONE = made_graph(PEERS, crowd={"ensemble": ["a", "b", "c"]})
MEAN_TEACHER = made_graph(
    {"a": {"label": "through", "slow": "linear"}}, slow={"ema": "a", "decay": 0.999}
)
TEACHERS = made_graph(
    {"a": {"label": "through", "crowd": "through"}, "old": {}, "wide": {}},
    crowd={"ensemble": ["old", "wide"], "combine": "probabilities", "weights": [3.0, 1.0]},
)
TARGET = made_graph(
    {name: {"label": "through"} for name in ("a", "b", "c")},
    target="crowd",
    crowd={"ensemble": ["a", "b", "c"]},
)
SIX = made_graph(
    {name: {"label": "through", "crowd": "through"} for name in "abcdef"},
    crowd={"ensemble": list("abcdef")},
)
TWO_CROWDS = made_graph(
    {"a": {"label": "through", "x": "through", "y": "correct"}, "b": {}, "c": {}, "d": {}, "e": {}},
    x={"ensemble": ["b", "d"]},
    y={"ensemble": ["c", "e"]},
)
COMMON = made_graph(
    {"a": {"label": "through", "x": "through", "y": "correct"}, "b": {}, "c": {}},
    x={"ensemble": ["b", "c"]},
    y={"ensemble": ["a", "b"]},
)
ALL_KINDS = made_graph(
    {**PEERS, "a": {**LEARNS, "slow": "linear", "old": "correct"}, "old": {}},
    crowd={"ensemble": ["a", "b", "c"]},
    slow={"ema": "a"},
)
PAIR = made_graph(
    {
        "a": {
            "label": {"gate": "through", "weight": 0.1},
            "old/kl_div": {"temperature": 4.0, "weight": 0.9},
            "old/attention": {
                "loss": "attention",
                "taps": {"source": "layer3", "destination": "stages.2"},
                "weight": 5.0,
            },
        },
        "old": {},
    }
)
PAIR_AND_CROWD = made_graph(
    {
        "a": {
            **LEARNS,
            "b/dkd": {"loss": "dkd", "temperature": 2.0, "gate": "correct"},
            "b/attention": {"loss": "attention", "taps": "layer3", "weight": 5.0},
            "slow": "linear",
        },
        "b": LEARNS,
    },
    crowd={"ensemble": ["a", "b"], "combine": "probabilities"},
    slow={"ema": "a", "decay": 0.99},
)
CASES = {
    "pair and crowd": PAIR_AND_CROWD,
    "pair": PAIR,
    "one": ONE,
    "mean teacher": MEAN_TEACHER,
    "teachers": TEACHERS,
    "target": TARGET,
    "six": SIX,
    "two crowds": TWO_CROWDS,
    "common": COMMON,
    "all kinds": ALL_KINDS,
}
each_case = pytest.mark.parametrize("graph", CASES.values(), ids=CASES)


def painted(figure: Figure, kind: type) -> dict[str, Any]:
    """Return the shapes of a kind by their ids."""
    return {str(shape.get_gid()): shape for shape in figure.findobj(kind)}


def region_of(figure: Figure, ensemble: str) -> tuple[PathPatch, dict[str, Bbox]]:
    """Return the region of an ensemble, and the boxes of all nodes in its coordinates."""
    figure.draw_without_rendering()
    region = painted(figure, PathPatch)[f"hull-{ensemble}-fill"]
    boxes = {
        gid.removeprefix("node-"): region.get_data_transform()
        .inverted()
        .transform_bbox(box.get_window_extent())
        for gid, box in painted(figure, FancyBboxPatch).items()
        if gid.startswith("node-")
    }
    return region, boxes


def roles_of(scene: Scene) -> dict[str, tuple[str, str]]:
    return {node.name: (node.role, node.model) for node in scene.nodes}


@each_case
@pytest.mark.parametrize("measured", [False, True])
def test_texts_and_boxes_do_not_overlap(graph: GraphConfig, measured: bool) -> None:
    assert_nothing_overlaps(paint(scene_of(graph, results_of_graph(graph) if measured else None)))


def test_roles_say_what_a_node_is_and_models_what_it_is_made_from() -> None:
    assert roles_of(scene_of(ALL_KINDS))["crowd"] == ("ensemble", "of a, b, c")
    assert roles_of(scene_of(ALL_KINDS))["slow"] == ("slow copy", "of a, decay 0.9998")
    assert roles_of(scene_of(TARGET))["crowd"] == ("target", "ensemble of a, b, c")
    said = "of 75 % old, 25 % wide (probabilities)"
    assert roles_of(scene_of(TEACHERS))["crowd"] == ("ensemble", said)
    assert {"ensemble", "slow copy", "frozen", "target"} <= set(
        words_of(paint(scene_of(ALL_KINDS)))
    )


def test_every_role_has_a_look_of_its_own() -> None:
    boxes = painted(paint(scene_of(ALL_KINDS)), FancyBboxPatch)
    looks = {boxes[f"node-{name}"].get_facecolor() for name in ("a", "b", "old", "crowd", "slow")}
    assert len(looks) == 5


@pytest.mark.parametrize("case", ["one", "teachers", "target", "six", "two crowds", "all kinds"])
def test_region_holds_the_members_and_no_other_node(case: str) -> None:
    scene = scene_of(CASES[case])
    figure = paint(scene)
    for ensemble, members in scene.ensembles.items():
        region, boxes = region_of(figure, ensemble)
        for name, box in boxes.items():
            if name in members:
                assert region.get_path().contains_points(box.padded(-1).corners()).all(), name
            else:
                assert not region.get_path().intersects_bbox(box.padded(PAD), filled=True), name
    assert not any(gid.startswith("member-") for gid in painted(figure, FancyArrowPatch))


def test_ensembles_with_a_common_member_are_told_apart_by_lines() -> None:
    figure = paint(scene_of(COMMON))
    lines = {gid for gid in painted(figure, FancyArrowPatch) if gid.startswith("member-")}
    regions = {gid for gid in painted(figure, PathPatch) if gid.startswith("hull-")}
    assert lines == {"member-a-y", "member-b-y"}
    assert regions == {"hull-x", "hull-x-fill"}


def test_slow_copy_hangs_on_a_dotted_arrow_without_a_word() -> None:
    scene = scene_of(MEAN_TEACHER)
    arrows = painted(paint(scene), FancyArrowPatch)
    assert set(arrows) == {"edge-label-a", "edge-slow-a", "copy-a-slow"}
    assert arrows["copy-a-slow"].get_linestyle() != arrows["edge-slow-a"].get_linestyle()
    copy, edge = (arrows[gid].get_path().get_extents() for gid in ("copy-a-slow", "edge-slow-a"))
    assert not copy.overlaps(edge)  # although both join the same two nodes
    assert [edge.word for edge in scene.edges] == ["through", "linear"]


def test_mermaid_joins_members_by_lines_and_slow_copies_by_dots() -> None:
    lines = mermaid_of(ALL_KINDS).splitlines()
    assert [line.strip() for line in lines if "---" in line] == [
        f"n_{name} --- n_crowd" for name in "abc"
    ]
    assert "  n_a -.-> n_slow" in lines
    assert any("n_crowd[" in line and line.endswith(":::ensemble") for line in lines)
    assert any("n_slow[" in line and line.endswith(":::slow_copy") for line in lines)
    # Links are numbered in their order, and the colors are those of edges.
    arrows = [line for line in lines if re.search(r" (-->|---|-\.->) ", line)]
    styled = [int(line.split()[1]) for line in lines if "linkStyle" in line]
    assert all('"' in arrows[number] for number in styled)
    assert len(styled) == len(scene_of(ALL_KINDS).edges) == len(arrows) - 4


def test_neighbors_are_what_belongs_together() -> None:
    def apart(order: list[str], one: str, other: str) -> int:
        steps = abs(order.index(one) - order.index(other))
        return min(steps, len(order) - steps)

    ring = ring_of(["t", "p", "q", "r", "s", "x"], {"x": ["p", "r"]}, [("x", "t"), ("q", "s")])
    assert ring[0] == "t" and sorted(ring) == ["p", "q", "r", "s", "t", "x"]
    assert apart(ring, "p", "r") == apart(ring, "x", "t") == apart(ring, "q", "s") == 1
    assert ring_of(["t", "a", "b"], {}, []) == ["t", "a", "b"]


@pytest.mark.parametrize("graph", [ALL_KINDS, TWO_CROWDS], ids=["all kinds", "two crowds"])
def test_svg_has_every_line_and_region_once(graph: GraphConfig) -> None:
    svg = svg_of(graph)
    ids = re.findall(r'id="[^"]*?-((?:hull|band|copy|member)-[^"]+)"', svg)
    assert ids and len(ids) == len(set(ids))


# Edges.


def word(source: str = "b", **edge: Any) -> str:
    graph = checked_graph({"a": {"label": "through", source: edge}, "b": {"label": "through"}})
    words = {e.source: e.word for e in scene_of(graph).edges if e.destination == "a"}
    return words[source]


def test_word_says_all_settings_that_are_not_the_default() -> None:
    assert word(weight=1.0, temperature=1.0, loss="kl_div") == "through"
    assert word(weight=0.9, temperature=4, loss="dkd") == "through, dkd, T=4, weight=0.9"
    maps = {"loss": "attention"}
    assert word(**maps, taps="act", gate="correct") == "correct, attention, taps=act"
    assert word(**maps, taps=["stem", "act"]) == "through, attention, taps=stem+act"
    ends = {"source": "stem", "destination": "act"}
    assert word(**maps, taps=ends, head="dist") == "through, attention, taps=stem→act, head=dist"


def test_arrow_is_as_thick_as_its_weight_until_there_are_results() -> None:
    edges = {"label": {"weight": 0.1}, "b": {"weight": 9.0}, "c": "through"}
    graph = checked_graph({"a": edges, "b": {}, "c": {}})
    scene = scene_of(graph)
    assert [edge.weight for edge in scene.edges] == [0.1, 9.0, 1.0]
    assert scene.caption == "Thickness: weight of the edge."
    results = Results({}, {"label->a": 0.1, "b->a": 4.5, "c->a": 0.25}, "val")
    assert [edge.weight for edge in scene_of(graph, results).edges] == [0.1, 4.5, 0.25]
    assert scene_of(checked_graph({"a": {"label": "through"}})).caption == ""


def test_thickness_of_any_weight_can_be_read() -> None:
    weights = [0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.5, 9.0]
    edges: dict[str, Any] = {f"n{i}": {"weight": weight} for i, weight in enumerate(weights)}
    scene = scene_of(checked_graph({"a": edges, **{name: {} for name in edges}}))
    widths = [edge.width for edge in scene.edges]
    assert 0.5 < widths[0] and widths[-1] < 8
    assert all(wide / thin > 1.2 for thin, wide in combinations(widths, 2))


# Graphs by hand.


def test_graph_by_hand_has_the_picture_of_its_recipe() -> None:
    edges = [
        ktg.Edge("label", "a", weight=0.1),
        ktg.Edge("old", "a", loss=ktg.create_loss("kl_div"), temperature=4.0, weight=9.0),
        ktg.Edge("old", "a", loss=ktg.create_loss("dkd", beta=2.0), tag="second"),
        ktg.Edge(
            "crowd",
            "a",
            loss=ktg.create_loss("attention"),
            taps={"source": (), "destination": "act"},
        ),
        ktg.Edge("slow", "a", ktg.create_gate("linear")),
    ]
    nodes = [
        ktg.Node("a", TinyNet(0)),
        ktg.Node("old", TinyNet(1), pretrained=True),
        ktg.Ensemble("crowd", ("a", "old"), "probabilities", (3.0, 1.0)),
        ktg.Ema("slow", "a", decay=0.5, warmup=True),
    ]
    by_hand = config_of(ktg.KnowledgeTransferGraph(nodes, edges, "a"))
    learns_from = {
        "label": {"weight": 0.1},
        "old": {"temperature": 4.0, "weight": 9.0},
        "old/second": {"loss": "dkd", "loss_kwargs": {"beta": 2.0}},
        "crowd": {"loss": "attention", "taps": {"destination": "act"}},
        "slow": "linear",
    }
    crowd = {"ensemble": ["a", "old"], "combine": "probabilities", "weights": [3.0, 1.0]}
    slow = {"ema": "a", "decay": 0.5, "warmup": True}
    recipe = made_graph({"a": learns_from, "old": {}}, crowd=crowd, slow=slow)
    ours, theirs = scene_of(by_hand), scene_of(recipe)
    assert ours.edges == theirs.edges and len(ours.edges) == 5
    assert ours.ensembles == theirs.ensembles and ours.copies == theirs.copies
    assert [node.model for node in ours.nodes] == [
        node.model.replace("resnet8_cifar", "TinyNet") for node in theirs.nodes
    ]
    assert by_hand.nodes["slow"] == recipe.nodes["slow"]


def test_curves_name_the_roles_and_show_all_networks_together() -> None:
    nodes = ("a", "b", "c", "old", "crowd", "slow")
    metrics: dict[str, float] = {"epoch": 1, "train/weight/crowd->a": 9.0}
    metrics |= {f"{split}/top1/{name}": 50.0 for name in nodes for split in ("train", "val")}
    metrics |= {f"val/top1/{ALL_NETWORKS}": 60.0}
    _, top1, weight = plot_curves([metrics], scene_of(ALL_KINDS)).axes
    legend = [text.get_text().split(": ")[0] for text in top1.get_legend().get_texts()]
    shown = ["a (target)", "b", "c", "old (frozen)", "crowd (ensemble)", "slow (slow copy)"]
    assert legend == [*shown, ALL_NETWORKS]
    assert top1.lines[-1].get_ydata() == [60.0] and weight.get_ylim()[1] > 9


@pytest.mark.parametrize("graph", [PAIR, PAIR_AND_CROWD], ids=["pair", "pair and crowd"])
def test_words_of_two_edges_hide_neither_arrow(graph: GraphConfig) -> None:
    scene = scene_of(graph)
    layout = lay_out(_sizes(scene))
    for edge in scene.edges:
        alike = [each.link for each in scene.edges if each.link.pair == edge.link.pair]
        others = [layout.arrows[link] for link in alike if link != edge.link]
        assert not any(layout.words[edge.link].count(arrow.points(50)) for arrow in others)
