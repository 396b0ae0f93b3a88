"""What a search refuses before its first trial."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

import timm_ktg as ktg
from tests.recipe_cases import write_recipe
from tests.search_cases import run_search, search_values
from tests.tiny_data import TRAIN, VAL
from timm_ktg.errors import RecipeError
from timm_ktg.graph import gates
from timm_ktg.recipe.search_command import parse_search

pytestmark = pytest.mark.slow


@pytest.fixture
def bad_gates() -> Iterator[None]:
    def hollow(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses * float("nan")

    def scalar(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses.mean()

    with gates.registry.isolated():
        ktg.register_gate(hollow)
        ktg.register_gate(scalar)
        yield


@pytest.mark.parametrize("flag", [[], ["--dry-run"]])
def test_search_calls_every_gate_before_its_first_trial(
    tmp_path: Path, bad_gates: None, flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(gates=["through", "cutoff", "hollow", "scalar"])
    recipe = write_recipe(tmp_path / "s.yaml", values)
    assert run_search(recipe, "--output-dir", tmp_path / "run", *flag) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in said] == ["search.gates.2", "search.gates.3"]
    assert "hollow" in said[0] and "scalar" in said[1]
    assert not (tmp_path / "run").exists()


def test_single_image_of_the_last_trainings_is_seen_before_the_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(nodes=1, models=[], target_model="resnet10t", gates=["through"])
    batch = TRAIN + VAL - 1  # only with the images that were held out, one is left over
    values["train"]["batch_size"] = batch
    recipe = write_recipe(tmp_path / "s.yaml", values)
    assert run_search(recipe, "--dry-run", "--search.final_seeds", "[]") == 0
    assert run_search(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = f"leaves a single image for an update: {TRAIN + VAL} images, {batch} a batch"
    assert line.startswith(f"train.batch_size: {said}") and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///x.db", "Found SQLite, which breaks when workers start together."),
        ("posgresql://host/db", "for several. Did you mean `postgresql`?"),
        ("mysql://host/db", "for several. Found the URL of another database."),
    ],
)
def test_other_databases_are_refused_before_anything_is_written(
    url: str,
    said: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values(storage=url))
    assert run_search(recipe, "--output-dir", tmp_path / "run", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("search.storage: should be ") and line.endswith(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", [["--data.val_split", "dev", "--data.holdout", "0"], []])
def test_search_tests_its_graphs_on_test_images_only(split: list[str]) -> None:
    flags = ["digits-search", "--data.test_split", "null", *split]
    with pytest.raises(RecipeError) as caught:
        parse_search(flags, "prog")
    assert list(caught.value.problems) == [
        "data.test_split: should name a split, because the best graphs are tested on it. With "
        "search.top_k: 0, nothing is tested."
    ]
    for nothing in (["--search.top_k", "0"], ["--search.final_seeds", "[]"]):
        assert parse_search([*flags, *nothing], "prog").recipe.data.test_split is None


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../x", "..", "", ".", "a\0b"])
def test_search_study_name_that_leaves_the_directory_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="search.study: should name a folder below runs"):
        parse_search(["digits-search", "--search.study", name], "prog")


def test_search_study_name_may_be_a_path_below(tmp_path: Path) -> None:
    command = parse_search(["digits-search", "--search.study", "mine/first..try"], "prog")
    assert command.recipe.search.study == "mine/first..try"


def test_directory_of_another_study_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(trials=1, top_k=0)
    place, run = ("--output-dir", tmp_path / "run"), tmp_path / "run"
    assert run_search(write_recipe(tmp_path / "s.yaml", values), *place) == 0
    before = (run / "search.yaml").read_bytes(), (run / "result.json").read_bytes()
    capsys.readouterr()
    other = write_recipe(tmp_path / "t.yaml", values)
    for flags in ([], ["--dry-run"]):
        assert run_search(other, *place, *flags) == 2
        said = f"output-dir: {run} is that of study `s`. Choose another for `t`.\n"
        assert capsys.readouterr().err == said
    assert ((run / "search.yaml").read_bytes(), (run / "result.json").read_bytes()) == before
    assert run_search(other, *place, "--search.study", "s") == 0
