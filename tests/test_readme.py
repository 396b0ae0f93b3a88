"""Runs the code blocks of the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import timm_ktg
from tests.recipe_cases import write
from tests.tiny_data import rows, save_images
from tests.training_cases import build, run_main
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.recipe import check_recipe, check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.recipe.suite_config import load_suite
from timm_ktg.search.space import build_choices
from timm_ktg.train.loop import start_epoch, train_epoch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def recipes() -> dict[str, str]:
    """The blocks of YAML by what they are, in the README's order."""
    names = ("front", "teachers", "suite", "recipe", "edges", "search", "gate")
    return dict(zip(names, blocks("yaml"), strict=True))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 32, 32), torch.randint(100, (4,))


def test_three_lines_in_an_ordinary_loop_train() -> None:
    (diff,) = blocks("diff")
    code = "\n".join(line[2:] for line in diff.splitlines() if not line.startswith("-"))
    names: dict[str, Any] = {"timm": timm, "timm_ktg": timm_ktg, "torch": torch, "F": F}
    names |= {"epochs": 1, "loader": [batch(), batch()]}
    exec(code, names)
    assert names["loss"].isfinite() and names["handle"].clock.updates == 2
    assert len(names["optimizer"].param_groups) == 1


def test_graph_by_hand_has_a_loss_for_each_node() -> None:
    _, by_hand, *_ = blocks("python")
    images, labels = batch()
    names: dict[str, Any] = {"images": images, "labels": labels, "k": 1, "k_end": 10}
    exec(by_hand, names)
    assert names["losses"].nodes.keys() == {"student", "helper"}
    assert names["losses"].total.isfinite()


@pytest.mark.slow
def test_run_is_used_by_timm_alone(workplace: Path) -> None:
    use, *_ = blocks("python")
    assert run_main("digits", "--train.epochs", "1", "--output-dir", "runs/digits") == 0
    names: dict[str, Any] = {}
    exec(use, names)
    assert names["model"](torch.randn(2, 3, 8, 8)).shape == (2, 10)
    image = names["transform"](Image.new("L", (8, 8)).convert("RGB"))
    assert image.shape == (3, 8, 8)


def test_gate_of_your_own_is_registered_and_keeps_its_contract() -> None:
    _, _, gate, _ = blocks("python")
    exec(gate, {"ktg": timm_ktg, "__name__": "readme"})
    timm_ktg.check_gate(timm_ktg.create_gate("confident", threshold=0.5))


@pytest.mark.slow
def test_distillation_is_six_lines(workplace: Path) -> None:
    front = recipes()["front"]
    assert len(front.splitlines()) == 6
    save_images(workplace / "path" / "to" / "images", train=rows(8, side=40), test=rows(3, side=40))
    values = yaml.safe_load(front)
    values["data"] |= {"img_size": 32, "workers": 0}
    training = build({**values, "train": {"batch_size": 4}})
    edges = {edge.name: edge for edge in training.graph.edges}
    assert edges.keys() == {"label->student", "teacher->student"}
    assert training.graph.frozen == ("teacher",)
    assert train_epoch(training, start_epoch(training))["train/loss/teacher->student"] > 0


def test_several_teachers_are_eight_lines(workplace: Path) -> None:
    teachers = recipes()["teachers"]
    assert len(teachers.splitlines()) == 8
    (workplace / "teacher1.safetensors").touch()
    topology = check_recipe(yaml.safe_load(teachers)).graph.topology
    assert topology.frozen == ("teacher1", "teacher2")
    assert topology.learning == ("student", "peer")


def test_suite_is_right(tmp_path: Path) -> None:
    file = tmp_path / "suite.yml"
    file.write_text(recipes()["suite"], encoding="utf-8")
    assert len(recipes()["suite"].splitlines()) <= 8
    suite = load_suite(file)
    assert suite.methods_of("digits") == ["labels", "teacher", "kd"]
    assert suite.datasets["digits"].seeds == [0, 1, 2]


def test_suite_of_ours_begins_with_the_commands_that_train_all_of_it() -> None:
    file = ROOT / "recipes" / "evidence" / "suite.yml"
    named = re.findall(r"^# .*--datasets (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(" ".join(named).split()) == sorted(load_suite(file).datasets)


def test_front_part_has_at_most_1200_words() -> None:
    front, heading, reference = README.partition("\n## Reference\n")
    assert heading and reference
    assert len(front.split()) <= 1200


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}
    links = [each for each in re.findall(r"\]\(([^)]+)\)", README) if "://" not in each]
    lost = [
        link
        for link in links
        if not (link[1:] in anchors if link[0] == "#" else (ROOT / link).exists())
    ]
    assert links and not lost


def test_recipe_is_right() -> None:
    found = check_recipe(yaml.safe_load(recipes()["recipe"]))
    assert found.graph.nodes["helper"].learns_from["student"].temperature == 2


def test_several_edges_between_two_nodes_are_right() -> None:
    values = yaml.safe_load(recipes()["recipe"])
    values["graph"]["nodes"]["student"] |= yaml.safe_load(recipes()["edges"])
    names = [link.name for link in check_recipe(values).graph.edges]
    assert {"helper->student/kl_div", "helper->student/cross_entropy"} < set(names)


def test_flag_of_one_of_several_edges_is_right(workplace: Path) -> None:
    values = yaml.safe_load(recipes()["recipe"])
    values["graph"]["nodes"]["student"] |= yaml.safe_load(recipes()["edges"])
    (flag,) = re.findall(r"`(--\S+helper/\S+ \S+)`", README)
    found = parse_command([write(values), *flag.split()], "train").recipe
    edges = found.graph.nodes["student"].learns_from
    assert {name: edge.gate for name, edge in edges.items()} == {
        **{"label": "through", "helper/kl_div": "through", "helper/cross_entropy": "correct"}
    }
    assert edges["helper/kl_div"].temperature == 4


def test_loss_with_parameters_is_trained_with_the_node_that_learns() -> None:
    _, by_hand, _, loss = blocks("python")
    exec(loss, {"ktg": timm_ktg, "torch": torch, "__name__": "readme"})
    code = by_hand.replace(
        'gate=ktg.create_gate("correct")', 'loss=ktg.create_loss("projected", width=8)'
    ).partition("outputs = ")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    graph, (images, labels) = names["graph"], batch()
    graph.build_edges(graph(images))
    owners = graph.parameter_owners()
    graph.losses(graph(images), labels).total.backward()
    own = set(graph.edge_modules.parameters())
    assert own and own <= set(owners["student"])
    assert all(parameter.grad is not None for parameter in own)


def test_search_is_right() -> None:
    found = check_section(SearchRecipe, yaml.safe_load(recipes()["search"])).search
    assert build_choices(found).size == 3 * 4**4
