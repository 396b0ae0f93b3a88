"""What an auxiliary is: it learns, is frozen, or is a slow copy of the target."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage

from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.node_config import EmaConfig
from timm_ktg.recipe.recipe import check_section, load_recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.review.study_data import read_study
from timm_ktg.review.study_page import study_page
from timm_ktg.search.canonical import CanonicalGraph, all_through, canonical_form
from timm_ktg.search.controls import _all_through
from timm_ktg.search.identity import identity_of
from timm_ktg.search.recipes import RecipeBuilder, candidates_recipe
from timm_ktg.search.space import build_choices
from timm_ktg.search.study import IDENTITY, open_study
from timm_ktg.search.tracking import graph_config

TINY = "ktg_tiny"
ALL = ["learns", "frozen", "ema"]
EDGES = {("label", "target"): "through", ("aux1", "target"): "linear"}
SLOW = {"target": TINY, "aux1": "ema"}


def recipe_of(**search: Any) -> SearchRecipe:
    return check_section(SearchRecipe, search_values(**search))


def mean_teacher() -> CanonicalGraph:
    return canonical_form(SLOW, EDGES)


def test_frozen_is_short_for_two_kinds() -> None:
    short, long = recipe_of(frozen=True), recipe_of(kinds=["learns", "frozen"])
    assert build_choices(short.search) == build_choices(long.search)
    assert identity_of(short) == identity_of(long)
    assert recipe_of().search.auxiliary_kinds == ("learns",)
    given = recipe_of(kinds="ema", frozen=False).search
    assert given.auxiliary_kinds == ("ema",)


@pytest.mark.parametrize("frozen", [False, True])
def test_study_of_an_earlier_version_goes_on(frozen: bool) -> None:
    now = identity_of(recipe_of(frozen=frozen))
    later = ("search.kinds", "search.ema_decay", "search.ema_warmup", "search.objective")
    then = {where: value for where, value in now.items() if where not in later}
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.set_user_attr(IDENTITY, {**then, "search.frozen": frozen})
    open_study("s", storage, RandomSampler(), NopPruner(), now)
    for changed in (
        {"search.kinds": ["learns", "ema"]},
        {"search.kinds": ["learns"] if frozen else ["learns", "frozen"]},
        {"search.objective": "ensemble"},
    ):
        with pytest.raises(RecipeError, match=next(iter(changed))):
            open_study("s", storage, RandomSampler(), NopPruner(), {**now, **changed})


def test_study_without_short_runs_goes_on_whatever_the_default_rungs_were() -> None:
    now = identity_of(recipe_of())
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.set_user_attr(IDENTITY, {**now, "search.rungs": [0.25, 0.5, 1.0]})
    open_study("s", storage, RandomSampler(), NopPruner(), now)
    short = identity_of(recipe_of(method="short_runs"))
    assert short["search.rungs"] == [0.1, 1.0]


def test_slow_copy_has_neither_a_model_of_its_own_nor_incoming_edges() -> None:
    choices = build_choices(recipe_of(kinds=ALL).search)
    assert choices.size == 2 * 3 * 3**4
    params = choices.params(mean_teacher())
    assert params["role/aux1"] == "ema"
    for model, gate in ((TINY, "through"), ("ktg_tiny_wide", "linear")):
        other = params | {"model/aux1": model, "gate/label->aux1": gate, "gate/target->aux1": gate}
        assert choices.graph(other) == mean_teacher()
    assert choices.graph(params | {"gate/aux1->target": "cutoff"}) == all_through(TINY, ())
    assert str(mean_teacher()) == f"target {TINY} <- label, aux1 (linear); aux1 ema of target"
    assert mean_teacher().frozen_nodes == () and mean_teacher().learning_nodes == ("target",)
    columns = graph_config(mean_teacher(), choices)
    assert (columns["model/aux1"], columns["ema"], columns["frozen"]) == ("ema", 1, 0)
    with pytest.raises(ValueError, match="role/aux1: should be one of learns. Found `ema`."):
        build_choices(recipe_of().search).params(mean_teacher())


def test_slow_copy_is_written_into_the_recipe() -> None:
    recipe = recipe_of(kinds=ALL, ema_decay=0.9, losses=["kl_div"])
    found = RecipeBuilder(recipe, lambda teacher: Path("none"), 0).recipe_of(mean_teacher()).graph
    assert found.nodes["aux1"] == EmaConfig(ema="target", decay=0.9, warmup=True)
    assert found.topology.frozen == () and found.target == "target"
    tried = candidates_recipe(recipe).graph
    assert tried.nodes["ema"] == EmaConfig(ema="target", decay=0.9, warmup=True)
    assert "ema" in {link.source for link in tried.edges}
    assert "ema" not in candidates_recipe(recipe_of()).graph.nodes
    at_once = recipe_of(kinds=ALL, ema_decay=0.9, ema_warmup=False)
    slow = EmaConfig(ema="target", decay=0.9, warmup=False)
    assert candidates_recipe(at_once).graph.nodes["ema"] == slow
    found = RecipeBuilder(at_once, lambda teacher: Path("none"), 0).recipe_of(mean_teacher()).graph
    assert found.nodes["aux1"] == slow


def test_all_through_control_keeps_the_slow_copy() -> None:
    (row,) = _all_through(mean_teacher(), "through")
    assert row.graph == canonical_form(SLOW, dict.fromkeys(EDGES, "through"))


def test_slow_copy_of_a_judged_network_follows_the_target() -> None:
    choices = build_choices(recipe_of(nodes=3, kinds=ALL, objective="ensemble").search)
    pairs = (("label", "target"), ("label", "aux1"), ("aux2", "aux1"))
    nodes = {"target": TINY, "aux1": TINY, "aux2": "ema"}
    crossed = canonical_form(nodes, dict.fromkeys(pairs, "through"), "ensemble")
    pairs = (*pairs[:2], ("aux2", "target"))
    own = canonical_form(nodes, dict.fromkeys(pairs, "through"), "ensemble")
    assert own != crossed  # the copy makes the target another than its like
    for graph in (own, crossed):
        assert choices.graph(choices.params(graph)) == graph
        assert len(graph.members) == 2 and "ema" not in {graph.models[m] for m in graph.members}
    everyone = canonical_form(nodes, dict.fromkeys(pairs, "through"), "ensemble-all")
    assert len(everyone.members) == 3


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"kinds": ["learns", "emma"]}, r"search.kinds.1: .*Did you mean `ema`\?"),
        ({"kinds": ["learns", "ema"], "frozen": True}, "search.frozen: needs `frozen` among kinds"),
        (
            {"kinds": ["frozen"], "objective": "ensemble"},
            "search.kinds: should have `learns` where those that learn are judged. Found frozen.",
        ),
        ({"kinds": ["ema"], "ema_decay": 1}, "search.ema_decay: "),
    ],
)
def test_wrong_kind_costs_a_line(search: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe_of(**search)
    assert len(caught.value.problems) == 1


def test_kind_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds should name each only once. Found ema, ema."):
        build_choices(recipe_of(kinds=["ema", "ema"]).search)


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_search_draws_slow_copies_and_shows_them(tmp_path: Path) -> None:
    values = search_values(
        kinds="ema", gates=["through", "linear"], sampler="brute_force", final_seeds=[0], trials=9
    )
    out = tmp_path / "out"
    assert run_search(write_recipe(tmp_path / "s.yaml", values), "--output-dir", out) == 0
    trials = study_in(out, "s").trials
    # The target with and without a gate that ramps up, from the label and from its copy.
    assert [trial.user_attrs["models"] for trial in trials] == [SLOW] * 4
    best = load_recipe(str(out / "best.yaml")).graph
    assert best.nodes["aux1"] == EmaConfig(ema="target", decay=0.999, warmup=True)
    rows = {row["name"]: row for row in result_in(out)["rows"]}
    assert rows["all-through sum"]["models"] == SLOW and "KD T=1" not in rows
    page = study_page(read_study(out))
    assert "slow copy" in page["rows"][0]["svg"]
    assert page["trials"]["rows"][0][6] == "aux1 ema"
