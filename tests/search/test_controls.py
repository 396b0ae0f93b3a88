"""Controls beside the best graph: which there are, each trained once, and what is said first."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial

from tests.search_cases import search_values
from timm_ktg.graph.topology import LABEL
from timm_ktg.recipe.build import build_edges
from timm_ktg.recipe.node_config import NodeConfig
from timm_ktg.recipe.recipe import check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.records.sample import Sample
from timm_ktg.search.canonical import CanonicalGraph, all_through, canonical_form, distillation
from timm_ktg.search.controls import best_and_controls
from timm_ktg.search.looks import Looks
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.result import Result, Row
from timm_ktg.search.sampler import _distributions
from timm_ktg.search.show import _table
from timm_ktg.search.space import build_choices
from timm_ktg.search.teachers import teachers_of

TINY, WIDE = "ktg_tiny", "ktg_tiny_wide"
ALONE = {"label-only", "label smoothing 0.1"}


def recipe_with(**train: float) -> SearchRecipe:
    values = search_values(nodes=3, frozen=True)
    values["train"] |= train
    return check_section(SearchRecipe, values)


def rows_of(
    best: CanonicalGraph,
    recipe: SearchRecipe | None = None,
    values: dict[str, float] | None = None,
) -> dict[str, Row]:
    """The rows of a search that has found a graph."""
    recipe = recipe or recipe_with()
    choices, study = build_choices(recipe.search), optuna.create_study(direction="maximize")
    params = choices.params(best)
    study.add_trial(
        create_trial(
            value=90.0, params=params, distributions=_distributions(choices.largest.choices())
        )
    )
    values = {TINY: 80.0, WIDE: 85.0} if values is None else values
    return {row.name: row for row in best_and_controls(study, choices, recipe, values)}


def result_of(rows: dict[str, Row], **means: float) -> Result:
    samples = {name: Sample((m, m + 1, m + 2)) for name, m in _by_name(rows, means).items()}
    return Result(list(rows.values()), samples, {}, Looks((0, 1, 2), (0, 1, 2), 1), images=1000)


def _by_name(rows: dict[str, Row], means: dict[str, float]) -> dict[str, float]:
    return {name: means.get(name.replace("-", "_").replace(" ", "_"), 70.0) for name in rows}


def taught(*models: str, gate: str = "linear") -> CanonicalGraph:
    nodes = {"target": TINY, **{f"n{number}": model for number, model in enumerate(models)}}
    gates = {(name, "target"): gate for name in list(nodes)[1:]}
    return canonical_form(nodes, {(LABEL, "target"): "through", **gates})


def test_best_graph_with_teachers_stands_beside_kd_from_its_own_teachers() -> None:
    rows = rows_of(taught(TINY, WIDE))
    kd = {name: row for name, row in rows.items() if name.startswith("KD")}
    both, one = distillation(TINY, TINY, WIDE), distillation(TINY, WIDE)
    assert {name: (row.graph, row.temperature) for name, row in kd.items()} == {
        "KD T=1": (both, 1.0),
        "KD T=4": (both, 4.0),
        f"KD from {WIDE} T=1": (one, 1.0),  # the better one on the validation images
        f"KD from {WIDE} T=4": (one, 4.0),
    }
    own = set(teachers_of(rows["best-1"].graph, 0).values())
    assert set(teachers_of(both, 0).values()) == own > set(teachers_of(one, 0).values())
    single = rows_of(taught(WIDE))
    assert [name for name in single if name.startswith("KD")] == ["KD T=1", "KD T=4"]


def test_teachers_of_unknown_accuracy_each_have_a_control() -> None:
    # Nobody has evaluated WIDE, whose weights were given.
    rows = rows_of(taught(TINY, WIDE), values={TINY: 80.0})
    for model in (TINY, WIDE):
        assert rows[f"KD from {model} T=1"].graph == distillation(TINY, model)


def test_second_of_two_given_teachers_of_one_model_has_a_control_of_its_own(
    tmp_path: Path,
) -> None:
    rows = rows_of(taught(WIDE, WIDE), values={})
    numbers = {
        name: [each.number for each in row.teachers(0).values()]
        for name, row in rows.items()
        if name.endswith("T=1")
    }
    assert numbers == {
        "KD T=1": [1, 2],
        f"KD from {WIDE} 1 T=1": [1],
        f"KD from {WIDE} 2 T=1": [2],
    }
    (tmp_path / "2.pt").touch()
    builder = RecipeBuilder(recipe_with(), lambda teacher: tmp_path / f"{teacher.number}.pt", 0)
    nodes = builder.final(rows[f"KD from {WIDE} 2 T=1"]).graph.nodes
    (teacher,) = (node for name, node in nodes.items() if name != "target")
    assert isinstance(teacher, NodeConfig) and str(teacher.checkpoint_path).endswith("2.pt")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("losses", [[], ["cross_entropy"], ["cross_entropy", "bce"]])
def test_usual_loss_is_smoothed_as_the_training_is_even_if_a_search_names_it(
    losses: list[str], smoothing: float
) -> None:
    values = search_values(label_losses=losses)
    values["train"]["smoothing"] = smoothing
    recipe = check_section(SearchRecipe, values)
    builder = RecipeBuilder(recipe, lambda teacher: None, 0)
    (edge,) = build_edges(builder.recipe_of(all_through(TINY, ())))
    assert str(edge.loss) == ("cross_entropy(smoothing=0.1)" if smoothing else "cross_entropy")


@pytest.mark.parametrize("gates", [["through", "linear", "cutoff"], ["linear", "cutoff"]])
def test_controls_learn_from_the_label_as_all_graphs_of_the_search_do(
    gates: list[str], tmp_path: Path
) -> None:
    values = search_values(nodes=3, frozen=True, label_losses=["bce"], gates=gates)
    recipe = check_section(SearchRecipe, values)
    (tmp_path / "weights.pt").touch()
    builder = RecipeBuilder(recipe, lambda teacher: tmp_path / "weights.pt", 0)
    nodes = {"target": TINY, "a": TINY, "b": WIDE}
    words = {(LABEL, "target"): "linear, bce", ("a", "target"): "linear"}
    best = canonical_form(nodes, words | {(LABEL, "a"): "linear, bce", ("b", "target"): "linear"})
    rows = rows_of(best, recipe)
    assert {"label-only", "all-through sum", "all-through mean", "KD T=1", "KD T=4"} <= set(rows)
    for name, row in rows.items():
        edges = build_edges(builder.final(row))
        losses = {str(edge.loss) for edge in edges if edge.source == LABEL}
        smoothed = "cross_entropy(smoothing=0.1)"
        assert losses == {smoothed if "smoothing" in name else "bce"}, name


def test_best_graph_that_is_kd_at_a_candidate_temperature_is_known_as_that_control(
    tmp_path: Path,
) -> None:
    losses = ["kl_div", {"loss": "kl_div", "temperature": 4.0}]
    values = search_values(nodes=3, frozen=True, losses=losses)
    recipe = check_section(SearchRecipe, values)
    rows = rows_of(taught(WIDE, gate="through, kl_div T=4"), recipe)
    assert result_of(rows).twins == {"KD T=4": "best-1"}
    (tmp_path / "weights.pt").touch()
    builder = RecipeBuilder(recipe, lambda teacher: tmp_path / "weights.pt", 0)
    best, control = (builder.final(rows[name]) for name in ("best-1", "KD T=4"))
    assert best == control


def test_figure_of_label_only_is_that_of_its_own_trial_if_there_is_one() -> None:
    rows = rows_of(all_through(TINY, ()))
    assert rows["label-only"].value == rows["best-1"].value == 90.0
    assert rows_of(taught(WIDE))["label-only"].value == 80.0  # of a teacher of the same model


def test_smoothing_is_smoothing_whatever_losses_the_search_names() -> None:
    values = search_values(label_losses=["cross_entropy", "bce"])
    recipe = check_section(SearchRecipe, values)
    builder = RecipeBuilder(recipe, lambda teacher: None, 0)
    rows = rows_of(all_through(TINY, ()), recipe)
    losses = {
        name: build_edges(builder.final(rows[name]))[0].loss
        for name in ("label smoothing 0.1", "label-only")
    }
    assert {name: str(loss) for name, loss in losses.items()} == {
        "label smoothing 0.1": "cross_entropy(smoothing=0.1)",
        "label-only": "cross_entropy",
    }


def test_recipes_of_controls_are_what_they_say(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    builder = RecipeBuilder(recipe_with(), lambda teacher: weights, 0)
    rows = rows_of(taught(WIDE, WIDE))
    edges = {
        name: builder.final(row).graph.nodes["target"].learns_from for name, row in rows.items()
    }
    for name, temperature in {"KD T=1": 1.0, "KD T=4": 4.0}.items():
        assert {edge.gate for edge in edges[name].values()} == {"through"}
        found = {source: edge.temperature for source, edge in edges[name].items()}
        assert found == {LABEL: 1.0, "aux1": temperature, "aux2": temperature}
    assert list(edges["label smoothing 0.1"]) == [LABEL]
    smoothed = {name: builder.final(row).train.smoothing for name, row in rows.items()}
    assert smoothed == dict.fromkeys(rows, 0.0) | {"label smoothing 0.1": 0.1}
    assert "label smoothing 0.1" not in rows_of(taught(WIDE), recipe_with(smoothing=0.1))


def test_two_nodes_have_one_all_through_control_and_three_have_sum_and_mean() -> None:
    learning = rows_of(all_through(TINY, [WIDE]))
    assert set(learning) == {"best-1", "all-through sum", *ALONE}
    assert set(rows_of(all_through(TINY, [WIDE, WIDE]))) == {*learning, "all-through mean"}


def test_trial_is_trained_at_temperature_one_and_with_the_searchs_reduction() -> None:
    graph = (
        RecipeBuilder(recipe_with(), lambda teacher: Path("none"), 0)
        .recipe_of(all_through(TINY, [WIDE]))
        .graph
    )
    assert {edge.temperature for edge in graph.edges.values()} == {1.0}
    assert graph.reduction == "sum"


def test_mean_and_sum_are_trained_as_such() -> None:
    recipe = recipe_with()
    builder = RecipeBuilder(recipe, lambda teacher: Path("none"), 0)
    rows = rows_of(all_through(TINY, [WIDE, WIDE]), recipe)
    found = {name: builder.final(rows[name]).graph.reduction for name in rows if "all-" in name}
    assert found == {"all-through sum": "sum", "all-through mean": "mean"}


@pytest.mark.parametrize(
    ("best", "twin"),
    [
        (all_through(TINY, ()), "label-only"),
        (all_through(TINY, [WIDE, WIDE]), "all-through sum"),
        (taught(WIDE, gate="through"), "KD T=1"),
    ],
)
def test_best_graph_that_is_a_control_is_trained_once(best: CanonicalGraph, twin: str) -> None:
    result = result_of(rows_of(best))
    assert result.twins == {twin: "best-1"}
    assert len({row.training for row in result.rows}) == len(result.rows) - 1
    assert f"best-1, is itself a control: {twin}" in result.verdict
    shown = {row["name"]: row["same as"] for row in result.as_json()["rows"]}
    assert shown[twin] == "best-1"


def test_best_graph_that_is_label_only_is_not_compared_with_itself() -> None:
    result = result_of(rows_of(all_through(TINY, ())))
    table = _table(result)
    names, over = (list(table.columns[at].cells) for at in (0, 4))
    assert dict(zip(names, over, strict=True))["best-1 (trial 0)"] == "-"
    assert [name for name, gap in zip(names, over, strict=True) if gap != "-"]


def test_control_that_beats_the_best_graph_is_said_first() -> None:
    rows = rows_of(taught(WIDE))
    result = result_of(rows, best_1=80.0, label_only=75.0)
    assert not result.control_wins and "No control beats the best graph" in result.verdict
    result = result_of(rows, best_1=80.0, label_only=81.0, **{"KD_T=4": 83.0})
    assert result.control_wins and result.bases == ["label-only", "KD T=4"]
    assert result.verdict.startswith("A control beats the best graph: KD T=4 has 84.00 ± 1.00")
    said = result.as_json()
    assert next(iter(said)) == "verdict" and said["control wins"]


def test_result_says_how_far_its_figures_can_be_believed() -> None:
    rows = rows_of(taught(WIDE))
    result = result_of(rows)
    notes = " ".join(result.notes)
    assert "1,000 images" in notes and "teachers of its own" in notes and "leaves" not in notes
    given = Result(result.rows, result.samples, {}, result.looks, 1000, one_teacher=["KD T=1"])
    assert "leaves the teacher's out: KD T=1." in " ".join(given.notes)
    nothing = Result(result.rows, dict.fromkeys(rows), {}, result.looks, 1000)
    assert nothing.notes == [] and nothing.verdict == ""
