"""What identifies a study: gates' code, weights' content; and what is not written down."""

from pathlib import Path

import torch

import timm_ktg as ktg
from tests.search_cases import search_values
from timm_ktg.graph import gates
from timm_ktg.recipe.recipe import check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.identity import identity_of


def recipe(**search: object) -> SearchRecipe:
    return check_section(SearchRecipe, search_values(**search))


def test_gates_of_our_own_are_told_by_their_names() -> None:
    gates = ["through", {"gate": "breaking", "gate_kwargs": {"factor": 2.0}}]
    ours, other = identity_of(recipe(gates=gates))["search.gates"]
    assert ours == "through"
    assert other.startswith("breaking(factor=2.0) (code ")


def test_gate_whose_code_has_changed_is_another_one() -> None:
    found = []
    for factor in (1.0, 2.0):

        def changing(
            losses: torch.Tensor, context: ktg.EdgeContext, *, by: float = factor
        ) -> torch.Tensor:
            return losses * by

        with gates.registry.isolated():
            ktg.register_gate(changing)
            found.append(identity_of(recipe(gates=["changing"]))["search.gates"])
    assert found[0] != found[1]


def test_weights_are_told_by_what_they_hold_not_by_where_they_lie(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (
        identity_of(recipe(weights={"ktg_tiny": str(tmp_path / name)}))["search.weights"]
        for name in "abc"
    )
    assert a == b != c
