"""A graph as a picture: nothing overlaps, and nothing is missing."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from PIL import Image

from tests.draw.picture_cases import (
    checked_graph,
    complete_graph,
    confident,
    random_graph,
    results_of_graph,
)
from tests.records.result_cases import a_result
from timm_ktg import register_gate
from timm_ktg.draw.__main__ import main
from timm_ktg.draw.paint import paint
from timm_ktg.draw.picture import draw_graph, mermaid_of, svg_of
from timm_ktg.draw.reading import results_of
from timm_ktg.draw.scene import Results, gate_colors, scene_of
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.graph_config import GraphConfig
from timm_ktg.recipe.recipe import load_recipe
from timm_ktg.records.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("workbench")

KD = checked_graph(
    {
        "student": {"label": "through", "teacher": "correct", "idle": "cutoff"},
        "teacher": {},
        "idle": {"label": "linear", "student": "through"},
    }
)


@pytest.fixture(autouse=True)
def workplace_with_a_gate(workbench: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register_gate(confident)


def texts_of(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text()]


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts_of(figure)]


def assert_nothing_overlaps(figure: Figure) -> None:
    texts = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    boxes = [patch.get_window_extent() for patch in figure.findobj(FancyBboxPatch)
             if str(patch.get_gid()).startswith(("node-", "label-"))]  # fmt: skip
    for (first, one), (second, other) in combinations(texts, 2):
        assert not one.overlaps(other), f"{first!r} lies on {second!r}"
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for said, text in texts:
        for box in (box for box in boxes if box.overlaps(text)):
            corners = [(text.x0, text.y0), (text.x1, text.y1)]
            assert all(box.contains(*corner) for corner in corners), f"{said!r} on a border"
        assert text.x0 >= 0 and text.y0 >= 0, said
        assert text.x1 <= figure.bbox.x1 and text.y1 <= figure.bbox.y1, said


# What is seen.


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_texts_and_boxes_of_a_complete_graph_do_not_overlap(number: int, measured: bool) -> None:
    graph = complete_graph(number)
    figure = paint(scene_of(graph, results_of_graph(graph) if measured else None))
    assert_nothing_overlaps(figure)
    assert len(figure.findobj(FancyArrowPatch)) == number**2
    assert words_of(figure).count("label") == number


@pytest.mark.parametrize("seed", range(8))
def test_texts_and_boxes_of_any_graph_do_not_overlap(seed: int) -> None:
    graph = random_graph(seed)
    assert_nothing_overlaps(paint(scene_of(graph, results_of_graph(graph))))


def test_every_edge_has_the_word_and_the_color_of_its_gate() -> None:
    graph = complete_graph(3)
    scene = scene_of(graph)
    figure = paint(scene)
    arrows = {str(each.get_gid()): each for each in figure.findobj(FancyArrowPatch)}
    words = [text for text in texts_of(figure) if str(text.get_gid()).startswith("word-")]
    assert len(scene.edges) == len(words) == 9
    for edge, word in zip(scene.edges, words, strict=True):
        gate = graph.nodes[edge.destination].learns_from[edge.source].gate
        assert word.get_text().startswith(gate) and word.get_color() == edge.color
        arrow = arrows[f"edge-{edge.source}-{edge.destination}"]
        assert to_hex(arrow.get_edgecolor()) == edge.color.lower()
    confident_word = "confident(threshold=0.95),\nT=4.5"
    assert confident_word in words_of(figure) and "linear, T=2" in words_of(figure)


def test_loss_other_than_the_default_belongs_to_the_word() -> None:
    plain = {"gate": "through", "loss": "cross_entropy"}
    other = {"gate": "correct", "loss": "cross_entropy", "temperature": 2}
    graph = checked_graph({"a": {"label": plain, "b": other}, "b": {"label": "through"}})
    words = {edge.source: edge.word for edge in scene_of(graph).edges if edge.destination == "a"}
    assert words == {"label": "through", "b": "correct, cross_entropy, T=2"}


def test_gates_of_one_picture_have_different_colors() -> None:
    ours = ["through", "linear", "negative_linear", "correct"]
    colors = gate_colors([*ours, "their_a", "their_b"])
    assert len(set(colors.values())) == 6
    assert gate_colors(["through"])["through"] == colors["through"]
    assert gate_colors(["their_b", "their_a"])["their_a"] == colors["their_a"]


def test_roles_are_said_and_what_is_cut_off_is_not_drawn() -> None:
    scene = scene_of(KD)
    roles = {node.name: node.role for node in scene.nodes}
    assert roles == {"student": "target", "teacher": "frozen", "idle": "left out"}
    assert ("idle", "student") not in {edge.link.pair for edge in scene.edges}
    assert {edge.link.pair for edge in scene.edges if edge.left_out} == {
        ("label", "idle"),
        ("student", "idle"),
    }
    figure = paint(scene)
    assert {"target", "frozen", "left out"} <= set(words_of(figure))
    boxes = {str(each.get_gid()): each for each in figure.findobj(FancyBboxPatch)}
    assert boxes["node-teacher"].get_linestyle() not in ("-", "solid")
    assert boxes["node-student"].get_linewidth() > 2 * boxes["node-idle"].get_linewidth()


def test_node_that_is_kept_is_not_left_out() -> None:
    learns_from = {"a": {"label": "through"}, "b": {"a": "through"}}
    roles = {
        node.name: node.role for node in scene_of(checked_graph(learns_from, keep=["b"])).nodes
    }
    assert roles == {"a": "target", "b": ""}


def test_results_stand_under_nodes_and_make_arrows_thick() -> None:
    passed = {"label->student": 1.0, "teacher->student": 0.25}
    figure = paint(scene_of(KD, Results({"student": 93.456, "teacher": 71.0}, passed, "val")))
    words = words_of(figure)
    assert {"93.46 % top-1", "71.00 % top-1"} <= set(words)
    assert any("Top-1 on val images. Thickness: mean weight" in word for word in words)
    box = next(b for b in figure.findobj(FancyBboxPatch) if b.get_gid() == "node-student")
    accuracy = next(text for text in texts_of(figure) if text.get_text() == "93.46 % top-1")
    assert accuracy.get_window_extent().y1 <= box.get_window_extent().y0
    widths = {str(each.get_gid()): each.get_linewidth() for each in figure.findobj(FancyArrowPatch)}
    assert widths["edge-label-student"] > 2 * widths["edge-teacher-student"]


# What is written.


def test_svg_is_whole_and_points_to_nothing_outside() -> None:
    svg = svg_of(complete_graph(3))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and svg.startswith("<svg")
    assert "<style" not in svg  # it would apply to the whole page
    values = [value for each in root.iter() for value in each.attrib.values()]
    assert not [value for value in values if "//" in value]
    ids = [each.attrib["id"] for each in root.iter() if "id" in each.attrib]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert used and {first or second for first, second in used} <= set(ids)


def test_two_svgs_in_a_page_share_no_ids() -> None:
    graph = complete_graph(2)
    pictures = [svg_of(graph), svg_of(graph, results_of_graph(graph)), svg_of(KD)]
    for first, second in combinations(pictures, 2):
        assert not set(re.findall(r'id="([^"]+)"', first)) & set(re.findall(r'id="(.+?)"', second))
    assert svg_of(graph) == pictures[0]  # the same graph gives the same file


def test_mermaid_names_every_edge() -> None:
    graph = complete_graph(3)
    text = mermaid_of(graph, results_of_graph(graph))
    lines = text.splitlines()
    assert lines[0] == "flowchart LR" and '  label_(["label"])' in lines
    edges = [re.fullmatch(r'  (\w+) -- "([^"]+)" --> (\w+)', line) for line in lines]
    found = {(edge[1], edge[2], edge[3]) for edge in edges if edge}
    ids = {"label": "label_"} | {name: f"n_{name}" for name in graph.nodes}
    wanted = scene_of(graph).edges
    assert found == {(ids[e.source], e.word, ids[e.destination]) for e in wanted}
    assert [line.split()[1] for line in lines if "linkStyle" in line] == [str(i) for i in range(9)]
    [target] = [line for line in lines if ":::target" in line]
    assert "<b>student</b> (target)<br/>resnet8_cifar<br/>" in target and "% top-1" in target
    assert "n_teacher" in mermaid_of(KD) and ":::frozen" in mermaid_of(KD)


def test_quotes_in_a_gates_arguments_do_not_end_mermaids() -> None:
    def picky(losses: Any, context: Any, *, which: str = "") -> Any:
        return losses

    register_gate(picky)
    gate = {"gate": "picky", "gate_kwargs": {"which": '"<b>#'}}
    text = mermaid_of(checked_graph({"a": {"label": gate}}))
    assert '-- "picky(which=#quot;#lt;b#gt;#35;)" -->' in text


def test_ending_decides_what_is_written() -> None:
    for name in ("g.svg", "g.PNG", "g.md"):
        draw_graph(KD, Path(name))
    assert Path("g.svg").read_text() == svg_of(KD)
    assert Path("g.md").read_text() == f"```mermaid\n{mermaid_of(KD)}```\n"
    with Image.open("g.PNG") as image:
        assert image.format == "PNG" and image.width > 300


def test_picture_that_cannot_be_written_leaves_nothing_behind() -> None:
    Path("taken.svg").mkdir()
    with pytest.raises(RecipeError, match="taken.svg: cannot be written: Is a directory"):
        draw_graph(KD, Path("taken.svg"))
    assert [path.name for path in Path().iterdir()] == ["taken.svg"]


def test_picture_of_the_readme_is_that_of_the_recipe() -> None:
    repository = Path(__file__).parents[2]
    picture = repository / "recipes" / "digits.svg"
    scene = scene_of(load_recipe("digits").graph)
    shown = picture.read_text(encoding="utf-8")
    assert len(shown) < 150_000 and "recipes/digits.svg" in (repository / "README.md").read_text()
    # matplotlib puts every text into a comment beside its outlines.
    words = re.findall(r"<!-- (.+) -->", shown)
    for edge in scene.edges:
        assert f"edge-{edge.source}-{edge.destination}" in shown
    assert sorted(words) == sorted(words_of(paint(scene)))


# The command.


def a_run(path: str, graph: GraphConfig) -> Path:
    """Make a run of two epochs, with only the files that pictures need."""
    run = Path(path)
    run.mkdir()
    values = {"graph": graph.model_dump(mode="json")}
    (run / "recipe.yaml").write_text(json.dumps(values))
    line = {"epoch": 1, "train/top1/student": 40.0, "train/weight/teacher->student": 0.5}
    last = {**line, "epoch": 2, "train/top1/student": 60.0, "train/weight/label->student": 1.0}
    (run / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(last)}\n")
    return run


def test_results_of_a_run_are_its_last_epochs_until_it_has_a_summary() -> None:
    run = a_run("run", KD)
    passed = {"teacher->student": 0.5, "label->student": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train/to')  # while it is written
    assert results_of(run) == Results({"student": 60.0}, passed, "train")
    RunDirectory(run).write_result(a_result({"student": 71.5}))
    assert results_of(run) == Results({"student": 71.5}, passed, "test")


def test_command_draws_recipes_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    a_run("run", KD)
    for arguments in (
        ["cifar100/kd", "-o", "kd.svg"],  # the teacher's weights do not exist
        ["run", "-o", "run.md"],
        ["run/recipe.yaml", "--run", "run", "-o", "too.md"],
        ["-o", "digits.md"],
    ):
        assert main(arguments) == 0
        assert arguments[-1] in capsys.readouterr().out
    assert "frozen" in Path("kd.svg").read_text()
    assert "60.00 % top-1" in Path("run.md").read_text()
    assert Path("too.md").read_text() == Path("run.md").read_text()
    assert "slow copy" in Path("digits.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit", "-o", "g.svg"], "`digit` is neither a file nor a bundled recipe. Did you mean"),
        (["digits", "-o", "g.pdf"], "g.pdf: should end in .svg, .png, .md. Found `.pdf`."),
        (["digits"], "output: should be a file, as in -o graph.svg"),
        (
            ["digits", "-o", "no/where/g.svg"],
            "no/where/g.svg: should be in a directory",
        ),
        (["digits", "-o", "g.svg", "--run", "run"], "Found another's: teacher->student"),
        (["digits", "-o", "g.svg", "--run", "fresh"], "fresh: should hold metrics.jsonl"),
        (["seeds", "-o", "g.svg"], "Its runs are seed-0, seed-1."),
        (["torn", "-o", "g.svg"], "torn/metrics.jsonl: cannot be read"),
        (["empty", "-o", "g.svg"], "recipe: `empty` is neither a file nor a bundled recipe. It is"),
        (["found", "-o", "g.svg"], "The recipe of its best graph is found/best.yaml."),
        (["digits-search", "-o", "g.svg"], "should hold a graph. Found sections: search"),
        (["prose.yaml", "-o", "g.svg"], "prose.yaml: should be YAML"),
        (["list.yaml", "-o", "g.svg"], "graph: "),
    ],
)
def test_bad_input_costs_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run("run", KD)
    for name in ("fresh", "seeds"):
        (a_run(name, KD) / "metrics.jsonl").unlink()
    for seed in (0, 1):
        Path(f"seeds/seed-{seed}").mkdir()
    (a_run("torn", KD) / "metrics.jsonl").write_text("epoch 1\n")
    Path("empty").mkdir()
    Path("found").mkdir()
    for name in ("search.yaml", "best.yaml"):
        Path("found", name).touch()
    Path("prose.yaml").write_text("graph: [a: b")
    Path("list.yaml").write_text("graph: []")
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("g.svg").exists()
