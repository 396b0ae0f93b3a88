"""Every search under recipes/: its header, the paper's procedure, and a trial of one update."""

import re
from pathlib import Path

import pytest

from timm_ktg.errors import RecipeError
from timm_ktg.recipe.recipe import check_section, load_recipe, read_recipe
from timm_ktg.recipe.search_command import parse_search
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.pruning import rungs
from timm_ktg.search.space import build_choices

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*search*.yaml")
)
PAPERS = [name for name in NAMES if re.search(r"/search-\d$", name)]
R32, R110, WRN = "resnet32_cifar", "resnet110_cifar", "wrn28_2_cifar"
# Top-1 of the searched graphs on CIFAR-100 by number of nodes, and the paper's table.
SEARCHED = {
    2: ("72.88 ± 0.41", "Tab. 2"),
    3: ("73.46 ± 0.28", "Tab. 2"),
    4: ("74.06 ± 0.34", "Tab. 2"),
    5: ("74.18 ± 0.21", "Tab. 3"),
}


def loaded(name: str) -> SearchRecipe:
    return check_section(SearchRecipe, read_recipe(FOLDER / f"{name}.yaml"))


def test_searches_are_there() -> None:
    folders = ("cifar10", "cifar100", "tiny-imagenet")
    assert set(PAPERS) == {f"{folder}/search-{n}" for folder in folders for n in (2, 3, 4, 5)}
    assert set(NAMES) - set(PAPERS) == {"digits-search", "cifar100-mini/search"}


@pytest.mark.parametrize("name", NAMES)
def test_header_says_what_it_is_and_how_to_run_it(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert re.search(r"(^# |\. )Paper: .*\. Measured: .+\.$", "\n".join(header), re.MULTILINE)
    assert f"# Run: accelerate launch -m timm_ktg.search {name}" in header
    assert parse_search([name], "prog").recipe == loaded(name)


def test_search_is_nothing_to_train() -> None:
    with pytest.raises(RecipeError, match=r"^search: .*timm_ktg\.search.*best\.yaml\.$"):
        load_recipe("digits-search")


@pytest.mark.parametrize("name", PAPERS)
def test_search_is_the_papers(name: str) -> None:
    recipe = loaded(name)
    search, nodes = recipe.search, int(name[-1])
    assert (search.nodes, search.target_model) == ([nodes], R32)
    assert sorted(search.models) == sorted([R32, R110, WRN])
    assert [gate.shown for gate in search.gates] == ["through", "cutoff", "linear", "correct"]
    assert (search.sampler, search.unique, search.frozen) == ("random", False, False)
    assert (search.pruner, search.min_resource, search.reduction_factor) == ("asha", 1, 2)
    assert (search.trials, search.final_seeds) == (1500, [0, 1, 2, 3, 4])
    assert recipe.data.holdout == 10_000
    assert build_choices(search).size == 3 ** (nodes - 1) * 4 ** (nodes**2)
    last = 64 if name.startswith("tiny-imagenet") else 128
    found = rungs(recipe.train.epochs, search.min_resource, search.reduction_factor)
    assert found == tuple(2**k for k in range(last.bit_length()))
    # All else is as in the paper's other recipes.
    other = read_recipe(FOLDER / f"{name.split('/')[0]}/dml-2.yaml")
    own = read_recipe(FOLDER / f"{name}.yaml")
    assert own["train"] == other["train"]
    assert {**own["data"], "holdout": 0} == {**other["data"], "holdout": 0}
    if name.startswith("cifar100/"):
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        figure, table = SEARCHED[nodes]
        assert f"Paper: {figure} % top-1 ({table}, ResNet-32, mean of 5)." in text


@pytest.mark.parametrize(
    ("epochs", "first", "factor", "expected"),
    [
        (200, 1, 2, (1, 2, 4, 8, 16, 32, 64, 128)),
        (40, 5, 2, (5, 10, 20, 40)),
        (8, 1, 2, (1, 2, 4, 8)),
        (30, 1, 3, (1, 3, 9, 27)),
        (3, 4, 2, ()),
    ],
)
def test_rungs(epochs: int, first: int, factor: int, expected: tuple[int, ...]) -> None:
    assert rungs(epochs, first, factor) == expected
