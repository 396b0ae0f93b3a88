"""Every search under recipes/: its header, the paper's procedure, and a trial of one update."""

import math
import re
from itertools import islice
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.tiny_data import rows, save
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.recipe import bundled_recipes, check_section, load_recipe, read_recipe
from timm_ktg.recipe.search_command import parse_search
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.pruning import rungs
from timm_ktg.search.recipes import candidates_recipe
from timm_ktg.search.space import build_choices
from timm_ktg.train.loop import start_epoch, train_epoch
from timm_ktg.train.training import build_training

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = [name for name, path in bundled_recipes().items() if "search" in read_recipe(path)]
ENSEMBLES = {"ensemble/stanford-dogs": (120, 6000), "ensemble/cub-200": (200, 2997)}
PAPERS = [name for name in NAMES if re.search(r"/search-\d$", name)]
R32, R110, WRN = "resnet32_cifar", "resnet110_cifar", "wrn28_2_cifar"
R18 = "resnet18"
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
    others = {"digits-search", "cifar100-mini/search", "cifar100-mini/ensemble"}
    assert set(NAMES) - set(PAPERS) == others | ENSEMBLES.keys()


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


@pytest.mark.parametrize("name", ENSEMBLES)
def test_search_for_an_ensemble_is_that_of_its_authors(name: str) -> None:
    recipe = loaded(name)
    search, data, train = recipe.search, recipe.data, recipe.train
    assert (search.objective, search.target_model, search.models) == ("ensemble", R18, [R18])
    assert [gate.shown for gate in search.gates] == ["through", "cutoff", "correct", "linear"]
    assert (len(search.losses), search.label_losses) == (6, [])
    assert (search.sampler, search.trials, search.auxiliary_kinds) == ("random", 6000, ("learns",))
    assert (search.pruner, search.min_resource, search.reduction_factor) == ("asha", 1, 2)
    assert build_choices(search).size == 6**2 * 4**4
    assert (train.epochs, train.batch_size, train.opt) == (300, 16, "momentum")
    assert (train.lr, train.weight_decay, train.smoothing) == (0.1, 1e-4, 0)
    assert (data.holdout, data.mean, data.std) == (ENSEMBLES[name][1], (0, 0, 0), (1, 1, 1))
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert ("72.60 %" in text) == (name == "ensemble/stanford-dogs")


@pytest.mark.parametrize("name", ENSEMBLES)
def test_graph_with_all_losses_of_an_ensembles_search_is_built_and_stepped(
    name: str, workplace: Path
) -> None:
    classes, _ = ENSEMBLES[name]
    recipe = loaded(name)
    hub = Path(recipe.data.dataset)
    save(hub, **{split: rows(18, classes, ["image", "label"]) for split in ("train", "test")})
    small = {"holdout": 2, "img_size": 64, "workers": 0}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=small)})
    training = build_training(candidates_recipe(recipe), Accelerator())
    assert training.graph.target == "ensemble" and len(training.graph.edges) > 12
    metrics = train_epoch(training, islice(start_epoch(training), 1))
    assert all(math.isfinite(value) for value in metrics.values())


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
