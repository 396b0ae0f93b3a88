"""What README shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml

import timm_ktg
from timm_ktg.recipe.recipe import check_recipe, check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.space import build_choices

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


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
    by_hand, _ = blocks("python")
    images, labels = batch()
    names: dict[str, Any] = {"images": images, "labels": labels, "k": 1, "k_end": 10}
    exec(by_hand, names)
    assert names["losses"].nodes.keys() == {"student", "helper"}
    assert names["losses"].total.isfinite()


def test_gate_of_your_own_is_registered_and_keeps_its_contract() -> None:
    _, gate = blocks("python")
    exec(gate, {"ktg": timm_ktg, "__name__": "readme"})
    timm_ktg.check_gate(timm_ktg.create_gate("confident", threshold=0.5))


def test_recipe_is_right() -> None:
    recipe, _, _ = blocks("yaml")
    found = check_recipe(yaml.safe_load(recipe))
    assert found.graph.nodes["helper"].learns_from["student"].temperature == 2


def test_search_is_right() -> None:
    _, search, _ = blocks("yaml")
    found = check_section(SearchRecipe, yaml.safe_load(search)).search
    assert build_choices(found).size == 3 * 4**4
