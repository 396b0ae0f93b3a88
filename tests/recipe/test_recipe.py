"""Loading, checking and saving recipes. Their errors: test_recipe_errors.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.recipe_cases import TWO, recipe, save_weights, write
from tests.tiny_data import small_digits
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.recipe import (
    bundled_recipes,
    check_recipe,
    find_recipe,
    load_recipe,
    name_recipe,
    read_recipe,
    same_run,
    save_recipe,
)
from timm_ktg.recipe.search_command import parse_search

pytestmark = pytest.mark.usefixtures("workplace")

NODE = "{model: resnet8_cifar, learns_from: {label: through}}"


def loaded(student: str = NODE, more: str = "") -> Any:
    write(f"graph:\n  target: student\n  nodes:\n    student: {student}\n{more}", "mine.yaml")
    return load_recipe("mine.yaml")


BUNDLED = bundled_recipes().items()
GRAPHS = [name for name, path in BUNDLED if "search" not in read_recipe(path)]


@pytest.mark.parametrize("name", GRAPHS)
def test_bundled_recipe_survives_being_saved(name: str) -> None:
    values = read_recipe(find_recipe(name))
    for node in values["graph"]["nodes"].values():
        if "checkpoint_path" in node:
            save_weights(node["checkpoint_path"], node["model"])
    mine = load_recipe(name)
    save_recipe(mine, Path("saved.yaml"))
    assert load_recipe("saved.yaml") == mine


def test_recipe_with_every_kind_of_value_survives_being_saved() -> None:
    smooth = {"loss": "cross_entropy", "loss_kwargs": {"smoothing": 0.1}}
    soft = {"gate": "linear", "temperature": 3.0}
    student = {"learns_from": {"label": smooth, "helper": soft}, "taps": ["layer1"], "seed": 7}
    helper = {"checkpoint_path": save_weights("w.safetensors"), "model_kwargs": {"stem_stride": 2}}
    mine = check_recipe(
        recipe(
            student,
            helper,
            graph={"reduction": "mean", "keep": ["helper"]},
            data={"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1e-3], "test_split": None},
            train={"opt_kwargs": {"eps": 1e-8}, "mixed_precision": "no", "clip_grad": 1},
        )
    )
    saved, again = Path("saved.yaml"), Path("again.yaml")
    save_recipe(mine, saved)
    assert load_recipe("saved.yaml") == mine
    save_recipe(load_recipe("saved.yaml"), again)
    assert saved.read_bytes() == again.read_bytes()


def test_saved_recipe_spells_every_field_out() -> None:
    save_recipe(check_recipe(recipe()), Path("saved.yaml"))
    values = read_recipe(Path("saved.yaml"))
    mine = load_recipe("saved.yaml")
    assert values["train"].keys() == type(mine.train).model_fields.keys()
    assert values["data"].keys() == type(mine.data).model_fields.keys()
    assert values["graph"]["nodes"]["student"]["learns_from"] == {"label": "through"}


def test_field_that_recipes_had_before_changes_nothing() -> None:
    mine = check_recipe(recipe())
    values = mine.model_dump(mode="json")
    before = {**values, "train": {**values["train"], "node_threads": 2, "capture": "never"}}
    write(before, "before.yaml")
    assert load_recipe("before.yaml") == mine
    assert same_run(before, values)


@pytest.mark.parametrize("written", ["5e-4", "5.0e-4", "0.0005", "'5e-4'"])
def test_number_may_be_written_in_any_way(written: str) -> None:
    assert loaded(more=f"train: {{lr: {written}}}").train.lr == 5e-4


def test_number_among_free_arguments_is_a_number() -> None:
    mine = loaded(
        "{model: resnet8_cifar, model_kwargs: {drop_rate: 1e-1}, learns_from: "
        "{label: {loss: cross_entropy, loss_kwargs: {smoothing: 1e-1}}}}",
        "train: {opt: adamw, opt_kwargs: {eps: 1e-8}}",
    )
    student = mine.graph.nodes["student"]
    assert mine.train.opt_kwargs == {"eps": 1e-8}
    assert student.model_kwargs == {"drop_rate": 0.1}
    assert student.learns_from["label"].loss_kwargs == {"smoothing": 0.1}


def test_precision_no_may_be_written_bare() -> None:
    assert loaded(more="train: {mixed_precision: no}").train.mixed_precision == "no"


def test_edge_written_as_a_word_is_its_gate() -> None:
    word = loaded("{model: resnet8_cifar, learns_from: {label: linear}}")
    spelled = loaded("{model: resnet8_cifar, learns_from: {label: {gate: linear}}}")
    empty = loaded("{model: resnet8_cifar, learns_from: {label: {}}}")
    assert word == spelled and word.graph.nodes["student"].learns_from["label"].temperature == 1
    assert empty.graph.nodes["student"].learns_from["label"].gate == "through"


def test_sections_may_be_left_out() -> None:
    assert loaded() == loaded(more="data: {}\ntrain: {epochs: 200}")


def test_defaults_are_those_of_the_paper() -> None:
    train = loaded().train
    assert (train.opt, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (train.epochs, train.batch_size, train.sched, train.decay_epochs) == (
        200,
        64,
        "step",
        60,
    )
    assert (train.filter_bias_and_bn, train.smoothing, train.warmup_epochs) == (False, 0, 0)


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded().train.lr = 1.0


def test_bundled_recipe_is_found_by_name_and_by_path() -> None:
    bundled = bundled_recipes()
    assert {"digits", "own-images", "cifar100/kd", "tiny-imagenet/dml-4"} <= bundled.keys()
    assert find_recipe("digits") == bundled["digits"]
    assert find_recipe(str(bundled["cifar100/dml-2"])) == bundled["cifar100/dml-2"]
    assert load_recipe("digits") == load_recipe(str(bundled["digits"]))


def test_file_wins_over_a_bundled_recipe_and_a_folder_does_not() -> None:
    Path("digits").mkdir()
    assert find_recipe("digits") == bundled_recipes()["digits"]
    Path("digits").rmdir()
    write(recipe(TWO, {"learns_from": {"label": "through"}}), "digits")
    assert find_recipe("digits") == Path("digits")
    assert load_recipe("digits").data.dataset == small_digits()


def test_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"recipe: `cifar100/dml2` .* Did you mean `cifar100/dml"):
        find_recipe("cifar100/dml2")
    with pytest.raises(RecipeError, match=r"recipe: `mine\.yml` is neither a file nor a bundled"):
        find_recipe("mine.yml")


def test_directory_of_a_search_names_the_recipes_in_it() -> None:
    folder = Path("runs/search")
    folder.mkdir(parents=True)
    for name, said in (
        ("search.yaml", ", with no best.yaml so far. The search's recipe is runs/search/search"),
        ("best.yaml", ". The recipe of its best graph is runs/search/best.yaml."),
    ):
        (folder / name).touch()
        with pytest.raises(RecipeError) as caught:
            find_recipe("runs/search")
        (line,) = caught.value.problems
        assert line.startswith(f"recipe: `runs/search` is a search's directory{said}")


def test_directory_without_a_recipe_is_refused_without_a_list_of_recipes() -> None:
    Path("empty").mkdir()
    with pytest.raises(RecipeError) as caught:
        find_recipe("empty")
    assert caught.value.problems == (
        "recipe: `empty` is neither a file nor a bundled recipe. It is a directory without a "
        "recipe.yaml.",
    )


@pytest.mark.parametrize("graph", ["digits-search", "empty.yaml"])
def test_graph_of_a_recipe_without_one_is_said_to_be_missing(graph: str) -> None:
    Path("empty.yaml").write_text("graph:")
    with pytest.raises(RecipeError) as caught:
        parse_command(["digits", "--graph", graph], "train")
    (line,) = caught.value.problems
    assert line.startswith("graph: should be given. Found none.") and "best.yaml" in line


def test_search_of_a_recipe_to_train_names_the_program_for_it() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_search(["digits", "--search.nodes", "2"], "search")
    assert caught.value.problems == (
        "graph: this recipe has a graph to train, and no search. Train it: accelerate launch -m "
        "timm_ktg.train digits",
    )


def test_run_is_called_after_its_recipe() -> None:
    bundled = bundled_recipes()
    assert name_recipe(find_recipe("digits")) == "digits"
    assert name_recipe(bundled["cifar100/dml-2"]) == "cifar100/dml-2"
    assert name_recipe(Path("experiments/mine.yaml")) == "mine"
    assert name_recipe(Path("runs/third-2/recipe.yaml")) == "third-2"
    here = Path("recipe.yaml")
    assert name_recipe(here) == Path.cwd().name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should be a mapping of sections"),
        ("- graph\n", "should be a mapping of sections"),
        ("graph: [\n", "should be YAML"),
        ("graph:\n\ttarget: a\n", "should be YAML"),
    ],
)
def test_file_that_is_no_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^mine\.yaml: {said}") as caught:
        load_recipe(write(text, "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_file_of_other_bytes_is_refused() -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"^mine\.yaml: should be YAML"):
        load_recipe("mine.yaml")


def test_key_written_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="student"):
        loaded(more=f"    student: {NODE}\n")
