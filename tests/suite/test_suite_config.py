"""A suite is checked whole before anything is trained, and each problem takes a line."""

import copy
import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_cases import Values
from tests.suite.suite_values import METHODS, suite_of, suite_values, write_suite
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.suite_config import load_suite

SUITES = sorted((Path(__file__).parents[2] / "recipes" / "evidence").glob("*.yml"))
assert SUITES


def problems(path: Path, **changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        suite_of(path, **changes)
    return list(caught.value.problems)


def test_names_that_nothing_has_are_said_with_the_nearest(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    methods["kd"]["weights"] = {"t": "techer"}
    assert problems(tmp_path, bases=["alon"], methods=methods) == [
        "bases.0: `alon` is no method. Methods: alone, teacher, kd. Did you mean `alone`?",
        "methods.kd.weights.t: `techer` is no method. Methods: alone, teacher, kd. Did you mean "
        "`teacher`?",
    ]


def test_graph_was_found_on_a_data_set_of_the_suite(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    methods["kd"]["found_on"] = "digit"
    assert problems(tmp_path, methods=methods) == [
        "methods.kd.found_on: should be a data set of the suite. Found digit."
    ]


def test_methods_that_need_each_others_weights_are_refused(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    methods["teacher"]["weights"] = {"a": "kd"}
    assert problems(tmp_path, methods=methods)[0] == (
        "methods.teacher.weights: should not lead back to teacher, which then would need its own "
        "weights."
    )


def test_problem_of_a_recipe_names_method_and_data_set(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    methods["alone"]["train"] = {"lrr": 0.1}
    assert problems(tmp_path, methods=methods) == [
        "alone on digits: train.lrr: unknown key. Did you mean `lr`?"
    ]


@pytest.mark.parametrize("where", ["datasets.digits.train.seed", "methods.alone.train.seed"])
def test_seeds_are_those_of_the_data_set(where: str, tmp_path: Path) -> None:
    values = suite_values()
    section, name, *_ = where.split(".")
    train = {**values[section][name].get("train", {}), "seed": 7}
    values[section][name]["train"] = train
    assert problems(tmp_path, **{section: values[section]}) == [
        f"{where}: should be left out, because the data set names the seeds."
    ]


def test_model_names_are_those_of_the_data_set(tmp_path: Path) -> None:
    recipe = suite_of(tmp_path).recipe("digits", "alone", 3, {})
    assert recipe.graph.nodes["a"].title == "ktg_tiny"
    assert recipe.train.seed == 3


def test_teacher_has_a_seed_of_its_own(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    seeds = {suite.seed("teacher", seed) for seed in range(5)}
    assert len(seeds) == 5 and seeds.isdisjoint(range(5))


def test_teachers_come_with_the_methods_that_need_them(tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["digits"]["methods"] = ["kd"]
    suite = load_suite(write_suite(tmp_path / "s.yml", values))
    assert suite.methods_of("digits") == ["teacher", "kd"]


def test_digest_changes_with_a_teachers_settings_and_not_with_the_place(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    methods = copy.deepcopy(METHODS)
    methods["teacher"]["train"] = {"lr": 0.01}
    other = suite_of(tmp_path, methods=methods)
    assert other.digest("digits", "kd") != suite.digest("digits", "kd")
    assert other.digest("digits", "alone") == suite.digest("digits", "alone")
    moved = load_suite(tmp_path / "s.yml", {"digits": "photos"})
    assert moved.recipe("digits", "kd", 0, {}).data.dataset == "photos"
    assert moved.digest("digits", "kd") == other.digest("digits", "kd")


@pytest.mark.parametrize("change", [{"dataset": "photos"}, {"test_split": "val"}])
def test_digest_changes_with_the_images_of_a_figure(change: Values, tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["digits"]["data"] |= change
    other = load_suite(write_suite(tmp_path / "other.yml", values))
    for method in METHODS:
        assert other.digest("digits", method) != suite_of(tmp_path).digest("digits", method)


def test_figures_need_a_test_split(tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["digits"]["data"]["test_split"] = None
    with pytest.raises(RecipeError, match=r"^datasets\.digits\.data\.test_split: should name a"):
        load_suite(write_suite(tmp_path / "s.yml", values))


@pytest.mark.parametrize("name", ["uoft/d", "../x", ".x", ""])
def test_names_are_those_of_folders(name: str, tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"][name] = values["datasets"]["digits"]
    values["methods"][name] = values["methods"]["alone"]
    with pytest.raises(RecipeError) as caught:
        load_suite(write_suite(tmp_path / "s.yml", values))
    for line, section in zip(caught.value.problems, ("datasets", "methods"), strict=True):
        assert line.startswith(f"{section}.{name}: should be a name of letters")


def test_digest_leaves_out_what_has_its_default(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    methods = copy.deepcopy(METHODS)
    methods["alone"]["train"] = {"clip_mode": "norm"}
    assert suite_of(tmp_path, methods=methods).digest("digits", "alone") == suite.digest(
        "digits", "alone"
    )


def test_weights_of_another_model_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    methods["kd"]["graph"]["nodes"]["t"]["model"] = "resnet8_cifar"
    assert problems(tmp_path, methods=methods) == [
        "methods.kd.weights.t: teacher should train resnet8_cifar on digits. Found ktg_tiny."
    ]


def test_teachers_are_given_by_weights(tmp_path: Path) -> None:
    methods = copy.deepcopy(METHODS)
    del methods["kd"]["weights"]
    methods["kd"]["graph"]["nodes"]["t"]["train_first"] = True
    (line,) = problems(tmp_path, methods=methods)
    assert line.startswith("methods.kd.graph.nodes.t.train_first: should be off in a suite")


@pytest.mark.parametrize(
    "changes",
    [
        {"bases": [["kd"]]},
        {"bases": "kd"},
        {"methods": {"alone": ["x"]}},
        {"methods": {"alone": {"weights": {"a": ["kd"]}, "graph": {}}}},
        {"datasets": {"digits": {"weights_from": ["a"], "seeds": [0]}}},
        {"datasets": {"digits": {"seeds": [0], "methods": []}}},
        {"datasets": {"digits": None}},
    ],
)
def test_values_of_a_wrong_kind_take_a_line_each(changes: Values, tmp_path: Path) -> None:
    assert all("\n" not in line for line in problems(tmp_path, **changes))


def test_place_of_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    path = write_suite(tmp_path / "s.yml", suite_values())
    with pytest.raises(RecipeError, match="data: digit is no data set of the suite. It has digits"):
        load_suite(path, {"digit": "x"})


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_bundled_suite_is_right(path: Path) -> None:
    suite = load_suite(path)
    for dataset, each in suite.datasets.items():
        if each.shown:  # the page compares with the bases
            assert set(suite.bases) <= set(suite.methods_of(dataset))


def test_kept_logs_name_no_path_of_a_machine() -> None:
    logs = sorted(SUITES[0].parent.glob("logs/*/*.jsonl.gz"))
    assert logs
    for log in logs:
        with gzip.open(log, "rt", encoding="utf-8") as lines:
            assert '"/' not in lines.readline(), log.name
