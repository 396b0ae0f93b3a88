"""The values of the recipes that tests train, check, change and write."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import yaml

import tests.nets  # noqa: F401 registers ktg_tiny
from tests.tiny_data import VAL, small_digits
from timm_ktg.errors import RecipeError
from timm_ktg.graph.weights import export_node
from timm_ktg.recipe.recipe import check_recipe

Values = dict[str, Any]
Refused = Callable[..., list[str]]

MUTUAL: Values = {
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "b": "correct"}},
    "b": {
        "model": "ktg_tiny",
        "model_kwargs": {"width": 6},
        "learns_from": {"label": "linear", "a": {"gate": "through", "temperature": 2.0}},
    },
}
NORMED: Values = {
    name: {**node, "model_kwargs": {**node.get("model_kwargs", {}), "norm": True}}
    for name, node in MUTUAL.items()
}
PLAIN: Values = {"a": {"model": "ktg_tiny", "learns_from": {"label": "through"}}}
NO_AUGMENTATION: Values = {"pad": 0, "hflip": 0.0}
TWO: Values = {"learns_from": {"label": "through", "helper": "through"}}
LABEL_ONLY: Values = {"learns_from": {"label": "through"}}


def recipe_values(
    nodes: Values = MUTUAL, data: Values | None = None, graph: Values | None = None, **train: Any
) -> dict[str, Values]:
    """The values of a recipe that trains in a second, in float32 on every CPU."""
    own = {"epochs": 2, "batch_size": 64, "lr": 0.05, "sched": "cosine", "mixed_precision": "no"}
    return {
        "graph": {"target": "a", "nodes": copy.deepcopy(nodes), **(graph or {})},
        "data": {"dataset": small_digits(), "holdout": VAL, "pad": 1, **(data or {})},
        "train": {**own, **train},
    }


def recipe(
    student: Values = LABEL_ONLY,
    helper: Values | None = None,
    *,
    data: Values | None = None,
    graph: Values | None = None,
    train: Values | None = None,
) -> dict[str, Values]:
    """The same of a student, and maybe its helper, of the package's smallest model."""
    nodes = {"student": student} | ({} if helper is None else {"helper": helper})
    nodes = {name: {"model": "resnet8_cifar", **node} for name, node in nodes.items()}
    graph = {"target": "student", **(graph or {})}
    return recipe_values(nodes, {"holdout": 0, **(data or {})}, graph, **(train or {}))


def changed(path: str, value: Any) -> dict[str, Values]:
    """The values of a recipe of two nets, with the value at one path replaced."""
    values = section = recipe(TWO, LABEL_ONLY)
    *parents, last = path.split(".")
    for key in parents:
        section = section[key]
    section[last] = value
    return values


def write_recipe(path: Path, values: Values | str) -> Path:
    text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def write(values: Values | str, path: str = "recipe.yaml") -> str:
    """Write a recipe into the working directory, and return what a command line calls it."""
    return str(write_recipe(Path(path), values))


def problems_of(values: Values) -> tuple[str, ...]:
    """All problems of a recipe's values; nothing is built."""
    try:
        check_recipe(values)
    except RecipeError as error:
        return error.problems
    return ()


def save_weights(path: str, model: str = "resnet8_cifar", classes: int = 10) -> str:
    """Export a net's random weights, and return where they are."""
    export_node(timm.create_model(model, num_classes=classes), Path(path))
    return path
